"""A listener in a thread of its own, for commands that block."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from fastapi import FastAPI

from gateway.http.listener import HttpListener
from tests.sockets import bound


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Its address."""
    listener = HttpListener(app, bound(), idle_timeout_s=5)
    started, leave = Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        await listener.start()
        started.set()
        await leave.wait()
        await listener.stop(1)

    thread = Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait(10)
    try:
        yield listener.address
    finally:
        loop.call_soon_threadsafe(leave.set)
        thread.join()
        loop.close()
