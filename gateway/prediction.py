"""One prediction in any protocol: from target and metadata to a router request and its record."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Protocol

import structlog

from gateway.access.admission import Admission
from gateway.access.audit import AuditLog, AuditRecord, Verdict
from gateway.access.ticket import Destination, Ticket
from gateway.access.visits import RefusedConnections
from headrace.config.args import Limits
from headrace.errors import Cancelled, DeadlineExceeded, HeadraceError
from headrace.link.frames import Body, Reply, pieces
from headrace.link.plane import DataPlane
from headrace.link.request import Answer, Request
from headrace.logs import request_id, valid_request_id, valid_traceparent
from headrace.metrics import Recorder, RequestStage
from headrace.protocols.calls import call_number
from headrace.protocols.targets import InferPath

NO_TIER = "none"
DEADLINE_SLACK_S = 0.05
"""Time before a deadline in which a cancellation is taken for that deadline: the caller's clock
started when it sent the request, ours when the request came."""

log = structlog.get_logger()


class Connection(Protocol):
    """A connection, as far as the sweep of time limits knows it."""

    def check_time(self, now_s: float) -> None:
        """Close it if a time limit has passed."""


class MediaRoute(Destination, Protocol):
    """Who answers predictions whose input is a whole picture or video."""

    def takes(self, path: InferPath, body: Body) -> bool:
        """Whether this is one."""
        ...


class RegionRoute(Protocol):
    """Who answers predictions whose tensors lie in shared memory regions."""

    def destination(
        self, prediction: Prediction, request: Request, ticket: Ticket
    ) -> Destination | None:
        """Who answers this one; None if it is none of these."""
        ...


class FrontState:
    """What all connections of a gateway share; `addresses` counts open connections by address."""

    def __init__(
        self,
        plane: DataPlane,
        limits: Limits,
        recorder: Recorder,
        admission: Admission,
        audit: AuditLog | None = None,
    ) -> None:
        self.plane, self.limits, self.recorder = plane, limits, recorder
        self.admission, self.audit = admission, audit
        self.media: MediaRoute | None = None
        self.regions: RegionRoute | None = None
        self.connections: set[Connection] = set()
        self.addresses: Counter[str] = Counter()
        self.refused_connections = RefusedConnections(
            limits.connections_per_address, recorder, audit
        )
        self.draining = False


class Prediction:
    """See the module. `headers` has lower-case names; `path` is None when the target was wrong.

    `cold_start_ms` says, once it is recorded, how long it waited for its model to be loaded.
    """

    __slots__ = ("address", "cold_start_ms", "headers", "path", "request", "request_id", "ticket")

    family: ClassVar[str] = "http"
    """Stands for the protocol in the metrics of a request whose target was wrong."""

    def __init__(self, path: InferPath | None, headers: Mapping[bytes, bytes]) -> None:
        self.path, self.headers = path, headers
        self.request: Request | None = None
        self.ticket: Ticket | None = None
        self.address = ""
        self.cold_start_ms = 0
        given = headers.get(b"x-request-id")
        valid = given is not None and valid_request_id(given)
        self.request_id = given.decode("ascii") if given and valid else request_id()

    def enter(self, front: FrontState, address: str, length: int) -> None:
        """Its head is here: raises what refuses it before its body, of `length` bytes, is read."""
        self.address = address
        self.ticket = front.admission.identify(self.headers, address)
        if self.path is not None:
            front.admission.admit(self.ticket, self.path.model, length)

    def send(
        self,
        front: FrontState,
        body: Body,
        length: int,
        done: Callable[[Request, Answer], None],
        timeout_s: float,
        json_length: int | None = None,
        encodings: int = 0,
    ) -> None:
        """Let it in, with its body; raises what is wrong with its model, and what refuses it."""
        path, ticket, plane = self.path, self.ticket, front.plane
        assert path is not None
        assert ticket is not None
        front.admission.hold(ticket, length)
        try:
            key = plane.resolve(path.protocol, path.model, path.version, path.label)
        except HeadraceError:
            front.admission.visit(ticket)
            raise
        arrived_s = plane.now_s()
        self.request = Request(
            id=plane.next_id(),
            key=key,
            call=call_number(path.protocol, path.method),
            body=body,
            length=length,
            deadline_s=arrived_s + timeout_s,
            arrived_s=arrived_s,
            done=done,
            json_length=json_length,
            encodings=encodings,
            meta=self._meta(),
            hash_key=self._hash_key(plane, path.model, body),
            follows_default=path.version is None and path.label is None,
        )
        if front.regions is not None:
            ticket.destination = front.regions.destination(self, self.request, ticket)
        if ticket.destination is None and front.media is not None:
            ticket.destination = front.media if front.media.takes(path, body) else None
        front.admission.submit(ticket, self.request)

    def cancel(self, front: FrontState) -> None:
        """The client left; nothing more is said to it."""
        ticket = self.ticket
        if ticket is None:
            return
        front.admission.cancel(ticket)
        if front.audit is not None and self.path is not None and front.audit.wants("cancelled"):
            front.audit.write(self._record("cancelled", Cancelled("the caller left"), front))

    def abandon(self, front: FrontState) -> None:
        """Nobody waits for it any more; the deadline, if it was that, is counted as an answer."""
        request, ticket = self.request, self.ticket
        if request is not None and front.plane.now_s() >= request.deadline_s - DEADLINE_SLACK_S:
            if ticket is not None:
                front.admission.cancel(ticket)
            self.record(front, DeadlineExceeded("the deadline passed before the answer"))
        else:
            self.cancel(front)

    def _meta(self) -> bytes:
        """Request id and trace context for the slot; empty unless the caller sent one of them."""
        trace = self.headers.get(b"traceparent")
        if trace is not None and valid_traceparent(trace):
            return self.request_id.encode() + b"\n" + trace
        return self.request_id.encode() if b"x-request-id" in self.headers else b""

    def _hash_key(self, plane: DataPlane, model: str, body: Body) -> bytes:
        routing = plane.routing(model)
        if routing.policy != "hash":
            return b""
        if routing.key == "header":
            return self.headers.get((routing.header or "").lower().encode(), b"")
        digest = hashlib.blake2b(digest_size=16)
        for piece in pieces(body):
            digest.update(piece)
        return digest.digest()

    def record(self, front: FrontState, answer: Answer) -> None:
        """Free its place; count the answer and the time spent in each stage; say who was refused.

        Every prediction ends with exactly one `record` or `cancel`.
        """
        code = answer.status if isinstance(answer, Reply) else answer.http_status
        path, request, recorder = self.path, self.request, front.recorder
        tier = NO_TIER
        if (ticket := self.ticket) is not None:
            front.admission.leave(ticket, answer)
            tier = NO_TIER if ticket.account is None else ticket.account.allowance.name
        refused = not isinstance(answer, Reply) and answer.reason
        if refused:
            recorder.refusal(tier, str(refused))
        if front.audit is not None:
            decision: Verdict = "refused" if refused else "allowed" if code < 400 else "failed"
            if front.audit.wants(decision):
                front.audit.write(self._record(decision, answer, front))
        if path is None or request is None:
            # A name that nobody configured is whatever the caller sent: it must not become a label.
            protocol = self.family if path is None else path.protocol
            known = path is not None and front.plane.config(path.model) is not None
            recorder.request(path.model if path and known else "", 0, protocol, code, tier, 0.0)
            return
        now_s = front.plane.now_s()
        version = request.version
        total_s = now_s - request.arrived_s
        stages = self._stages(request, answer, now_s) if isinstance(answer, Reply) else ()
        recorder.request(path.model, version, path.protocol, code, tier, total_s, stages)
        if isinstance(answer, Reply) and request.cold:
            waited_s = request.sent_s - request.arrived_s
            self.cold_start_ms = max(1, round(waited_s * 1000))
            recorder.cold_start(path.model, waited_s)
        if code >= 500 and not refused:
            reason = "answered by the slot" if isinstance(answer, Reply) else answer.message
            log.warning(
                "request_failed",
                request_id=self.request_id,
                model=path.model,
                code=code,
                reason=reason,
            )

    def _stages(
        self, request: Request, reply: Reply, now_s: float
    ) -> Iterator[tuple[RequestStage, float]]:
        yield "queue", request.sent_s - request.arrived_s
        yield "link", max(0.0, now_s - request.sent_s - reply.slot_s)
        yield "batch_wait", reply.batch_wait_s
        yield "compute", reply.compute_s
        yield "encode", reply.encode_s

    def _record(self, decision: Verdict, answer: Answer, front: FrontState) -> AuditRecord:
        """What the audit log keeps of it."""
        path, request, ticket = self.path, self.request, self.ticket
        account = ticket.account if ticket is not None else None
        now_s = front.plane.now_s()
        stages: dict[str, float] = {}
        if request is not None:
            stages["total"] = now_s - request.arrived_s
            if isinstance(answer, Reply):
                stages.update(self._stages(request, answer, now_s))
        return AuditRecord(
            request_id=self.request_id,
            caller=account.caller.id if account is not None else "",
            name=account.caller.name if account is not None else "",
            tier=account.allowance.name if account is not None else NO_TIER,
            address=self.address,
            model=path.model if path is not None else "",
            version=request.version if request is not None else 0,
            protocol=path.protocol if path is not None else self.family,
            cost=ticket.cost if ticket is not None and decision == "allowed" else 0.0,
            decision=decision,
            reason="" if isinstance(answer, Reply) else answer.reason,
            code=answer.status if isinstance(answer, Reply) else answer.http_status,
            bytes_in=request.length if request is not None else 0,
            bytes_out=answer.length if isinstance(answer, Reply) else 0,
            stages_s=stages,
        )
