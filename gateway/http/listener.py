"""The gateway's HTTP listeners: uvicorn on sockets that other gateway processes share."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any, Literal

import uvicorn

from headrace.config.args import split_address
from headrace.errors import ConfigError

BACKLOG = 2048


class _Server(uvicorn.Server):
    """uvicorn's server, woken by an event in place of a look ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.leave = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.leave.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for _ in range(3):  # the loop closes idle connections meanwhile
            await asyncio.sleep(0)
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals belong to Ray's worker; and this is not the main thread."""
        yield


class HttpListener:
    """An ASGI application on an address; `protocol` is uvicorn's HTTP protocol class."""

    def __init__(
        self,
        app: Any,
        address: str,
        idle_timeout_s: float,
        protocol: type[asyncio.Protocol] | Literal["httptools"] = "httptools",
    ) -> None:
        self._socket = shared_socket(address)
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=round(idle_timeout_s),
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Host and port, the real one where the config says 0."""
        host, port, *_ = self._socket.getsockname()
        return f"{host}:{port}"

    @property
    def started(self) -> bool:
        """Whether it accepts connections."""
        return self._server.started and self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Listen; raises `ConfigError` if no connections can be accepted."""
        # Only now: the kernel gives connections to every socket of the port that listens.
        self._socket.listen(BACKLOG)
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            await asyncio.sleep(0.001)
            if self._task.done():
                await self._task
                raise ConfigError(f"cannot listen on {self.address}")

    async def stop(self, timeout_s: float) -> None:
        """Stop accepting, let open requests end within `timeout_s`, then cut them off."""
        self._server.config.timeout_graceful_shutdown = max(1, round(timeout_s))
        self._server.leave.set()
        if self._task is not None:
            await self._task
        self._socket.close()


def shared_socket(address: str) -> socket.socket:
    """A bound socket, not listening yet, that other processes of this user may bind too."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {address}: {error.strerror}; stop what uses it, "
            "or choose another port under `listen`"
        ) from error
    return bound
