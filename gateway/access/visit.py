"""A request on its way in: whose it is, the memory that it holds, and its turn. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from gateway.access.audit import AuditRecord, Verdict
from gateway.access.certificate import ClientCertificate
from gateway.access.limits import Account, OverBudget
from headrace.access import Caller
from headrace.errors import HeadraceError, Unavailable
from headrace.link.frames import decode_failure
from headrace.link.queue import Answer, Request
from headrace.logs import new_request_id, valid_request_id, valid_traceparent

NO_TIER = "none"
"""Tier of requests whose caller is not known, in metrics and in the audit log."""
PIECE_BYTES = 1024
"""Least mean size of the pieces in which a body is kept: each costs more memory than its bytes."""
FEW_PIECES = 64
"""Pieces that may be smaller."""


class Destination(Protocol):
    """Where admitted requests go."""

    def submit(self, request: Request) -> None:
        """Take the request; raises what refuses it."""

    def cancel(self, request: Request) -> None:
        """Drop the request of a client that left."""


class BodyMemory:
    """The memory of a gateway for the bodies of requests; callers lower `used_bytes` to free it."""

    __slots__ = ("limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Count more bytes; raises `Unavailable` where there is no room for them."""
        if self.used_bytes + size_bytes > self.limit_bytes:
            raise Unavailable(
                "the bodies of other requests fill the memory for them",
                retry_after_s=1.0,
                reason="memory",
            )
        self.used_bytes += size_bytes


class Head:
    """The head of a request: its lower-case headers, the address it came from, and who calls.

    `certificate` is the one that the client of its connection has shown.

    One head may serve all requests of a connection that send the same bytes. `account` and
    `max_body_bytes` are found by `Admission.identify`; they hold until `until_s` on the monotonic
    clock, as long as the rules of access stay at `generation` and the account `caller`'s. Without
    an account nothing limits its requests but memory. `models` are those that the credential may
    ask, None for all. `given_id` is the caller's own request id, "" if it has sent no valid one;
    `trace` its `traceparent`, b"" if that is not valid.
    """

    __slots__ = (
        "account",
        "address",
        "caller",
        "certificate",
        "generation",
        "given_id",
        "headers",
        "max_body_bytes",
        "models",
        "trace",
        "until_s",
    )

    def __init__(
        self,
        headers: Mapping[bytes, bytes],
        address: str,
        certificate: ClientCertificate | None = None,
    ) -> None:
        self.headers, self.address, self.certificate = headers, address, certificate
        self.account: Account | None = None
        self.caller: Caller | None = None
        self.models: frozenset[str] | None = None
        self.max_body_bytes = 0
        self.generation, self.until_s = -1, 0.0
        given = headers.get(b"x-request-id", b"")
        self.given_id = given.decode("ascii") if given and valid_request_id(given) else ""
        trace = headers.get(b"traceparent", b"")
        self.trace = trace if trace and valid_traceparent(trace) else b""


class Visit:
    """One request on its way in. Predictions add what they ask for.

    `max_body_bytes` is 0 until its caller is known; `account` is its caller's. `paid`, `waiting`
    and `running` tell how far it is; `since_s` is when it began to wait or, once it runs, when it
    left the queue (0: it never was in it). `destination` answers it where the data plane does not.
    """

    __slots__ = (
        "account",
        "cost",
        "destination",
        "head",
        "held_bytes",
        "max_body_bytes",
        "number",
        "paid",
        "request",
        "request_id",
        "running",
        "since_s",
        "waiting",
    )

    family: ClassVar[str] = "http"
    """Protocol of requests without a valid target, in metrics and in the audit log."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.request_id = head.given_id or new_request_id()
        self.account: Account | None = None
        self.max_body_bytes = self.held_bytes = self.number = 0
        self.cost, self.since_s = 1.0, 0.0
        self.paid = self.running = self.waiting = False
        self.request: Request | None = None
        self.destination: Destination | None = None

    def __lt__(self, other: Visit) -> bool:
        """By deadline, those with the same one as they came."""
        assert self.request is not None
        assert other.request is not None
        mine, theirs = self.request.deadline_s, other.request.deadline_s
        return mine < theirs or (mine == theirs and self.number < other.number)

    def __hash__(self) -> int:
        # mypyc leaves a class that has an order without one.
        return id(self)

    @property
    def target(self) -> tuple[str, str]:
        """The protocol, and the name of the model that is asked ("": none)."""
        return self.family, ""

    @property
    def tier(self) -> str:
        return NO_TIER if self.account is None else self.account.allowance.name

    @property
    def caller_id(self) -> str:
        """ "" where callers are not told apart."""
        return "" if self.account is None else self.account.caller.id

    def limit_headers(
        self, now_s: float, answer: Answer | None = None
    ) -> tuple[bytes, bytes] | None:
        """Values of RateLimit-Policy and RateLimit; None if the caller has no such limit."""
        if self.account is not None:
            return self.account.limit_headers(now_s)
        # The credential was refused, so its address pays.
        return answer.limit if isinstance(answer, OverBudget) else None

    def audit_record(
        self, decision: Verdict, answer: Answer | None, phases_s: Mapping[str, float]
    ) -> AuditRecord:
        """The audit record; `answer` is None for an admitted request that is not a prediction."""
        account, request = self.account, self.request
        protocol, model = self.target
        code, reason, bytes_out = 200, "", 0
        if isinstance(answer, HeadraceError):
            code, reason = answer.http_status, answer.reason
        elif answer is not None and answer.status < 400:
            code, bytes_out = answer.status, answer.length
        elif answer is not None:
            code, reason = answer.status, decode_failure(answer).reason
        return AuditRecord(
            request_id=self.request_id,
            caller=self.caller_id,
            name="" if account is None else account.caller.name,
            tier=self.tier,
            address=self.head.address,
            model=model,
            version=0 if request is None else request.version,
            protocol=protocol,
            cost=self.cost if decision == "allowed" else 0.0,
            decision=decision,
            reason=reason,
            code=code,
            bytes_in=0 if request is None else request.length,
            bytes_out=bytes_out,
            phases_s=phases_s,
        )
