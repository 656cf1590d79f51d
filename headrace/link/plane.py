"""The data plane behind every protocol, and the questions that protocols ask of the snapshot."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from headrace.config.args import Cost, ModelConfig
from headrace.config.scaling import Routing
from headrace.errors import NotFound, Unavailable
from headrace.link.client import Identity, SlotLink
from headrace.link.queue import QueueKey, Request
from headrace.link.router import Route, Router
from headrace.metrics import Recorder
from headrace.protocols.calls import call_number
from headrace.protocols.targets import (
    InferPath,
    model_not_found,
    parse_version,
    servable_not_found,
)
from headrace.snapshot import ModelView, Snapshot, State, VersionView
from headrace.spec import ModelSpec

TICK_S = 0.025
"""Interval, while requests are here, of looking at deadlines and of telling slots their demand."""

MAX_TARGETS = 10_000

NOT_FOUND = {
    "tfserving": servable_not_found,
    "tfserving_grpc": servable_not_found,
    "openinference": model_not_found,
    "openinference_grpc": model_not_found,
}


@dataclass(frozen=True, slots=True)
class Target:
    """What a snapshot says of an `InferPath`: the queue of its requests, and how they are handled.

    `cost` is None where each request costs 1. A model that `shards` may answer pictures and videos.
    """

    key: tuple[str, int]
    call: int
    routing: Routing
    cost: Cost | None
    shards: bool
    follows_default: bool


Routes = tuple[dict[QueueKey, Route], dict[QueueKey, str]]
"""Routes, and for the queues that cannot be served the reason."""

log = structlog.get_logger()


class DataPlane:
    """Router, links and deadlines of one process; belongs to one event loop."""

    def __init__(self, identity: Identity, recorder: Recorder) -> None:
        self.snapshot = Snapshot()
        self.router = Router(random.Random())
        self._identity, self._recorder = identity, recorder
        self.max_body_bytes = identity.max_body_bytes
        self._links: dict[str, tuple[SlotLink, asyncio.Task[None]]] = {}
        self._flushing = self._applying = False
        self._unsent = 0
        # Set by whatever is flushed, cleared a tick later once nothing is left.
        self.stirred = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self.targets: dict[InferPath, Target] = {}
        # The shard stage has more routes than a gateway.
        self.routes: Callable[[Snapshot], Routes] = routes_of
        # Called for the first request that no slot can answer.
        self.on_starved: Callable[[], None] = lambda: None
        # Called when the link to a slot broke and its requests wait for another one.
        self.on_link_down: Callable[[str], None] = lambda _: None

    def apply(self, snapshot: Snapshot) -> None:
        """Take a newer snapshot: links to its slots, routes to its READY placements."""
        # What is answered meanwhile may start other requests: they go by the new routes.
        self._applying = True
        try:
            self._apply(snapshot)
        finally:
            self._applying = False
        self.flush_soon()

    def _apply(self, snapshot: Snapshot) -> None:
        if snapshot.epoch != self.snapshot.epoch:
            snapshot = with_known_specs(snapshot, self.snapshot)
        self.snapshot = snapshot
        self.targets.clear()
        slots = {slot.slot_id: slot for slot in snapshot.slots}
        for slot_id in self._links.keys() - slots.keys():
            _, task = self._links.pop(slot_id)
            self.router.lane_down(slot_id, self.now_s())
            task.cancel()
        for slot_id in slots.keys() - self._links.keys():
            link = SlotLink(
                slots[slot_id], self._identity, self.router, self.flush_soon, self.link_lost
            )
            self._links[slot_id] = (link, self._loop.create_task(link.run()))
        routes, failed = self.routes(snapshot)
        self.router.set_routes(routes, defaults_of(snapshot), lacking_of(snapshot))
        for key, reason in failed.items():
            self.router.refuse(key, Unavailable(reason))

    def resolve(
        self, protocol: str, name: str, version: int | None, label: str | None = None
    ) -> tuple[str, int]:
        """The model version that answers; raises the protocol's `NotFound`, or `Unavailable`.

        Label and default are resolved once, on arrival; the request carries the version.
        """
        view = self.snapshot.models.get(name)
        if view is None and not self.snapshot.number:
            raise Unavailable("the gateway has not heard from the pool yet", retry_after_s=1)
        if label is not None and view is not None:
            version = labelled(view, label)
        found = view.version(version) if view is not None else None
        if view is None or (found is None and version is not None):
            raise NOT_FOUND[protocol](name, version)
        if found is None:
            raise Unavailable(f"model {name!r} cannot be served: {view.reason or 'no version'}")
        if found.state is State.FAILED:
            raise Unavailable(f"model {name!r} version {found.version} failed: {found.reason}")
        return (name, found.version)

    def target(self, path: InferPath) -> Target:
        """What is known of a target, kept until the next snapshot; raises as `resolve` does."""
        key = self.resolve(path.protocol, path.model, path.version, path.label)
        config = self.snapshot.models[path.model].config
        target = Target(
            key=key,
            call=call_number(path.protocol, path.method),
            routing=config.routing,
            cost=config.cost,
            shards=config.sharding is not None,
            follows_default=path.version is None and path.label is None,
        )
        # A caller may write a version in many ways.
        if len(self.targets) >= MAX_TARGETS:
            self.targets.clear()
        self.targets[path] = target
        return target

    def config(self, name: str) -> ModelConfig | None:
        view = self.snapshot.models.get(name)
        return None if view is None else view.config

    def now_s(self) -> float:
        """The clock of deadlines. uvloop's own counts whole milliseconds, too coarse for phases."""
        return time.monotonic()

    def next_id(self) -> int:
        """A request number, unique among those in flight in this process."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        return self._number

    def submit(self, request: Request) -> None:
        """Queue a request; it leaves in this iteration of the loop, in a bundle with others.

        A bundle as large as what the slots hold leaves at once, so that they compute while the
        rest of the requests are read: one of both would wait if all left at the iteration's end.
        """
        if self.router.submit(request):
            self.on_starved()
        self._unsent += 1
        if self._unsent > self.router.in_slots and not self._applying:
            self._flush()
        elif not self._flushing:
            self.flush_soon()

    def cancel(self, request: Request) -> None:
        """Drop the request of a client that left."""
        if not request.finished:
            self._recorder.cancellation(request.key[0])
            self.router.cancel(request)
            self.flush_soon()

    def flush_soon(self) -> None:
        """Assign and send what waits at the end of this iteration of the loop."""
        if not self._flushing and self.router.busy:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._unsent = 0
        self.stirred.set()
        for slot_id, requests in self.router.assign(time.monotonic()).items():
            self._links[slot_id][0].send(requests)

    async def run(self) -> None:
        """Check deadlines, and tell slots of changed demand, until cancelled.

        Without requests it sleeps until something is flushed.
        """
        try:
            while True:
                await self.stirred.wait()
                await asyncio.sleep(TICK_S)
                self.stirred.clear()
                if self.router.expire(self.now_s()):
                    self.flush_soon()
                for slot_id, demand in self.router.changed_demand().items():
                    if slot_id in self._links:
                        self._links[slot_id][0].tell_demand(demand)
                if len(self.router):
                    self.stirred.set()
        finally:
            for _, task in self._links.values():
                task.cancel()

    def reaches(self, slot_id: str) -> bool:
        return slot_id in self._links and self._links[slot_id][0].up

    def links(self) -> dict[str, str]:
        """The transport by slot: `unix`, `tcp`, `tls`, or why the link is down."""
        return {
            slot_id: link.transport if link.up else f"down: {link.last_error or 'connecting'}"
            for slot_id, (link, _) in self._links.items()
        }

    def record_gauges(self) -> None:
        self._recorder.gauges(self.router.in_flight(), self.router.waiting())

    def link_lost(self, link: SlotLink) -> None:
        """A link broke: its requests are tried again in other slots."""
        before = self.router.retries.copy()
        self._recorder.link_lost()
        self.router.lane_down(link.slot.slot_id, self.now_s())
        retried = self.router.retries - before
        for model, count in retried.items():
            self._recorder.retry(model, count)
        log.warning(
            "link_down", slot=link.slot.slot_id, reason=link.last_error, retried=retried.total()
        )
        self.on_link_down(link.slot.slot_id)
        self.flush_soon()


def with_known_specs(new: Snapshot, old: Snapshot) -> Snapshot:
    """The snapshot of a new pool with the specs of sleeping models, which it cannot know. Pure."""
    known = {
        (name, version.version, version.revision): version.spec
        for name, model in old.models.items()
        for version in model.versions
    }
    models = {
        name: replace(
            model,
            versions=tuple(
                version
                if version.spec is not None
                else replace(version, spec=known.get((name, version.version, version.revision)))
                for version in model.versions
            ),
        )
        for name, model in new.models.items()
    }
    return replace(new, models=models)


def routes_of(snapshot: Snapshot) -> Routes:
    """Routes to what is READY, and why the versions that failed cannot be served. Pure."""
    routes: dict[QueueKey, Route] = {}
    failed: dict[QueueKey, str] = {}
    seat_ids: dict[tuple[str, int, int], list[tuple[str, int]]] = {}
    for placement in snapshot.placements:
        if placement.state is State.READY:
            identity = (placement.model, placement.version, placement.revision)
            seat_id = (placement.slot_id, placement.placement_id)
            seat_ids.setdefault(identity, []).append(seat_id)
    for name, model in snapshot.models.items():
        for version in model.versions:
            if not version.served:
                continue
            found = seat_ids.get((name, version.version, version.revision), [])
            routes[name, version.version] = (model.config.routing, found)
            if version.state is State.FAILED:
                failed[name, version.version] = f"model {name!r} failed: {version.reason}"
        if model.version(None) is None:
            routes[name, None] = (model.config.routing, [])
    return routes, failed


def defaults_of(snapshot: Snapshot) -> dict[str, int | None]:
    """The default version by model, None where there is no version. Pure."""
    found = {name: model.version(None) for name, model in snapshot.models.items()}
    return {name: None if view is None else view.version for name, view in found.items()}


def lacking_of(snapshot: Snapshot) -> dict[QueueKey, str]:
    """Reasons, as the pool tells them, why versions have no slot yet. Pure."""
    return {
        (name, version.version): version.reason
        for name, model in snapshot.models.items()
        for version in model.versions
        if version.served and version.state is State.PENDING and version.reason
    }


def find_model(snapshot: Snapshot, name: str, version: str = "") -> tuple[ModelView, VersionView]:
    """A version by the Open Inference Protocol, whose empty version is the default one.

    Raises `NotFound`, `InvalidArgument` or, while there is no version yet, `Unavailable`.
    """
    number = parse_version(version) if version else None
    model = snapshot.models.get(name)
    if model is None:
        raise model_not_found(name)
    found = model.version(number)
    if found is None and number is not None:
        raise model_not_found(name, number)
    if found is None:
        raise Unavailable(f"model '{name}' has no version yet" + _because(model.reason))
    return model, found


def known_spec(name: str, found: VersionView) -> ModelSpec:
    """The spec of a version; raises `Unavailable` until some slot has loaded it."""
    if found.spec is None:
        state = f"model '{name}' version {found.version} is {found.state}"
        raise Unavailable(state + _because(found.reason))
    return found.spec


def find_servable(
    snapshot: Snapshot, name: str, version: int | None = None, label: str | None = None
) -> ModelSpec:
    """A version's spec by TensorFlow Serving's protocol; raises `NotFound`."""
    model = snapshot.models.get(name)
    if model is not None and label is not None:
        version = labelled(model, label)
    found = model.version(version) if model is not None else None
    if found is None or found.spec is None:
        raise servable_not_found(name, version)
    return found.spec


def servable_versions(
    snapshot: Snapshot, name: str, version: int | None = None, label: str | None = None
) -> list[VersionView]:
    """The versions whose status is asked for: all, or that one; raises `NotFound`.

    To clients, a version that is only kept warm for a rollback is unloaded.
    """
    model = snapshot.models.get(name)
    if model is not None and label is not None:
        version = labelled(model, label)
    versions = () if model is None else model.versions
    wanted = [
        view
        for view in versions
        if version in (None, view.version) and (view.served or view.state is State.DRAINING)
    ]
    if not wanted:
        what = "any versions" if version is None else f"version {version}"
        raise NotFound(f"Could not find {what} of model {name}")
    return wanted


def labelled(model: ModelView, label: str) -> int:
    """The version that a label points to now; raises `NotFound`."""
    if label not in model.labels:
        raise servable_not_found(model.name, label=label)
    return model.labels[label]


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
