"""What many distinct callers do to a gateway: rates by slice, and memory by caller."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.samples import percentile, ratio

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


@dataclass(frozen=True, slots=True)
class Crowd:
    """The whole measurement: strangers by slice, and one known caller beside.

    It asks before the strangers, right after them, and some seconds later (`control_quiet`). The
    first of the `moments` is before the strangers, the second after them.
    """

    callers: int
    control_before: Slice
    strangers: tuple[Slice, ...]
    control_after: Slice
    control_quiet: Slice
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
        """By what share the last strangers are slower than the first."""
        return 1 - ratio(self.strangers[-1].per_second, self.strangers[0].per_second)

    @property
    def control_slower(self) -> float:
        """By what share the known caller is slower right after the strangers than before."""
        return 1 - ratio(self.control_after.per_second, self.control_before.per_second)

    @property
    def quiet_slower(self) -> float:
        """The same some seconds later: they are remembered, but nothing is done for them."""
        return 1 - ratio(self.control_quiet.per_second, self.control_before.per_second)

    @property
    def slices(self) -> tuple[Slice, ...]:
        """All of them in the order of time."""
        return (self.control_before, *self.strangers, self.control_after, self.control_quiet)

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
    control = crowd.control_before
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
        _compared("the last strangers", crowd.strangers[-1], crowd.strangers[0], crowd.slower),
        _compared("a known caller after", crowd.control_after, control, crowd.control_slower),
        _compared("the same later", crowd.control_quiet, control, crowd.quiet_slower),
        f"{failures} requests failed; goal: no slow-down over {GOAL_SLOWER:.0%}: {verdict}.",
    ]


def _compared(who: str, now: Slice, first: Slice, slower: float) -> str:
    return (
        f"{who}: {now.per_second:,.0f} requests/s (p99 {now.p99_ms:.1f} ms), at first "
        f"{first.per_second:,.0f} (p99 {first.p99_ms:.1f} ms): {slower:+.1%} slower."
    )
