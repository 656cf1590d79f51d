"""Goals of the pool's benchmark: a figure beside the most that it may be; pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Goal(NamedTuple):
    """`measured` should be at most `most`; NaN is what could not be measured."""

    what: str
    measured: float
    most: float

    def met(self) -> bool:
        """False for NaN too: what nobody has seen is no success."""
        return self.measured <= self.most

    def sentence(self) -> str:
        """For a person."""
        verdict = "met" if self.met() else "MISSED"
        return f"{self.what}: {self.measured:.3g} (goal: at most {self.most:g}: {verdict})"


def missed(goals: Iterable[Goal]) -> list[str]:
    """A sentence for each that is not met."""
    return [goal.sentence() for goal in goals if not goal.met()]
