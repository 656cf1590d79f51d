"""The keeper: a process that holds the listening sockets of a node's gateways.

A gateway that dies leaves its sockets listening here; connections wait in them for the next one.

Run as a file and without installed packages, to start in a moment and stay small: it imports a few
modules of the standard library, nothing else. Its users speak to it over a Unix socket that keeps
messages apart; each is one JSON object, and sockets come with it:

    {"join": [[application, listener, host, port], ...]}  → {} or {"refused": reason, "address"}
    {"serve": [listener, ...]}: connections are accepted on these from now on
    {"leave": true}: no more soon, and not because of a fault  → {"others": bool}

A user that leaves or dies closes the connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time

Name = tuple[str, str, str, int]
"""Application, listener, host and port of a socket."""

MAX_MESSAGE_BYTES = 16 * 1024
MAX_SOCKETS = 16
PATIENCE_S = 10.0
"""How long a new keeper waits for its first user."""
CREDENTIALS = struct.Struct("3i")
"""`struct ucred`: process, user, group."""


class Held:
    """A socket. It listens once it is `served`; without a gateway until `until_s`, at most."""

    def __init__(self, listening: socket.socket) -> None:
        self.socket = listening
        self.served = False
        self.until_s: float | None = None


class User:
    """A gateway's connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.names: set[Name] = set()
        self.serving: set[Name] = set()
        self.left = False


class Keeper:
    """Holds sockets for `hold_s` seconds after the last gateway that accepted on them has died."""

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._held: dict[Name, Held] = {}
        self._users: list[User] = []

    def run(self, door: socket.socket, owner: int) -> None:
        """Serve who connects to `door`, until there is nothing to hold.

        Ends at once with the process whose pidfd is `owner` (-1 for none): it starts gateways.
        """
        idle_until_s = time.monotonic() + PATIENCE_S
        with selectors.DefaultSelector() as selector:
            selector.register(door, selectors.EVENT_READ)
            if owner >= 0:
                selector.register(owner, selectors.EVENT_READ)
            while self._users or self._held or time.monotonic() < idle_until_s:
                ends_s = [held.until_s for held in self._held.values() if held.until_s is not None]
                if not self._users and not self._held:
                    ends_s = [idle_until_s]
                wait_s = max(0.0, min(ends_s) - time.monotonic()) if ends_s else None
                for key, _ in selector.select(wait_s):
                    if key.fileobj is door:
                        self._accept(door, selector)
                    elif key.fileobj == owner:
                        return
                    elif not self._hear(key.data):
                        selector.unregister(key.fileobj)
                        self._part(key.data)
                        idle_until_s = 0.0
                self._expire()

    def _accept(self, door: socket.socket, selector: selectors.BaseSelector) -> None:
        connection, _ = door.accept()
        size = CREDENTIALS.size
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        if CREDENTIALS.unpack(peer)[1] != os.getuid():
            connection.close()
            return
        user = User(connection)
        self._users.append(user)
        selector.register(connection, selectors.EVENT_READ, user)

    def _hear(self, user: User) -> bool:
        """Act on a message; False when there is none or it makes no sense."""
        offered: list[socket.socket] = []
        try:
            content, descriptors, _, _ = socket.recv_fds(
                user.connection, MAX_MESSAGE_BYTES, MAX_SOCKETS, socket.MSG_CMSG_CLOEXEC
            )
            offered += [socket.socket(fileno=descriptor) for descriptor in descriptors]
            if not content:
                return False
            message = json.loads(content)
            if "join" in message:
                self._join(user, [(a, b, c, int(d)) for a, b, c, d in message["join"]], offered)
            elif "serve" in message:
                self._serve(user, message["serve"])
            elif "leave" in message:
                self._leave(user)
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            return False
        finally:
            kept = [held.socket for held in self._held.values()]
            for each in offered:
                if each not in kept:
                    each.close()
        return True

    def _join(self, user: User, names: list[Name], offered: list[socket.socket]) -> None:
        for number, name in enumerate(names):
            if name not in self._held:
                try:
                    listening = offered[number] if offered else self._bind(*name)
                except OSError as error:
                    refusal = {"refused": error.strerror, "address": f"{name[2]}:{name[3]}"}
                    user.connection.send(json.dumps(refusal).encode())
                    return
                self._held[name] = Held(listening)
            user.names.add(name)
        sockets = [self._held[name].socket.fileno() for name in names]
        socket.send_fds(user.connection, [b"{}"], sockets)

    def _bind(self, application: str, _: str, host: str, port: int) -> socket.socket:
        bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # When the host of an address changes, old and new are used at once for a while.
            before = [
                held.socket
                for (whose, _, where, number), held in self._held.items()
                if whose == application and number == port and where != host
            ]
            for each in (bound, *before) if before else ():
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind((host, port))
        except OSError:
            bound.close()
            raise
        return bound

    def _serve(self, user: User, listeners: list[str]) -> None:
        user.serving = {name for name in user.names if name[1] in listeners}
        for name in user.serving:
            self._held[name].served = True
            self._held[name].until_s = None

    def _leave(self, user: User) -> None:
        user.left = True
        others = any(self._serves(name) for name in user.names)
        user.connection.send(json.dumps({"others": others}).encode())

    def _serves(self, name: Name) -> bool:
        """Whether a gateway accepts on this socket and will go on."""
        return any(name in user.serving and not user.left for user in self._users)

    def _remains(self, name: Name) -> bool:
        """Whether a gateway has this socket, and may come to accept on it."""
        return any(name in user.names and not user.left for user in self._users)

    def _used(self, name: Name) -> bool:
        return any(name in user.names for user in self._users)

    def _part(self, user: User) -> None:
        """Forget a user, and the sockets for which no other will come."""
        self._users.remove(user)
        user.connection.close()
        for name in user.names:
            held = self._held[name]
            if self._serves(name):
                continue
            expected = held.served and not (user.left and held.until_s is None)
            if not expected and not self._used(name):
                self._drop(name)
            elif held.served and held.until_s is None and (not user.left or self._remains(name)):
                held.until_s = time.monotonic() + self._hold_s

    def _expire(self) -> None:
        """Refuse connections again where nobody has come to accept them."""
        now_s = time.monotonic()
        for name, held in list(self._held.items()):
            if held.until_s is None or now_s < held.until_s:
                continue
            held.until_s, held.served = None, False
            # A gateway that is starting has this socket too, and may let it listen again.
            with contextlib.suppress(OSError):  # it does not listen
                held.socket.shutdown(socket.SHUT_RDWR)
            if not self._used(name):
                self._drop(name)

    def _drop(self, name: Name) -> None:
        self._held.pop(name).socket.close()


def main() -> None:
    """`keeper.py DOOR OWNER HOLD_S`: descriptors of the Unix socket and of the owner's pidfd."""
    # Away from the gateway that starts it: Ray ends a worker's children with it.
    if os.fork():
        os._exit(0)
    # It ends by itself, and is of use until the last gateway has ended.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    door, owner, hold_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    Keeper(hold_s).run(socket.socket(fileno=door), owner)


if __name__ == "__main__":
    main()
