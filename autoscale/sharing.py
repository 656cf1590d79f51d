"""Division of slots among models and leases, and the number of slots to ask for; pure.

Desired places and leases become accounts of the fair share, class by class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from autoscale.fair_share import Shares, SlotAccount, fair_shares
from autoscale.leases import LeaseBook
from autoscale.policy import DesiredSlots
from autoscale.water_filling import slots_filled
from headrace.config.args import ModelConfig, PoolConfig, SlotClass

T = TypeVar("T")
LEASES = "leases"
START_S = 30.0
"""A slot that has not come after this is no longer counted on: a node may be lost."""
BELIEVED_S = 600.0
"""After a shortage, the slots that came count as the most that can come for so long."""
CROWDED_S = 300.0
"""Time for which extra slots are kept for places whose sum fitted, but that no slot could take."""
FEWER_S = 5.0
"""Time for which slots must be unneeded before they are given back."""


@dataclass(frozen=True, slots=True)
class ModelPlaces:
    """Places that a model should have and has; a place is a slot or the part `size` of one.

    Each of `versions` has the same desired slots. The model has `held` places; `leaving` of them
    belong to an older version and serve until the new one is ready.
    """

    name: str
    config: ModelConfig
    slot_class: str
    desired: DesiredSlots
    versions: int = 1
    size: float = 1.0
    held: int = 0
    leaving: int = 0

    def account(self, hungry_s: float) -> SlotAccount:
        """Account of the model in the fair share."""
        share, replicas = self.config.share, self.config.replicas
        return SlotAccount(
            name=self.name,
            group=share.group,
            weight=share.weight,
            minimum=replicas.min * self.versions,
            maximum=replicas.max * self.versions,
            priority=share.priority,
            place=self.size,
            wanted=self.desired.slots * self.versions,
            holds=self.held,
            hungry_s=hungry_s,
        )


@dataclass(frozen=True, slots=True)
class Division:
    """Result of a round of sharing, by model (`grants`, in places) or by slot class (the others).

    `for_leases` are slots granted to leases, `needed` the slots that all grants fit into.
    """

    grants: Mapping[str, int] = field(default_factory=dict)
    shares: Mapping[str, Shares] = field(default_factory=dict)
    capacity: Mapping[str, int] = field(default_factory=dict)
    for_leases: Mapping[str, int] = field(default_factory=dict)
    accounts: Mapping[str, Sequence[SlotAccount]] = field(default_factory=dict)
    needed: Mapping[str, int] = field(default_factory=dict)


def divide(
    models: Sequence[ModelPlaces],
    config: PoolConfig,
    classes: Mapping[str, SlotClass],
    capacity: Mapping[str, int],
    leases: LeaseBook,
    hungry_s: Mapping[str, float],
    book: ShareBook | None = None,
) -> Division:
    """Share the `capacity` of each class among models and leases.

    Leases never get the slots that are always there; a remainder of their share that
    is too small for a whole lease goes to models. A `book` caches results and changes none.
    """
    book = book or ShareBook()
    book.start()
    weights = dict(config.shares)
    leases_wanted, leased = leases.wanted(), leases.held()
    grants: dict[str, int] = {}
    shares: dict[str, Shares] = {}
    for_leases: dict[str, int] = {}
    asked: dict[str, Sequence[SlotAccount]] = {}
    needed: dict[str, int] = {}
    for slot_class, slots in capacity.items():
        mine = [model for model in models if model.slot_class == slot_class]
        firm = [model for model in mine if not model.desired.lingering]
        accounts = [
            book.reuse(model.name, ModelPlaces.account, model, hungry_s.get(model.name, 0.0))
            for model in firm
        ]
        wanted = leases_wanted.get(slot_class, 0)
        both = accounts
        if wanted:
            lease = SlotAccount(
                LEASES,
                config.leases.group,
                config.leases.weight,
                maximum=max(0, slots - classes[slot_class].least),
                priority=config.leases.priority,
                wanted=wanted,
                holds=leased.get(slot_class, 0),
            )
            both = [*accounts, lease]
        share = book.reuse((slot_class, "all"), fair_shares, both, slots, weights)
        granted = share.granted.get(LEASES, 0)
        usable = leases.usable(slot_class, granted)
        if usable < granted:
            both = [*accounts, replace(lease, wanted=usable)]
            share = book.reuse((slot_class, "gangs"), fair_shares, both, slots, weights)
        asked[slot_class], shares[slot_class] = both, share
        for model in mine:
            everything = model.desired.slots * model.versions
            grants[model.name] = share.granted.get(model.name, everything)
        for_leases[slot_class] = share.granted.get(LEASES, 0)
        places = [grants[model.name] for model in mine]
        warm = classes[slot_class].warm
        needed[slot_class] = book.reuse((slot_class, "needed"), slots_needed, mine, places, warm)
    return Division(grants, shares, dict(capacity), for_leases, asked, needed)


def slots_needed(models: Sequence[ModelPlaces], grants: Sequence[int], warm: int = 0) -> int:
    """Slots that the granted places fit into, with versions that serve until new ones are ready.

    Packed by best fit decreasing; copies of a version need slots of their own. All models with
    `learning` slots share one, or a `warm` one if there are any.
    """
    learners = 0
    places: list[tuple[float, int]] = []
    by_size = sorted(zip(models, grants, strict=True), key=lambda each: -each[0].size)
    for model, granted in by_size:
        size = model.size
        if model.desired.learning:
            learners += granted
        elif model.versions == 1:
            places.append((size, granted))
        else:
            places += [(size, count) for count in split(granted, model.versions)]
        if model.leaving:
            places.append((size, model.leaving))
    return slots_filled(places) + (learners > 0 and not warm)


def split(places: int, versions: int) -> list[int]:
    """Places of each version, as evenly as possible, larger numbers first."""
    return [-(-(places - number) // versions) for number in range(versions)]


class ShareBook:
    """Results of the last `divide`, reused while what they follow from is equal."""

    def __init__(self) -> None:
        self._last: dict[Hashable, tuple[tuple[Any, ...], Any]] = {}
        self._now: dict[Hashable, tuple[tuple[Any, ...], Any]] = {}

    def start(self) -> None:
        """Begin a division; results that the one before did not use are forgotten."""
        self._last, self._now = self._now, {}

    def reuse(self, key: Hashable, work: Callable[..., T], *facts: Any) -> T:
        """Result of `work(*facts)`; facts must not be changed later."""
        found = self._last.get(key)
        if found is None or found[0] != facts:
            found = (facts, work(*facts))
        self._now[key] = found
        result: T = found[1]
        return result


class TargetBook:
    """Slots of each class to ask for, and slots that can be counted on.

    `lost` is by class the number of slots that were asked for but are not counted on.
    """

    def __init__(self, slots: Mapping[str, SlotClass]) -> None:
        self._slots = slots
        self._short_since_s: dict[str, float] = {}
        self._fewer_since_s: dict[str, float] = {}
        self._most: dict[str, tuple[int, float]] = {}
        self._extra: dict[str, tuple[int, float]] = {}
        self.lost: dict[str, int] = {}
        self.targets = {name: each.least for name, each in slots.items()}

    def update_capacity(
        self, live: Mapping[str, int], leased: Mapping[str, int], now_s: float
    ) -> dict[str, int]:
        """By class, the most slots that can be counted on."""
        capacity = {}
        self.lost = {}
        for name, each in self._slots.items():
            here, target = live.get(name, 0), self.targets[name]
            there = here + leased.get(name, 0)
            since_s = now_s
            most, known_s = self._most.get(name, (each.max, now_s))
            if here < target:
                since_s = self._short_since_s.setdefault(name, now_s)
            else:
                self._short_since_s.pop(name, None)
                if there > most:
                    self._most.pop(name, None)
            if now_s - since_s >= START_S:
                self.lost[name] = target - here
                self._most[name] = (there, now_s)
            elif now_s - known_s >= BELIEVED_S:
                self._most.pop(name, None)
            # Kept also when the target falls: asking for fewer does not bring lost slots back.
            capacity[name] = max(self._most[name][0], there) if name in self._most else each.max
        return capacity

    def note_crowded(
        self,
        crowded: Mapping[str, int],
        live: Mapping[str, int],
        leased: Mapping[str, int],
        now_s: float,
    ) -> None:
        """Ask for more slots, up to `max`, where granted places fit into no slot.

        Placements are not moved, so more slots may be needed than the best packing takes.
        """
        for name, each in self._slots.items():
            extra, since_s = self._extra.get(name, (0, now_s))
            target, most = self.targets[name], each.max - leased.get(name, 0)
            if crowded.get(name, 0) and target <= live.get(name, 0) and target < most:
                self._extra[name] = (min(extra + crowded[name], each.max), now_s)
            elif now_s - since_s >= CROWDED_S:
                del self._extra[name]

    def again_s(self, now_s: float) -> float:
        """Seconds until time alone may change a target or a capacity."""
        times = [since_s + FEWER_S for since_s in self._fewer_since_s.values()]
        times += [since_s + START_S for since_s in self._short_since_s.values()]
        return min((at_s - now_s for at_s in times if at_s > now_s), default=math.inf)

    def follow(
        self, needed: Mapping[str, int], leased: Mapping[str, int], now_s: float
    ) -> dict[str, int]:
        """Set the targets: upwards at once, downwards after `FEWER_S`."""
        for name, each in self._slots.items():
            most = max(0, each.max - leased.get(name, 0))
            extra, _ = self._extra.get(name, (0, now_s))
            wanted = min(max(needed.get(name, 0) + extra + each.warm, each.min), most)
            if wanted >= self.targets[name]:
                self._fewer_since_s.pop(name, None)
                self.targets[name] = wanted
            elif self.targets[name] > most:
                self.targets[name] = most
            elif now_s - self._fewer_since_s.setdefault(name, now_s) >= FEWER_S:
                del self._fewer_since_s[name]
                self.targets[name] = wanted
        return self.targets
