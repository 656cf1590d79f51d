"""The run of one job: split, sent to shards part by part, merged.

Only parts in flight are held: each is read when it is sent, a shard has at most `IN_FLIGHT` of
them, and decoded pixels lie in memory up to a bound, then in a file.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import structlog

from headrace.config.sharding import ShardingConfig
from headrace.errors import (
    Cancelled,
    DeadlineExceeded,
    HeadraceError,
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    Unavailable,
)
from headrace.link.hashing import rank
from headrace.link.router import MAX_DEATHS
from headrace.snapshot import ModelVersion
from sharding.boxes import moved
from sharding.gang import IN_FLIGHT, GangLease, Gangs
from sharding.merge import find_merger
from sharding.parts import Part, PartResult, Segment, Tile, find_missing, place_of, result_of
from sharding.shards import ShardDied, Shards
from sharding.split import Source, open_source
from sharding.upload import MediaJob, Tell

TRIES = 3
"""Shards that a part is sent to, one after the other, in the hash order of its key. The router
moves no part, as each is addressed to one slot."""
MERGE_S = 0.5
"""Time kept for the merge with `partial: allow`, at most a tenth of the job's time."""
WAKE_POLL_S = 0.01
JOIN_S = 0.2
"""Interval of looking for shards that have joined."""
MAX_FINDINGS = 300_000
"""Cap on the boxes and labels of a job before their merge: some 100 MB."""
HASHERS = 2
"""Threads that hash parts before the first is sent; each thread holds one part."""

log = structlog.get_logger()


class _TakenOver(Exception):
    """Raised when no shard has the job's model version any more and another one answers."""


class Run:
    """One job. Uploads lie on the node `node_id`; `folder` takes decoded pixels."""

    def __init__(
        self,
        job: MediaJob,
        config: ShardingConfig,
        shards: Shards,
        gangs: Gangs,
        node_id: str,
        folder: Path,
    ) -> None:
        self._job, self._config, self._shards, self._gangs = job, config, shards, gangs
        self._node_id, self._folder = node_id, folder
        self._deadline_s = time.monotonic() + job.timeout_s
        self._parts_until_s = self._deadline_s
        if job.options.partial == "allow":
            self._parts_until_s -= min(MERGE_S, 0.1 * job.timeout_s)
        self._version: ModelVersion | None = None
        self._blank: list[HeadraceError] = []
        self._stopped = False
        self.plan: Sequence[Part] = ()
        self.results: list[PartResult] = []
        self._found = 0
        self._reasons: dict[int, str] = {}
        self._damage: list[str] = []
        self._anew: list[str] = []

    def late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the deadline passed: {len(self.results)} of {len(self.plan)} parts were done"
        )

    async def work(self, tell: Tell) -> dict[str, Any]:
        """The job's result; `tell` hears of the plan and of every part."""
        started_s = time.monotonic()
        source: Source = await self._in_thread(
            open_source, self._job, self._config, self._folder, self._check
        )
        try:
            self.plan = source.plan
            for part in self.plan:
                if isinstance(part, Tile):
                    self._shards.check_fits(3 * part.width * part.height)
            keys = await self._in_thread(self._keys, source)
            split_s = time.monotonic() - started_s
            await self._parts(source, keys, tell)
            if len(self._blank) == len(self.plan):
                raise self._blank[0]
            if not self.results and time.monotonic() >= self._parts_until_s:
                raise self.late()
            merging_s = time.monotonic()
            answer: dict[str, Any] = await self._in_thread(self._merged, source)
            now_s = time.monotonic()
            answer["timing"] = {
                "split_s": round(split_s, 4),
                "merge_s": round(now_s - merging_s, 4),
                "total_s": round(now_s - started_s, 4),
            }
            return answer
        finally:
            self._stopped = True
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, source.close))

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        """The result of blocking work; a cancellation stops it and waits for its end."""
        job = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            self._stopped = True
            with suppress(Exception):
                left = await job
                if left is not None and hasattr(left, "close"):
                    left.close()  # a source that nobody will use
            raise

    def _check(self) -> None:
        if self._stopped:
            raise Cancelled("nobody waits for it any more")

    def _keys(self, source: Source) -> list[bytes]:
        def key(part: Part) -> bytes:
            self._check()
            return source.key(part)

        with ThreadPoolExecutor(HASHERS, "hash") as pool:
            return list(pool.map(key, source.plan))

    async def _members(self) -> list[str]:
        """The shards that can be reached; a sleeping model is woken. Raises `_TakenOver`."""
        job, shards = self._job, self._shards
        if members := self._reachable():
            return members
        if shards.members(self._asked(), ""):
            raise Unavailable(f"model {job.model!r} has no slot on the node where the upload lies")
        with shards.waiting(job.model):
            while not (members := self._reachable()):
                shards.config(job.model, job.version)  # raises once it cannot be served
                await asyncio.sleep(WAKE_POLL_S)
        return members

    def _reachable(self) -> list[str]:
        """The shards that can be reached now.

        Raises `_TakenOver` if none has the job's model version any more and another one answers.
        """
        node_id = self._node_id if self._config.kind == "video-segments" else ""
        members = self._shards.members(self._asked(), node_id)
        if not members and self._version is not None:
            now = self._shards.version(self._job.model, self._job.version)
            if now not in (None, self._version):
                raise _TakenOver
        return members

    def _asked(self) -> ModelVersion | None:
        """The version that works on all parts: the one that the job began with."""
        return self._version or self._shards.version(self._job.model, self._job.version)

    async def _parts(self, source: Source, keys: Sequence[bytes], tell: Tell) -> None:
        """Every part on its shard, all by one model version; if it goes, all begin anew."""
        job = self._job
        key_of = {part.index: key for part, key in zip(source.plan, keys, strict=True)}
        while True:
            members = await self._members()
            version = self._version = self._asked()
            assert version is not None  # it has members
            await tell(
                {
                    "event": "plan",
                    "parts": len(self.plan),
                    "kind": self._config.kind,
                    **_size(source),
                    "shards": len(members),
                    "notes": [*source.notes, *self._anew],
                }
            )
            gang = self._gangs.gang(version, members)
            try:
                with self._shards.backlog(job.model) as backlog:
                    backlog(len(keys))
                    async with gang.lease(min(len(keys), IN_FLIGHT * len(members))) as lease:
                        await self._pump(version, source, key_of, lease, backlog, tell)
                return
            except _TakenOver:
                log.info("version_taken_over", model=job.model, version=version.version)
            told = f"version {version.version} was taken over meanwhile"
            if job.options.partial == "allow" and self.results:
                done = {result.part.index for result in self.results}
                self._reasons |= {p.index: told for p in self.plan if p.index not in done}
                return
            self._version, self._found = None, 0
            for noted in (self.results, self._reasons, self._blank, self._damage):
                noted.clear()
            self._anew = [f"{told}: all parts began anew"]

    async def _pump(
        self,
        version: ModelVersion,
        source: Source,
        key_of: Mapping[int, bytes],
        lease: GangLease,
        backlog: Callable[[int], None],
        tell: Tell,
    ) -> None:
        """Keep every shard busy with its own parts, within the leased permits.

        With `partial: allow` it ends in time for the merge; else the deadline cancels it.
        """
        waiting = {part.index: part for part in source.plan}
        queues: dict[str, deque[Part]] = {}
        running: dict[asyncio.Task[PartResult], tuple[Part, str]] = {}
        busy: Counter[str] = Counter()
        try:
            while waiting or running:
                left_s = self._parts_until_s - time.monotonic()
                if left_s <= 0 and self._job.options.partial == "allow":
                    return
                # Without waiting parts the shards do not matter: leaving ones still answer.
                members = (waiting and self._reachable()) or list(queues)
                if set(members) != queues.keys():
                    queues = self._queues(version, list(waiting.values()), key_of, members)
                    lease.grow(min(len(waiting) + len(running), IN_FLIGHT * len(members)))
                for member in sorted(queues, key=busy.__getitem__):
                    queue = queues[member]
                    while queue and busy[member] < IN_FLIGHT and len(running) < lease.permits:
                        part = queue.popleft()
                        del waiting[part.index]
                        key, more = key_of[part.index], bool(queue)
                        work = self._part(version, source, part, key, member, more)
                        running[asyncio.create_task(work)] = (part, member)
                        busy[member] += 1
                backlog(len(waiting))
                if not running:  # all shards have just gone; this raises if it is for good
                    self._shards.config(self._job.model, self._job.version)
                    await asyncio.sleep(WAKE_POLL_S)
                    continue
                done, _ = await asyncio.wait(
                    running,
                    timeout=max(0.0, min(JOIN_S, left_s)),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    part, member = running.pop(task)
                    busy[member] -= 1
                    error = task.exception()
                    if error is not None and not isinstance(error, HeadraceError):
                        raise error
                    await tell(self._note(part, error if error is not None else task.result()))
                lease.shrink(max(1, min(lease.permits, len(waiting) + len(running))))
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _queues(
        self,
        version: ModelVersion,
        waiting: Sequence[Part],
        key_of: Mapping[int, bytes],
        members: Sequence[str],
    ) -> dict[str, deque[Part]]:
        """The waiting parts by shard; the bound of loads counts all parts."""
        gangs = self._gangs
        gangs.gang(version, members)
        keys = list(key_of.values())
        homes = gangs.assign(version, keys, members, self._config.epsilon)
        queues: dict[str, deque[Part]] = {member: deque() for member in members}
        for part in waiting:
            queues[homes[key_of[part.index]]].append(part)
        return queues

    async def _part(
        self, version: ModelVersion, source: Source, part: Part, key: bytes, home: str, more: bool
    ) -> PartResult:
        """One part, on its home or, if that is lost, on the next shards in hash order."""
        job, tried, deaths = self._job, [home], 0
        head, rest = await self._in_thread(source.body, part, key, more)
        while True:
            shard, started_s = tried[-1], time.monotonic()
            try:
                async with self._gangs.suspects if deaths else nullcontext():
                    until_s = self._deadline_s
                    answer = await self._shards.ask(job, version, shard, head, rest, until_s)
            except HeadraceError as error:
                if isinstance(part, Segment) and isinstance(error, InvalidArgument):
                    # Damage becomes a note; only a video without an intact segment is refused.
                    self._blank.append(error)
                    self._damage.append(error.message)
                    return PartResult(part, shard=shard)
                deaths += isinstance(error, ShardDied)
                if deaths >= MAX_DEATHS:
                    raise Unavailable(
                        f"{deaths} slots died while they worked on part {part.index}, so it is "
                        "not tried again"
                    ) from error
                if len(tried) >= TRIES or not _is_lost(error):
                    raise
                await asyncio.sleep(WAKE_POLL_S)  # until the pool's snapshot may show the loss
                ranked = rank(key, await self._members())
                others = [m for m in ranked if m not in tried]
                if not others and not isinstance(error, (NotFound, Unavailable)):
                    raise
                log.warning("part_retried", model=job.model, shard=shard, reason=error.message)
                # The only shard there is may be back.
                tried.append((others or ranked)[0])
                continue
            seconds = time.monotonic() - started_s
            damage = answer.get("damage")
            if damage and isinstance(part, Segment):
                self._damage.append(
                    f"{damage['corrupt']} frames between {part.start_s:.1f} and {part.end_s:.1f} s "
                    f"could not be decoded; {damage['missing']} asked-for times show nothing"
                )
            return result_of(answer, part, shard, round(seconds, 4))

    def _note(self, part: Part, outcome: PartResult | HeadraceError) -> dict[str, Any]:
        event: dict[str, Any] = {"event": "part", "part": part.index}
        if isinstance(outcome, HeadraceError):
            if self._job.options.partial == "refuse":
                raise outcome
            self._reasons[part.index] = event["error"] = outcome.message
        else:
            self._found += len(outcome.boxes) + sum(len(each.scores) for each in outcome.frames)
            if self._found > MAX_FINDINGS:
                raise PayloadTooLarge(
                    f"more than {MAX_FINDINGS:,} findings in {len(self.results)} parts: ask for "
                    "fewer parts, or let the postprocessor tell less"
                )
            self.results.append(outcome)
            event |= _account(outcome)
            event |= _found(outcome)
        done = len(self.results) + len(self._reasons)
        return {**event, "done": done, "parts": len(self.plan)}

    def _merged(self, source: Source) -> dict[str, Any]:
        job, config = self._job, self._config
        merger = find_merger(config.merger)
        merged = merger.merge(self.results, source.whole, job.options, config)
        missing = find_missing(self.plan, self.results, self._reasons)
        answer: dict[str, Any] = {
            "model": job.model,
            "version": asked.version if (asked := self._asked()) else 0,
            **merged,
            **_size(source),
            "shards": [
                _account(result) for result in sorted(self.results, key=lambda r: r.part.index)
            ],
            "notes": [*source.notes, *self._anew, *self._damage],
        }
        if missing:
            answer["missing"] = missing
        return answer


def _size(source: Source) -> dict[str, Any]:
    whole = source.whole
    return {"width": whole.width, "height": whole.height, "duration_s": whole.duration_s}


def _account(result: PartResult) -> dict[str, Any]:
    """The entry of a part in `shards`: where it lies, which shard did it, how long it took."""
    return {
        "part": result.part.index,
        **place_of(result.part),
        "shard": result.shard,
        "seconds": result.seconds,
        "shard_seconds": result.shard_s,
        "cached": result.cached,
    }


def _found(result: PartResult) -> dict[str, Any]:
    """Boxes or tags of one part, before its merge with others."""
    part = result.part
    if isinstance(part, Tile):
        return {"boxes": [moved(box, part).answer() for box in result.boxes]}
    return {
        "tags": [
            {
                "label": frame.scores[0].label,
                "score": frame.scores[0].score,
                "start_s": frame.start_s,
                "end_s": frame.end_s,
            }
            for frame in result.frames
            if frame.scores
        ]
    }


def _is_lost(error: HeadraceError) -> bool:
    """Whether the shard failed rather than the part, so that another shard may do it."""
    if isinstance(error, DeadlineExceeded):
        return False
    return isinstance(error, (NotFound, Unavailable)) or error.http_status >= 500
