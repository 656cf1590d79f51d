"""What many distinct callers do to a gateway: rates by slice, and memory by caller."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from loadtests.samples import middle, percentile, ratio

GOAL_SLOWER = 0.20
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Slice:
    """Some requests in a row: how many, how long they took in all, the p99, the failed ones."""

    name: str
    requests: int
    seconds: float
    p99_ms: float
    failures: int

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return ratio(self.requests, self.seconds)


@dataclass(frozen=True, slots=True)
class Known:
    """The gateway at one moment: resident bytes, and callers whose budgets it remembers."""

    when: str
    rss_bytes: int
    callers: int


class Pair(NamedTuple):
    """One known caller's requests to the gateway that remembers all, and to one that does not."""

    crowded: Slice
    empty: Slice

    @property
    def slower(self) -> float:
        """By what share the crowded one is slower."""
        return 1 - ratio(self.crowded.per_second, self.empty.per_second)


@dataclass(frozen=True, slots=True)
class Crowd:
    """The whole measurement: strangers by slice, and after them one known caller.

    It asks in turns right `after` them, and again some seconds later (`quiet`). The first of the
    `moments` is before the strangers, the second after them.
    """

    callers: int
    strangers: tuple[Slice, ...]
    after: tuple[Pair, ...]
    quiet: tuple[Pair, ...]
    moments: tuple[Known, ...]

    @property
    def bytes_per_caller(self) -> float:
        """What a remembered caller takes of the gateway's memory."""
        before, after, *_ = self.moments
        return ratio(after.rss_bytes - before.rss_bytes, self.callers_remembered)

    @property
    def callers_remembered(self) -> int:
        """How many more the gateway remembers after the strangers than before them."""
        return self.moments[1].callers - self.moments[0].callers

    @property
    def slower(self) -> float:
        """By what share the last third of the strangers is slower than the first, by medians."""
        third = max(1, len(self.strangers) // 3)
        first, last = (
            middle([each.per_second for each in part])
            for part in (self.strangers[:third], self.strangers[-third:])
        )
        return 1 - ratio(last, first)

    @property
    def control_slower(self) -> float:
        """The median of the known caller's pairs right after the strangers."""
        return middle([pair.slower for pair in self.after])

    @property
    def quiet_slower(self) -> float:
        """The same some seconds later: they are remembered, but nothing is done for them."""
        return middle([pair.slower for pair in self.quiet])

    @property
    def slices(self) -> tuple[Slice, ...]:
        """All of them in the order of time."""
        return (*self.strangers, *itertools.chain(*self.after, *self.quiet))

    def document(self) -> dict[str, Any]:
        """The figures for programs; null where nothing was measured."""
        figures = {
            "bytes_per_caller": self.bytes_per_caller,
            "slower": self.slower,
            "control_slower": self.control_slower,
            "quiet_slower": self.quiet_slower,
        }
        plain = {
            name: None if math.isnan(value) else round(value, 4) for name, value in figures.items()
        }
        return {
            "callers": self.callers,
            **plain,
            "slices": [
                {
                    "name": each.name,
                    "requests": each.requests,
                    "per_second": round(each.per_second, 1),
                    "p99_ms": round(each.p99_ms, 3),
                    "failures": each.failures,
                }
                for each in self.slices
            ],
            "moments": [
                {"when": each.when, "rss_bytes": each.rss_bytes, "callers": each.callers}
                for each in self.moments
            ],
        }


def slices(
    name: str, sent_s: Sequence[float], ended_s: Sequence[float], failed: Sequence[bool], size: int
) -> list[Slice]:
    """Requests by `size` in the order of their answers; a smaller rest joins the last slice."""
    if not len(sent_s) == len(ended_s) == len(failed):
        raise ValueError("each request has one beginning, one end and one outcome")
    count = max(len(ended_s) // size, 1)
    bounds = [*(number * size for number in range(count)), len(ended_s)]
    found = []
    for begin, end in itertools.pairwise(bounds):
        since_s = ended_s[begin - 1] if begin else min(sent_s, default=0.0)
        found.append(
            Slice(
                name=f"{name} {begin + 1:,} to {end:,}",
                requests=end - begin,
                seconds=ended_s[end - 1] - since_s if end else 0.0,
                p99_ms=percentile(
                    (
                        (e - s) * 1000
                        for s, e in zip(sent_s[begin:end], ended_s[begin:end], strict=True)
                    ),
                    0.99,
                ),
                failures=sum(failed[begin:end]),
            )
        )
    return found


def crowd_sentences(crowd: Crowd) -> list[str]:
    """What a person wants to know, a line each."""
    failures = sum(each.failures for each in crowd.slices)
    slowest = max(crowd.slower, crowd.control_slower, crowd.quiet_slower)
    verdict = "met" if slowest <= GOAL_SLOWER and not failures else "missed"
    return [
        *(
            f"{each.when}: {each.rss_bytes / MIB:.1f} MiB resident, "
            f"{each.callers:,} callers remembered."
            for each in crowd.moments
        ),
        f"{crowd.bytes_per_caller:,.0f} bytes for each of {crowd.callers_remembered:,} callers.",
        f"the last third of the strangers: {crowd.slower:+.1%} slower than the first.",
        _compared("a known caller right after", crowd.after, crowd.control_slower),
        _compared("the same later", crowd.quiet, crowd.quiet_slower),
        f"{failures} requests failed; goal: no slow-down over {GOAL_SLOWER:.0%}: {verdict}.",
    ]


def _compared(when: str, pairs: Sequence[Pair], slower: float) -> str:
    crowded, empty = (
        middle([each.per_second for each in side]) for side in zip(*pairs, strict=True)
    )
    return (
        f"{when}: {crowded:,.0f} requests/s, {empty:,.0f} at a gateway without strangers, medians "
        f"of {len(pairs)} rounds in turn: {slower:+.1%} slower."
    )
