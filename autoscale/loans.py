"""Who lends to whom, given what each is entitled to and what it uses; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autoscale.water_filling import TOLERANCE


class Part(NamedTuple):
    """An account's entitlement and use, in slots."""

    name: str
    group: str
    entitled: float
    used: float


class Loan(NamedTuple):
    """So many slots of a lender's share: an account of the same group, or another group."""

    lender: str
    slots: float
    group: bool = False


def loans_between(parts: Sequence[Part]) -> dict[str, tuple[Loan, ...]]:
    """By borrower, in the order of `parts`: first from its own group, then from other groups."""
    loans: dict[str, list[Loan]] = defaultdict(list)
    by_group: dict[str, list[Part]] = {}
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
    """By lending group, or by lending account, the slots of its share that others use."""
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
    """Pair lenders and borrowers off; returns what is left of both."""
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
