"""The body of an upload as it comes over ASGI: piece by piece, never whole, and not too slowly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.types import Receive

from headrace.errors import Cancelled, RequestTimeout

MIN_BYTES_PER_S = 16 * 1024
"""Slower senders hold a place that somebody else could use."""
LINGER_S = 2.0
"""After a refusal we read on for so long, or the reset would overtake the answer."""


class MediaBody:
    """See the module. The server reads no further than what was taken from here.

    `timeout_s` is the client's time in all, and one second more for every `MIN_BYTES_PER_S` that
    have come. What is spent on writing them down does not count. `left` says that the client is
    gone.
    """

    def __init__(self, receive: Receive, timeout_s: float) -> None:
        self._receive, self._timeout_s = receive, timeout_s
        self._waited_s = 0.0
        self.length = 0
        self.complete = self.left = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """The rest of the body. Raises `RequestTimeout`, and `Cancelled` if the client left."""
        while not self.complete:
            piece = await self._next()
            if piece:
                yield piece

    async def _next(self) -> bytes:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        left_s = self._timeout_s + self.length / MIN_BYTES_PER_S - self._waited_s
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout(
                f"the body took too long: {self.length} bytes came in {self._timeout_s:g} s"
            ) from None
        self._waited_s += loop.time() - began_s
        if message["type"] == "http.disconnect":
            self.left = True
            raise Cancelled("the caller left before the body was complete")
        self.complete = not message.get("more_body", False)
        piece: bytes = message.get("body", b"")
        self.length += len(piece)
        return piece

    async def gone(self) -> None:
        """Returns when the client has left; the body has to be complete."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.left = True

    async def discard(self) -> None:
        """Read and drop what still comes, until the client stops or the time is over."""
        try:
            async with asyncio.timeout(LINGER_S):
                while not self.complete:
                    message = await self._receive()
                    self.complete = not message.get("more_body", False)
        except TimeoutError:
            pass
