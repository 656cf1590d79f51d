"""One prediction in any protocol: from target and metadata to a router request and its record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import structlog

from gateway.config import Limits
from gateway.data_plane import DataPlane
from gateway.frames import Body, Reply, pieces
from gateway.logs import request_id, valid_request_id, valid_traceparent
from gateway.metrics import Recorder
from gateway.protocols.calls import call_number
from gateway.protocols.paths import InferPath
from gateway.router import Answer, Request

NO_TIER = "none"

log = structlog.get_logger()


class Connection(Protocol):
    """A connection, as far as the sweep of time limits knows it."""

    def check_time(self, now_s: float) -> None:
        """Close it if a time limit has passed."""


class FrontState:
    """What all connections of a gateway share."""

    def __init__(self, plane: DataPlane, limits: Limits, recorder: Recorder) -> None:
        self.plane, self.limits, self.recorder = plane, limits, recorder
        self.connections: set[Connection] = set()
        self.draining = False


class Prediction:
    """See the module. `headers` has lower-case names; `path` is None when the target was wrong."""

    __slots__ = ("headers", "path", "request", "request_id")

    family: ClassVar[str] = "http"
    """Stands for the protocol in the metrics of a request whose target was wrong."""

    def __init__(self, path: InferPath | None, headers: Mapping[bytes, bytes]) -> None:
        self.path, self.headers = path, headers
        self.request: Request | None = None
        given = headers.get(b"x-request-id")
        valid = given is not None and valid_request_id(given)
        self.request_id = given.decode("ascii") if given and valid else request_id()

    def send(
        self,
        plane: DataPlane,
        body: Body,
        length: int,
        done: Callable[[Request, Answer], None],
        timeout_s: float,
        json_length: int | None = None,
        encodings: int = 0,
    ) -> None:
        """Queue it at the data plane; raises what is wrong with its model."""
        path = self.path
        assert path is not None
        key = plane.require(path.protocol, path.model, path.version, path.label)
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
        )
        plane.submit(self.request)

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
        """Count the answer and the time spent in each stage; log what is our fault."""
        code = answer.status if isinstance(answer, Reply) else answer.http_status
        path, request, recorder = self.path, self.request, front.recorder
        if path is None or request is None:
            # The name is whatever the caller sent, so it must not become a label.
            protocol = self.family if path is None else path.protocol
            recorder.request("", 0, protocol, code, NO_TIER, 0.0)
            return
        now_s = front.plane.now_s()
        version = request.key[1] or front.plane.version_of(request.key)
        took_s = now_s - request.arrived_s
        recorder.request(path.model, version, path.protocol, code, NO_TIER, took_s)
        if isinstance(answer, Reply):
            recorder.stage(path.model, version, "queue", request.sent_s - request.arrived_s)
            link_s = max(0.0, now_s - request.sent_s - answer.slot_s)
            recorder.stage(path.model, version, "link", link_s)
            recorder.stage(path.model, version, "batch_wait", answer.batch_wait_s)
            recorder.stage(path.model, version, "compute", answer.compute_s)
            recorder.stage(path.model, version, "encode", answer.encode_s)
        if code >= 500:
            reason = "answered by the slot" if isinstance(answer, Reply) else answer.message
            log.warning(
                "request_failed",
                request_id=self.request_id,
                model=path.model,
                code=code,
                reason=reason,
            )
