"""One prediction in any protocol, from its head to its record; its phases are methods, in order.

`begin` with the head, `send` with the body, then one `record`, `cancel` or `abandon`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import structlog

from gateway.access.admission import Admission
from gateway.access.visit import NO_TIER, Destination, Head, Visit
from headrace.config.args import Limits
from headrace.config.scaling import Routing
from headrace.errors import DeadlineExceeded, HeadraceError
from headrace.link.frames import Body, Reply, decode_failure, pieces
from headrace.link.plane import DataPlane, Target
from headrace.link.queue import Answer, Request
from headrace.metrics import PhaseSeconds, Recorder
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

    __slots__ = ("cold_start_ms", "desk", "path", "resolved")

    def __init__(self, desk: PredictionDesk, path: InferPath | None, head: Head) -> None:
        super().__init__(head)
        self.desk, self.path = desk, path
        self.resolved: Target | None = None
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
        desk, path, head = self.desk, self.path, self.head
        plane = desk.plane
        assert path is not None
        try:
            target = self.resolved = plane.targets.get(path) or plane.target(path)
        except HeadraceError:
            desk.access.pay(self)
            raise
        # For the slot: request id and trace context, if the caller sent one of them.
        meta = b""
        if head.trace:
            meta = self.request_id.encode() + b"\n" + head.trace
        elif head.given_id:
            meta = self.request_id.encode()
        arrived_s = time.monotonic()
        request = self.request = Request(
            id=plane.next_id(),
            key=target.key,
            call=target.call,
            body=body,
            length=length,
            deadline_s=arrived_s + timeout_s,
            arrived_s=arrived_s,
            done=done,
            json_length=json_length,
            encodings=encodings,
            meta=meta,
            follows_default=target.follows_default,
        )
        if target.routing.policy == "hash":
            request.hash_key = self._hash_key(target.routing, body)
        if desk.regions is not None:
            self.destination = desk.regions(self, request)
        if target.shards and self.destination is None and desk.media is not None:
            self.destination = desk.media(path, body)
        desk.access.submit(self, request)

    def _hash_key(self, routing: Routing, body: Body) -> bytes:
        if routing.key == "header":
            return self.head.headers.get((routing.header or "").lower().encode(), b"")
        digest = hashlib.blake2b(digest_size=16)
        for piece in pieces(body):
            digest.update(piece)
        return digest.digest()

    def record(self, answer: Answer) -> None:
        """With the answer: charge its cost, end its visit, count it and the time of each phase.

        It lets go of the request, and so of the body.
        """
        desk, path, request = self.desk, self.path, self.request
        now_s = time.monotonic()
        phases: PhaseSeconds | None = None
        if request is not None and isinstance(answer, Reply):
            phases = (
                request.sent_s - request.arrived_s,
                max(0.0, now_s - request.sent_s - answer.slot_s),
                answer.batch_wait_s,
                answer.compute_s,
                answer.encode_s,
            )
            if self.resolved is not None and self.resolved.cost is not None:
                cost = self.resolved.cost.of(answer.rows, answer.megapixels)
                if extra := desk.access.settle(self, cost):
                    desk.plane.router.charge(request, extra)
        desk.access.leave(self, answer, now_s, phases)
        self.request = self.destination = None
        code = answer.status if isinstance(answer, Reply) else answer.http_status
        if path is None or request is None:
            # The name of an unknown model is the caller's own text: it must not become a label.
            protocol, model = self.target
            known = model if model and desk.plane.config(model) is not None else ""
            desk.recorder.request((known, 0, protocol, code, self.tier, 0.0, None))
            return
        total_s, version = now_s - request.arrived_s, request.key[1] or 0
        tier = NO_TIER if self.account is None else self.account.allowance.name
        desk.recorder.request((path.model, version, path.protocol, code, tier, total_s, phases))
        if phases is not None and request.cold:
            waited_s = phases[0]
            self.cold_start_ms = max(1, round(waited_s * 1000))
            desk.recorder.cold_start(path.model, waited_s)
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
        if request is None or time.monotonic() < request.deadline_s - DEADLINE_SLACK_S:
            self.cancel()
        else:
            self.fail(DeadlineExceeded("the deadline passed before the answer"))

    def fail(self, error: HeadraceError) -> None:
        """End it with an error, wherever it is."""
        self.desk.access.drop(self)
        self.record(error)
