"""Simulation of a fleet: how long a large request takes over how many shards.

Uses the plan's parts and the hash that the stage uses; only the clock is simulated. No randomness:
times that vary are given by the caller, part by part.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.link.hashing import rank
from sharding.hashing import assign

PER_SHARD = 2
"""Parts on their way to one shard: the one it works on and the one it takes next."""


@dataclass(frozen=True, slots=True)
class SimulatedPart:
    """A part's content digest, and how long a shard works on it."""

    key: bytes
    work_s: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """`shards` there are, of which a request gets `gang` at most; each works on one part at a time.

    The stage keeps at most `in_flight` parts on their way (sent, waiting at a shard or worked on).
    It takes `split_s` before the first, `send_s` of its own time for each, one after the other,
    and `merge_s` after the last. `latency_s` is what a part waits besides, there and back.
    """

    shards: int
    gang: int
    in_flight: int
    epsilon: float = 0.25
    split_s: float = 0.0
    send_s: float = 0.0
    latency_s: float = 0.0
    merge_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """What a simulated request took: `wall_s` in all, `work_s` over all shards.

    `busiest_s` is the work of the shard that had most of it, `used` how many shards had any.
    """

    wall_s: float
    work_s: float
    busiest_s: float
    used: int


def simulate(
    parts: Sequence[SimulatedPart],
    fleet: Fleet,
    request: bytes = b"request",
    names: Sequence[str] = (),
) -> SimulatedRequest:
    """One request on an idle fleet; equal keys are worked on once.

    A part goes out in the plan's order, but one whose shard has enough to do lets others go first.
    `names` are those of real shards, as the hash depends on them.
    """
    work_s = {part.key: part.work_s for part in parts}
    members = list(names) or [f"shard-{number}" for number in range(fleet.shards)]
    gang = rank(request, members)[: fleet.gang]
    waiting: dict[str, deque[bytes]] = {member: deque() for member in gang}
    order = {key: place for place, key in enumerate(dict.fromkeys(part.key for part in parts))}
    homes = assign(order, gang, fleet.epsilon)
    for key in order:
        waiting[homes[key]].append(key)
    finished_s = _run(waiting, order, work_s, fleet)
    loads = [sum(work_s[key] for key in order if homes[key] == member) for member in gang]
    total_s = sum(work_s.values())
    return SimulatedRequest(
        finished_s + fleet.merge_s, total_s, max(loads), len(set(homes.values()))
    )


def _run(
    waiting: dict[str, deque[bytes]],
    order: dict[bytes, int],
    work_s: dict[bytes, float],
    fleet: Fleet,
) -> float:
    """When the last part is back, on a clock that starts with the request."""
    now_s = fleet.split_s
    under_way = dict.fromkeys(waiting, 0)
    free_at_s = dict.fromkeys(waiting, 0.0)
    back: list[tuple[float, str]] = []
    # Shards that may be sent a part, those with least to do first, then by the plan's order.
    # Entries that are no longer true stay until they come up.
    ready: list[tuple[int, int, str]] = []

    def offer(member: str) -> None:
        if waiting[member] and under_way[member] < PER_SHARD:
            entry = (under_way[member], order[waiting[member][0]], member)
            heapq.heappush(ready, entry)

    for member in waiting:
        offer(member)
    while ready or back:
        if ready and len(back) < fleet.in_flight:
            load, place, member = heapq.heappop(ready)
            keys = waiting[member]
            if not keys or (load, place) != (under_way[member], order[keys[0]]):
                continue
            now_s += fleet.send_s
            begin_s = max(now_s + fleet.latency_s / 2, free_at_s[member])
            free_at_s[member] = begin_s + work_s[keys.popleft()]
            heapq.heappush(back, (free_at_s[member] + fleet.latency_s / 2, member))
            under_way[member] += 1
        else:
            back_s, member = heapq.heappop(back)
            now_s = max(now_s, back_s)
            under_way[member] -= 1
        offer(member)
    return now_s
