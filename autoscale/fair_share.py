"""Fair shares of one slot class: hierarchical weighted max-min; pure.

Places are given in this order: guarantees that are wanted; whole places of an account's own share;
turns of accounts that starved; what siblings leave of their group's share; what other groups leave.
In the last two, higher priorities come first. Shares count slots, not where places lie: places may
fit by their sum and yet in no single slot, which `ledger.plan` mends.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from autoscale.water_filling import (
    TOLERANCE,
    Filled,
    Vessel,
    fill_places,
    slots_filled,
    top_up,
    water_fill,
)

STARVE_S = 20.0
"""Time without any place after which an account gets a turn, before others borrow."""
UNLIMITED = 2**31
ROUNDS = 8
SHOWN = 6
"""Accounts that a message names."""


@dataclass(frozen=True, slots=True)
class SlotAccount:
    """A model, or all leases, as a party to the sharing of a slot class.

    `place` is the cost of a place in slots: 1, or less for models that share a slot. `wanted` and
    `holds` are places. `hungry_s` is the time for which it has wanted places and had none. Raises
    `ValueError` for numbers that could never be served.
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
        """Most places that it may get."""
        return min(self.wanted, self.maximum)


@dataclass(frozen=True)
class Shares:
    """Shares by account. `granted` = `guaranteed` + `own` + `borrowed`, in places.

    `entitled` is an account's part in slots if all accounts wanted everything, `short` the
    guaranteed places that the capacity has no room for, `turns` the accounts that got a place
    because they starved.
    """

    capacity: float
    granted: Mapping[str, int] = field(default_factory=dict)
    guaranteed: Mapping[str, int] = field(default_factory=dict)
    own: Mapping[str, int] = field(default_factory=dict)
    entitled: Mapping[str, float] = field(default_factory=dict)
    short: Mapping[str, int] = field(default_factory=dict)
    turns: Collection[str] = frozenset()
    accounts: Sequence[SlotAccount] = ()

    @cached_property
    def borrowed(self) -> dict[str, int]:
        """Places beyond the own share, by account."""
        return {n: got - self.guaranteed[n] - self.own[n] for n, got in self.granted.items()}

    @cached_property
    def unmet(self) -> dict[str, int]:
        """Places wanted and allowed but not granted, by account."""
        return {a.name: a.most - self.granted[a.name] for a in self.accounts}

    @cached_property
    def loans(self) -> dict[str, tuple[Loan, ...]]:
        """By account, loans of the slots that it uses beyond its entitlement.

        Computed on first use: only operators' views need them.
        """
        parts = [
            Balance(a.name, a.group, self.entitled[a.name], self.granted[a.name] * a.place)
            for a in self.accounts
        ]
        return loans_between(sorted(parts))

    def warning(self) -> str:
        """Sentence about guarantees that are not met, "" if all are."""
        if not self.short:
            return ""
        lacking = ", ".join(
            f"{name} has {self.granted[name]} of {self.guaranteed[name] + places} guaranteed places"
            for name, places in self.short.items()
        )
        return f"{self.capacity:g} slots are too few for the guarantees: {lacking}"


@dataclass(slots=True)
class _Member(Filled):
    """An account that wants places; `base` places are sure, `own` are whole ones of its share."""

    account: SlotAccount = SlotAccount("")
    entitled: float = 0.0
    guaranteed: int = 0
    base: int = 0
    own: int = 0
    turn: bool = False


@dataclass(slots=True)
class _Group:
    """Accounts of a group; only `members` want places, as most models sleep.

    `parts` are the entitlements of the accounts in slots, `entitled` is their sum.
    """

    name: str
    weight: float
    accounts: list[SlotAccount]
    members: list[_Member]
    parts: list[float] = field(default_factory=list)
    entitled: float = 0.0
    share: float = 0.0

    def used(self) -> float:
        return sum([member.count * member.place for member in self.members])

    def demand(self, priority: float = -math.inf) -> float:
        """Slots for sure places, and for wanted ones of at least this priority."""
        return sum([m.place * (m.cap if m.priority >= priority else m.base) for m in self.members])

    def unmet(self) -> list[_Member]:
        return [member for member in self.members if member.count < member.cap]


@dataclass(slots=True)
class _Table:
    """State of the division; `guaranteed` are the places for which entitlements were computed."""

    capacity: float
    groups: list[_Group]
    members: list[_Member]
    guaranteed: list[int] = field(default_factory=list)
    seated: bool = False


def fair_shares(
    accounts: Sequence[SlotAccount],
    capacity: float,
    group_weights: Mapping[str, float] = MappingProxyType({}),
) -> Shares:
    """Share a class's slots. Groups weigh 1 unless `group_weights` says otherwise.

    The grants are stable: given back as `holds`, they stay the same. With places of different sizes
    a division may change what it starts from, so it is repeated until the grants repeat; of a cycle
    of grants the same ones are always chosen. Raises `ValueError` for names used twice and for
    weights that are not above 0.
    """
    _check(accounts, group_weights)
    table = _seat(accounts, capacity, group_weights)
    tried: list[dict[str, int]] = []
    grants = {member.name: member.holds for member in table.members}
    if _enough(table):
        # All get all that they want, whatever they hold, so these grants are stable.
        grants = {member.name: member.cap for member in table.members}
    while grants not in tried and len(tried) < ROUNDS:
        tried.append(grants)
        _divide(table, grants)
        grants = {member.name: member.count for member in table.members}
    if grants in tried:
        cycle = range(tried.index(grants), len(tried))
        chosen = min(cycle, key=lambda number: sorted(tried[number].items()))
        # The grants that lead to the chosen ones.
        before = chosen - 1 if chosen > cycle.start else cycle.stop - 1
        if before != len(tried) - 1:
            _divide(table, tried[before])
    return _report(accounts, table)


def _check(accounts: Sequence[SlotAccount], group_weights: Mapping[str, float]) -> None:
    names = [account.name for account in accounts]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two accounts are called {twice!r}")
    for name, weight in group_weights.items():
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"group {name}: `weight` ({weight:g}) should be above 0")


def _seat(
    accounts: Sequence[SlotAccount], capacity: float, group_weights: Mapping[str, float]
) -> _Table:
    by_group: dict[str, list[SlotAccount]] = {}
    for account in accounts:
        by_group.setdefault(account.group, []).append(account)
    groups = [
        _Group(
            name,
            group_weights.get(name, 1.0),
            each,
            [
                _Member(a.name, a.weight, a.place, a.most, a.holds, a.priority, account=a)
                for a in each
                if a.wanted and a.maximum
            ],
        )
        for name, each in by_group.items()
    ]
    return _Table(capacity, groups, [member for group in groups for member in group.members])


def _enough(table: _Table) -> bool:
    """Whether all wanted places fit by their sum."""
    return sum([member.cap * member.place for member in table.members]) <= table.capacity


def _divide(table: _Table, holds: Mapping[str, int]) -> None:
    """Divide the slots, given the places that each account holds."""
    groups, members, capacity = table.groups, table.members, table.capacity
    for member in members:
        member.holds, member.count, member.turn = holds[member.name], 0, False
    _guarantee(members, capacity)
    _entitle(table)
    _give_own(members, capacity)
    if _enough(table):
        for member in members:
            member.count = member.cap
        return
    _share(groups, capacity)
    free = capacity - sum(group.used() for group in groups)
    for group in groups:
        free += group.used()
        budget = group.share - group.used()
        for priority in sorted({m.priority for m in group.members}, reverse=True):
            budget = fill_places([m for m in group.members if m.priority == priority], budget)
        free -= group.used()
    _give_rest(groups, free)


def _guarantee(members: Sequence[_Member], capacity: float) -> None:
    """Give wanted guarantees, in the order of priority if not all fit."""
    sure = [m for m in members if m.account.minimum]
    for m in sure:
        m.cap = min(m.account.minimum, m.cap)
    free = capacity
    if sum([m.place * m.cap for m in sure]) <= capacity + TOLERANCE:
        for m in sure:
            m.count = m.cap
    else:
        for priority in sorted({m.priority for m in sure}, reverse=True):
            free = fill_places([m for m in sure if m.priority == priority], max(0.0, free))
    for m in sure:
        m.cap = m.account.most
    for m in members:
        m.guaranteed = m.base = m.count


def _entitle(table: _Table) -> None:
    """Part of each account in slots if all wanted everything; guarantees may make it larger."""
    guaranteed = [m.guaranteed for m in table.members]
    if table.seated and guaranteed == table.guaranteed:
        return
    table.seated, table.guaranteed = True, guaranteed
    sure = {m.name: m.used for m in table.members if m.guaranteed}
    inside: list[list[Vessel]] = [
        [(a.weight, sure.get(a.name, 0.0), a.maximum * a.place) for a in group.accounts]
        for group in table.groups
    ]
    outer = [
        (group.weight, group.used(), sum([cap for _, _, cap in vessels]))
        for group, vessels in zip(table.groups, inside, strict=True)
    ]
    amounts = water_fill(outer, table.capacity)
    for group, vessels, amount in zip(table.groups, inside, amounts, strict=True):
        group.entitled, group.parts = amount, water_fill(vessels, amount)
        parts = {a.name: part for a, part in zip(group.accounts, group.parts, strict=True)}
        for m in group.members:
            m.entitled = parts[m.name]
            m.own = min(m.cap, math.floor(m.entitled / m.place + TOLERANCE))


def _give_own(members: Sequence[_Member], capacity: float) -> None:
    """Give whole places of own shares, and turns.

    Turns use slots that belong to no own place. If these are too few for any turn, one uses the
    others' own places: shares smaller than a place are then used by turns.
    """
    unguaranteed = capacity - sum([m.used for m in members])
    starved = [
        m
        for m in members
        if m.account.hungry_s >= STARVE_S and not m.base and not m.own
        if m.place <= unguaranteed + TOLERANCE
    ]
    if starved:
        unguaranteed -= _give_turns(members, starved, capacity)
    _give(members, [max(m.count, m.own) for m in members], unguaranteed)
    for member in members:
        member.base = member.count


def _give_turns(members: Sequence[_Member], starved: list[_Member], capacity: float) -> float:
    """Give turns; returns the slots that they take."""
    unowned = capacity - sum([max(m.base, m.own) * m.place for m in members])
    starved.sort(key=lambda m: (not m.holds, -m.account.hungry_s, m.name))
    for member in starved:
        if member.place > unowned + TOLERANCE:
            break  # or smaller accounts behind it would take the slots that it waits for
        unowned -= member.place
        member.turn = True
    if not any(m.turn for m in starved):
        starved[0].turn = True
    for member in starved:
        member.count = int(member.turn)
    return sum([m.used for m in starved])


def _give(members: Sequence[_Member], places: Sequence[int], budget: float) -> None:
    """Give each member its number of places, or fair parts of these if they do not fit."""
    more = sum([(n - m.count) * m.place for m, n in zip(members, places, strict=True)])
    if more <= budget + TOLERANCE:
        for member, number in zip(members, places, strict=True):
            member.count = number
        return
    for member, number in zip(members, places, strict=True):
        member.cap = number
    fill_places(members, max(0.0, budget))
    for member in members:
        member.cap = member.account.most


def _share(groups: Sequence[_Group], capacity: float) -> None:
    """Set each group's slots: its own share as far as it is wanted, then slots others leave."""
    demands = [group.demand() for group in groups]
    vessels = [
        (g.weight, g.used(), max(g.used(), min(g.entitled, demand)))
        for g, demand in zip(groups, demands, strict=True)
    ]
    shares = water_fill(vessels, capacity)
    for priority in sorted({m.priority for g in groups for m in g.members}, reverse=True):
        vessels = [
            (group.weight, share, max(share, group.demand(priority)))
            for group, share in zip(groups, shares, strict=True)
        ]
        shares = water_fill(vessels, capacity)
    for group, share in zip(groups, shares, strict=True):
        group.share = share


def _give_rest(groups: Sequence[_Group], free: float) -> None:
    """Give places made of the parts that groups have left, then all places that still fit."""

    def order(group: _Group) -> tuple[float, float, bool, str]:
        best = min(group.unmet(), key=lambda m: (-m.priority, m.holds <= m.count, m.name))
        level = (group.used() + best.place) / group.weight
        return (-best.priority, level, best.holds <= best.count, group.name)

    part_left = [g for g in groups if g.share - g.used() > TOLERANCE and g.unmet()]
    for group in sorted(part_left, key=order):
        open_to = [m for m in group.members if m.count < m.ceiling]
        budget = min(free, max((m.place for m in open_to), default=0.0))
        free -= budget - top_up(((m, m.ceiling, m.weight) for m in open_to), budget)
    top_up(
        (
            (member, member.cap, member.weight * group.weight / total)
            for group in groups
            for total in [sum([account.weight for account in group.accounts])]
            for member in group.members
        ),
        free,
    )


def _report(accounts: Sequence[SlotAccount], table: _Table) -> Shares:
    members = table.members
    none = dict.fromkeys([account.name for account in accounts], 0)
    guaranteed = {m.name: m.guaranteed for m in members if m.guaranteed}
    own = {m.name: min(m.count, m.own) - m.guaranteed for m in members if m.own > m.guaranteed}
    lacking = [
        (m.name, min(m.account.minimum, m.cap) - m.guaranteed) for m in members if m.account.minimum
    ]
    return Shares(
        capacity=table.capacity,
        granted=none | {m.name: m.count for m in members},
        guaranteed=none | guaranteed,
        own=none | own,
        entitled={
            account.name: part
            for group in table.groups
            for account, part in zip(group.accounts, group.parts, strict=True)
        },
        short={name: places for name, places in lacking if places},
        turns=frozenset([m.name for m in members if m.turn]),
        accounts=accounts,
    )


def check_guarantees(
    accounts: Sequence[SlotAccount], capacity: float, slot_class: str = ""
) -> str | None:
    """Sentence about guarantees that do not fit into the class's most slots, None if they do.

    Places may fit by their sum but not into slots (no two larger than half a slot fit into one), so
    they are packed by best fit decreasing.
    """
    needs = sorted([a for a in accounts if a.minimum], key=lambda a: (-a.minimum * a.place, a.name))
    total = sum([a.minimum * a.place for a in needs])
    of_class = f" of class {slot_class}" if slot_class else ""
    terms = [
        f"{a.name} {a.minimum}" + (f" x {a.place:.3g}" if a.place != 1 else "")
        for a in needs[:SHOWN]
    ]
    if len(needs) > SHOWN:
        rest = sum([a.minimum * a.place for a in needs[SHOWN:]])
        terms.append(f"{len(needs) - SHOWN} others {rest:.4g}")
    named = f"at most {capacity:g} are there: {' + '.join(terms)} = {total:.4g}"
    if total > capacity + TOLERANCE:
        return f"the guarantees need {total:.4g} slots{of_class}, {named}"
    by_size = sorted(needs, key=lambda a: -a.place)
    filled = slots_filled((a.place, 1) for a in by_size for _ in range(a.minimum))
    if filled <= capacity:
        return None
    return f"the guaranteed places fill {filled} slots{of_class} when they are packed, {named}"


class Balance(NamedTuple):
    """Entitlement and use of an account, in slots."""

    name: str
    group: str
    entitled: float
    used: float


class Loan(NamedTuple):
    """Slots of a lender's share; the lender is an account of the same group, or another group."""

    lender: str
    slots: float
    group: bool = False


def loans_between(parts: Sequence[Balance]) -> dict[str, tuple[Loan, ...]]:
    """Loans by borrower, in the order of `parts`: from its own group first, then from others."""
    loans: dict[str, list[Loan]] = defaultdict(list)
    by_group: dict[str, list[Balance]] = {}
    for part in parts:
        by_group.setdefault(part.group, []).append(part)
    lenders: list[tuple[str, float]] = []
    borrowers: list[tuple[str, float]] = []
    for group, members in by_group.items():
        spare = [(p.name, p.entitled - p.used) for p in members if p.entitled > p.used]
        debts = [(p.name, p.used - p.entitled) for p in members if p.used > p.entitled]
        left, owed = _match(spare, debts, loans, group=False)
        lenders.append((group, sum(slots for _, slots in left)))
        borrowers += owed
    _match(lenders, borrowers, loans, group=True)
    return {name: tuple(found) for name, found in loans.items()}


def lent_by(loans: Mapping[str, Sequence[Loan]], *, group: bool) -> dict[str, float]:
    """Slots that others use of a share, by lending group or by lending account."""
    lent: dict[str, float] = defaultdict(float)
    for found in loans.values():
        for loan in found:
            if loan.group is group:
                lent[loan.lender] += loan.slots
    return dict(lent)


def _match(
    spare: Sequence[tuple[str, float]],
    debts: Sequence[tuple[str, float]],
    loans: dict[str, list[Loan]],
    *,
    group: bool,
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Pair lenders with borrowers; returns the rest of both."""
    lenders, borrowers = list(reversed(spare)), list(reversed(debts))
    while lenders and borrowers:
        lender, has = lenders.pop()
        borrower, needs = borrowers.pop()
        slots = min(has, needs)
        if slots > TOLERANCE:
            loans[borrower].append(Loan(lender, slots, group))
        if has - slots > TOLERANCE:
            lenders.append((lender, has - slots))
        if needs - slots > TOLERANCE:
            borrowers.append((borrower, needs - slots))
    return lenders, borrowers
