"""The shards of a model: the slots that hold it, each with a queue of its own in the router."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import orjson

from headrace.config.args import ModelConfig
from headrace.config.sharding import ShardingConfig
from headrace.errors import (
    DeadlineExceeded,
    HeadraceError,
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    Unavailable,
)
from headrace.link.client import SlotLink
from headrace.link.frames import OK, Buffer, Reply, decode_failure, pieces
from headrace.link.plane import DataPlane, routes_of
from headrace.link.request import Answer, QueueKey, Request
from headrace.link.seats import Route
from headrace.protocols.calls import call_number
from headrace.snapshot import Snapshot, State
from sharding.upload import MediaJob

PART = call_number("media", "part")


class Edition(NamedTuple):
    """A model's version with the revision of its files: what a slot has loaded."""

    version: int
    revision: int


class ShardDied(Unavailable):
    """Raised when a slot died while it worked on a part, which may be why."""


class StagePlane(DataPlane):
    """A data plane whose requests may name the slot that answers them."""

    def routes(self, snapshot: Snapshot) -> tuple[dict[QueueKey, Route], dict[QueueKey, str]]:
        """Those of a gateway, and one for every slot of each edition of a model.

        Also of editions that answer nobody any more: a request goes on with the one it began with.
        """
        routes, failed = routes_of(snapshot)
        for placement in snapshot.placements:
            view = snapshot.models.get(placement.model)
            if placement.state is State.READY and view is not None:
                edition = Edition(placement.version, placement.revision)
                place = (placement.slot_id, placement.placement_id)
                key = slot_key(placement.model, edition, placement.slot_id)
                routes[key] = (view.config.routing, [place])
        return routes, failed

    def link_lost(self, link: SlotLink) -> None:
        """Requests that only this slot could answer are refused; the stage asks another one."""
        super().link_lost(link)
        slot_id = link.slot.slot_id
        for key in self.router.queues():
            if isinstance(key[1], str) and key[1].endswith(f"@{slot_id}"):
                self.router.refuse(key, Unavailable(f"the link to slot {slot_id} broke"))


def slot_key(model: str, edition: Edition, slot_id: str) -> QueueKey:
    """What a request is for that only this slot may answer."""
    return (model, f"{edition.version}.{edition.revision}@{slot_id}")


class Shards:
    """See the module. Belongs to the plane's event loop."""

    def __init__(self, plane: StagePlane) -> None:
        self._plane = plane

    def config(self, model: str, version: int | None) -> tuple[ModelConfig, ShardingConfig]:
        """Raises `NotFound`, `Unavailable` with the reason, or `InvalidArgument` without shards."""
        self._plane.resolve("tfserving", model, version)
        config = self._plane.snapshot.models[model].config
        if config.sharding is None:
            raise InvalidArgument(
                f"model {model!r} does not split its input: its config has no `sharding`"
            )
        return config, config.sharding

    def edition(self, model: str, version: int | None) -> Edition | None:
        """What answers now."""
        view = self._plane.snapshot.models.get(model)
        found = view.version(version) if view is not None else None
        return Edition(found.version, found.revision) if found is not None else None

    def members(self, model: str, edition: Edition | None, node_id: str) -> list[str]:
        """Slots of a node ("": of any) that are ready for it and can be reached, sorted.

        Those that stop are asked where there are no others.
        """
        snapshot = self._plane.snapshot
        slots = {slot.slot_id: slot for slot in snapshot.slots}
        ready = sorted(
            placement.slot_id
            for placement in snapshot.placements
            if placement.model == model
            and (placement.version, placement.revision) == edition
            and placement.state is State.READY
            and placement.slot_id in slots
            and self._plane.reaches(placement.slot_id)
            and node_id in ("", slots[placement.slot_id].node_id)
        )
        return [slot_id for slot_id in ready if not slots[slot_id].draining] or ready

    @contextmanager
    def waiting(self, model: str) -> Iterator[None]:
        """Somebody waits for a model that has no slot yet."""
        router = self._plane.router
        router.wait_outside(model)
        self._plane.on_starved()
        try:
            yield
        finally:
            router.leave_outside(model)

    @contextmanager
    def backlog(self, model: str) -> Iterator[Callable[[int], None]]:
        """Yields a function that reports how many parts are unclaimed; the pool scales on it."""
        router = self._plane.router
        told = 0

        def tell(parts: int) -> None:
            nonlocal told
            router.add_backlog(model, parts - told)
            told = parts

        try:
            yield tell
        finally:
            tell(0)

    def check_fits(self, length: int) -> None:
        """Whether a part of so many bytes can be sent; raises `PayloadTooLarge`."""
        most = self._plane.max_body_bytes
        if length > most:
            raise PayloadTooLarge(
                f"a part has {length} bytes and the link takes {most}: choose a smaller `tile` or "
                "a larger `limits.max_body_bytes`"
            )

    async def ask(
        self,
        job: MediaJob,
        edition: Edition,
        slot_id: str,
        head: bytes,
        rest: Sequence[Buffer],
        deadline_s: float,
    ) -> dict[str, object]:
        """What a slot finds in a part, and the seconds of its own work on it as `shard_s`.

        Raises its error; `NotFound` or `Unavailable` if the slot is gone, `ShardDied` if it went
        with the part. Cancelling the wait cancels the part.
        """
        plane = self._plane
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def done(_: Request, answer: Answer) -> None:
            if not answered.done():
                answered.set_result(answer)

        if not plane.reaches(slot_id):
            raise Unavailable(f"slot {slot_id} is gone")
        body = (head, *rest)
        length = sum(len(piece) for piece in body)
        self.check_fits(length)
        request = Request(
            id=plane.next_id(),
            key=slot_key(job.model, edition, slot_id),
            call=PART,
            body=body,
            length=length,
            deadline_s=deadline_s,
            arrived_s=plane.now_s(),
            done=done,
            json_length=len(head),
            meta=job.meta,
            priority=job.priority,
        )
        plane.submit(request)
        try:
            answer = await answered
        except asyncio.CancelledError:
            plane.cancel(request)
            raise
        if isinstance(answer, HeadraceError):
            if request.deaths and isinstance(answer, Unavailable):
                raise ShardDied(f"slot {slot_id} died while it worked on a part") from answer
            raise answer
        return _content(answer)


def _content(reply: Reply) -> dict[str, object]:
    if reply.status != OK:
        raise decode_failure(reply)
    content: dict[str, object] = orjson.loads(b"".join(pieces(reply.body)))
    return {**content, "shard_s": reply.compute_s + reply.encode_s}


def is_lost(error: HeadraceError) -> bool:
    """Whether the shard, not the part, is to blame: another one may do it, if there is time."""
    if isinstance(error, DeadlineExceeded):
        return False
    return isinstance(error, (NotFound, Unavailable)) or error.http_status >= 500
