"""What limits cost: rates and latencies of gateways with and without them, round by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.bench.wrk import WrkResult
from loadtests.samples import middle, ratio

OFF, POOL, REDIS = "tiers off", "tiers on", "tiers on, Redis"
MANY, ONE = 64, 1
"""Connections at which the rate and the median latency are compared."""

GOAL_SHARE = {POOL: 0.10, REDIS: 0.15}
"""So much of the rate may be lost."""

GOAL_MS = 0.05


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of wrk in a round against a gateway in one setting.

    `cpu_s` is the processor time of the gateway's process meanwhile. On a machine that others use
    too it is steadier than the rate.
    """

    setting: str
    round: int
    result: WrkResult
    cpu_s: float = math.nan

    @property
    def cpu_us(self) -> float:
        """The gateway's processor time for one request, in µs."""
        return ratio(self.cpu_s * 1e6, self.result.requests)


@dataclass(frozen=True, slots=True)
class Cost:
    """A setting in medians over the rounds.

    `share` and `added_ms` compare with the gateway without tiers within each round, so that a slow
    minute of the machine meets both sides; they too are medians.
    """

    setting: str
    per_second: float
    p50_ms: float
    share: float
    added_ms: float
    cpu_us: float
    errors: int

    @property
    def lost(self) -> float:
        """The share of the rate that is lost."""
        return 1 - self.share

    def met(self) -> bool:
        """Whether both goals are reached, without errors."""
        lost_at_most = GOAL_SHARE.get(self.setting, math.inf)
        return self.lost <= lost_at_most and self.added_ms <= GOAL_MS and not self.errors

    def document(self) -> dict[str, Any]:
        """The figures for programs; null where nothing was measured."""
        figures = {
            f"per_second_{MANY}": self.per_second,
            f"p50_ms_{ONE}": self.p50_ms,
            "share_of_off": self.share,
            "added_ms": self.added_ms,
            f"gateway_cpu_us_{MANY}": self.cpu_us,
        }
        plain = {
            name: None if math.isnan(value) else round(value, 4) for name, value in figures.items()
        }
        return {"setting": self.setting, **plain, "errors": self.errors}


def costs(turns: Sequence[Turn]) -> list[Cost]:
    """Each setting in figures, in the order in which they were first measured."""
    rates = {(t.setting, t.round): t.result.per_second for t in _at(turns, MANY)}
    medians = {(t.setting, t.round): t.result.p50_ms for t in _at(turns, ONE)}
    return [
        Cost(
            setting=setting,
            per_second=middle([rate for (name, _), rate in rates.items() if name == setting]),
            p50_ms=middle([ms for (name, _), ms in medians.items() if name == setting]),
            share=middle(
                [
                    ratio(rate, rates[OFF, number])
                    for (name, number), rate in rates.items()
                    if name == setting and (OFF, number) in rates
                ]
            ),
            added_ms=middle(
                [
                    ms - medians[OFF, number]
                    for (name, number), ms in medians.items()
                    if name == setting and (OFF, number) in medians
                ]
            ),
            cpu_us=middle([turn.cpu_us for turn in _at(turns, MANY) if turn.setting == setting]),
            errors=sum(turn.result.errors for turn in turns if turn.setting == setting),
        )
        for setting in dict.fromkeys(turn.setting for turn in turns)
    ]


def order(settings: Sequence[str], number: int) -> list[str]:
    """Whose turn it is in round `number`: each is first in its turn, since warmth moves on."""
    first = number % len(settings)
    return [*settings[first:], *settings[:first]]


def cost_sentences(found: Sequence[Cost]) -> list[str]:
    """One line for each setting with limits."""
    return [
        f"{cost.setting}: {cost.lost:+.1%} of the rate lost at {MANY} connections "
        f"(goal: at most {GOAL_SHARE[cost.setting]:.0%}), {cost.added_ms:+.3f} ms at the median "
        f"of {ONE} (goal: at most {GOAL_MS:g} ms), {cost.errors} errors: "
        f"{'met' if cost.met() else 'missed'}."
        for cost in found
        if cost.setting in GOAL_SHARE
    ]


def _at(turns: Sequence[Turn], connections: int) -> list[Turn]:
    return [turn for turn in turns if turn.result.connections == connections]
