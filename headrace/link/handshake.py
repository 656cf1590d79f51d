"""Proof of both ends of the link that they know the cluster's secret, before anything else is read.

HELLO (client) → WELCOME with the server's proof → PROOF of the client. A proof is an HMAC-SHA256
over both messages, so neither a nonce nor a feature can be exchanged on the way.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from headrace.errors import LinkError
from headrace.link.frames import MAX_FRAME_BYTES, PART_BYTES, Buffer, Frame, Kind, encode_frame

MAGIC = "headrace-link"
VERSION = 4
"""The version of HELLO and of the frames; peers of another one are refused."""
FEATURES = frozenset({"shared-memory"})

PeerRole = Literal["data", "control", "pool"]


@dataclass(frozen=True, slots=True)
class Hello:
    """What a peer says of itself. `link_id` joins a link's data and control connections.

    `epoch` is the pool's epoch as far as this peer knows; `node_id` tells whether memory can be
    shared. Unknown keys of a newer release are ignored.
    """

    peer_id: str
    role: PeerRole = "data"
    link_id: str = ""
    node_id: str = ""
    epoch: int = 0
    max_frame_bytes: int = MAX_FRAME_BYTES
    version: int = VERSION
    features: tuple[str, ...] = tuple(sorted(FEATURES))


@dataclass(frozen=True, slots=True)
class Session:
    """The peer, and what both sides agreed on."""

    peer: Hello
    features: frozenset[str]
    max_frame_bytes: int


class ClientHandshake:
    """The side that connects: send `start()`, then give each frame to `receive`."""

    def __init__(self, secret: bytes, hello: Hello) -> None:
        self._secret, self._hello = secret, hello
        self._sent = _encode_hello(hello)

    def start(self) -> bytes:
        """The first bytes on the connection."""
        return encode_frame(Kind.HELLO, self._sent)

    def receive(self, frame: Frame) -> tuple[bytes, Session]:
        """Check WELCOME; gives the bytes to send and the session."""
        if frame.kind != Kind.WELCOME or len(frame.payload) < 32:
            raise LinkError("the peer did not answer HELLO with WELCOME")
        proof, welcome = bytes(frame.payload[:32]), bytes(frame.payload[32:])
        _check(self._secret, b"server", self._sent, welcome, proof)
        answer = encode_frame(Kind.PROOF, _proof(self._secret, b"client", self._sent, welcome))
        return answer, _agree(self._hello, _decode_hello(welcome))


class ServerHandshake:
    """The side that listens: give each frame to `receive` until it gives a session."""

    def __init__(self, secret: bytes, hello: Hello) -> None:
        self._secret, self._hello = secret, hello
        self._heard = b""
        self._said = b""

    def receive(self, frame: Frame) -> tuple[bytes, Session | None]:
        """Answer HELLO, then check PROOF; gives the bytes to send and in the end the session."""
        if not self._heard:
            if frame.kind != Kind.HELLO:
                raise LinkError("the first frame is not HELLO")
            self._heard, self._said = bytes(frame.payload), _encode_hello(self._hello)
            _agree(self._hello, _decode_hello(self._heard))
            proof = _proof(self._secret, b"server", self._heard, self._said)
            return encode_frame(Kind.WELCOME, proof + self._said), None
        if frame.kind != Kind.PROOF:
            raise LinkError("a frame before the peer has proved itself")
        _check(self._secret, b"client", self._heard, self._said, frame.payload)
        return b"", _agree(self._hello, _decode_hello(self._heard))


def _encode_hello(hello: Hello) -> bytes:
    return json.dumps(asdict(hello) | {"magic": MAGIC, "nonce": secrets.token_hex(32)}).encode()


def _decode_hello(payload: Buffer) -> Hello:
    try:
        said: dict[str, Any] = json.loads(bytes(payload))
        if said.get("magic") != MAGIC:
            raise LinkError("the peer does not speak the Headrace link protocol")
        known = {f.name: said[f.name] for f in fields(Hello) if f.name in said}
        known["version"] = int(known["version"])
        known["features"] = tuple(map(str, known["features"]))
        known["max_frame_bytes"] = int(known["max_frame_bytes"])
        known["epoch"] = int(known["epoch"])
        return Hello(**known)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LinkError("the peer's HELLO cannot be read") from error


def _agree(ours: Hello, theirs: Hello) -> Session:
    if theirs.version != ours.version:
        raise LinkError(
            f"the peer's link version is {theirs.version}, ours {ours.version}; "
            "update both to one release"
        )
    frame_bytes = min(ours.max_frame_bytes, theirs.max_frame_bytes)
    if frame_bytes < 2 * PART_BYTES:
        raise LinkError(f"the peer's largest frame of {frame_bytes} bytes does not hold a part")
    features = frozenset(ours.features) & frozenset(theirs.features)
    return Session(theirs, features, frame_bytes)


def _proof(secret: bytes, side: bytes, heard: bytes, said: bytes) -> bytes:
    digest = hashlib.sha256(heard).digest() + hashlib.sha256(said).digest()
    return hmac.digest(secret, side + digest, "sha256")


def _check(secret: bytes, side: bytes, heard: bytes, said: bytes, proof: Buffer) -> None:
    if not hmac.compare_digest(_proof(secret, side, heard, said), bytes(proof)):
        raise LinkError(
            "the peer does not know this cluster's secret: "
            "give every node the same `secret` in the config, or use Ray's token authentication"
        )
