"""The way in for one large picture or video, and its record: as any prediction's, but for slots.

Its caller is let in before the body is read. It holds its place from then on, for what an upload
takes is taken whether or not it is complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from gateway.prediction import FrontState, Prediction
from headrace.config.sharding import ShardingConfig
from headrace.errors import HeadraceError, InvalidArgument
from headrace.link.frames import Reply
from headrace.link.request import Answer, Request
from headrace.protocols.calls import call_number

PART = call_number("media", "part")
MEGA = 1e6


class Turn:
    """A place in the caller's queue: see `gateway.access.ticket.Destination`."""

    def __init__(self) -> None:
        self.came: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def submit(self, request: Request) -> None:
        """It is its turn."""
        if not self.came.done():
            self.came.set_result(None)

    def cancel(self, request: Request) -> None:
        """Whoever runs it stops it; nothing of it is with the data plane."""

    def refused(self, _: Request, answer: Answer) -> None:
        """It has waited in vain."""
        assert isinstance(answer, HeadraceError)
        if not self.came.done():
            self.came.set_exception(answer)


class MediaPrediction(Prediction):
    """See the module. Ends with one `record` or `cancel`, as every prediction."""

    __slots__ = ()

    family: ClassVar[str] = "media"

    async def let_in(self, front: FrontState, address: str, timeout_s: float) -> ShardingConfig:
        """Wait for its turn; how its model splits what comes.

        Raises what refuses the caller, `NotFound`, `Unavailable`, and `InvalidArgument` for a model
        that splits nothing.
        """
        path, plane = self.path, front.plane
        assert path is not None
        self.enter(front, address, 0)
        ticket = self.ticket
        assert ticket is not None
        try:
            key = plane.require("tfserving", path.model, path.version, path.label)
            sharding = sharding_of(front, path.model)
        except HeadraceError:
            front.admission.visit(ticket)
            raise
        turn, now_s = Turn(), plane.now_s()
        self.request = Request(
            id=plane.next_id(),
            key=key,
            call=PART,
            body=b"",
            length=0,
            deadline_s=now_s + timeout_s,
            arrived_s=now_s,
            done=turn.refused,
        )
        ticket.destination = turn
        front.admission.submit(ticket, self.request)
        await turn.came
        self.request.sent_s = plane.now_s()
        return sharding

    def largest(self, sharding: ShardingConfig) -> int:
        """How many bytes this caller may send."""
        account = self.ticket.account if self.ticket is not None else None
        tier_bytes = account.allowance.tier.max_body_bytes if account is not None else None
        most = sharding.limits.max_upload_bytes
        return most if tier_bytes is None else min(most, tier_bytes)

    def reply(self, front: FrontState, status: int, length: int, megapixels: float) -> Reply:
        """What the record, and the cost of it, are made from."""
        request = self.request
        assert request is not None
        return media_reply(request, front.plane.now_s(), status, length, megapixels)


def media_reply(
    request: Request, now_s: float, status: int, length: int, megapixels: float
) -> Reply:
    """An answer without a body: all of its time was spent on computing."""
    took_s = now_s - request.sent_s
    return Reply(
        id=request.id,
        length=length,
        status=status,
        flags=0,
        form=0,
        json_length=None,
        slot_s=took_s,
        batch_wait_s=0.0,
        compute_s=took_s,
        encode_s=0.0,
        depth=0,
        body=b"",
        rows=1,
        megapixels=megapixels,
    )


def megapixels_of(result: Mapping[str, Any]) -> float:
    """How large the input of a result was; 0 where it is not known."""
    return float(result.get("width") or 0) * float(result.get("height") or 0) / MEGA


def sharding_of(front: FrontState, model: str) -> ShardingConfig:
    """How a model that exists splits its input; raises `InvalidArgument` if it does not."""
    config = front.plane.config(model)
    if config is None or config.sharding is None:
        raise InvalidArgument(
            f"model {model!r} does not split its input: its config has no `sharding`, so send it "
            "tensors with :predict or /v2/models/.../infer"
        )
    return config.sharding
