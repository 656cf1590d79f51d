"""The gateway's HTTP listeners: uvicorn on sockets that other gateway processes share."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator
from typing import Any, Literal, cast

import uvicorn

from gateway.handshakes import TlsPort, TlsServer
from headrace.errors import ConfigError

BACKLOG = 2048


class _Server(uvicorn.Server):
    """uvicorn's server, woken by an event in place of a look ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.leave = asyncio.Event()
        self.tls: TlsServer | None = None

    def connection(self) -> asyncio.Protocol:
        """The protocol of a new connection, as `startup` makes it."""
        kind: Any = self.config.http_protocol_class
        made: asyncio.Protocol = kind(self.config, self.server_state, self.lifespan.state)
        return made

    def stop_accepting(self) -> None:
        for server in self.servers:
            server.close()
        if self.tls is not None:
            self.tls.close()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.leave.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stop_accepting()
        if self.tls is not None:
            self.tls.abort()
        for listening in sockets or ():
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
    """An ASGI application on a bound socket; `protocol` makes its connections as uvicorn does."""

    def __init__(
        self,
        app: Any,
        bound: socket.socket,
        idle_timeout_s: float,
        protocol: Callable[..., asyncio.Protocol] | Literal["httptools"] = "httptools",
        tls: TlsPort | None = None,
    ) -> None:
        self._socket, self._tls = bound, tls
        config = uvicorn.Config(
            app,
            http=cast(Any, protocol),
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # Whom to believe is for `auth.trusted_proxies` to say.
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
        try:
            self._socket.listen(BACKLOG)
        except OSError as error:  # another program was faster between binding and this
            raise ConfigError(f"cannot listen on {self.address}: {error.strerror}") from error
        loop = asyncio.get_running_loop()
        plain = [] if self._tls is not None else [self._socket]
        self._task = loop.create_task(self._server.serve(sockets=plain))
        while not self._server.started:
            await asyncio.sleep(0.001)
            if self._task.done():
                await self._task
                raise ConfigError(f"cannot listen on {self.address}")
        if self._tls is not None:
            self._server.tls = self._tls.serve(self._socket, self._server.connection)

    def stop_accepting(self) -> None:
        """Leave new connections to others who listen on this socket."""
        self._server.stop_accepting()

    async def stop(self, timeout_s: float) -> None:
        """Stop accepting, let open requests end within `timeout_s`, then cut them off."""
        self._server.config.timeout_graceful_shutdown = max(1, round(timeout_s))
        self._server.leave.set()
        if self._task is not None:
            await self._task
        self._socket.close()
