"""What a flood did to one premium caller, from its answers alone and beside the flood."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from loadtests.open_loop import Answer
from loadtests.samples import percentile, ratio

GOAL = 2.0
"""How many times its p99 alone the premium caller's p99 beside a flood may be."""

REFUSALS = ("status 429", "status 503")
KINDS = ("200", "429", "503", "other")
"""What becomes of a flood's requests; `other` are broken connections too."""


@dataclass(frozen=True, slots=True)
class FloodCount:
    """A flood in figures: `seconds` has the answers by kind for each second since `begin_s`.

    `unsent` found no connection free, `unanswered` were in flight when the flood ended.
    """

    begin_s: float
    sent: int
    unsent: int
    unanswered: int
    seconds: Mapping[int, Mapping[str, int]]

    @property
    def kinds(self) -> Counter[str]:
        """All answers by kind."""
        total: Counter[str] = Counter()
        for counts in self.seconds.values():
            total.update(counts)
        return total

    def document(self) -> dict[str, Any]:
        """For another process; `read` is the way back."""
        return {
            "begin_s": self.begin_s,
            "sent": self.sent,
            "unsent": self.unsent,
            "unanswered": self.unanswered,
            "seconds": {str(second): dict(counts) for second, counts in self.seconds.items()},
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """From what `document` made; raises `KeyError`, `ValueError`."""
        return cls(
            begin_s=float(document["begin_s"]),
            sent=int(document["sent"]),
            unsent=int(document["unsent"]),
            unanswered=int(document["unanswered"]),
            seconds={int(second): dict(counts) for second, counts in document["seconds"].items()},
        )


def kind_of(status: int) -> str:
    """The kind of an answer by its status."""
    return str(status) if str(status) in KINDS else "other"


@dataclass(frozen=True, slots=True)
class Phase:
    """The premium caller for a while, from `begin_s` on, and the flood beside it.

    Moments are on one clock for all phases and floods.
    """

    name: str
    begin_s: float
    answers: tuple[Answer, ...]
    flood: FloodCount | None = None

    @property
    def p50_ms(self) -> float:
        """The median latency, from the planned times."""
        return percentile((answer.latency_ms for answer in self.answers), 0.50)

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the latency."""
        return percentile((answer.latency_ms for answer in self.answers), 0.99)

    @property
    def refused(self) -> int:
        """Premium requests that were refused: there should be none."""
        return sum(answer.error.startswith(REFUSALS) for answer in self.answers)

    @property
    def failures(self) -> Counter[str]:
        """How often each error was met."""
        return Counter(answer.error for answer in self.answers if answer.error)


@dataclass(frozen=True, slots=True)
class Isolation:
    """The whole measurement. The first phase is the premium caller alone.

    `capacity` is in requests a second; so are the rates of the premium caller and of the floods.
    """

    capacity: float
    rate: float
    flood_rate: float
    phases: tuple[Phase, ...]

    @property
    def alone(self) -> Phase:
        """What the others are compared with."""
        return self.phases[0]

    def times_alone(self, phase: Phase) -> float:
        """The p99 of a phase as a multiple of that of the first."""
        return ratio(phase.p99_ms, self.alone.p99_ms)

    def met(self, phase: Phase) -> bool:
        """Whether a phase reaches the goal: its p99, and nothing refused or failed."""
        return self.times_alone(phase) <= GOAL and not phase.failures

    def document(self) -> dict[str, Any]:
        """The figures for programs; null where nothing was measured."""
        return {
            "capacity_per_second": round(self.capacity, 3),
            "premium_per_second": self.rate,
            "flood_per_second": round(self.flood_rate, 3),
            "goal_times_alone": GOAL,
            "phases": [self._phase(phase) for phase in self.phases],
        }

    def _phase(self, phase: Phase) -> dict[str, Any]:
        figures = {
            "p50_ms": phase.p50_ms,
            "p99_ms": phase.p99_ms,
            "p99_times_alone": self.times_alone(phase),
        }
        plain = {
            name: None if math.isnan(value) else round(value, 3) for name, value in figures.items()
        }
        return {
            "name": phase.name,
            **plain,
            "requests": len(phase.answers),
            "refused": phase.refused,
            "failures": dict(phase.failures),
            "flood": None if phase.flood is None else phase.flood.document(),
        }


def isolation_sentences(isolation: Isolation) -> list[str]:
    """What a person wants to know, a line each."""
    lines = [
        f"Capacity {isolation.capacity:.1f} requests/s; the premium caller asks at "
        f"{isolation.rate:g}/s, each flood at {isolation.flood_rate:.1f}/s."
    ]
    for phase in isolation.phases:
        lines.append(_premium(isolation, phase))
        if phase.flood is not None:
            lines.append(_flood(phase.flood))
        lines += [
            f"  failed {count} times: {error}" for error, count in phase.failures.most_common(5)
        ]
    return lines


def _premium(isolation: Isolation, phase: Phase) -> str:
    text = (
        f"Premium {phase.name}: {len(phase.answers)} requests, p50 {phase.p50_ms:.1f} ms, "
        f"p99 {phase.p99_ms:.1f} ms, {phase.refused} refused, "
        f"{phase.failures.total() - phase.refused} failed otherwise"
    )
    if phase is isolation.alone:
        return f"{text}."
    verdict = "met" if isolation.met(phase) else "missed"
    return (
        f"{text}: p99 {isolation.times_alone(phase):.2f} times that alone "
        f"(goal: at most {GOAL:g}, none refused: {verdict})."
    )


def _flood(flood: FloodCount) -> str:
    kinds = flood.kinds
    told = ", ".join(f"{kinds[kind]:,} answered {kind}" for kind in KINDS)
    unsent = f", {flood.unsent:,} not sent for lack of a connection" if flood.unsent else ""
    rest = f"{flood.unanswered:,} in flight at its end{unsent}"
    return f"  the flood: {flood.sent:,} sent, {told}, {rest}."
