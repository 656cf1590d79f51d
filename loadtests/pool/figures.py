"""What the pool's benchmark found, in figures and sentences; pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtests.pool.goals import Goal, missed
from loadtests.pool.log import Steps
from loadtests.pool.server import Asked
from loadtests.samples import percentile, ratio

COLD_P50_S, COLD_P99_S = 0.3, 1.0
TENSORFLOW_S = 0.3
"""A TensorFlow model's first answer may come so long after its load time."""
REPLICA_S = 0.5
"""Without a warm slot it may come so long after the replica's own start."""
SPIKE_S = 1.0
DAY_P99_S = 1.5
DAY_PART = 0.4
"""Of the slot-seconds of a fixed number of slots that is enough for the peak."""
PREDICTION = 0.15


def plain(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if math.isnan(value) else round(value, 4)


@dataclass(frozen=True, slots=True)
class Cold:
    """Cold starts in one setting; `load_s` is the median time that the model took to load.

    `starts_s` is for each how long the slot itself took, where there was none.
    """

    name: str
    answers: tuple[Asked, ...]
    load_s: float
    starts_s: tuple[float, ...]

    @property
    def latencies_s(self) -> list[float]:
        """Of those that were cold: from the sending to the whole answer."""
        return [answer.latency_s for answer in self.answers if answer.cold_s and not answer.error]

    @property
    def p50_s(self) -> float:
        """Median."""
        return percentile(self.latencies_s, 0.50)

    @property
    def p99_s(self) -> float:
        """99th percentile: the slowest of up to 100."""
        return percentile(self.latencies_s, 0.99)

    @property
    def failed(self) -> int:
        """Requests without a right answer."""
        return sum(bool(answer.error) for answer in self.answers)

    @property
    def beyond_start_s(self) -> float:
        """The median of what came after the slot's own start."""
        pairs = zip(self.answers, self.starts_s, strict=False)
        return percentile((a.latency_s - start for a, start in pairs if start), 0.50)

    def document(self) -> dict[str, Any]:
        """The figures for programs."""
        return {
            "name": self.name,
            "cycles": len(self.answers),
            "cold": len(self.latencies_s),
            "failed": self.failed,
            "p50_s": plain(self.p50_s),
            "p99_s": plain(self.p99_s),
            "load_s": plain(self.load_s),
            "start_s": plain(percentile(self.starts_s, 0.5)),
            "beyond_start_s": plain(self.beyond_start_s),
            "latencies_s": [plain(value) for value in self.latencies_s],
        }


def warm_goals(cold: Cold) -> list[Goal]:
    """What a small model with a warm slot should reach."""
    return [
        Goal(f"{cold.name}, p50 s", cold.p50_s, COLD_P50_S),
        Goal(f"{cold.name}, p99 s", cold.p99_s, COLD_P99_S),
        Goal(f"{cold.name}, requests failed", cold.failed, 0),
    ]


def start_goals(cold: Cold) -> list[Goal]:
    """Without a warm slot its own start, which is Serve's, does not count."""
    return [
        Goal(f"{cold.name}, p50 s beyond the slot's start", cold.beyond_start_s, REPLICA_S),
        Goal(f"{cold.name}, requests failed", cold.failed, 0),
    ]


def load_goals(cold: Cold) -> list[Goal]:
    """The time that a large model itself takes to load does not count."""
    beyond_s = cold.p50_s - cold.load_s
    return [
        Goal(f"{cold.name}, p50 s beyond the load", beyond_s, TENSORFLOW_S),
        Goal(f"{cold.name}, requests failed", cold.failed, 0),
    ]


@dataclass(frozen=True, slots=True)
class Spike:
    """Some callers at once at a sleeping model, for `hold_s`; times are epoch seconds."""

    wanted: int
    begin_s: float
    end_s: float
    idle_s: float
    ready: Steps
    slots: Steps
    answers: tuple[Asked, ...]

    @property
    def up_s(self) -> float:
        """From the first request until all slots served; NaN if they never did."""
        at_s = self.ready.first(self.begin_s, least=self.wanted)
        return math.nan if at_s is None else at_s - self.begin_s

    @property
    def back_s(self) -> float:
        """From the end of the spike until at most one slot served."""
        at_s = self.ready.first(self.end_s, most=1)
        return math.nan if at_s is None else at_s - self.end_s

    @property
    def zero_s(self) -> float:
        """From the end of the spike until none did."""
        at_s = self.ready.first(self.end_s, most=0)
        return math.nan if at_s is None else at_s - self.end_s

    @property
    def failures(self) -> Counter[str]:
        """How often each error was met."""
        return Counter(answer.error for answer in self.answers if answer.error)

    def goals(self) -> list[Goal]:
        """All slots soon, and every caller answered."""
        failed = sum(self.failures.values())
        return [
            Goal("spike, s until all slots serve", self.up_s, SPIKE_S),
            Goal("spike, requests failed", failed, 0),
        ]

    def document(self) -> dict[str, Any]:
        """The figures for programs."""
        return {
            "wanted": self.wanted,
            "up_s": plain(self.up_s),
            "back_s": plain(self.back_s),
            "zero_s": plain(self.zero_s),
            "idle_s": self.idle_s,
            "requests": len(self.answers),
            "failed": dict(self.failures),
        }


@dataclass(frozen=True, slots=True)
class Day:
    """A trace that was sent from `begin_s` to `end_s`; `rates` are requests a second, by bin.

    `fixed` slots would be enough for the peak. `start_s` is what a slot takes to start: it costs
    already then, but is not in `slots` yet. `service_s` are by model the latencies of requests that
    met no other one: what each adds to the requests in flight.
    """

    seed: int
    begin_s: float
    end_s: float
    rates: tuple[float, ...]
    answers: tuple[Asked, ...]
    slots: Steps
    ready: dict[str, Steps]
    joined_s: tuple[float, ...]
    start_s: float
    service_s: Mapping[str, tuple[float, ...]]
    fixed: int
    load_s: float
    leased: Steps = field(default_factory=Steps)

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_s - self.begin_s

    @property
    def lost(self) -> int:
        """Requests without a right answer."""
        return sum(bool(answer.error) for answer in self.answers)

    @property
    def p50_s(self) -> float:
        """Median latency from the planned times, cold starts included."""
        return percentile((a.latency_s for a in self.answers if not a.error), 0.50)

    @property
    def p99_s(self) -> float:
        """99th percentile of the same."""
        return percentile((a.latency_s for a in self.answers if not a.error), 0.99)

    @property
    def slot_seconds(self) -> float:
        """Of all slots, warm and starting ones counted."""
        starts = sum(self.begin_s < at_s < self.end_s for at_s in self.joined_s)
        return self.slots.total(self.begin_s, self.end_s) + starts * self.start_s

    @property
    def mean_slots(self) -> float:
        """On average."""
        return self.slot_seconds / self.seconds

    @property
    def part(self) -> float:
        """Slot-seconds as a part of those of fixed provisioning for the peak."""
        return ratio(self.slot_seconds, self.fixed * self.seconds)

    @property
    def utilisation(self) -> float:
        """The part of the time of all slots, leased ones too, in which they were of use.

        They are while they hold a model or are leased.
        """
        held = sum(steps.total(self.begin_s, self.end_s) for steps in self.ready.values())
        leased = self.leased.total(self.begin_s, self.end_s)
        return ratio(held + leased, self.slot_seconds + leased)

    def goals(self) -> list[Goal]:
        """None lost, none late, and with far fewer slots than the peak needs."""
        name = f"day {self.seed}"
        return [
            Goal(f"{name}, requests lost", self.lost, 0),
            Goal(f"{name}, p99 s", self.p99_s, DAY_P99_S),
            Goal(f"{name}, part of fixed provisioning", self.part, DAY_PART),
        ]

    def met(self) -> bool:
        """Whether it reaches the goals."""
        return not missed(self.goals())

    def document(self) -> dict[str, Any]:
        """The figures for programs."""
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "requests": len(self.answers),
            "cold": sum(bool(answer.cold_s) for answer in self.answers),
            "lost": self.lost,
            "p50_s": plain(self.p50_s),
            "p99_s": plain(self.p99_s),
            "slot_seconds": plain(self.slot_seconds),
            "mean_slots": plain(self.mean_slots),
            "most_slots": self.slots.most(self.begin_s, self.end_s),
            "fixed_slots": self.fixed,
            "leased_slot_seconds": plain(self.leased.total(self.begin_s, self.end_s)),
            "part_of_fixed": plain(self.part),
            "utilisation": plain(self.utilisation),
            "service_s": {n: plain(percentile(s, 0.5)) for n, s in self.service_s.items()},
            "start_s": plain(self.start_s),
            "load_s": plain(self.load_s),
            "met": self.met(),
        }


def undisturbed(answers: Sequence[Asked]) -> dict[str, tuple[float, ...]]:
    """By model the latencies of warm requests during which there was no other one, in seconds."""
    found: dict[str, list[float]] = {answer.model: [] for answer in answers}
    ordered = sorted(answers, key=lambda answer: answer.due_s)
    busy_until_s = -math.inf
    for answer, after in zip(ordered, [*ordered[1:], None], strict=True):
        end_s = answer.due_s + answer.latency_s
        alone = busy_until_s <= answer.due_s and (after is None or end_s <= after.due_s)
        if alone and not (answer.cold_s or answer.error):
            found[answer.model].append(answer.latency_s)
        busy_until_s = max(busy_until_s, end_s)
    return {model: tuple(latencies) for model, latencies in found.items()}


def slots_for_peak(rates: Sequence[float], service_s: Sequence[float], target: float) -> int:
    """Slots that hold the load of the busiest moment, model by model: rate * service / target."""
    return sum(
        math.ceil(rate * seconds / target - 1e-9)
        for rate, seconds in zip(rates, service_s, strict=True)
    )


def cold_table(colds: Sequence[Cold]) -> list[str]:
    """Markdown, with what each is to be held against."""
    lines = [
        "| from zero | cycles | p50 s | p99 s | load s | slot's start s | failed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cold in colds:
        start_s = percentile(cold.starts_s, 0.5)
        numbers = [f"{cold.p50_s:.3f}", f"{cold.p99_s:.3f}"]
        numbers.append(f"{cold.load_s:.3f}" if cold.load_s else "")
        numbers.append("" if math.isnan(start_s) else f"{start_s:.3f}")
        lines.append(
            f"| {cold.name} | {len(cold.answers)} | {' | '.join(numbers)} | {cold.failed} |"
        )
    return lines


def spike_sentence(spike: Spike) -> str:
    """The book's case in words."""
    failed = sum(spike.failures.values())
    return (
        f"{spike.wanted} requests in flight: {spike.wanted} slots served after {spike.up_s:.2f} s "
        f"(goal {SPIKE_S:g}), {len(spike.answers)} answered, {failed} failed; one slot "
        f"{spike.back_s:.1f} s after the spike, none {spike.zero_s:.1f} s after it "
        f"(idle_s {spike.idle_s:g})."
    )


def day_table(days: Sequence[Day]) -> list[str]:
    """Markdown, a line for each seed."""
    lines = [
        "| seed | requests | lost | cold | p50 s | p99 s | mean slots | most | slot-seconds "
        "| of fixed | utilisation |",
        "| ---: " * 11 + "|",
    ]
    for day in days:
        d = day.document()
        lines.append(
            f"| {day.seed} | {d['requests']:,} | {day.lost} | {d['cold']} | {day.p50_s:.3f} "
            f"| {day.p99_s:.3f} | {day.mean_slots:.2f} | {d['most_slots']} "
            f"| {day.slot_seconds:,.0f} | {day.part:.0%} of {day.fixed} | {day.utilisation:.0%} |"
        )
    return lines
