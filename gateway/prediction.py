"""One prediction in any protocol, from its head to its record; its phases are methods, in order.

`begin` with the head, `send` with the body, then one `record`, `cancel` or `abandon`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import structlog

from gateway.access.admission import Admission, Phases
from gateway.access.visit import Destination, Visit
from headrace.config.args import Limits
from headrace.config.scaling import Routing
from headrace.errors import DeadlineExceeded, HeadraceError
from headrace.link.frames import Body, Reply, decode_failure, pieces
from headrace.link.plane import DataPlane
from headrace.link.queue import Answer, Request
from headrace.logs import request_id, valid_traceparent
from headrace.metrics import Recorder
from headrace.protocols.calls import call_number
from headrace.protocols.targets import InferPath

DEADLINE_SLACK_S = 0.05
"""Time before its deadline in which a call counts as ended by it: the caller's clock started when
it sent the call, ours when the call came."""

log = structlog.get_logger()


class PredictionDesk:
    """What the predictions of a gateway share.

    `regions` and `media` give the destination of a request that no slot answers by itself, None for
    others; they are None where the config turns them off.
    """

    def __init__(
        self, access: Admission, plane: DataPlane, limits: Limits, recorder: Recorder
    ) -> None:
        self.access, self.plane, self.limits, self.recorder = access, plane, limits, recorder
        self.regions: Callable[[Prediction, Request], Destination | None] | None = None
        self.media: Callable[[InferPath, Body], Destination | None] | None = None

    def timeout_s(self, given_s: float | None) -> float:
        """Seconds that a prediction may take: those that its caller gives, within the limits."""
        limits = self.limits
        return limits.default_deadline_s if given_s is None else min(given_s, limits.max_deadline_s)


class Prediction(Visit):
    """A request for a model. `path` is None while its target is not known, or was wrong.

    `cold_start_ms` is set by `record`: how long it waited for its model to be loaded.
    """

    __slots__ = ("cold_start_ms", "desk", "path")

    def __init__(
        self,
        desk: PredictionDesk,
        path: InferPath | None,
        headers: Mapping[bytes, bytes],
        address: str,
    ) -> None:
        super().__init__(headers, address, request_id(headers.get(b"x-request-id", b"")))
        self.desk, self.path = desk, path
        self.cold_start_ms = 0

    @property
    def target(self) -> tuple[str, str]:
        return (self.family, "") if self.path is None else (self.path.protocol, self.path.model)

    def begin(self, length: int) -> None:
        """With the head: raises what refuses it before its body, of `length` bytes, is read."""
        self.desk.access.enter(self, None if self.path is None else self.path.model, length)

    def send(
        self,
        body: Body,
        length: int,
        done: Callable[[Request, Answer], None],
        timeout_s: float,
        json_length: int | None = None,
        encodings: int = 0,
    ) -> None:
        """With the body: submit it; raises what refuses its model or its caller."""
        desk, path = self.desk, self.path
        plane, access = desk.plane, desk.access
        assert path is not None
        try:
            key = plane.resolve(path.protocol, path.model, path.version, path.label)
        except HeadraceError:
            access.pay(self)
            raise
        # For the slot: request id and trace context, if the caller sent one of them.
        trace, meta = self.headers.get(b"traceparent"), b""
        if trace is not None and valid_traceparent(trace):
            meta = self.request_id.encode() + b"\n" + trace
        elif b"x-request-id" in self.headers:
            meta = self.request_id.encode()
        routing = plane.snapshot.models[path.model].config.routing
        arrived_s = plane.now_s()
        request = Request(
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
            meta=meta,
            hash_key=b"" if routing.policy != "hash" else self._hash_key(routing, body),
            follows_default=path.version is None and path.label is None,
        )
        self.request = request
        if desk.regions is not None:
            self.destination = desk.regions(self, request)
        if self.destination is None and desk.media is not None:
            self.destination = desk.media(path, body)
        access.submit(self, request)

    def _hash_key(self, routing: Routing, body: Body) -> bytes:
        if routing.key == "header":
            return self.headers.get((routing.header or "").lower().encode(), b"")
        digest = hashlib.blake2b(digest_size=16)
        for piece in pieces(body):
            digest.update(piece)
        return digest.digest()

    def record(self, answer: Answer) -> None:
        """With the answer: charge its cost, free its place, count it and the time of each phase.

        It lets go of the request, and so of the body.
        """
        desk, path, request = self.desk, self.path, self.request
        now_s = desk.plane.now_s()
        phases: Phases = ()
        if request is not None and isinstance(answer, Reply):
            phases = (
                ("queue", request.sent_s - request.arrived_s),
                ("link", max(0.0, now_s - request.sent_s - answer.slot_s)),
                ("batch_wait", answer.batch_wait_s),
                ("compute", answer.compute_s),
                ("encode", answer.encode_s),
            )
            config = None if self.account is None else desk.plane.config(request.key[0])
            if config is not None and config.cost is not None:
                cost = config.cost.of(answer.rows, answer.megapixels)
                if extra := desk.access.settle(self, cost):
                    desk.plane.router.charge(request, extra)
        desk.access.leave(self, answer, now_s, phases)
        self.request = self.destination = None
        self._count(path, request, answer, now_s, phases)

    def _count(
        self,
        path: InferPath | None,
        request: Request | None,
        answer: Answer,
        now_s: float,
        phases: Phases,
    ) -> None:
        recorder = self.desk.recorder
        code = answer.status if isinstance(answer, Reply) else answer.http_status
        if path is None or request is None:
            # The name of an unknown model is the caller's own text: it must not become a label.
            protocol, model = self.target
            known = model and self.desk.plane.config(model) is not None
            recorder.request(model if known else "", 0, protocol, code, self.tier, 0.0)
            return
        total_s, version = now_s - request.arrived_s, request.version
        recorder.request(path.model, version, path.protocol, code, self.tier, total_s, phases)
        if phases and request.cold:
            waited_s = request.sent_s - request.arrived_s
            self.cold_start_ms = max(1, round(waited_s * 1000))
            recorder.cold_start(path.model, waited_s)
        if code >= 500 and (isinstance(answer, Reply) or not answer.reason):
            error = decode_failure(answer) if isinstance(answer, Reply) else answer
            log.warning(
                "request_failed",
                request_id=self.request_id,
                model=path.model,
                code=code,
                reason=error.message,
            )

    def cancel(self) -> None:
        """The client left: nothing more is said to it."""
        self.desk.access.cancel(self)
        self.request = self.destination = None

    def abandon(self) -> None:
        """Nobody waits for it any more; the deadline, if it was that, is counted as an answer."""
        request = self.request
        if request is None or self.desk.plane.now_s() < request.deadline_s - DEADLINE_SLACK_S:
            self.cancel()
        else:
            self.fail(DeadlineExceeded("the deadline passed before the answer"))

    def fail(self, error: HeadraceError) -> None:
        """End it with an error, wherever it is."""
        self.desk.access.drop(self)
        self.record(error)
