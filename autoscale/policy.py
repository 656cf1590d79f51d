"""How many slots a model should have, from its load; pure: time is an argument.

Every step is a function of (settings, state, signals), so that a log of them can be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from headrace.config.scaling import Replicas, Scaling
from headrace.config.types import import_named

EPSILON = 1e-6
STEP_S = 1.0
"""`max_step` bounds the change within so long."""
IDLE_LOAD = 0.02
"""A mean below this is what remains of a load that has ended."""


class Sample(NamedTuple):
    """From `at_s` on, `load` requests were held by slots or waited for one."""

    at_s: float
    load: float


class Policy(Protocol):
    """What load to prepare for. A class of your own is built without arguments."""

    def expected(self, history: Sequence[Sample], look_back_s: float, now_s: float) -> float:
        """Requests in flight, from the samples of at least the last `2 * look_back_s`, by time."""
        ...


class Reactive:
    """The load as it was lately."""

    def expected(self, history: Sequence[Sample], look_back_s: float, now_s: float) -> float:
        """The mean over the look-back."""
        return mean(history, now_s - look_back_s, now_s)


class Trend:
    """The load as it will be a look-back from now, if it goes on rising as it does."""

    def expected(self, history: Sequence[Sample], look_back_s: float, now_s: float) -> float:
        """The mean over the look-back, and above it what the rise since the one before adds."""
        latest = mean(history, now_s - look_back_s, now_s)
        before = mean(history, now_s - 2 * look_back_s, now_s - look_back_s)
        return latest + max(0.0, latest - before)


BUILT_IN: dict[str, type[Policy]] = {"reactive": Reactive, "trend": Trend}


@lru_cache(maxsize=256)
def policy_named(name: str) -> Policy:
    """A built-in one or a class by import path; raises `ValueError` if there is no such class."""
    if name in BUILT_IN:
        return BUILT_IN[name]()
    try:
        policy: Policy = import_named(name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"policy {name!r} cannot be used: {error}") from error
    if not callable(getattr(policy, "expected", None)):
        raise ValueError(f"policy {name!r} has no method `expected`")
    return policy


def mean(history: Sequence[Sample], start_s: float, end_s: float) -> float:
    """The time-weighted mean of a step function; what was before the first sample counts as 0."""
    if end_s <= start_s:
        return 0.0
    total = 0.0
    until_s = end_s
    for sample in reversed(history):
        if sample.at_s < until_s:
            total += sample.load * (until_s - max(sample.at_s, start_s))
            until_s = sample.at_s
        if until_s <= start_s:
            break
    return total / (end_s - start_s)


class Signals(NamedTuple):
    """What is known of a model now.

    `load` requests were in flight at last, which counts in `expected` only as time goes by. `held`
    counts requests that wait with no slot to go to. `active_s` is when the last request was there.
    `loading` says that a placement of it is on its way; `known` that some slot has told its inputs
    and outputs.
    """

    now_s: float
    expected: float
    held: int = 0
    active_s: float = -math.inf
    loading: bool = False
    known: bool = True
    load: float = 0.0


class Want(NamedTuple):
    """From `at_s` on, the load alone asked for `slots`."""

    at_s: float
    slots: int


class ScalerState(NamedTuple):
    """`wants` covers the longest delay; `since_s` and `base` are those of the running second."""

    slots: int = 0
    wants: tuple[Want, ...] = ()
    since_s: float = -math.inf
    base: int = 0


class Wish(NamedTuple):
    """Slots a model should have. A `lingering` one may go as soon as another model needs its slot.

    `again_s` is how many seconds from now time alone may change the answer (infinite: never). A
    `learning` one only lets a slot tell the model's inputs and outputs.
    """

    slots: int
    lingering: bool = False
    why: str = ""
    again_s: float = math.inf
    learning: bool = False


def step(
    replicas: Replicas, scaling: Scaling, state: ScalerState, signals: Signals
) -> tuple[ScalerState, Wish]:
    """The next wish. Never fewer while a placement is loading or a request is held.

    The delays are stabilisation windows as in Kubernetes' horizontal pod autoscaler: up to the
    least, and down to the most, that the load has asked for within the delay.
    """
    now_s = signals.now_s
    raw = math.ceil(signals.expected / scaling.target_in_flight - EPSILON)
    if signals.expected < IDLE_LOAD:
        raw = 0
    if signals.held:
        raw = max(1, raw)
    # Before the first step the load is taken to have asked for what was there.
    before = state.wants or (Want(now_s, state.slots),)
    wants = _noted(before, Want(now_s, raw), max(scaling.up_delay_s, scaling.down_delay_s))
    low = high = raw
    if len(wants) > 1:
        low = min(_within(wants, now_s - scaling.up_delay_s))
        high = max(_within(wants, now_s - scaling.down_delay_s))
    slots = state.slots
    if signals.held and not slots:
        slots = max(1, low)  # somebody waits: no delay for the first
    elif slots < low:
        slots = low
    elif slots > high and not signals.held and not signals.loading:
        slots = high
    fresh = now_s - state.since_s >= STEP_S
    base = state.slots if fresh else state.base
    since_s = now_s if fresh else state.since_s
    slots = min(max(slots, base - scaling.max_step), base + scaling.max_step)
    slots = min(max(slots, replicas.min), replicas.max)
    # A load that is under way makes it no more wanted than it was before.
    unneeded = slots == 1 and signals.loading and not (high or signals.held or replicas.min)
    why = f"{signals.expected:.2f} requests in flight, {scaling.target_in_flight:g} for each slot"
    if signals.held:
        why = f"{signals.held} waiting for a slot, {why}"
    lingering = learning = False
    unused = (
        not (raw or signals.held or replicas.min) and now_s - signals.active_s >= scaling.idle_s
    )
    if slots <= 1 and unused and not signals.known:
        slots, why = 1, "to learn its inputs and outputs"
        lingering = learning = True
    elif (not slots or unneeded) and now_s - signals.active_s < scaling.idle_s:
        slots, why = 1, "called lately"
        lingering = now_s - signals.active_s >= scaling.down_delay_s
    new = ScalerState(slots, wants, since_s, base)
    return new, Wish(slots, lingering, why, _again_s(scaling, replicas, new, signals), learning)


def _noted(wants: tuple[Want, ...], want: Want, span_s: float) -> tuple[Want, ...]:
    """With one more entry where it differs, without what ended before the span."""
    if wants[-1].slots != want.slots:
        wants = (*wants, want)
    start_s = want.at_s - span_s
    first = 0
    while first + 1 < len(wants) and wants[first + 1].at_s <= start_s:
        first += 1
    return wants[first:]


def _within(wants: Sequence[Want], start_s: float) -> list[int]:
    """What was asked for at some time since `start_s`."""
    found = []
    for want in reversed(wants):
        found.append(want.slots)
        if want.at_s <= start_s:
            break
    return found


def _again_s(scaling: Scaling, replicas: Replicas, state: ScalerState, now: Signals) -> float:
    """When to ask again though nothing is said meanwhile."""
    waits = [math.inf]
    if replicas.min < replicas.max or not replicas.min:
        # A slot that only lets the pool learn of the model goes with what it tells, not with time.
        standing = state.slots > replicas.min and now.known
        if max(now.load, now.expected) >= IDLE_LOAD or (
            standing and scaling.policy not in BUILT_IN
        ):
            waits.append(scaling.look_back_s / 4)
        elif standing:
            # Fewer are wanted once what the load asked for is long enough ago, step by step.
            ends = [want.at_s + scaling.down_delay_s - now.now_s for want in state.wants[1:]]
            if state.slots <= state.base - scaling.max_step:
                ends.append(state.since_s + STEP_S - now.now_s)
            waits += [end_s for end_s in ends if end_s > 0]
        idle_for_s = now.now_s - now.active_s
        waits += [
            delay_s - idle_for_s
            for delay_s in (scaling.down_delay_s, scaling.idle_s)
            if delay_s > idle_for_s
        ]
    return max(0.01, min(waits))


def settled(state: ScalerState, slots: int) -> ScalerState:
    """The state of a model that has `slots` already, as a restarted pool finds it."""
    return state._replace(slots=slots)
