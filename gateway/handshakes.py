"""Listening sockets whose clients speak TLS: from an accepted connection to its handshake's end.

What event loops offer themselves tells nobody why a handshake has failed, and answers a client that
speaks no TLS with silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from gateway.certificates import FAREWELL, ServerContext
from gateway.door import LINGER_S, Door
from gateway.grpc.frames import ErrorCode, encode_goaway, encode_settings
from headrace.errors import (
    Cancelled,
    HeadraceError,
    InvalidArgument,
    RequestTimeout,
    TooManyRequests,
    Unauthenticated,
)
from headrace.protocols.targets import encode_error

ACCEPTED = 64
"""Connections accepted in one turn of the loop."""
PAUSE_S = 0.5
"""Time without accepting where the process has no descriptor left."""
SHUTDOWN_S = 2.0
"""Time for a client to answer that the connection is closed."""
FIRST_BYTES = 16
TLS_RECORD = b"\x16"
"""First byte of a client that speaks TLS (RFC 8446, 5.1)."""
HTTP2 = b"PRI"
"""First bytes of a client that speaks HTTP/2 (RFC 9113, 3.4)."""

log = structlog.get_logger()


SPEAKS_TLS = "this port speaks TLS: use https, or a channel with root certificates"
ALERTS = {
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the authority that has signed it",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it is revoked",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it is for another host, or broken",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it gives no reason",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is of a kind that it does not take",
}
"""Why a client refuses our certificate, by the alert that it sends (RFC 8446, 6.2)."""
UNALIKE = {
    "UNSUPPORTED_PROTOCOL": "the client offers only versions of TLS below `listen.tls.min_version`",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the client takes none of our versions of TLS",
    "NO_SHARED_CIPHER": "the client offers no cipher that is allowed here",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the client takes none of our ciphers",
}


def refusal(error: Exception) -> HeadraceError:
    """What a failed handshake means, for log and audit."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unauthenticated(
            f"the client's certificate: {error.verify_message}", reason="tls_client_certificate"
        )
    if not isinstance(error, ssl.SSLError):
        if isinstance(error, TimeoutError | ConnectionAbortedError):
            return RequestTimeout("the handshake took too long", reason="tls_timeout")
        return InvalidArgument(
            "the client left before the end of the handshake", reason="tls_handshake"
        )
    reason = error.reason or ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return Unauthenticated(
            "the client has shown no certificate", reason="tls_client_certificate"
        )
    if reason in ALERTS:
        return Cancelled(
            f"the client refuses the server's certificate: {ALERTS[reason]}",
            reason="tls_distrusted",
        )
    if reason in UNALIKE:
        return InvalidArgument(UNALIKE[reason], reason="tls_version")
    return InvalidArgument(
        f"the handshake failed: {reason.lower().replace('_', ' ')}", reason="tls_handshake"
    )


def wrong_port(data: bytes, address: str, listener: str, door: Door) -> InvalidArgument | None:
    """What a client is told that speaks TLS where none is spoken, once that is reported.

    None for other bytes.
    """
    if data[:2] != TLS_RECORD + b"\x03":
        return None
    error = InvalidArgument(
        "this port speaks no TLS: use http, or set `listen.tls`", reason="tls_on_plain_port"
    )
    door.turn_away(address, listener, error)
    return error


def plain_answer(first: bytes, error: HeadraceError) -> bytes:
    """The answer to a client that speaks no TLS, in the protocol that it speaks."""
    if first.startswith(HTTP2):
        return encode_settings(()) + encode_goaway(0, ErrorCode.INADEQUATE_SECURITY, error.message)
    body = encode_error(error).body
    head = (
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        b"Connection: close\r\n\r\n"
    )
    return head % len(body) + body


@dataclass(frozen=True, slots=True)
class TlsPort:
    """How the connections of a listener begin; `context` gives that of the next one."""

    listener: str
    context: Callable[[], ServerContext]
    timeout_s: float
    door: Door

    def serve(self, listening: socket.socket, make: Callable[[], asyncio.Protocol]) -> TlsServer:
        """Accept connections; `make` gives the protocol of each."""
        return TlsServer(self, listening, make)


class TlsServer:
    """Accepts connections of a listening socket; `make` gives the protocol of each.

    It hears of a connection once its handshake is done.
    """

    def __init__(
        self, port: TlsPort, listening: socket.socket, make: Callable[[], asyncio.Protocol]
    ) -> None:
        self._socket, self._make, self._name = listening, make, port.listener
        self._context, self._timeout_s, self._door = port.context, port.timeout_s, port.door
        self._loop = asyncio.get_running_loop()
        self._begun: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """Accept no more; clients whose handshake has begun still come in."""
        if self._again is not None:
            self._again.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)

    def abort(self) -> None:
        """Break off the handshakes that are under way."""
        for task in self._tasks:
            task.cancel()

    def _listen(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTED):
            try:
                connection, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # No descriptor is free: the connection waits, and would wake us all the time.
                log.error("not_accepting", listener=self._name, reason=error.strerror)
                self._loop.remove_reader(self._socket)
                self._again = self._loop.call_later(PAUSE_S, self._listen)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._greet(connection, peer[0]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _greet(self, connection: socket.socket, address: str) -> None:
        self._begun[address] += 1
        try:
            if await self._speaks_tls(connection, address):
                await self._shake_hands(connection)
        except HeadraceError as error:
            self._door.turn_away(address, self._name, error)
        finally:
            self._begun[address] -= 1
            if not self._begun[address]:
                del self._begun[address]

    async def _speaks_tls(self, connection: socket.socket, address: str) -> bool:
        """Whether a client begins a handshake; else its connection is closed, or this raises."""
        handed_on = False
        try:
            if self._begun[address] > self._door.limits.connections_per_address:
                text = "this address has too many connections whose handshake has not ended"
                raise TooManyRequests(text, reason="connections")
            async with asyncio.timeout(self._timeout_s):
                first = await self._first_bytes(connection)
            handed_on = first[:1] == TLS_RECORD
            if first and not handed_on:
                plain = InvalidArgument(SPEAKS_TLS, reason="tls_plain_client")
                await self._leave(connection, plain_answer(first, plain))
                raise plain
        except TimeoutError as error:
            raise refusal(error) from None
        except OSError:
            return False
        finally:
            if not handed_on:
                connection.close()
        return handed_on

    async def _shake_hands(self, connection: socket.socket) -> None:
        """Let the application's protocol have the connection, or raise why it cannot."""
        last: list[tuple[socket.socket, bytes]] = []

        def remember(words: bytes) -> None:
            with contextlib.suppress(OSError):  # no descriptor is free
                last.append((connection.dup(), words))

        FAREWELL.set(remember)
        try:
            await self._loop.connect_accepted_socket(
                self._make,
                connection,
                ssl=self._context(),
                ssl_handshake_timeout=self._timeout_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except OSError as error:
            for spare, words in last:  # the connection itself is closed
                with spare:
                    await self._leave(spare, words)
            raise refusal(error) from None

    async def _first_bytes(self, connection: socket.socket) -> bytes:
        """What a client sends first, left where it is; nothing if it leaves."""
        readable = self._loop.create_future()
        self._loop.add_reader(connection, _wake, readable)
        try:
            await readable
        finally:
            self._loop.remove_reader(connection)
        return connection.recv(FIRST_BYTES, socket.MSG_PEEK)

    async def _leave(self, connection: socket.socket, words: bytes) -> None:
        """Send the last words, and read on for a while: a reset would overtake them."""
        with contextlib.suppress(OSError, TimeoutError):
            connection.send(words)
            connection.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(LINGER_S):
                while await self._loop.sock_recv(connection, 65_536):
                    pass


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
