"""Who gets how many slots now, and how many slots there should be; time is an argument.

Turns wishes of models and leases into accounts of the fair share, class by class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from autoscale.catalog import CatalogEntry
from autoscale.fair_share import Account, Shares, fair_shares
from autoscale.ledger import Room
from autoscale.policy import Wish
from gateway.config import ModelConfig, PoolConfig, SlotClass

LEASES = "leases"
START_S = 30.0
"""A slot that is asked for and has not come for so long is not counted on: a node may be lost."""
FEWER_S = 5.0
"""Slots are given back once so many were not needed for this long."""


@dataclass(frozen=True, slots=True)
class Need:
    """A model's part: `places` slots or parts of slots (`size`) are wished, `held` it has."""

    name: str
    config: ModelConfig
    slot_class: str
    wish: Wish
    versions: int = 1
    size: float = 1.0
    held: int = 0

    def account(self, hungry_s: float) -> Account:
        """How the fair share sees it."""
        share, replicas = self.config.share, self.config.replicas
        return Account(
            name=self.name,
            group=share.group,
            weight=share.weight,
            minimum=replicas.min * self.versions,
            maximum=replicas.max * self.versions,
            priority=share.priority,
            place=self.size,
            wanted=self.wish.slots * self.versions,
            holds=self.held,
            hungry_s=hungry_s,
        )


@dataclass(frozen=True, slots=True)
class Division:
    """By model the slots of each version; by class the shares, the capacity and the target."""

    grants: Mapping[str, int] = field(default_factory=dict)
    shares: Mapping[str, Shares] = field(default_factory=dict)
    capacity: Mapping[str, int] = field(default_factory=dict)
    for_leases: Mapping[str, int] = field(default_factory=dict)
    accounts: Mapping[str, Sequence[Account]] = field(default_factory=dict)
    needed: Mapping[str, int] = field(default_factory=dict)


def divide(
    needs: Sequence[Need],
    config: PoolConfig,
    capacity: Mapping[str, int],
    leases_wanted: Mapping[str, int],
    leased: Mapping[str, int],
    hungry_s: Mapping[str, float],
    least: Mapping[str, int] = MappingProxyType({}),
) -> Division:
    """Share each class's slots among models and leases, which never get the `least`. Pure."""
    grants: dict[str, int] = {}
    shares: dict[str, Shares] = {}
    for_leases: dict[str, int] = {}
    asked: dict[str, Sequence[Account]] = {}
    needed: dict[str, int] = {}
    for slot_class, slots in capacity.items():
        mine = [need for need in needs if need.slot_class == slot_class]
        firm = [need for need in mine if not need.wish.lingering]
        accounts = [need.account(hungry_s.get(need.name, 0.0)) for need in firm]
        wanted = leases_wanted.get(slot_class, 0)
        if wanted:
            account = _lease_account(config, wanted, leased.get(slot_class, 0))
            accounts.append(replace(account, maximum=max(0, slots - least.get(slot_class, 0))))
        asked[slot_class] = accounts
        share = shares[slot_class] = fair_shares(accounts, slots, config.shares)
        for need in firm:
            grants[need.name] = share.granted[need.name] // max(1, need.versions)
        for need in mine:
            grants.setdefault(need.name, need.wish.slots)
        for_leases[slot_class] = share.granted.get(LEASES, 0)
        needed[slot_class] = slots_needed(mine, grants)
    return Division(grants, shares, dict(capacity), for_leases, asked, needed)


def _lease_account(config: PoolConfig, wanted: int, leased: int) -> Account:
    leases = config.leases
    return Account(
        name=LEASES,
        group=leases.group,
        weight=leases.weight,
        minimum=0,
        maximum=leases.max_slots,
        priority=leases.priority,
        place=1.0,
        wanted=wanted,
        holds=leased,
        hungry_s=0.0,
    )


def slots_needed(needs: Sequence[Need], grants: Mapping[str, int]) -> int:
    """The least number of slots that all grants fit into: copies of a model need slots of own."""
    total = sum(grants[need.name] * need.versions * need.size for need in needs)
    most = max((grants[need.name] for need in needs), default=0)
    return max(math.ceil(total - 1e-9), most)


def room_of(
    slots: Mapping[str, SlotClass],
    entries: Sequence[CatalogEntry],
    used_s: Mapping[str, float],
) -> Room:
    """What each model takes of a slot of its class."""
    sizes = {
        entry.name: entry.config.part_of(slots[entry.slot_class])
        for entry in entries
        if entry.slot_class in slots
    }
    return Room(
        {name: each.max_models for name, each in slots.items()},
        sizes,
        {name: each.warm for name, each in slots.items()},
        used_s,
    )


class TargetBook:
    """How many slots of each class to ask for, and how many may be counted on."""

    def __init__(self, slots: Mapping[str, SlotClass]) -> None:
        self._slots = slots
        self._short_since_s: dict[str, float] = {}
        self._fewer_since_s: dict[str, float] = {}
        self.targets = {name: each.least for name, each in slots.items()}

    def capacity(
        self, live: Mapping[str, int], leased: Mapping[str, int], now_s: float
    ) -> dict[str, int]:
        """By class, the most slots that there can be; what does not come is not counted on."""
        capacity = {}
        for name, each in self._slots.items():
            here = live.get(name, 0)
            since_s = now_s
            if here < self.targets[name]:
                since_s = self._short_since_s.setdefault(name, now_s)
            else:
                self._short_since_s.pop(name, None)
            late = now_s - since_s >= START_S
            capacity[name] = here + leased.get(name, 0) if late else each.max
        return capacity

    def again_s(self, now_s: float) -> float:
        """In how many seconds something of this may change by itself."""
        times = [since_s + FEWER_S for since_s in self._fewer_since_s.values()]
        times += [since_s + START_S for since_s in self._short_since_s.values()]
        return min((at_s - now_s for at_s in times if at_s > now_s), default=math.inf)

    def follow(
        self, needed: Mapping[str, int], leased: Mapping[str, int], now_s: float
    ) -> dict[str, int]:
        """The new targets: at once upwards, downwards after a while."""
        for name, each in self._slots.items():
            most = max(0, each.max - leased.get(name, 0))
            wanted = min(max(needed.get(name, 0) + each.warm, each.min), most)
            if wanted >= self.targets[name]:
                self._fewer_since_s.pop(name, None)
                self.targets[name] = wanted
            elif self.targets[name] > most:
                self.targets[name] = most
            elif now_s - self._fewer_since_s.setdefault(name, now_s) >= FEWER_S:
                del self._fewer_since_s[name]
                self.targets[name] = wanted
        return self.targets
