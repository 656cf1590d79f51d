"""A listener in a thread of its own, for commands that block."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from fastapi import FastAPI

from gateway.access.visit import BodyMemory
from gateway.certificates import server_context
from gateway.door import Door
from gateway.handshakes import TlsPort
from gateway.http.listener import HttpListener
from headrace.config.args import Limits, Tls
from headrace.metrics import Recorder
from tests.sockets import bound


@contextmanager
def served(app: FastAPI, tls: Tls | None = None) -> Iterator[str]:
    """Its address."""
    port = None
    if tls is not None:
        context = server_context(tls, "http")
        door = Door(Limits(), BodyMemory(1_000_000), Recorder("gateway"))
        port = TlsPort("http", lambda: context, 5.0, door)
    listener = HttpListener(app, bound(), idle_timeout_s=5, tls=port)
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
