"""What slots and pool logged of a run: which models were ready when, and which slots were there.

Their lines are exact to the millisecond, and reading them afterwards disturbs nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

LOADED = "READY"
HOLDING = {"GRANTED", "NOTICED"}


@dataclass(frozen=True, slots=True)
class Steps:
    """A number that changes at times: (epoch seconds, value from then on), by time; 0 before."""

    points: tuple[tuple[float, int], ...] = ()

    @classmethod
    def of(cls, changes: Iterable[tuple[float, int]]) -> Steps:
        level, points = 0, []
        for at_s, change in sorted(changes):
            level += change
            points.append((at_s, level))
        return cls(tuple(points))

    def at(self, at_s: float) -> int:
        place = bisect_right(self.points, at_s, key=lambda point: point[0])
        return self.points[place - 1][1] if place else 0

    def total(self, start_s: float, end_s: float) -> float:
        """Its integral: slot-seconds, where it counts slots."""
        inside = [point for point in self.points if start_s < point[0] < end_s]
        times = [(start_s, self.at(start_s)), *inside, (end_s, 0)]
        return sum(level * (until_s - at_s) for (at_s, level), (until_s, _) in pairwise(times))

    def most(self, start_s: float, end_s: float) -> int:
        inside = [level for at_s, level in self.points if start_s < at_s < end_s]
        return max([self.at(start_s), *inside])

    def first(self, since_s: float, *, least: int = 0, most: int = 2**31) -> float:
        """From when on it is within these bounds for the first time; NaN if it never is."""
        if least <= self.at(since_s) <= most:
            return since_s
        return next((t for t, n in self.points if t > since_s and least <= n <= most), math.nan)

    def draw(self, panel: Any, start_s: float, end_s: float, label: str, **style: Any) -> None:
        """A line of steps, by the seconds since the start."""
        inside = [point for point in self.points if start_s < point[0] < end_s]
        points = [(start_s, self.at(start_s)), *inside, (end_s, self.at(end_s))]
        times, levels = [at_s - start_s for at_s, _ in points], [level for _, level in points]
        panel.step(times, levels, where="post", label=label, **style)


@dataclass(frozen=True, slots=True)
class PoolLog:
    """By model, READY placements; slots that the pool knew; the seconds that loads took.

    `joined_s` are the times at which slots came.
    """

    ready: dict[str, Steps] = field(default_factory=dict)
    slots: Steps = Steps()
    loads_s: dict[str, tuple[float, ...]] = field(default_factory=dict)
    joined_s: tuple[float, ...] = ()


def read_log(session: Path) -> PoolLog:
    files = sorted((session / "logs").glob("worker-*.err"))
    # Their names are worker-WORKER-JOB-PROCESS.err.
    return parse_log(
        {int(file.stem.rpartition("-")[2]): file.read_bytes().splitlines() for file in files}
    )


def leased_slots(journal: Sequence[bytes], clock_s: float) -> Steps:
    """Slots that leases held, from the lines of the pool's journal.

    Its times are of the monotonic clock, which is `clock_s` behind the epoch.
    """
    changes: list[tuple[float, int]] = []
    holding: dict[str, int] = {}
    for line in map(orjson.loads, journal):
        if line["kind"] != "lend":
            continue
        slots = {each["lease_id"]: each["slots"] for each in line["inputs"]["leases"]}
        for lease_id, event in line["decision"]["events"]:
            held = holding.get(lease_id, 0)
            holds = slots.get(lease_id, held) if event in HOLDING else 0
            changes.append((line["at"] + clock_s, holds - held))
            holding[lease_id] = holds
    return Steps.of(changes)


def parse_log(processes: Mapping[int, Sequence[bytes]]) -> PoolLog:
    """From the lines of each process, by its id; what is no line of ours is passed over."""
    ready: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    loads: defaultdict[str, list[float]] = defaultdict(list)
    slots: list[tuple[float, int]] = []
    ended_s: dict[int, float] = {}
    still: list[tuple[int, str]] = []
    for process, lines in processes.items():
        states: dict[tuple[str, int], tuple[str, float]] = {}
        for line in _events(lines):
            at_s = datetime.fromisoformat(line["time"]).timestamp()
            if line["event"] == "slot_joined":
                slots.append((at_s, +1))
            elif line["event"] == "slot_lost":
                slots.append((at_s, -1))
                ended_s[int(line["slot"].split("-")[-2])] = at_s
            elif line["event"] == "placement":
                key, state = (line["model"], line["version"]), line["state"]
                before, since_s = states.get(key, ("", at_s))
                if state == LOADED:
                    ready[key[0]].append((at_s, +1))
                    loads[key[0]].append(at_s - since_s)
                elif before == LOADED:
                    ready[key[0]].append((at_s, -1))
                # A load begins with LOADING and goes on with WARMING.
                states[key] = (state, since_s if before == "LOADING" else at_s)
        still += [(process, model) for (model, _), (state, _) in states.items() if state == LOADED]
    for process, model in still:
        if process in ended_s:
            ready[model].append((ended_s[process], -1))  # it went with its slot
    return PoolLog(
        {model: Steps.of(changes) for model, changes in ready.items()},
        Steps.of(slots),
        {model: tuple(times) for model, times in loads.items()},
        tuple(at_s for at_s, change in slots if change > 0),
    )


def _events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith(b"{"):
            try:
                document = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(document, dict) and {"event", "time"} <= document.keys():
                yield document
