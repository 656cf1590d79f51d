"""The clients of the kills and of the soak: what they take for broken, refused and answered."""

from __future__ import annotations

from contextlib import closing

from loadtests.kills import Caller
from loadtests.processes import free_ports
from tests.loadtests.answering import answering

HEAD = b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"


async def test_a_caller_keeps_its_connection_or_does_not() -> None:
    async with answering(lambda _: 200) as port:
        url = f"http://127.0.0.1:{port}"
        with closing(Caller(url, keep=True)) as kept, closing(Caller(url, keep=False)) as anew:
            (first, body), (second, _) = [await kept.ask(HEAD, b"") for _ in range(2)]
            each = [(await anew.ask(HEAD, b""))[0] for _ in range(2)]
    assert (first.error, second.error, body) == ("", "", b"body")
    assert first.connected_s == second.connected_s <= first.sent_s
    assert each[0].connected_s < each[1].connected_s


async def test_a_caller_tells_what_became_of_a_request_and_connects_again() -> None:
    wanted = [None, 503, 200]
    async with answering(lambda _: wanted.pop(0)) as port:
        with closing(Caller(f"http://127.0.0.1:{port}", keep=True)) as caller:
            asked = [(await caller.ask(HEAD, b""))[0] for _ in range(3)]
    assert [each.error for each in asked] == ["broken", "status 503", ""]
    [closed] = free_ports(1)
    with closing(Caller(f"http://127.0.0.1:{closed}", keep=True)) as caller:
        refused, _ = await caller.ask(HEAD, b"")
    assert refused.error == "refused"
