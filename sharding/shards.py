"""Shards: the slots that hold a model, each with a queue of its own in the router."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from headrace.config.args import ModelConfig
from headrace.config.sharding import ShardingConfig
from headrace.errors import HeadraceError, InvalidArgument, PayloadTooLarge, Unavailable
from headrace.link.frames import OK, Buffer, decode_failure, pieces
from headrace.link.plane import DataPlane, Routes, routes_of
from headrace.link.queue import Answer, QueueKey, Request
from headrace.protocols.calls import call_number
from headrace.snapshot import ModelVersion, Snapshot, State
from sharding.upload import MediaJob

PART = call_number("media", "part")


class ShardDied(Unavailable):
    """Raised when a slot died while it worked on a part, which may be why."""


def routes_by_slot(snapshot: Snapshot) -> Routes:
    """The routes of a gateway, and one to every slot that holds a model version. Pure.

    Versions without traffic have one too, since a job goes on with the version that it began with.
    """
    routes, failed = routes_of(snapshot)
    for placement in snapshot.placements:
        view = snapshot.models.get(placement.model)
        if placement.state is State.READY and view is not None:
            version = ModelVersion(placement.model, placement.version, placement.revision)
            place = (placement.slot_id, placement.placement_id)
            routes[slot_key(version, placement.slot_id)] = (view.config.routing, [place])
    return routes, failed


def slot_key(version: ModelVersion, slot_id: str) -> QueueKey:
    """The queue of the parts that only this slot may answer."""
    return (version.model, f"{version.version}.{version.revision}@{slot_id}")


class Shards:
    """The slots that hold a model, for requests that name the slot that answers them.

    Belongs to the event loop of the plane, whose routes it extends.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        plane.routes = routes_by_slot
        plane.on_link_down = self._lost

    def _lost(self, slot_id: str) -> None:
        """Refuse the parts that wait for this slot; their jobs ask another one."""
        router = self._plane.router
        for key in router.queues():
            if isinstance(key[1], str) and key[1].endswith(f"@{slot_id}"):
                router.refuse(key, Unavailable(f"the link to slot {slot_id} broke"))

    def config(self, model: str, version: int | None) -> tuple[ModelConfig, ShardingConfig]:
        """A model's config. Raises `NotFound`, `Unavailable`, `InvalidArgument` (no `sharding`)."""
        self._plane.resolve("tfserving", model, version)
        config = self._plane.snapshot.models[model].config
        if config.sharding is None:
            raise InvalidArgument(
                f"model {model!r} does not split its input: its config has no `sharding`"
            )
        return config, config.sharding

    def version(self, model: str, number: int | None) -> ModelVersion | None:
        """The version that answers now, None if there is none."""
        view = self._plane.snapshot.models.get(model)
        found = view.version(number) if view is not None else None
        return None if found is None else ModelVersion(model, found.version, found.revision)

    def members(self, version: ModelVersion | None, node_id: str) -> list[str]:
        """Slots of a node ("": of any) that are ready for a version and can be reached, sorted.

        Those that stop are asked where there are no others.
        """
        snapshot = self._plane.snapshot
        slots = {slot.slot_id: slot for slot in snapshot.slots}
        ready = sorted(
            each.slot_id
            for each in snapshot.placements
            if (each.model, each.version, each.revision) == version
            and each.state is State.READY
            and each.slot_id in slots
            and self._plane.reaches(each.slot_id)
            and node_id in ("", slots[each.slot_id].node_id)
        )
        return [slot_id for slot_id in ready if not slots[slot_id].draining] or ready

    @contextmanager
    def waiting(self, model: str) -> Iterator[None]:
        """Count a job that waits for a model's first slot."""
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
        router, told = self._plane.router, 0

        def tell(parts: int) -> None:
            nonlocal told
            router.add_backlog(model, parts - told)
            told = parts

        try:
            yield tell
        finally:
            tell(0)

    def check_fits(self, length: int) -> None:
        """Raise `PayloadTooLarge` for a part that is too long for the link."""
        most = self._plane.max_body_bytes
        if length > most:
            raise PayloadTooLarge(
                f"a part has {length} bytes and the link takes {most}: choose a smaller `tile` or "
                "a larger `limits.max_body_bytes`"
            )

    async def ask(
        self,
        job: MediaJob,
        version: ModelVersion,
        slot_id: str,
        head: bytes,
        rest: Sequence[Buffer],
        deadline_s: float,
    ) -> dict[str, Any]:
        """The findings of a slot in a part, with the seconds of its own work as `shard_s`.

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
            key=slot_key(version, slot_id),
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
        if answer.status != OK:
            raise decode_failure(answer)
        content: dict[str, Any] = orjson.loads(b"".join(pieces(answer.body)))
        return {**content, "shard_s": answer.compute_s + answer.encode_s}
