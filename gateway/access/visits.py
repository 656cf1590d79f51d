"""The way in for requests that are no predictions: metadata, statistics, the repository's index.

They are told in the metrics of refusals and in the audit log as predictions are, so a flood of them
has a sender too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import structlog

from gateway.access.admission import Admission
from gateway.access.audit import AuditLog, AuditRecord, Verdict
from gateway.access.ticket import Ticket
from headrace.errors import HeadraceError, TooManyRequests
from headrace.metrics import Recorder

NO_TIER = "none"


class Visits:
    """See the module. `audit` is None where the log is off."""

    def __init__(self, admission: Admission, recorder: Recorder, audit: AuditLog | None) -> None:
        self._admission, self._recorder, self._audit = admission, recorder, audit

    def enter(self, headers: Mapping[bytes, bytes], address: str, protocol: str) -> Ticket:
        """Let a request in, with lower-case headers; raises what refuses its caller."""
        ticket: Ticket | None = None
        try:
            ticket = self._admission.identify(headers, address)
            self._admission.visit(ticket)
        except HeadraceError as error:
            account = ticket.account if ticket is not None else None
            tier = NO_TIER if account is None else account.allowance.name
            self._recorder.refusal(tier, error.reason)
            self._write("refused", ticket, error, (headers, address, protocol))
            raise
        self._write("allowed", ticket, None, (headers, address, protocol))
        return ticket

    def _write(
        self,
        decision: Verdict,
        ticket: Ticket | None,
        error: HeadraceError | None,
        source: tuple[Mapping[bytes, bytes], str, str],
    ) -> None:
        if self._audit is None or not self._audit.wants(decision):
            return
        headers, address, protocol = source
        account = ticket.account if ticket is not None else None
        self._audit.write(
            AuditRecord(
                request_id=headers.get(b"x-request-id", b"").decode("latin-1"),
                caller=account.caller.id if account is not None else "",
                name=account.caller.name if account is not None else "",
                tier=account.allowance.name if account is not None else NO_TIER,
                address=address,
                model="",
                version=0,
                protocol=protocol,
                cost=ticket.cost if ticket is not None and error is None else 0.0,
                decision=decision,
                reason=error.reason if error is not None else "",
                code=error.http_status if error is not None else 200,
            )
        )


AGAIN_S = 60.0
REMEMBERED = 1000
"""Addresses that have had their line lately; while there are so many, others get none."""
REASON = "connections"

log = structlog.get_logger()


class Spaced:
    """Which names may be told of: each once in `AGAIN_S`, so many of them at most. Pure."""

    def __init__(self) -> None:
        # Oldest first, for a name comes back only after it is dropped.
        self._told: dict[str, float] = {}

    def due(self, name: str, now_s: float) -> bool:
        """Whether to tell of this one now; if so, it has been told of."""
        told = self._told
        while told and now_s - told[oldest := next(iter(told))] >= AGAIN_S:
            del told[oldest]
        if name in told or len(told) >= REMEMBERED:
            return False
        told[name] = now_s
        return True


class RefusedConnections:
    """Tells of refused connections, of which their address has too many, without a flood of lines.

    Each is counted in the metrics and written to the audit log, which folds equal ones. The
    service's own log has one line for an address in a while, and for so many addresses at most.
    `most` connections may an address have. `audit` is None where it is off.
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
        """Tell of one that is refused; what its client is told."""
        error = TooManyRequests(
            f"this address has {self._most} connections already (`connections_per_address`)",
            retry_after_s=1.0,
            reason=REASON,
        )
        self._recorder.refusal(NO_TIER, REASON)
        if self._lines.due(address, self._now_s()):
            log.warning("connections_refused", address=address, most=self._most, protocol=protocol)
        if self._audit is not None:
            self._audit.write(
                AuditRecord(
                    request_id="",
                    caller="",
                    name="",
                    tier=NO_TIER,
                    address=address,
                    model="",
                    version=0,
                    protocol=protocol,
                    cost=0.0,
                    decision="refused",
                    reason=REASON,
                    code=error.http_status,
                )
            )
        return error
