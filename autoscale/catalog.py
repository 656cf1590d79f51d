"""Which versions of which models are wanted: the config's models, found in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gateway.config import ModelConfig
from gateway.errors import ModelLoadError
from replicas.repository import Repository, detect_runtime


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model of the config as the store has it; without versions `reason` says why."""

    name: str
    config: ModelConfig
    slot_class: str = ""
    versions: tuple[int, ...] = ()
    reason: str = ""


def read_catalog(repository: Repository, models: Mapping[str, ModelConfig]) -> list[CatalogEntry]:
    """Look every model up in the store; blocks. One broken model does not hide the others."""
    return [_read(repository, name, config) for name, config in models.items()]


def _read(repository: Repository, name: str, config: ModelConfig) -> CatalogEntry:
    try:
        found = repository.versions(name)
        versions = wanted_versions(config, found)
        if not versions:
            what = f"version {_list(config.versions)}" if found else "version folder"
            return CatalogEntry(name, config, reason=f"the store has no {what} of model {name!r}")
        runtime = config.runtime
        if runtime is None and config.slot_class is None:
            runtime = detect_runtime(repository.fetch(name, versions[-1]))
        slot_class = config.slot_class or config.slot_class_for(runtime or "onnx")
        return CatalogEntry(name, config, slot_class, versions)
    except ModelLoadError as error:
        return CatalogEntry(name, config, reason=error.message)


def kept(entry: CatalogEntry, before: CatalogEntry | None) -> CatalogEntry:
    """What is served stays wanted while the store cannot be read; the reason is told. Pure."""
    if entry.versions or before is None or not before.versions:
        return entry
    return replace(entry, slot_class=before.slot_class, versions=before.versions)


def wanted_versions(config: ModelConfig, found: list[int]) -> tuple[int, ...]:
    """Those of the found versions that the config's policy asks for, ascending. Pure."""
    if config.versions == "all":
        return tuple(sorted(found))
    if config.versions == "latest":
        return tuple(sorted(found)[-1:])
    return tuple(sorted(set(config.versions) & set(found)))


def _list(versions: object) -> str:
    return ", ".join(map(str, versions)) if isinstance(versions, tuple) else str(versions)
