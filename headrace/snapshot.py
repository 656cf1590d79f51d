"""The snapshot that the pool publishes: slots, models and placements at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from headrace.access import Access
from headrace.config.args import ModelConfig
from headrace.spec import ModelSpec


class State(StrEnum):
    """The states of a placement, in order; it ends in FAILED or END.

    SLEEPING is a version without a placement; its next request loads it.
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
"""States in which a version answers predictions, a sleeping one after its cold start."""


class ModelVersion(NamedTuple):
    """A model and a version; `revision` rises when the version's files have changed."""

    model: str
    version: int
    revision: int = 0


@dataclass(frozen=True, slots=True)
class SlotView:
    """A slot process and the addresses of its link (`unix_path` is valid on its own node).

    `code` is what it runs: compiled modules, or why not.
    """

    slot_id: str
    slot_class: str
    node_id: str
    unix_path: str
    tcp_address: str
    pid: int = 0
    draining: bool = False
    code: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """One model version in one slot; `placement_id` is the slot's own number.

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

    `default` answers requests that name no version. `labels` has the present version of each
    label, which may lag behind the config until the new version is ready. `incomplete` has the
    versions of the store that cannot be loaded yet, with the reason.
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
        wanted = self.default if number is None else number
        for view in self.versions:
            if view.served and view.version == wanted:
                return view
        if number is not None:
            return None
        served = [view for view in self.versions if view.served]
        ready = [view for view in served if view.state in ANSWERING]
        return next(reversed(ready or served), None)


@dataclass(frozen=True, slots=True)
class Override:
    """Changes to a model by operators at run time, which the config does not hold.

    `config` is that of a model loaded by request. An `unloaded` model stays so until it is loaded
    again; `rejected` versions were left by a rollback.
    """

    config: ModelConfig | None = None
    unloaded: bool = False
    rejected: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """State of the pool, kept by gateways with the snapshot and handed to the next pool.

    `serving` has the (version, revision) pairs that take each model's traffic, `statistics` the
    counts of slots that are gone, `too_small` the slot classes with too little memory by (model,
    version), `leases` the slots that other work holds.
    """

    overrides: Mapping[str, Override] = field(default_factory=dict)
    serving: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)
    too_small: Mapping[tuple[str, int], frozenset[str]] = field(default_factory=dict)
    leases: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`generation` counts config changes, `number` every change; both only rise in an epoch.

    `access` is sent whole only to a gateway that lacks it. `store_problem` says since when the
    store cannot be read, and why.
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
    """The kind of a failed load; it decides whether to try again."""

    BROKEN = "broken"
    """A runtime or a check refused the files, and will again."""
    MEMORY = "memory"
    """The slot ran out of memory."""
    DIED = "died"
    """The slot's process ended while it loaded."""
    OTHER = "other"
    """Anything else, such as a store that was away; another try may succeed."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Facts about a failed load; 0 bytes and no exit code mean that they are not known.

    `alone`: the slot held nothing else. `proven`: another slot holds the same files, READY. `lines`
    are the last ones of the slot's log.
    """

    kind: FailureKind = FailureKind.OTHER
    slot_class: str = ""
    exit_code: int | None = None
    memory_bytes: int = 0
    limit_bytes: int = 0
    alone: bool = True
    proven: bool = False
    lines: tuple[str, ...] = ()
