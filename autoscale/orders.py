"""Versions that slots should hold, what fits into a slot, and orders to slots."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

from headrace.snapshot import ModelVersion, State

MANY = 1 << 30
HELD = frozenset({State.PENDING, State.LOADING, State.WARMING, State.READY})
PRESENT = HELD | {State.DRAINING}


class Hold(Enum):
    """Reasons for a version to stay in its slots though it is not desired."""

    KEEP = "it serves until the wanted version is ready"
    YIELD = "it stays while nobody needs its slot"


@dataclass(frozen=True)
class DesiredVersion:
    """A model version and its desired slots (`replicas`) of a class, at most `granted` of them.

    Versions that are not `firm` are placed after all others, and give up their slots for them.
    `turn` is set for one that has starved, and for a while after it then got a slot.
    """

    model: str
    version: int
    replicas: int
    slot_class: str
    revision: int = 0
    firm: bool = True
    granted: int = MANY
    guaranteed: int = 0
    turn: bool = False

    @cached_property
    def key(self) -> ModelVersion:
        """The model version itself."""
        return ModelVersion(self.model, self.version, self.revision)

    @cached_property
    def target(self) -> int:
        """Desired slots within what was granted."""
        return min(self.replicas, self.granted)

    @cached_property
    def sure(self) -> int:
        """Slots for which others must leave where none is free."""
        return min(self.target, max(self.guaranteed, int(self.turn))) if self.firm else 0


@dataclass(frozen=True, slots=True)
class _Order:
    slot_id: str
    model: str
    version: int
    revision: int = 0

    @property
    def key(self) -> ModelVersion:
        """The model version to load or unload."""
        return ModelVersion(self.model, self.version, self.revision)


@dataclass(frozen=True, slots=True)
class LoadOrder(_Order):
    """Order a slot to load a model version."""


@dataclass(frozen=True, slots=True)
class UnloadOrder(_Order):
    """Order a slot to drain and unload a model version."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Orders, unloads first. `waiting` says why a version stays without all of its desired slots.

    `crowded` counts by class the granted slots of firm versions that fit nowhere.
    """

    moves: list[LoadOrder | UnloadOrder] = field(default_factory=list)
    waiting: Mapping[ModelVersion, str] = field(default_factory=dict)
    crowded: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Room:
    """What fits into a slot, and how many slots should stay empty.

    `max_models` is by slot class (default 1). `sizes` is the fraction of a slot that a model takes
    (default: one of `max_models` equal parts). While a class has at most `spare` empty slots,
    small models go to slots that hold something already. `used_s` is when each model was last
    called; the least recently used leave first. Classes that are `full` get no more slots.
    """

    max_models: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    spare: Mapping[str, int] = field(default_factory=dict)
    used_s: Mapping[str, float] = field(default_factory=dict)
    full: Collection[str] = ()

    def size(self, model: str, slot_class: str) -> float:
        """The fraction of a slot of this class that the model takes."""
        size, least = self.sizes.get(model, 0.0), self._least.get(slot_class, 1.0)
        return size if size > least else least

    @cached_property
    def _least(self) -> dict[str, float]:
        return {slot_class: 1.0 / models for slot_class, models in self.max_models.items()}
