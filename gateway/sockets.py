"""The sockets that a gateway listens on, which the node's keeper holds with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from gateway import keeper
from headrace.config.args import split_address
from headrace.errors import ConfigError, Unavailable
from headrace.files import hold, locked

HOLD_S = 30.0
"""How long connections wait for a gateway after the last one has died; then they are refused."""
ANSWER_S = 10.0
LEAVE_S = 3.0
"""How long a gateway that stops waits for the keeper's answer."""
AGAIN_S = 1.0
ATTEMPTS = 3

log = structlog.get_logger()


class HeldSockets:
    """Bound sockets by listener, shared with the gateways of one application on this node.

    Raises `ConfigError` for an address that cannot be used. `owner` is the process that starts
    gateways: nobody waits any more once it has ended.
    """

    def __init__(
        self,
        folder: Path,
        application: str,
        addresses: Mapping[str, str],
        owner: int | None = None,
        hold_s: float = HOLD_S,
    ) -> None:
        self._path, self._hold_s = folder / "keeper.sock", hold_s
        self._owner = os.getppid() if owner is None else owner
        self._names = {
            listener: (application, listener, *split_address(address))
            for listener, address in addresses.items()
        }
        self._sockets: dict[str, socket.socket] = {}
        self._serving: list[str] = []
        self._closed = False
        self._others: asyncio.Future[bool] | None = None
        self._connection = self._join()

    def __getitem__(self, listener: str) -> socket.socket:
        """A socket to listen on, for the caller to close."""
        return self._sockets[listener].dup()

    def serve(self, *listeners: str) -> None:
        """Tell the keeper that these (all, without any) accept connections: it does not shut them.

        Said just before it is so. If we die others may wait.
        """
        self._serving += listeners or self._names
        self._send({"serve": self._serving})

    async def leave(self) -> bool:
        """Tell the keeper that this gateway stops; whether others on this node go on accepting.

        True also where the keeper does not answer: sockets that others may use must not be shut.
        """
        self._others = asyncio.get_running_loop().create_future()
        self._send({"leave": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                return await self._others
        return True

    def shut(self) -> None:
        """Refuse connections from now on, wherever these sockets are open."""
        for each in self._sockets.values():
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the sockets; the keeper closes those of a gateway that left as the last one."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # `watch`, which reads from it, closes it
        for each in self._sockets.values():
            each.close()

    async def watch(self) -> None:
        """Replace the keeper whenever it ends, until `close`."""
        loop = asyncio.get_running_loop()
        while True:
            answer = await self._hear(loop)
            if answer:
                if self._others is not None and not self._others.done():
                    self._others.set_result(json.loads(answer)["others"])
                continue
            self._connection.close()
            if self._closed:
                return
            log.warning("keeper_ended")
            await self._join_again()

    async def _join_again(self) -> None:
        while not self._closed:
            try:
                self._connection = await asyncio.to_thread(self._join)
            except (OSError, Unavailable, ConfigError) as error:
                log.warning("no_keeper", reason=str(error))
                await asyncio.sleep(AGAIN_S)
                continue
            if self._closed:
                self._connection.shutdown(socket.SHUT_RDWR)
            elif self._serving:
                self._send({"serve": self._serving})
            return

    async def _hear(self, loop: asyncio.AbstractEventLoop) -> bytes:
        """The next message of the keeper; empty once it has ended."""
        try:
            return await loop.sock_recv(self._connection, keeper.MAX_MESSAGE_BYTES)
        except OSError:
            return b""

    def _send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it has ended: `watch` sees that too
            self._connection.send(json.dumps(message).encode())

    def _join(self) -> socket.socket:
        """Connect to the keeper, start it if there is none, and share sockets with it."""
        for _ in range(ATTEMPTS):
            # One that has nothing to hold any more ends just then: the next attempt starts another.
            with (
                contextlib.suppress(ConnectionError),
                locked(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT),
            ):
                connection = self._connect()
                try:
                    self._share(connection)
                except BaseException:
                    connection.close()
                    raise
                connection.setblocking(False)
                return connection
        raise Unavailable("the keeper of the listening sockets ends as soon as it starts")

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(ANSWER_S)
        try:
            try:
                connection.connect(str(self._path))
            except (FileNotFoundError, ConnectionRefusedError):
                self._start_keeper()
                connection.connect(str(self._path))
        except BaseException:
            connection.close()
            raise
        return connection

    def _start_keeper(self) -> None:
        self._path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.bind(str(self._path))
            self._path.chmod(0o600)
            door.listen()  # here already, so that we can connect before it runs
            owner = _watched(self._owner)
            held = hold(self._path.parent)  # by the keeper: the socket is there as long as it is
            try:
                subprocess.run(
                    [
                        *(sys.executable, "-I", "-S", keeper.__file__),
                        *(str(door.fileno()), str(owner), str(self._hold_s)),
                    ],
                    pass_fds=[door.fileno(), held, *([owner] if owner >= 0 else ())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                    timeout=ANSWER_S,
                    check=True,
                )
            except subprocess.SubprocessError as error:
                raise Unavailable(f"the keeper of the sockets did not start: {error}") from error
            finally:
                for each in (held, owner):
                    if each >= 0:
                        os.close(each)

    def _share(self, connection: socket.socket) -> None:
        message = json.dumps({"join": list(self._names.values())}).encode()
        offered = [self._sockets[listener].fileno() for listener in self._names if self._sockets]
        socket.send_fds(connection, [message], offered)
        content, descriptors, _, _ = socket.recv_fds(
            connection, keeper.MAX_MESSAGE_BYTES, keeper.MAX_SOCKETS, socket.MSG_CMSG_CLOEXEC
        )
        got = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if not content:
            raise ConnectionResetError("the keeper has ended")
        answer = json.loads(content)
        if "refused" in answer:
            raise unusable(answer["address"], answer["refused"])
        if self._sockets:  # those of ours that it had to hold, or their like
            for each in got:
                each.close()
            return
        for each in got:
            each.setblocking(False)
        self._sockets = dict(zip(self._names, got, strict=True))


def _watched(pid: int) -> int:
    """A pidfd of a process; -1 where the system has none."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def unusable(address: str, reason: str | None) -> ConfigError:
    """The error for an address that cannot be listened on."""
    return ConfigError(
        f"cannot listen on {address}: {reason}; stop what uses it, or choose another port "
        "under `listen`"
    )
