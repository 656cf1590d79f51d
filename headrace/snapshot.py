"""What the pool tells everybody: one numbered, frozen view of slots, models and placements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from headrace.access import Access
from headrace.config.args import ModelConfig
from headrace.spec import ModelSpec


class State(StrEnum):
    """The life of a placement in a slot; FAILED and END are where it can stop.

    SLEEPING is a version without a placement, which its next request wakes.
    """

    PENDING = "PENDING"
    LOADING = "LOADING"
    WARMING = "WARMING"
    READY = "READY"
    DRAINING = "DRAINING"
    FAILED = "FAILED"
    END = "END"
    SLEEPING = "SLEEPING"


ANSWERING = frozenset({State.READY, State.SLEEPING})
"""A version in one of these states answers predictions, a sleeping one after its cold start."""


class ModelVersion(NamedTuple):
    """What a slot loads; the revision rises when the files of a version have changed."""

    model: str
    version: int
    revision: int = 0


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


@dataclass(frozen=True, slots=True)
class Placement:
    """One (slot, model, version) and how far it is; `placement_id` is the slot's own number.

    `revision` rises when a version is loaded anew because its files have changed.
    """

    slot_id: str
    model: str
    version: int
    state: State
    placement_id: int = 0
    reason: str = ""
    load_s: float = 0.0
    revision: int = 0

    @property
    def key(self) -> ModelVersion:
        """The model version that it holds."""
        return ModelVersion(self.model, self.version, self.revision)


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version of a model; `spec` is known once some slot has loaded it.

    A version that is not `served` is only kept warm for a rollback. Requests go to placements of
    `revision`.
    """

    version: int
    state: State
    spec: ModelSpec | None = None
    reason: str = ""
    served: bool = True
    revision: int = 0


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model with its versions, newest last.

    `default` answers those who name no version. `labels` holds where each label points now, which
    may lag behind the config until the new version is ready. `incomplete` holds the versions of
    the store that are not taken up yet, and why.
    """

    name: str
    config: ModelConfig
    versions: tuple[VersionView, ...] = ()
    reason: str = ""
    default: int | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    incomplete: Mapping[int, str] = field(default_factory=dict)

    def version(self, number: int | None) -> VersionView | None:
        """That version if it is served; without a number the default, else the newest ready one."""
        served = [v for v in self.versions if v.served]
        wanted = self.default if number is None else number
        for view in served:
            if view.version == wanted:
                return view
        if number is not None:
            return None
        ready = [v for v in served if v.state in ANSWERING]
        candidates = ready or served
        return candidates[-1] if candidates else None


@dataclass(frozen=True, slots=True)
class Override:
    """What operators said about a model while the system ran; the config knows nothing of it.

    `config` is that of a model loaded by request. A model that is `unloaded` stays so until it is
    loaded again; `rejected` versions are those that a rollback left.
    """

    config: ModelConfig | None = None
    unloaded: bool = False
    rejected: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """What only the pool knows; gateways hold it with the snapshot and hand it to the next pool.

    `serving` holds the (version, revision) pairs that take each model's traffic; `statistics` is
    what slots that are gone had counted. `too_small` holds by (model, version) the slot classes
    that had not enough memory for it. `leases` is what other work holds of the pool.
    """

    overrides: Mapping[str, Override] = field(default_factory=dict)
    serving: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)
    too_small: Mapping[tuple[str, int], frozenset[str]] = field(default_factory=dict)
    leases: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`generation` counts config changes, `number` every change; both only rise in an epoch.

    `access` is sent whole only to who has not got it yet: see `Pool.watch`.
    `store_problem` says since when the store cannot be read, and why.
    """

    epoch: int = 0
    number: int = 0
    generation: int = 0
    slots: tuple[SlotView, ...] = ()
    placements: tuple[Placement, ...] = ()
    models: Mapping[str, ModelView] = field(default_factory=dict)
    store_problem: str = ""
    access: Access = field(default_factory=Access)
    memory: Memory = field(default_factory=Memory)


class FailureKind(StrEnum):
    """What went wrong; it decides whether another try is worth a slot."""

    BROKEN = "broken"
    """A runtime or a check refused the files: the same files will be refused again."""
    MEMORY = "memory"
    """The slot had no memory left for it."""
    DIED = "died"
    """The slot's process ended while it was loading."""
    OTHER = "other"
    """Anything else, such as a store that was away: it may pass."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found where a load failed; 0 bytes and no exit code mean: not known.

    `alone` says that the slot held nothing else, `proven` that another slot holds the same files,
    READY. `lines` are the last lines of the slot's log.
    """

    kind: FailureKind = FailureKind.OTHER
    slot_class: str = ""
    exit_code: int | None = None
    memory_bytes: int = 0
    limit_bytes: int = 0
    alone: bool = True
    proven: bool = False
    lines: tuple[str, ...] = ()
