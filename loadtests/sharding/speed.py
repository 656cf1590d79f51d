"""How long a large picture takes over one shard and two, and again from their caches."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import Any

from loadtests.headrace import BadAnswer
from loadtests.plots import COLORS, GREY, MARKERS, drawn, scatter
from loadtests.report import Check, Report, figures
from loadtests.sharding.bare import bare_processes, ceiling
from loadtests.sharding.calls import Processed, process
from loadtests.sharding.inputs import (
    ALONE,
    Inputs,
    ShardedSystem,
    jpeg,
    lighter,
    patched,
    pixels_of,
    sharding_of,
)
from loadtests.sharding.simulation import (
    PER_SHARD,
    Fleet,
    SimulatedPart,
    SimulatedRequest,
    simulate,
)
from sharding.parts import Tile
from sharding.plan import plan_tiles
from sharding.split import PictureSource
from sharding.upload import MediaJob, Upload

SHARDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
PICTURES = {"12 MP picture": (4256, 2848), "100 MP picture": (11_552, 8_704)}

NEAR = 0.15
ENOUGH = 0.8
LEAST_GAIN = 5.0
MOST_OVERHEAD = 0.1
WARM_UP = (98, 99)
"""Brightness added to the pictures before the first round."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the parts of one input cost with a core for each who works on them, in seconds.

    `open_s` is what comes before the first part, `send_s` what the stage does for each, `latency_s`
    what a part needs besides, there and back, and `merge_s` what comes after the last. The times
    of `work_s` are those of the parts in the plan's order; `sizes` are their pixels.
    """

    sizes: tuple[int, ...]
    work_s: tuple[float, ...]
    open_s: float
    send_s: float
    latency_s: float = 0.0
    merge_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Round:
    """One picture over one shard and over two, and what was foretold of it by their names.

    `ceiling` is the efficiency of two processes without a server right after.
    """

    alone: Processed
    both: Processed
    alone_told_s: float
    both_told_s: float
    ceiling: float


@dataclass(frozen=True, slots=True)
class Speed:
    """All rounds, and the last of their pictures again: as it was, and with one tile changed."""

    rounds: tuple[Round, ...]
    again: Processed
    changed: Processed
    work: Work

    @property
    def seconds(self) -> tuple[float, float]:
        """The caller's median wait with one shard and with two."""
        alone_s = median(each.alone.wall_s for each in self.rounds)
        return alone_s, median(each.both.wall_s for each in self.rounds)

    @property
    def efficiency(self) -> float:
        """The time of one shard over twice that of two."""
        return median(each.alone.wall_s / (2 * each.both.wall_s) for each in self.rounds)

    @property
    def ceiling(self) -> float:
        """The efficiency that two processes without a server have on this machine."""
        return median(each.ceiling for each in self.rounds)

    @property
    def share(self) -> float:
        """The efficiency over that of two processes without a server."""
        return self.efficiency / self.ceiling

    def document(self) -> dict[str, Any]:
        return {
            "one_shard_s": [each.alone.wall_s for each in self.rounds],
            "two_shards_s": [each.both.wall_s for each in self.rounds],
            "foretold_one_s": [each.alone_told_s for each in self.rounds],
            "foretold_two_s": [each.both_told_s for each in self.rounds],
            "timing_one": [each.alone.result["timing"] for each in self.rounds],
            "timing_two": [each.both.result["timing"] for each in self.rounds],
            "shares_two": [each.both.shares for each in self.rounds],
            "again_s": self.again.wall_s,
            "efficiency": self.efficiency,
            "ceilings": [each.ceiling for each in self.rounds],
            "share_of_ceiling": self.share,
            **figures(self.work, "work_s", "open_s", "send_s"),
        }

    def checks(self) -> list[Check]:
        alone_s, both_s = self.seconds
        # How far the simulation is off, as a share of what was measured: one shard, two.
        alone_off = median(each.alone_told_s / each.alone.wall_s - 1 for each in self.rounds)
        both_off = median(each.both_told_s / each.both.wall_s - 1 for each in self.rounds)
        # The share of split, hash and merge in the stage's time.
        alone = median(each.alone.overhead for each in self.rounds)
        both = median(each.both.overhead for each in self.rounds)
        again, changed = self.again, self.changed
        gain = self.rounds[-1].both.wall_s / again.wall_s
        return [
            Check(
                "12 MP on 2 shards",
                f"{both_s:.2f} s, on one {alone_s:.2f} s: efficiency {self.efficiency:.2f}; two "
                f"processes without a server have {self.ceiling:.2f}, so {self.share:.2f} of the "
                "cores that are there",
                f"{ENOUGH}",
                self.share >= ENOUGH,
            ),
            Check(
                "the simulation of 1 and 2 shards",
                f"off by {alone_off:+.0%} and {both_off:+.0%}",
                f"within {NEAR:.0%}",
                max(abs(alone_off), abs(both_off)) <= NEAR,
            ),
            Check(
                "split, hash and merge",
                f"{alone:.1%} of the time with 1 shard, {both:.1%} with 2",
                f"under {MOST_OVERHEAD:.0%}",
                max(alone, both) < MOST_OVERHEAD,
            ),
            Check(
                "the same picture again",
                f"{again.wall_s:.2f} s, {gain:.1f} times faster, "
                f"{again.computed} of {again.parts} parts computed",
                f"{LEAST_GAIN:g} times, none computed",
                gain >= LEAST_GAIN and again.computed == 0,
            ),
            Check(
                "with one tile changed",
                f"{changed.computed} of {changed.parts} parts computed",
                "one",
                changed.computed == 1,
            ),
        ]


def run_speed(fleet: ShardedSystem, inputs: Inputs, rounds: int, report: Report) -> list[Check]:
    speed = measure_speed(fleet, inputs, rounds)
    curves = [picture_curve(name, size, speed.work) for name, size in PICTURES.items()]
    plot_speed(curves, speed, report.title, report.picture("-speed.png"))
    report.write(speed=speed.document(), simulated={"shards": SHARDS, "curves": curves})
    return speed.checks()


def measure_speed(fleet: ShardedSystem, inputs: Inputs, rounds: int) -> Speed:
    """Rounds of a picture that is a little lighter each time; raises `HeadraceError`, `NotStarted`.

    The simulation gets the times that the one shard told for the picture before. Of two shards it
    only knows besides how much two processes hinder each other on this machine.
    """
    path = inputs.mosaic(12)
    pixels = pixels_of(path)
    names = {model: tuple(fleet.shards[model]) for model in (ALONE, "faces")}
    for level in WARM_UP:
        content = jpeg(lighter(pixels, level))
        before, _ = (process(fleet.url, model, content) for model in names)
    measured = []
    with bare_processes(path, len(names["faces"])) as bare:
        for number in range(1, rounds + 1):
            content = jpeg(lighter(pixels, number))
            alone, both = (process(fleet.url, model, content) for model in names)
            measured.append((content, alone, both, ceiling(bare)))
    share = median(each for *_, each in measured)
    found = []
    for content, alone, both, own in measured:
        split = _split(path.parent, content)
        one, two = work_of(before, split), work_of(alone, split)
        told_s = foretold(one, split.keys, names[ALONE]).wall_s
        both_told_s = foretold(two, split.keys, names["faces"], share).wall_s
        found.append(Round(alone, both, told_s, both_told_s, own))
        before = alone
    again = process(fleet.url, "faces", content)
    changed = process(fleet.url, "faces", jpeg(patched(lighter(pixels, rounds))))
    return Speed(tuple(found), again, changed, two)


def work_of(answer: Processed, split: Split) -> Work:
    """From the times that an answer of one shard tells; raises `BadAnswer` for a cached one."""
    if answer.computed < answer.parts:
        raise BadAnswer("parts that lay in a cache do not tell how long they take")
    timing, shards = answer.result["timing"], answer.result["shards"]
    return Work(
        split.sizes,
        tuple(shard["shard_seconds"] for shard in shards),
        answer.wall_s - timing["total_s"] + timing["split_s"],
        split.send_s,
        # The first that is worked on waits behind no other.
        min(shard["seconds"] - shard["shard_seconds"] for shard in shards),
        timing["merge_s"],
    )


def fleet_of(shards: int, work: Work, open_s: float) -> Fleet:
    """A fleet of which one request may have every shard."""
    return Fleet(
        shards,
        shards,
        PER_SHARD * shards,
        epsilon=sharding_of("faces").epsilon,
        split_s=open_s,
        send_s=work.send_s,
        latency_s=work.latency_s,
        merge_s=work.merge_s,
    )


def foretold(
    work: Work, keys: tuple[bytes, ...], shards: tuple[str, ...], ceiling: float = 1.0
) -> SimulatedRequest:
    """What the simulation says of a picture on shards with these names.

    `ceiling` is the efficiency of as many processes without a server.
    """
    parts = [
        SimulatedPart(key, work_s / ceiling) for key, work_s in zip(keys, work.work_s, strict=True)
    ]
    return simulate(parts, fleet_of(len(shards), work, work.open_s), names=shards)


@dataclass(frozen=True, slots=True)
class Split:
    """The digests that the stage finds, the pixels of each part, and what it needs to send one."""

    keys: tuple[bytes, ...]
    sizes: tuple[int, ...]
    send_s: float


def _split(folder: Path, content: bytes) -> Split:
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".jpg") as file:
        file.write(content)
        file.flush()
        job = MediaJob("faces", Upload(file.name, len(content), ""))
        source = PictureSource(job, sharding_of("faces"), folder, lambda: None)
        try:
            keys = tuple(source.key(part) for part in source.plan)
            begin_s = time.perf_counter()
            for part, key in zip(source.plan, keys, strict=True):
                source.body(part, key)
            send_s = (time.perf_counter() - begin_s) / len(keys)
            tiles = [part for part in source.plan if isinstance(part, Tile)]
            return Split(keys, tuple(tile.width * tile.height for tile in tiles), send_s)
        finally:
            source.close()


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds that an input takes, for each number of `SHARDS`."""

    name: str
    parts: int
    wall_s: tuple[float, ...]

    def speedup(self, shards: int) -> float:
        return self.wall_s[0] / self.wall_s[SHARDS.index(shards)]


def picture_curve(name: str, size: tuple[int, int], work: Work) -> Curve:
    """A picture whose tiles take, pixel by pixel, what those that were measured took.

    What comes before the first tile grows with the pixels of all.
    """
    config = sharding_of("faces")
    sizes = [each.width * each.height for each in plan_tiles(*size, config.tile, config.overlap)]
    pace = [work_s / size for size, work_s in zip(work.sizes, work.work_s, strict=True)]
    chance = random.Random(name)
    parts = [
        SimulatedPart(
            blake2b(f"{name} {number}".encode(), digest_size=16).digest(),
            size * chance.choice(pace),
        )
        for number, size in enumerate(sizes)
    ]
    open_s = work.open_s * sum(sizes) / sum(work.sizes)
    work = replace(work, merge_s=0.0)
    walls = (simulate(parts, fleet_of(shards, work, open_s)).wall_s for shards in SHARDS)
    return Curve(name, len(parts), tuple(walls))


def plot_speed(curves: Sequence[Curve], speed: Speed, title: str, path: Path) -> None:
    """Seconds and times faster by the number of shards, with what was measured."""
    title = f"Large inputs over more shards, simulated\n{title}"
    with drawn(path, title, (12, 5.2), columns=2) as [seconds, faster]:
        for curve, color, marker in zip(curves, COLORS, MARKERS, strict=False):
            text = f"{curve.name}, {curve.parts:,} parts"
            line: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4}
            seconds.plot(SHARDS, curve.wall_s, label=text, **line)
            faster.plot(SHARDS, [curve.speedup(n) for n in SHARDS], label=text, **line)
        measured = zip((1, 2), speed.seconds, strict=True)
        mark: dict[str, Any] = {"s": 90, "color": GREY, "marker": "+", "zorder": 3}
        scatter(seconds, measured, "12 MP picture, measured", **mark)
        faster.plot(SHARDS, SHARDS, color=GREY, linestyle=":", label="as many times as shards")
        for panel, name in ((seconds, "seconds"), (faster, "times faster than one shard")):
            panel.set(xscale="log", yscale="log", xlabel="shards", ylabel=name)
