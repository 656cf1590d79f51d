"""What a swap of versions did to the callers, from their answers and the moments of the swap."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.open_loop import Answer
from loadtests.samples import percentile

WINDOW_S = 0.25
SECOND_S = 1.0
LIMIT = 2.0
"""How many times the p99 of before a window may have and still count as undisturbed."""


@dataclass(frozen=True, slots=True)
class Swap:
    """A load under which version `new` took over.

    Moments are seconds since the load began: from `begin_s` on answers count, at `copy_s` the
    copying of the new version began, at `complete_s` its folder got its name.
    """

    capacity: float
    rate: float
    new: str
    begin_s: float
    copy_s: float
    complete_s: float
    answers: tuple[Answer, ...]

    @property
    def failures(self) -> Counter[str]:
        """How often each error was met."""
        return Counter(answer.error for answer in self.answers if answer.error)

    @property
    def first_new_s(self) -> float:
        """When the first request was due that the new version answered."""
        new = [answer.planned_s for answer in self.answers if answer.version == self.new]
        return min(new, default=math.nan)

    @property
    def over_s(self) -> float:
        """A second after the last request was due that the old version answered."""
        old = [a.planned_s for a in self.answers if a.version not in ("", self.new)]
        return max(old, default=self.complete_s) + SECOND_S

    @property
    def before_ms(self) -> float:
        """p99 of the requests due before the copying began."""
        return self._p99_ms(self.begin_s, self.copy_s)

    @property
    def during_ms(self) -> float:
        """p99 of the worst second from the copying on, in steps of a quarter."""
        starts = self._steps(self.copy_s, self.over_s)
        seconds = (self._p99_ms(start, start + SECOND_S) for start in starts)
        return max((ms for ms in seconds if not math.isnan(ms)), default=math.nan)

    @property
    def after_ms(self) -> float:
        """p99 of the requests due once the swap was over."""
        return self._p99_ms(self.over_s, math.inf)

    @property
    def disturbed_s(self) -> float:
        """For how long, from the copying on, windows of 250 ms had a p99 above double."""
        end_s = max((answer.planned_s for answer in self.answers), default=0.0)
        windows = (
            self._p99_ms(start, start + WINDOW_S) for start in self._steps(self.copy_s, end_s)
        )
        return WINDOW_S * sum(1 for ms in windows if ms > LIMIT * self.before_ms)

    def document(self) -> dict[str, Any]:
        """The figures for programs; null where nothing was measured."""
        figures = {
            "capacity_per_second": self.capacity,
            "rate_per_second": self.rate,
            "copy_s": self.copy_s,
            "complete_s": self.complete_s,
            "first_new_s": self.first_new_s,
            "p99_before_ms": self.before_ms,
            "p99_worst_second_ms": self.during_ms,
            "p99_after_ms": self.after_ms,
            "above_double_s": self.disturbed_s,
        }
        plain = {
            name: None if math.isnan(value) else round(value, 3) for name, value in figures.items()
        }
        return {**plain, "requests": len(self.answers), "failures": dict(self.failures)}

    def _p99_ms(self, start_s: float, end_s: float) -> float:
        return percentile(self._latencies(start_s, end_s), 0.99)

    def _latencies(self, start_s: float, end_s: float) -> Sequence[float]:
        return [a.latency_ms for a in self.answers if start_s <= a.planned_s < end_s]

    def _steps(self, start_s: float, end_s: float) -> Iterator[float]:
        count = max(math.ceil((end_s - start_s) / WINDOW_S), 0)
        return (start_s + number * WINDOW_S for number in range(count))


def swap_sentences(swap: Swap) -> list[str]:
    """What a person wants to know, a line each."""
    failed = swap.failures
    took_s = swap.first_new_s - swap.complete_s
    lines = [
        f"{swap.rate:.1f} requests/s, half of {swap.capacity:.1f}; "
        f"{len(swap.answers)} requests, {failed.total()} failed.",
        f"Version {swap.new} answered {took_s:.1f} s after its folder was complete.",
        f"p99 before {swap.before_ms:.1f} ms, in the worst second {swap.during_ms:.1f} ms, "
        f"after {swap.after_ms:.1f} ms.",
        f"p99 was above double of before for {swap.disturbed_s:.2f} s "
        f"(windows of {WINDOW_S * 1000:.0f} ms; goal: at most 1 s).",
    ]
    return lines + [f"failed {count} times: {error}" for error, count in failed.most_common(5)]
