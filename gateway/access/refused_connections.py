"""Connections that are refused, because their address has too many: told without a flood of lines.

Each is counted in the metrics and written to the audit log, which folds equal ones. The service's
own log has one line for an address in a while, and for so many addresses at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from gateway.access.audit import AuditLog, AuditRecord
from gateway.access.visits import NO_TIER
from headrace.errors import TooManyRequests
from headrace.metrics import Recorder

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
    """See the module; `most` connections may an address have. `audit` is None where it is off."""

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
