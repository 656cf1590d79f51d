"""The door: what the connections of all protocols share, and what limits them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import ClassVar, TypeVar, cast

import structlog

from gateway.access.audit import AuditLog, Verdict
from gateway.access.certificate import ClientCertificate, shown_certificate
from gateway.access.visit import NO_TIER, BodyMemory, Head, Visit
from headrace.config.args import Limits
from headrace.errors import Cancelled, HeadraceError, InternalError, TooManyRequests
from headrace.metrics import Recorder

SWEEP_S = 1.0
TOGETHER = 100
"""Connections looked at in one turn of the loop."""
LINGER_S = 2.0
"""Time to read on after a connection is refused: a reset would overtake the last answer."""
AGAIN_S = 60.0
"""Least time between two log lines about one address."""
REMEMBERED = 1000
"""Cap on the addresses that had a log line lately; beyond it others get none."""
REASON = "connections"

T = TypeVar("T")

log = structlog.get_logger()


async def outcome(work: Awaitable[T], **about: str) -> T | HeadraceError:
    """The work's result, or its error; an unexpected one is logged and becomes `InternalError`."""
    try:
        return await work
    except HeadraceError as error:
        return error
    except Exception:  # the boundary: what is not ours stays inside
        log.exception("request_failed", **about)
        return InternalError()


class ClientConnection:
    """A client's connection as the door sees it, from `Door.enter` to `Door.leave`."""

    family: ClassVar[str] = "http"
    transport: asyncio.Transport
    address = ""
    certificate: ClientCertificate | None = None
    lingering = False
    _unread_since_s = 0.0

    @property
    def write_paused(self) -> bool:
        """Whether the client has more to read than the socket takes."""
        raise NotImplementedError

    def check_time(self, now_s: float) -> None:
        """Cut off who sends too slowly, or is idle for too long."""
        raise NotImplementedError

    def linger(self) -> None:
        """Write no more, and close once the client has read the last words."""
        self.lingering = True
        end = self.transport.close
        if self.transport.can_write_eof():  # not with TLS
            self.transport.write_eof()
            end = self.transport.abort
        asyncio.get_running_loop().call_later(LINGER_S, end)

    def reads(self, now_s: float, limit_s: float) -> bool:
        """Whether the client reads its answers; one that does not for `limit_s` is cut off."""
        if not self.write_paused:
            self._unread_since_s = 0.0
            return True
        self._unread_since_s = self._unread_since_s or now_s
        if now_s - self._unread_since_s > limit_s:
            self.transport.abort()
        return False


class Door:
    """Limits of connections, those that are open, and the memory for the bodies on them.

    A gateway that is `draining` closes each connection with its next answer. `audit` is None where
    the log is off.
    """

    def __init__(
        self, limits: Limits, memory: BodyMemory, recorder: Recorder, audit: AuditLog | None = None
    ) -> None:
        self.limits, self.memory = limits, memory
        self.connections: set[ClientConnection] = set()
        self.addresses: Counter[str] = Counter()
        self.draining = False
        self._refused = RefusedConnections(limits.connections_per_address, recorder, audit)

    def enter(
        self, connection: ClientConnection, transport: asyncio.BaseTransport
    ) -> TooManyRequests | None:
        """Count a new connection; an error if its address has too many."""
        # uvloop's transports have the methods of `asyncio.Transport` without being one.
        connection.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        address = connection.address = peer[0] if peer else ""
        connection.certificate = shown_certificate(transport)
        self.connections.add(connection)
        self.addresses[address] += 1
        if self.addresses[address] <= self.limits.connections_per_address:
            return None
        return self._refused.refuse(address, connection.family)

    def turn_away(self, address: str, protocol: str, error: HeadraceError) -> None:
        """Report a connection that did not come in."""
        self._refused.report(address, protocol, error)

    def leave(self, connection: ClientConnection) -> None:
        """Forget a connection that is closed."""
        self.connections.discard(connection)
        self.addresses[connection.address] -= 1
        if not self.addresses[connection.address]:
            del self.addresses[connection.address]

    async def sweep(self) -> None:
        """Enforce the time limits of all connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = loop.time()
            for number, connection in enumerate(tuple(self.connections), 1):
                if number % TOGETHER == 0:
                    await asyncio.sleep(0)
                if connection.lingering or connection not in self.connections:
                    continue  # It has its own end, or has ended meanwhile.
                if connection.reads(now_s, self.limits.write_timeout_s):
                    connection.check_time(now_s)


class Spaced:
    """The names that have had a log line: each once in `AGAIN_S`, `REMEMBERED` of them. Pure."""

    def __init__(self) -> None:
        # Oldest first: a name comes back only after it is dropped.
        self._told: dict[str, float] = {}

    def due(self, name: str, now_s: float) -> bool:
        """Whether this name may have a line now, which counts as told."""
        told = self._told
        while told and now_s - told[oldest := next(iter(told))] >= AGAIN_S:
            del told[oldest]
        if name in told or len(told) >= REMEMBERED:
            return False
        told[name] = now_s
        return True


class RefusedConnections:
    """Reports connections that are turned away before they ask anything.

    Each is counted in the metrics and written to the audit log, which folds equal ones; the
    service's log has a line for an address and reason in `AGAIN_S`. An address may have `most`
    connections.
    """

    def __init__(
        self,
        most: int,
        recorder: Recorder,
        audit: AuditLog | None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._recorder, self._audit, self._now_s = most, recorder, audit, now_s
        self._lines = Spaced()

    def refuse(self, address: str, protocol: str) -> TooManyRequests:
        """Report that an address has too many; the error that its client is told."""
        error = TooManyRequests(
            f"this address has {self._most} connections already (`connections_per_address`)",
            retry_after_s=1.0,
            reason=REASON,
        )
        self.report(address, protocol, error)
        return error

    def report(self, address: str, protocol: str, error: HeadraceError) -> None:
        """Report a connection that is refused, or whose client itself has left (`Cancelled`)."""
        self._recorder.refusal(NO_TIER, error.reason)
        if self._lines.due(f"{address} {error.reason}", self._now_s()):
            log.warning(
                "connections_refused",
                address=address,
                protocol=protocol,
                reason=error.reason,
                why=error.message,
            )
        if self._audit is not None:
            decision: Verdict = "cancelled" if isinstance(error, Cancelled) else "refused"
            record = Visit(Head({}, address)).audit_record(decision, error, {})
            self._audit.write(record._replace(protocol=protocol))
