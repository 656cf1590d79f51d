"""What the pool tells everybody: one numbered, frozen view of slots, models and placements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.config import ModelConfig
from gateway.protocols.tensors import ModelSpec


class State(StrEnum):
    """The life of a placement in a slot; FAILED and END are where it can stop."""

    PENDING = "PENDING"
    LOADING = "LOADING"
    WARMING = "WARMING"
    READY = "READY"
    DRAINING = "DRAINING"
    FAILED = "FAILED"
    END = "END"


@dataclass(frozen=True, slots=True)
class SlotView:
    """A slot process and where its link listens (`unix_path` counts only on its own node)."""

    slot_id: str
    slot_class: str
    node_id: str
    unix_path: str
    tcp_address: str
    pid: int = 0
    draining: bool = False
    memory_bytes: int = 0
    cores: float = 1.0


@dataclass(frozen=True, slots=True)
class Placement:
    """One (slot, model, version) and how far it is; `placement_id` is the slot's own number."""

    slot_id: str
    model: str
    version: int
    state: State
    placement_id: int = 0
    reason: str = ""
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class VersionView:
    """A wanted version of a model; `spec` is known once some slot has loaded it."""

    version: int
    state: State
    spec: ModelSpec | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model of the config with its versions, newest last."""

    name: str
    config: ModelConfig
    versions: tuple[VersionView, ...] = ()
    reason: str = ""

    def version(self, number: int | None) -> VersionView | None:
        """That version, or without a number the newest READY one (else the newest)."""
        if number is not None:
            return next((v for v in self.versions if v.version == number), None)
        ready = [v for v in self.versions if v.state is State.READY]
        candidates = ready or list(self.versions)
        return candidates[-1] if candidates else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`generation` counts config changes, `number` every change; both only rise in an epoch."""

    epoch: int = 0
    number: int = 0
    generation: int = 0
    slots: tuple[SlotView, ...] = ()
    placements: tuple[Placement, ...] = ()
    models: Mapping[str, ModelView] = field(default_factory=dict)
