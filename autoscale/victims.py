"""Which running leases have to give their slots back: Fitting Grace Period Preemption; pure.

Yabuuchi, Taniwaki and Omura, "Low-latency Job Scheduling with Preemption for the Development of
Deep Learning", OpML 2019. What the paper leaves open, several victims for one need, is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

GRACE_WEIGHT = 4.0
"""`s` of the score: how much a short grace time counts against a small demand."""


class Running(Protocol):
    """What the choice looks at: a running job's demand in slots, and its grace in seconds."""

    @property
    def lease_id(self) -> str: ...

    @property
    def slots(self) -> int: ...

    @property
    def grace_s(self) -> float: ...

    @property
    def priority(self) -> int: ...


R = TypeVar("R", bound=Running)


def scores(running: Iterable[Running], grace_weight: float = GRACE_WEIGHT) -> dict[str, float]:
    """By lease, |D| / max |D| + s * GP / max GP; the smallest is the best victim."""
    jobs = list(running)
    most_slots = max((job.slots for job in jobs), default=1)
    most_grace_s = max((job.grace_s for job in jobs), default=0.0) or 1.0
    return {
        job.lease_id: job.slots / most_slots + grace_weight * job.grace_s / most_grace_s
        for job in jobs
    }


def choose_victims(
    running: Iterable[Running],
    candidates: Sequence[R],
    room: int,
    grace_weight: float = GRACE_WEIGHT,
) -> list[R]:
    """Those of `candidates` that return at least `room` slots; all of them if that is too few.

    Only the lowest priorities that can make the room are looked at. Of these it is the best score
    among the jobs that are large enough alone. Where none is, the largest one goes (of equals the
    better score), and so on with the rest of the room; so no victim is superfluous. `running`
    are all jobs, over which the score takes its maxima.
    """
    score = scores(running, grace_weight)
    left = _lowest_priorities(candidates, room)
    victims: list[R] = []
    while room > 0 and left:
        fitting = [job for job in left if job.slots >= room]
        if fitting:
            victim = min(fitting, key=lambda job: (score[job.lease_id], job.lease_id))
        else:
            victim = min(left, key=lambda job: (-job.slots, score[job.lease_id], job.lease_id))
        left.remove(victim)
        victims.append(victim)
        room -= victim.slots
    return victims


def _lowest_priorities(candidates: Sequence[R], room: int) -> list[R]:
    found: list[R] = []
    for priority in sorted({job.priority for job in candidates}):
        if sum(job.slots for job in found) >= room:
            break
        found += [job for job in candidates if job.priority == priority]
    return found
