"""HELLO, WELCOME, PROOF: who does not know the secret is told so, and learns nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.errors import LinkError
from headrace.link.frames import Frame, FrameReader, Kind, encode_frame
from headrace.link.handshake import VERSION, ClientHandshake, Hello, ServerHandshake, Session

SECRET = b"the cluster's secret"


def frame_of(data: bytes) -> Frame:
    (frame,) = FrameReader().feed(data)
    return frame


def shake(
    client_secret: bytes, server_secret: bytes, client: Hello, server: Hello
) -> tuple[Session, Session]:
    """Both sides' sessions after a whole handshake in memory."""
    one, other = ClientHandshake(client_secret, client), ServerHandshake(server_secret, server)
    welcome, nothing = other.receive(frame_of(one.start()))
    assert nothing is None
    proof, at_client = one.receive(frame_of(welcome))
    _, at_server = other.receive(frame_of(proof))
    assert at_server is not None
    return at_client, at_server


def test_both_sides_agree_on_the_lesser_of_what_they_can() -> None:
    client = Hello("gateway-1", role="control", link_id="l", features=("shared-memory", "new"))
    server = Hello("slot-1", max_frame_bytes=300_000)
    at_client, at_server = shake(SECRET, SECRET, client, server)
    assert at_client.peer.peer_id == "slot-1" and at_server.peer.role == "control"
    assert at_client.max_frame_bytes == at_server.max_frame_bytes == 300_000
    assert at_client.features == at_server.features == {"shared-memory"}


@pytest.mark.parametrize(("client", "server"), [(b"wrong", SECRET), (SECRET, b"wrong")])
def test_different_secrets_are_refused_with_what_to_do(client: bytes, server: bytes) -> None:
    with pytest.raises(LinkError, match="give every node the same `secret`"):
        shake(client, server, Hello("gateway"), Hello("slot"))


def test_a_client_that_skips_the_proof_is_refused() -> None:
    server = ServerHandshake(SECRET, Hello("slot"))
    server.receive(frame_of(ClientHandshake(SECRET, Hello("gateway")).start()))
    with pytest.raises(LinkError, match="before the peer has proved itself"):
        server.receive(Frame(Kind.ITEMS, 0, 0, b""))


def test_a_proof_of_another_session_is_refused() -> None:
    client = ClientHandshake(SECRET, Hello("gateway"))
    hello = frame_of(client.start())
    welcome, _ = ServerHandshake(SECRET, Hello("slot")).receive(hello)
    proof, _ = client.receive(frame_of(welcome))
    second = ServerHandshake(SECRET, Hello("slot"))
    second.receive(hello)
    with pytest.raises(LinkError, match="secret"):
        second.receive(frame_of(proof))


def test_the_servers_own_proof_sent_back_is_refused() -> None:
    server = ServerHandshake(SECRET, Hello("slot"))
    welcome, _ = server.receive(frame_of(ClientHandshake(b"?", Hello("gateway")).start()))
    reflected = Frame(Kind.PROOF, 0, 0, bytes(frame_of(welcome).payload[:32]))
    with pytest.raises(LinkError, match="secret"):
        server.receive(reflected)


def test_a_peer_of_another_version_is_told_so() -> None:
    with pytest.raises(LinkError, match=f"link version is {VERSION}, ours {VERSION + 1}"):
        shake(SECRET, SECRET, Hello("gateway"), replace(Hello("slot"), version=VERSION + 1))


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"magic": "headrace-link"}', b"[" * 3000]
)
def test_a_hello_that_cannot_be_read_is_refused(payload: bytes) -> None:
    with pytest.raises(LinkError):
        ServerHandshake(SECRET, Hello("slot")).receive(frame_of(encode_frame(Kind.HELLO, payload)))
