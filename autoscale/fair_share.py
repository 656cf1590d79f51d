"""How many places of one slot class each account gets: hierarchical weighted max-min; pure.

In this order: guarantees, as far as they are wanted; whole places of an account's own share; turns
of those that starved; what siblings in the group leave of the group's share; what other groups
leave. In the last two a higher priority is served first. Everything is counted in slots, so this
does not know where places lie: those of a class may fit by their sum and yet in no single slot.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from autoscale.loans import Loan, Part, loans_between
from autoscale.water_filling import TOLERANCE, Filled, Vessel, fill_places, top_up, water_fill

STARVE_S = 20.0
"""Who wants and has nothing for so long gets a turn, ahead of what others borrow."""
UNLIMITED = 2**31
ROUNDS = 8
SHOWN = 6
"""A message names so many accounts."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who wants places of a slot class: a model, or a borrower from outside.

    `place` is what one place costs in slots: 1, or less for models that share a slot. `wanted`
    and `holds` are places, now. `hungry_s` is for how long it has wanted and had nothing; see
    `Hunger`. Raises `ValueError` for numbers that could never be served.
    """

    name: str
    group: str = "default"
    weight: float = 1.0
    minimum: int = 0
    maximum: int = UNLIMITED
    priority: int = 0
    place: float = 1.0
    wanted: int = 0
    holds: int = 0
    hungry_s: float = 0.0

    def __post_init__(self) -> None:
        for what, number in (("weight", self.weight), ("place", self.place)):
            if not (number > 0 and math.isfinite(number)):
                raise ValueError(f"{self.name}: `{what}` ({number:g}) should be above 0")
        if not 0 <= self.minimum <= self.maximum:
            raise ValueError(
                f"{self.name}: `minimum` ({self.minimum}) should be between 0 and"
                f" `maximum` ({self.maximum})"
            )
        if self.wanted < 0 or self.holds < 0:
            raise ValueError(f"{self.name}: `wanted` and `holds` should be at least 0")

    @property
    def most(self) -> int:
        """Places that it may get."""
        return min(self.wanted, self.maximum)


@dataclass(frozen=True, slots=True)
class Shares:
    """The answer, by account. `granted` = `guaranteed` + `own` + `borrowed`, in places.

    `entitled` are slots: an account's part if everybody wanted all there is. `loans` says who
    lends what is used beyond that. `short` are guaranteed places that capacity has no room for.
    `turns` are those that got a place because they starved.
    """

    capacity: float
    granted: Mapping[str, int] = field(default_factory=dict)
    guaranteed: Mapping[str, int] = field(default_factory=dict)
    own: Mapping[str, int] = field(default_factory=dict)
    borrowed: Mapping[str, int] = field(default_factory=dict)
    unmet: Mapping[str, int] = field(default_factory=dict)
    entitled: Mapping[str, float] = field(default_factory=dict)
    loans: Mapping[str, tuple[Loan, ...]] = field(default_factory=dict)
    short: Mapping[str, int] = field(default_factory=dict)
    turns: Collection[str] = frozenset()
    free: float = 0.0

    def warning(self) -> str:
        """What guarantees lack, in a sentence; "" if nothing."""
        if not self.short:
            return ""
        lacking = ", ".join(
            f"{name} has {self.granted[name]} of {self.guaranteed[name] + places} guaranteed places"
            for name, places in self.short.items()
        )
        return f"{self.capacity:g} slots are too few for the guarantees: {lacking}"


@dataclass(slots=True)
class _Member(Filled):
    """An account while it is served; `base` places are sure."""

    account: Account = Account("")
    entitled: float = 0.0
    guaranteed: int = 0
    base: int = 0
    turn: bool = False

    @property
    def own(self) -> int:
        """Whole places that its own share holds."""
        return min(self.cap, math.floor(self.entitled / self.place + TOLERANCE))


@dataclass(slots=True)
class _Group:
    """`wanting` are the members that want anything: of many sleeping models only few do."""

    name: str
    weight: float
    members: list[_Member]
    wanting: list[_Member]
    entitled: float = 0.0
    share: float = 0.0

    def used(self) -> float:
        return sum([member.count * member.place for member in self.wanting])

    def demand(self, priority: float = -math.inf) -> float:
        """Slots for all that is sure, and all that is wanted with at least this priority."""
        return sum([m.place * (m.cap if m.priority >= priority else m.base) for m in self.wanting])

    def unmet(self) -> list[_Member]:
        return [member for member in self.wanting if member.count < member.cap]


def fair_shares(
    accounts: Sequence[Account],
    capacity: float,
    group_weights: Mapping[str, float] = MappingProxyType({}),
) -> Shares:
    """See the module. Groups weigh 1 unless `group_weights` says otherwise.

    Given back as `holds`, the grants stay as they are: with places of different sizes a first
    answer may lead to another one, so answers are followed until they repeat; of several that lead
    to each other it is always the same one.
    Raises `ValueError` for names used twice and weights that are not above 0.
    """
    _check(accounts, group_weights)
    tried: list[dict[str, int]] = []
    answers: list[list[_Group]] = []
    grants = {account.name: account.holds for account in accounts}
    while grants not in tried and len(tried) < ROUNDS:
        tried.append(grants)
        answers.append(_divide(accounts, grants, capacity, group_weights))
        grants = {m.name: m.count for group in answers[-1] for m in group.members}
    if grants not in tried:
        return _report(accounts, answers[-1], capacity)
    cycle = range(tried.index(grants), len(tried))
    chosen = min(cycle, key=lambda number: sorted(tried[number].items()))
    # What led to the chosen grants, within the cycle.
    before = chosen - 1 if chosen > cycle.start else cycle.stop - 1
    return _report(accounts, answers[before], capacity)


def _check(accounts: Sequence[Account], group_weights: Mapping[str, float]) -> None:
    names = [account.name for account in accounts]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two accounts are called {twice!r}")
    for name, weight in group_weights.items():
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"group {name}: `weight` ({weight:g}) should be above 0")


def _divide(
    accounts: Sequence[Account],
    holds: Mapping[str, int],
    capacity: float,
    group_weights: Mapping[str, float],
) -> list[_Group]:
    by_group: dict[str, list[_Member]] = {}
    for a in accounts:
        member = _Member(a.name, a.weight, a.place, a.most, holds[a.name], a.priority, account=a)
        by_group.setdefault(a.group, []).append(member)
    groups = [
        _Group(name, group_weights.get(name, 1.0), each, [m for m in each if m.cap])
        for name, each in by_group.items()
    ]
    members = [member for group in groups for member in group.wanting]
    _guarantee(members, capacity)
    _entitle(groups, capacity)
    _give_own(members, capacity)
    _share(groups, capacity)
    free = capacity - sum(group.used() for group in groups)
    for group in groups:
        free += group.used()
        budget = group.share - group.used()
        for priority in sorted({m.priority for m in group.wanting}, reverse=True):
            budget = fill_places([m for m in group.wanting if m.priority == priority], budget)
        free -= group.used()
    _give_rest(groups, free)
    return groups


def _guarantee(members: Sequence[_Member], capacity: float) -> None:
    """Guarantees as far as they are wanted; in the order of priority where not all fit."""
    wanted = {m.name: min(m.account.minimum, m.cap) for m in members}
    free = capacity
    if sum(m.place * wanted[m.name] for m in members) <= capacity + TOLERANCE:
        for m in members:
            m.count = wanted[m.name]
    else:
        for priority in sorted({m.priority for m in members}, reverse=True):
            level = [m for m in members if m.priority == priority]
            for m in level:
                m.cap = wanted[m.name]
            free = fill_places(level, max(0.0, free))
    for m in members:
        m.cap = m.account.most
        m.guaranteed = m.base = m.count


def _entitle(groups: Sequence[_Group], capacity: float) -> None:
    """Each one's part, in slots, if all wanted everything; a guarantee may make it larger."""

    def most(member: _Member) -> float:
        return max(member.account.maximum, member.guaranteed) * member.place

    vessels = [Vessel(g.weight, g.used(), sum(map(most, g.members))) for g in groups]
    for group, amount in zip(groups, water_fill(vessels, capacity), strict=True):
        group.entitled = amount
        inside = [Vessel(m.weight, m.used, most(m)) for m in group.members]
        for member, part in zip(group.members, water_fill(inside, amount), strict=True):
            member.entitled = part


def _give_own(members: Sequence[_Member], capacity: float) -> None:
    """Whole places of own shares, and turns.

    Turns come out of what nobody owns whole. Where that is too little for any, one comes out of
    the others' own places: a share that is smaller than a place is then had by turns.
    """
    unowned = capacity - sum(max(m.base, m.own) * m.place for m in members)
    unguaranteed = capacity - sum(m.used for m in members)
    starved = [
        m
        for m in members
        if m.cap and not m.base and not m.own and m.account.hungry_s >= STARVE_S
        if m.place <= unguaranteed + TOLERANCE
    ]
    starved.sort(key=lambda m: (not m.holds, -m.account.hungry_s, m.name))
    for member in starved:
        if member.place > unowned + TOLERANCE:
            break  # Smaller ones behind it must not take what it waits for.
        unowned -= member.place
        member.turn = True
    if starved and not any(m.turn for m in starved):
        starved[0].turn = True
    for member in members:
        if member.turn:
            member.count = 1
            unguaranteed -= member.place
    _give(members, [max(m.count, m.own) for m in members], unguaranteed)
    for member in members:
        member.base = member.count


def _give(members: Sequence[_Member], places: Sequence[int], budget: float) -> None:
    """So many places each, or the fair part of that where it does not fit."""
    more = sum((n - m.count) * m.place for m, n in zip(members, places, strict=True))
    for member, number in zip(members, places, strict=True):
        member.cap = number
    if more <= budget + TOLERANCE:
        for member in members:
            member.count = member.cap
    else:
        fill_places(members, max(0.0, budget))
    for member in members:
        member.cap = member.account.most


def _share(groups: Sequence[_Group], capacity: float) -> None:
    """Each group's slots: its own share as far as it has use for it, then what others leave."""
    demands = [group.demand() for group in groups]
    vessels = [
        Vessel(g.weight, g.used(), max(g.used(), min(g.entitled, demand)))
        for g, demand in zip(groups, demands, strict=True)
    ]
    shares = water_fill(vessels, capacity)
    for priority in sorted({m.priority for g in groups for m in g.wanting}, reverse=True):
        vessels = [
            Vessel(group.weight, share, max(share, group.demand(priority)))
            for group, share in zip(groups, shares, strict=True)
        ]
        shares = water_fill(vessels, capacity)
    for group, share in zip(groups, shares, strict=True):
        group.share = share


def _give_rest(groups: Sequence[_Group], free: float) -> None:
    """Parts of places that groups have left are put together; then all that still fits is given."""

    def order(group: _Group) -> tuple[float, float, bool, str]:
        best = min(group.unmet(), key=lambda m: (-m.priority, m.holds <= m.count, m.name))
        level = (group.used() + best.place) / group.weight
        return (-best.priority, level, best.holds <= best.count, group.name)

    part_left = [g for g in groups if g.share - g.used() > TOLERANCE and g.unmet()]
    for group in sorted(part_left, key=order):
        open_to = [m for m in group.wanting if m.count < m.ceiling]
        budget = min(free, max((m.place for m in open_to), default=0.0))
        free -= budget - top_up(((m, m.ceiling, m.weight) for m in open_to), budget)
    top_up(
        (
            (member, member.cap, member.weight * group.weight / total)
            for group in groups
            for total in [sum(m.weight for m in group.members)]
            for member in group.wanting
        ),
        free,
    )


def _report(accounts: Sequence[Account], groups: Sequence[_Group], capacity: float) -> Shares:
    found = {member.name: member for group in groups for member in group.members}
    members = [found[account.name] for account in accounts]
    own = {m.name: min(m.count, max(m.guaranteed, m.own)) - m.guaranteed for m in members}
    parts = [
        Part(m.name, m.account.group, m.entitled, m.used)
        for m in sorted(members, key=lambda m: m.name)
    ]
    wanted = {m.name: min(m.account.minimum, m.cap) for m in members}
    return Shares(
        capacity=capacity,
        granted={m.name: m.count for m in members},
        guaranteed={m.name: m.guaranteed for m in members},
        own=own,
        borrowed={m.name: m.count - m.guaranteed - own[m.name] for m in members},
        unmet={m.name: m.cap - m.count for m in members},
        entitled={m.name: m.entitled for m in members},
        loans=loans_between(parts),
        short={n: short for n, places in wanted.items() if (short := places - found[n].guaranteed)},
        turns=frozenset(m.name for m in members if m.turn),
        free=max(0.0, capacity - sum(m.used for m in members)),
    )


def check_guarantees(
    accounts: Sequence[Account], capacity: float, slot_class: str = ""
) -> str | None:
    """The sum of guarantees that does not fit into the class's most slots, or None.

    No two places fit into one slot that are larger than half of it, whatever their sum.
    """
    needs = sorted(
        ((a.minimum * a.place, a) for a in accounts if a.minimum),
        key=lambda need: (-need[0], need[1].name),
    )
    total = sum(slots for slots, _ in needs)
    of_class = f" of class {slot_class}" if slot_class else ""
    if total <= capacity + TOLERANCE:
        large = sum(a.minimum for _, a in needs if a.place > 0.5 + TOLERANCE)
        if large <= capacity:
            return None
        return (
            f"{large} guaranteed places take more than half a slot{of_class} each, so each needs"
            f" its own, and at most {capacity:g} are there"
        )
    terms = [
        f"{a.name} {a.minimum}" + (f" x {a.place:.3g}" if a.place != 1 else "")
        for _, a in needs[:SHOWN]
    ]
    if len(needs) > SHOWN:
        rest = sum(slots for slots, _ in needs[SHOWN:])
        terms.append(f"{len(needs) - SHOWN} others {rest:.4g}")
    return (
        f"the guarantees need {total:.4g} slots{of_class}, at most {capacity:g} are there:"
        f" {' + '.join(terms)} = {total:.4g}"
    )
