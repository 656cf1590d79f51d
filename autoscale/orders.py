"""What slots should hold, what fits into them, and the orders they get."""

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
    """What may stay though it is not wanted (any more)."""

    KEEP = "it serves until the wanted version is ready"
    YIELD = "it stays while nobody needs its slot"


@dataclass(frozen=True)
class DesiredVersion:
    """A model version that `replicas` slots of a class should hold.

    It gets at most what it was `granted`. One that is not `firm` comes after all that are, and
    gives its slots up for them. In its `turn` it has gone without a place for long, or keeps for a
    while the one that it got for that reason.
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
        """How many slots it may have now."""
        return min(self.replicas, self.granted)

    @cached_property
    def sure(self) -> int:
        """Places for which others must leave where none is free."""
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
    """Orders, unloads first; and why wanted versions stay without all of their slots even then.

    `crowded` counts by class the places that were granted to firm wants and fit into no slot.
    """

    moves: list[LoadOrder | UnloadOrder] = field(default_factory=list)
    waiting: Mapping[ModelVersion, str] = field(default_factory=dict)
    crowded: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Room:
    """What fits into a slot, and what should stay free.

    `max_models` is by slot class (absent: 1). `sizes` is by model the part of a slot that it takes
    (absent: one of `max_models` equal parts). While a class has no more than `spare` empty slots,
    models that share go to slots that hold something already. `used_s` is when each model was
    last called: the least recently used ones leave first. Classes that are `full` get no more
    slots.
    """

    max_models: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    spare: Mapping[str, int] = field(default_factory=dict)
    used_s: Mapping[str, float] = field(default_factory=dict)
    full: Collection[str] = ()

    def size(self, model: str, slot_class: str) -> float:
        """The part of a slot of this class that the model takes."""
        size, least = self.sizes.get(model, 0.0), self._least.get(slot_class, 1.0)
        return size if size > least else least

    @cached_property
    def _least(self) -> dict[str, float]:
        return {slot_class: 1.0 / models for slot_class, models in self.max_models.items()}
