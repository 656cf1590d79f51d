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
    """The whole measurement: strangers by slice between two runs of one known caller."""

    callers: int
    control_before: Slice
    strangers: tuple[Slice, ...]
    control_after: Slice
    before: Known
    after: Known
    idle: Known

    @property
    def bytes_per_caller(self) -> float:
        """What a remembered caller takes of the gateway's memory."""
        return ratio(self.after.rss_bytes - self.before.rss_bytes, self.callers_remembered)

    @property
    def callers_remembered(self) -> int:
        """How many more the gateway remembers after the strangers than before them."""
        return self.after.callers - self.before.callers

    @property
    def slower(self) -> float:
        """By what share the last strangers are slower than the first."""
        return 1 - ratio(self.strangers[-1].per_second, self.strangers[0].per_second)

    @property
    def control_slower(self) -> float:
        """By what share the known caller is slower with the strangers remembered than before."""
        return 1 - ratio(self.control_after.per_second, self.control_before.per_second)

    def document(self) -> dict[str, Any]:
        """The figures for programs; null where nothing was measured."""
        figures = {
            "bytes_per_caller": self.bytes_per_caller,
            "slower": self.slower,
            "control_slower": self.control_slower,
        }
        plain = {
            name: None if math.isnan(value) else round(value, 4) for name, value in figures.items()
        }
        slices = (self.control_before, *self.strangers, self.control_after)
        moments = (self.before, self.after, self.idle)
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
                for each in slices
            ],
            "moments": [
                {"when": each.when, "rss_bytes": each.rss_bytes, "callers": each.callers}
                for each in moments
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
    first, last = crowd.strangers[0], crowd.strangers[-1]
    control, again = crowd.control_before, crowd.control_after
    moments = (crowd.before, crowd.after, crowd.idle)
    failures = sum(each.failures for each in (control, *crowd.strangers, again))
    slowest = max(crowd.slower, crowd.control_slower)
    verdict = "met" if slowest <= GOAL_SLOWER and not failures else "missed"
    return [
        *(
            f"{each.when}: {each.rss_bytes / MIB:.1f} MiB resident, "
            f"{each.callers:,} callers remembered."
            for each in moments
        ),
        f"{crowd.bytes_per_caller:,.0f} bytes for each of {crowd.callers_remembered:,} callers.",
        _compared("strangers", first, last, crowd.slower),
        _compared("one known caller", control, again, crowd.control_slower),
        f"{failures} requests failed; goal: no slow-down over {GOAL_SLOWER:.0%}: {verdict}.",
    ]


def _compared(who: str, first: Slice, last: Slice, slower: float) -> str:
    return (
        f"{who}: {first.per_second:,.0f} requests/s at first (p99 {first.p99_ms:.1f} ms), "
        f"{last.per_second:,.0f} at last (p99 {last.p99_ms:.1f} ms): {slower:+.1%} slower."
    )
