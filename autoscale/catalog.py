"""Versions of the models to serve in the store: complete ones, and why others are not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from headrace.config.args import Latest, ModelConfig
from headrace.errors import ModelLoadError
from headrace.runtimes import MODEL_FILES
from replicas.listing import VersionFiles
from replicas.repository import Repository, StoreAway

SETTLE_S = 1.0
TOLD = 5
"""Names of passed-over folders that a model's reason lists."""


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model in the store.

    `versions` are the complete ones, ascending; `stamps` tell their contents apart. `incomplete`
    says why others are not taken up yet, `reason` why none is to be expected. Until `known`, the
    versions in the store are unknown and nothing may be unloaded. `classes` holds the slot class of
    versions that belong in another one than the newest.
    """

    name: str
    config: ModelConfig
    slot_class: str = ""
    versions: tuple[int, ...] = ()
    stamps: Mapping[int, str] = field(default_factory=dict)
    incomplete: Mapping[int, str] = field(default_factory=dict)
    reason: str = ""
    known: bool = True
    classes: Mapping[int, str] = field(default_factory=dict)

    def class_of(self, version: int) -> str:
        return self.classes.get(version, self.slot_class)


class Catalog:
    """Reader of the store; blocking, for one thread at a time. `clock` gives wall-clock seconds.

    A version is complete when nothing is missing and nothing has changed for `settle_s`, so a
    folder that is being copied is never taken up. While the store cannot be read, known versions
    stay and `problem` says since when and why. Models in `changing` need another look soon.
    `lacking` says by model and version what a folder lacks, including versions that stay because
    they were complete before.
    """

    def __init__(
        self,
        repository: Repository,
        settle_s: float = SETTLE_S,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repository, self._settle_s = repository, settle_s
        self._clock, self._monotonic = clock, monotonic
        self._entries: dict[str, CatalogEntry] = {}
        self._seen: dict[str, dict[int, tuple[str, float]]] = {}
        self.changing: frozenset[str] = frozenset()
        self.lacking: dict[str, dict[int, str]] = {}
        self.problem = ""

    def read(self, models: Mapping[str, ModelConfig]) -> list[CatalogEntry]:
        """Read all models; a broken one does not hide the others."""
        away = []
        changing = set()
        entries = {}
        for name, config in models.items():
            try:
                entries[name], still = self._read(name, config)
                if still:
                    changing.add(name)
            except ModelLoadError as error:
                entries[name] = self._as_before(name, config, error.message)
                if isinstance(error, StoreAway):
                    away.append(error.message)
        if away and not self.problem:
            since = datetime.fromtimestamp(self._clock()).astimezone()
            self.problem = f"since {since:%Y-%m-%d %H:%M:%S}: {away[0]}"
        elif not away:
            self.problem = ""
        self._entries, self.changing = entries, frozenset(changing)
        self._seen = {name: seen for name, seen in self._seen.items() if name in models}
        self.lacking = {name: lack for name, lack in self.lacking.items() if name in models}
        return list(entries.values())

    def names(self) -> list[str]:
        """Names of the models in the store, [] while it is away."""
        try:
            return self._repository.models()
        except ModelLoadError:
            return []

    def find(self, name: str, config: ModelConfig) -> dict[int, str]:
        """Versions of a model in the store now, and what each lacks ("": nothing).

        Raises `StoreAway`, or `ModelLoadError` for an invalid name.
        """
        known = self._entries[name].stamps if name in self._entries else {}
        return {
            version: "" if version in known else _problem(files, config)
            for version, files in sorted(self._inspect(name).items())
        }

    def _inspect(self, name: str) -> dict[int, VersionFiles]:
        found = self._repository.inspect(name)
        held = any(entry.versions for entry in self._entries.values())
        if held and not found and self._repository.is_empty():
            raise StoreAway("the model store is empty, what it held is served on")
        return found

    def _as_before(self, name: str, config: ModelConfig, reason: str) -> CatalogEntry:
        before = self._entries.get(name)
        if before is None or not before.versions:
            return CatalogEntry(name, config, reason=reason, known=False)
        entry = replace(before, config=config)
        return replace(entry, slot_class=_slot_class(entry, {}))

    def _read(self, name: str, config: ModelConfig) -> tuple[CatalogEntry, bool]:
        """Entry of a model, and whether it is still changing."""
        before = self._entries.get(name) or CatalogEntry(name, config, known=False)
        found = self._inspect(name)
        changing = self._changing(name, found)
        versions, stamps, incomplete, lacking = [], {}, {}, {}
        for version, files in sorted(found.items()):
            problem = _problem(files, config)
            if problem:
                lacking[version] = problem
            if not problem and version not in changing:
                stamps[version] = files.stamp
            elif version in before.stamps:
                # A version that serves stays, whatever happens to its folder.
                stamps[version] = before.stamps[version]
            else:
                incomplete[version] = problem or "it is still changing"
                continue
            versions.append(version)
        self.lacking[name] = lacking
        reason = "" if changing else _reason(name, config, versions)
        entry = CatalogEntry(
            name,
            config,
            before.slot_class,
            tuple(versions),
            stamps,
            incomplete,
            reason + self.passed_over(name, incomplete) if reason else "",
            known=before.known or not changing,
        )
        return replace(entry, slot_class=_slot_class(entry, found)), bool(changing)

    def passed_over(self, name: str, incomplete: Mapping[int, str]) -> str:
        """Folders that are not served, and why, as part of a sentence."""
        others = {f"version {version}": why for version, why in incomplete.items()}
        others |= {f"'{other}'": why for other, why in self._repository.passed_over(name).items()}
        told = [f"{other} ({why})" for other, why in others.items()]
        if len(told) > TOLD:
            told[TOLD:] = [f"and {len(told) - TOLD} more"]
        return f"; passed over: {', '.join(told)}" if told else ""

    def _changing(self, name: str, found: Mapping[int, VersionFiles]) -> set[int]:
        """Versions that may still be changing.

        Those with a file time within `settle_s`, and those that differ from the look before,
        whatever their file times say: clocks may disagree.
        """
        first_look = name not in self._seen
        before, now_s, wall_s = self._seen.get(name, {}), self._monotonic(), self._clock()
        seen: dict[int, tuple[str, float]] = {}
        changing = set()
        for version, files in found.items():
            told_s = files.changed_s if files.changed_s is not None else math.inf
            age_s = wall_s - told_s if told_s <= wall_s else math.inf
            stamp, since_s = before.get(version, ("", now_s))
            if stamp != files.stamp:
                since_s = now_s - age_s if first_look and age_s < math.inf else now_s
            seen[version] = (files.stamp, since_s)
            if min(age_s, now_s - since_s) < self._settle_s:
                changing.add(version)
        self._seen[name] = seen
        return changing


def wanted_versions(
    config: ModelConfig, found: Iterable[int], rejected: frozenset[int] = frozenset()
) -> tuple[int, ...]:
    """Found versions that policy and labels ask for, ascending.

    A version rejected by a rollback is wanted only if a label names it.
    """
    stored = sorted(found)
    left = [version for version in stored if version not in rejected]
    if config.versions == "all":
        wanted = set(left)
    elif isinstance(config.versions, tuple):
        wanted = set(config.versions) & set(left)
    else:
        count = config.versions.latest if isinstance(config.versions, Latest) else 1
        wanted = set(left[-count:])
    return tuple(sorted(wanted | (set(config.labels.values()) & set(stored))))


def by_policy(config: ModelConfig) -> ModelConfig:
    """Config without labels: versions that it asks for may become the default."""
    return config.model_copy(update={"labels": {}}) if config.labels else config


def _reason(name: str, config: ModelConfig, versions: list[int]) -> str:
    if wanted_versions(by_policy(config), versions):
        return ""
    what = "version folder"
    if versions and isinstance(config.versions, tuple):
        what = "version " + ", ".join(map(str, config.versions))
    return f"the store has no complete {what} of model {name!r}"


def _problem(files: VersionFiles, config: ModelConfig) -> str:
    if not files.problem and files.runtime is None and config.runtime is None:
        return f"it holds more than one of {MODEL_FILES}, and the config names no runtime"
    return files.problem


def _slot_class(entry: CatalogEntry, found: Mapping[int, VersionFiles]) -> str:
    """Slot class by the runtime of the newest wanted version; unchanged if that is unknown."""
    config = entry.config
    runtime = config.runtime
    if runtime is None:
        wanted = wanted_versions(config, entry.versions)
        newest = found.get(wanted[-1]) if wanted else None
        runtime = newest.runtime if newest is not None else None
    if runtime is None:
        return config.slot_class or entry.slot_class
    return config.slot_class_for(runtime)
