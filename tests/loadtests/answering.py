"""A small HTTP server whose answers a test decides, for the load generators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

Decide = Callable[[bytes], int | None]
"""From a request's head to the status of its answer; None closes the connection without one."""


@asynccontextmanager
async def answering(decide: Decide) -> AsyncIterator[int]:
    """Answer every request while the block lasts; the port on loopback."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                )
                await reader.readexactly(length)
                status = decide(head)
                if status is None:
                    break
                writer.write(b"HTTP/1.1 %d Told\r\nContent-Length: 4\r\n\r\nbody" % status)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()
