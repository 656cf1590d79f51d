"""Desired slots of a model, from its load; pure: time is an argument.

Each step is a function of (settings, state, signals), so a log of these can be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from headrace.config.scaling import POLICIES, Replicas, Scaling
from headrace.config.types import import_named

EPSILON = 1e-6
STEP_S = 1.0
"""Period in which slots change by at most `max_step`."""
IDLE_LOAD = 0.02
"""Mean load below which a model counts as idle: a remainder of load that has ended."""


class Sample(NamedTuple):
    """Load from `at_s` on: requests at slots or waiting for one."""

    at_s: float
    load: float


class Policy(Protocol):
    """Forecast of a model's load. A class of the user's is built without arguments."""

    def expected(self, history: Sequence[Sample], look_back_s: float, now_s: float) -> float:
        """Requests in flight to prepare for, from samples of the last `2 * look_back_s` or more."""
        ...


class Reactive:
    """Forecast that the load stays as it was."""

    def expected(self, history: Sequence[Sample], look_back_s: float, now_s: float) -> float:
        """Mean over the look-back."""
        return mean(history, now_s - look_back_s, now_s)


class Trend:
    """Forecast that the load goes on rising as it did; a falling load counts as constant."""

    def expected(self, history: Sequence[Sample], look_back_s: float, now_s: float) -> float:
        """Mean over the look-back plus its rise over the look-back before."""
        latest = mean(history, now_s - look_back_s, now_s)
        before = mean(history, now_s - 2 * look_back_s, now_s - look_back_s)
        return latest + max(0.0, latest - before)


@lru_cache(maxsize=256)
def policy_named(name: str) -> Policy:
    """Built-in policy or class by import path; raises `ValueError` if there is none."""
    try:
        policy: Policy = import_named(POLICIES.get(name, name))()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"policy {name!r} cannot be used: {error}") from error
    if not callable(getattr(policy, "expected", None)):
        raise ValueError(f"policy {name!r} has no method `expected`")
    return policy


def mean(history: Sequence[Sample], start_s: float, end_s: float) -> float:
    """Time-weighted mean of a step function that is 0 before its first sample."""
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
    """State of a model now.

    `load` is the number of requests in flight by the last report, `expected` the policy's forecast,
    `held` the requests that wait while no slot has the model. `active_s` is when a request last
    existed. `loading` says that a placement is on its way, `known` that some slot has reported
    the model's inputs and outputs.
    """

    now_s: float
    expected: float
    held: int = 0
    active_s: float = -math.inf
    loading: bool = False
    known: bool = True
    load: float = 0.0


class Recommendation(NamedTuple):
    """Slots that the load alone asked for from `at_s` on."""

    at_s: float
    slots: int


class ScalerState(NamedTuple):
    """State between steps: the recommendations within the longest delay, and the running second.

    `base` slots were desired at `since_s`, where the running second began.
    """

    slots: int = 0
    recommended: tuple[Recommendation, ...] = ()
    since_s: float = -math.inf
    base: int = 0


class DesiredSlots(NamedTuple):
    """Slots that a model should have, by its load.

    `lingering` slots go to any other model that needs them. Time alone may change the answer in
    `again_s` seconds (infinite: never). `learning` slots only let the pool learn the model's inputs
    and outputs.
    """

    slots: int
    lingering: bool = False
    why: str = ""
    again_s: float = math.inf
    learning: bool = False


def step(
    replicas: Replicas, scaling: Scaling, state: ScalerState, signals: Signals
) -> tuple[ScalerState, DesiredSlots]:
    """Next state and desired slots; never fewer while a placement loads or a request is held.

    The delays are stabilisation windows as in Kubernetes' horizontal pod autoscaler: slots rise to
    the lowest recommendation within `up_delay_s` and fall to the highest within `down_delay_s`.
    """
    now_s = signals.now_s
    raw = math.ceil(signals.expected / scaling.target_in_flight - EPSILON)
    if signals.expected < IDLE_LOAD:
        raw = 0
    if signals.held:
        raw = max(1, raw)
    # The first step assumes that the load had asked for the slots that exist.
    before = state.recommended or (Recommendation(now_s, state.slots),)
    window_s = max(scaling.up_delay_s, scaling.down_delay_s)
    recommended = _noted(before, Recommendation(now_s, raw), window_s)
    low = high = raw
    if len(recommended) > 1:
        low = min(_within(recommended, now_s - scaling.up_delay_s))
        high = max(_within(recommended, now_s - scaling.down_delay_s))
    slots = state.slots
    if signals.held and not slots:
        slots = max(1, low)  # the first slot comes without delay
    elif slots < low:
        slots = low
    elif slots > high and not signals.held and not signals.loading:
        slots = high
    fresh = now_s - state.since_s >= STEP_S
    base = state.slots if fresh else state.base
    since_s = now_s if fresh else state.since_s
    slots = min(max(slots, base - scaling.max_step), base + scaling.max_step)
    slots = min(max(slots, replicas.min), replicas.max)
    # A placement on its way is no reason to keep an idle model.
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
    new = ScalerState(slots, recommended, since_s, base)
    return new, DesiredSlots(
        slots, lingering, why, _again_s(scaling, replicas, new, signals), learning
    )


def _noted(
    recommended: tuple[Recommendation, ...], latest: Recommendation, span_s: float
) -> tuple[Recommendation, ...]:
    """Recommendations with the latest one, if it differs, and without those before the span."""
    if recommended[-1].slots != latest.slots:
        recommended = (*recommended, latest)
    start_s = latest.at_s - span_s
    first = 0
    while first + 1 < len(recommended) and recommended[first + 1].at_s <= start_s:
        first += 1
    return recommended[first:]


def _within(recommended: Sequence[Recommendation], start_s: float) -> list[int]:
    """Slots recommended at some time since `start_s`."""
    found = []
    for each in reversed(recommended):
        found.append(each.slots)
        if each.at_s <= start_s:
            break
    return found


def _again_s(scaling: Scaling, replicas: Replicas, state: ScalerState, now: Signals) -> float:
    """Seconds until time alone may change the answer."""
    waits = [math.inf]
    if replicas.min < replicas.max or not replicas.min:
        # A slot for learning inputs and outputs is given up at its report, not after a time.
        standing = state.slots > replicas.min and now.known
        if max(now.load, now.expected) >= IDLE_LOAD or (
            standing and scaling.policy not in POLICIES
        ):
            waits.append(scaling.look_back_s / 4)
        elif standing:
            # Fewer are desired, step by step, as older recommendations leave the window.
            ends = [each.at_s + scaling.down_delay_s - now.now_s for each in state.recommended[1:]]
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
