"""Fleets that this machine is not: the stage's plan and hash over up to a thousand shards."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from loadtests.sharding.simulation import PER_SHARD, Fleet, SimulatedPart, simulate
from loadtests.sharding.speed import EPSILON, Work
from sharding.plan import plan_segments, plan_tiles

SHARDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
TILE, OVERLAP = 1024, 256
PICTURES = {"12 MP picture": (4256, 2848), "100 MP picture": (11_552, 8_704)}
HOUR_S = 3600.0
SEGMENT_S = 2.0
FPS = 2.0


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds that an input of so many parts takes, for each number of `SHARDS`."""

    name: str
    parts: int
    wall_s: tuple[float, ...]

    def speedup(self, shards: int) -> float:
        """How many times faster than one shard."""
        return self.wall_s[0] / self.wall_s[SHARDS.index(shards)]


def picture_curve(name: str, size: tuple[int, int], work: Work) -> Curve:
    """A picture whose tiles take, pixel by pixel, what those that were measured took."""
    plan = plan_tiles(*size, TILE, OVERLAP)
    return _curve(name, [tile.width * tile.height for tile in plan], work)


def video_curve(work: Work) -> Curve:
    """An hour of video with keyframes each second, at the pace of the segments measured."""
    plan = plan_segments(HOUR_S, range(int(HOUR_S)), SEGMENT_S, FPS)
    return _curve("1 h of video", [len(segment.times_s) for segment in plan], work)


def _curve(name: str, sizes: Sequence[int], work: Work) -> Curve:
    """Parts of these sizes; what comes before the first grows with them all."""
    pace = [work_s / size for size, work_s in zip(work.sizes, work.work_s, strict=True)]
    chance = random.Random(name)
    times = [size * chance.choice(pace) for size in sizes]
    open_s = work.open_s * sum(sizes) / sum(work.sizes)
    parts = [
        SimulatedPart(blake2b(f"{name} {number}".encode(), digest_size=16).digest(), work_s)
        for number, work_s in enumerate(times)
    ]
    walls = []
    for shards in SHARDS:
        fleet = Fleet(
            shards,
            shards,
            PER_SHARD * shards,
            epsilon=EPSILON,
            split_s=open_s,
            send_s=work.send_s,
            latency_s=work.latency_s,
        )
        walls.append(simulate(parts, fleet).wall_s)
    return Curve(name, len(parts), tuple(walls))
