"""The way in for requests that are no predictions: metadata, statistics, the repository's index.

They are told in the metrics of refusals and in the audit log as predictions are, so a flood of them
has a sender too.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.access.admission import Admission
from gateway.access.audit import AuditLog, AuditRecord, Decision
from gateway.access.ticket import Ticket
from headrace.errors import HeadraceError
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
        decision: Decision,
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
