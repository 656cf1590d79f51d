"""Finding a model version in the snapshot, in the words of either protocol; for every API."""

from __future__ import annotations

from headrace.errors import NotFound, Unavailable
from headrace.protocols.targets import model_not_found, parse_version, servable_not_found
from headrace.snapshot import ModelView, Snapshot, State, VersionView
from headrace.spec import ModelSpec


def find_model(snapshot: Snapshot, name: str, version: str = "") -> tuple[ModelView, VersionView]:
    """A version by the Open Inference Protocol, whose empty version is the default one.

    Raises `NotFound`, `InvalidArgument` or, while there is no version yet, `Unavailable`.
    """
    number = parse_version(version) if version else None
    model = snapshot.models.get(name)
    if model is None:
        raise model_not_found(name)
    found = model.version(number)
    if found is None and number is not None:
        raise model_not_found(name, number)
    if found is None:
        raise Unavailable(f"model '{name}' has no version yet" + _because(model.reason))
    return model, found


def known_spec(name: str, found: VersionView) -> ModelSpec:
    """What the version takes and gives; raises `Unavailable` until some slot has loaded it."""
    if found.spec is None:
        state = f"model '{name}' version {found.version} is {found.state}"
        raise Unavailable(state + _because(found.reason))
    return found.spec


def find_servable(
    snapshot: Snapshot, name: str, version: int | None = None, label: str | None = None
) -> ModelSpec:
    """A version's spec by TensorFlow Serving's protocol; raises `NotFound`."""
    model = snapshot.models.get(name)
    if model is not None and label is not None:
        version = labelled(model, label)
    found = model.version(version) if model is not None else None
    if found is None or found.spec is None:
        raise servable_not_found(name, version)
    return found.spec


def servable_versions(
    snapshot: Snapshot, name: str, version: int | None = None, label: str | None = None
) -> list[VersionView]:
    """The versions whose status is asked for: all, or that one; raises `NotFound`.

    What is only kept warm for a rollback has been unloaded as far as clients are concerned.
    """
    model = snapshot.models.get(name)
    if model is not None and label is not None:
        version = labelled(model, label)
    versions = () if model is None else model.versions
    wanted = [
        view
        for view in versions
        if version in (None, view.version) and (view.served or view.state is State.DRAINING)
    ]
    if not wanted:
        what = "any versions" if version is None else f"version {version}"
        raise NotFound(f"Could not find {what} of model {name}")
    return wanted


def labelled(model: ModelView, label: str) -> int:
    """The version that a label points to now; raises `NotFound`."""
    if label not in model.labels:
        raise servable_not_found(model.name, label=label)
    return model.labels[label]


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
