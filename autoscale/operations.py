"""What operators may ask for while the system runs: load, unload, roll back, list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from autoscale.catalog import wanted_versions
from autoscale.controller import Controller
from autoscale.decision import ModelDecision
from autoscale.ledger import Key
from gateway.config import ModelConfig
from gateway.errors import FailedPrecondition, HeadraceError, NotFound, Unavailable
from gateway.protocols.model_config import overridden
from gateway.snapshot import ModelView, Override, State, VersionView

READY_S = 120.0
"""How long a request to load waits for the model to be ready."""

_INDEX_STATES = {
    State.READY: "READY",
    State.PENDING: "LOADING",
    State.LOADING: "LOADING",
    State.WARMING: "LOADING",
    State.DRAINING: "UNLOADING",
}


class Operations:
    """See the module. Each returns once what it asks for is true."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def load(self, name: str, config: Mapping[str, Any] | None = None) -> None:
        """Load a model of the store; again, if its files or `config` (Triton's) have changed.

        What a `config` asks for that cannot be done changes nothing. Raises `NotFound`,
        `InvalidArgument`, `Unimplemented` or, with the reason, `Unavailable`.
        """
        controller = self._controller
        before = controller.models()
        known = before.get(name) or controller.config.models.get(name)
        if known is None and name not in await self._stored():
            raise NotFound(f"there is no model {name!r} in the store")
        override = overridden(known or ModelConfig(), config) if config else None
        if override is not None:
            self._check_versions(name, override)
        if known is None and override is None:
            override = ModelConfig()
        memory = controller.overrides.memory()
        controller.overrides.load(name, override)
        try:
            await controller.models_changed(before)
            controller.renew(name)
            await self._until(lambda: self._is_ready(name), f"model {name!r} is not ready")
        except HeadraceError:
            if config is not None:
                await self._undo([name], memory)
            raise

    async def unload(self, name: str) -> None:
        """Serve a model no more; what is under way is answered. Raises `NotFound`."""
        controller = self._controller
        before = controller.models()
        if name not in before:
            raise NotFound(f"model {name!r} is not loaded")
        controller.overrides.unload(name)
        await controller.models_changed(before)
        await self._until(
            lambda: name not in controller.snapshot.models, f"model {name!r} is still served"
        )

    async def roll_back(self, name: str) -> dict[str, Any]:
        """Serve the version before; gives both. Raises `NotFound` or `FailedPrecondition`."""
        controller = self._controller
        one = controller.decision.models.get(name)
        current = one.rollout.default if one is not None else None
        if one is None or current is None:
            raise NotFound(f"model {name!r} is not served")
        leaving = {version for version in one.entry.versions if version >= current}
        left = controller.overrides.rejected(name) | leaving
        remaining = set(wanted_versions(one.entry.config, one.entry.versions, left)) - left
        previous = max(remaining, default=None)
        if previous is None:
            raise FailedPrecondition(
                f"model {name!r} has no version before {current} that its config allows"
            )
        warm = previous in {target[0] for target, count in one.situation.ready.items() if count}
        memory = controller.overrides.memory()
        controller.overrides.reject(name, leaving)
        try:
            await self._until(
                lambda: self._has_taken_over(name, previous),
                f"version {previous} of {name!r} is not ready",
            )
        except HeadraceError:
            await self._undo([name], memory)
            raise
        return {"model": name, "from": current, "to": previous, "warm": warm}

    async def serve_only(self, models: Mapping[str, ModelConfig]) -> None:
        """Serve exactly these models of the store; raises `NotFound` before anything changes."""
        controller = self._controller
        stored = await self._stored()
        missing = sorted(models.keys() - set(stored))
        if missing:
            raise NotFound(f"there is no model {missing[0]!r} in the store")
        for name, config in models.items():
            self._check_versions(name, config)
        before, memory = controller.models(), controller.overrides.memory()
        known = before.keys() | controller.config.models.keys()
        controller.overrides.serve_only(models, known)
        try:
            await controller.models_changed(before)
            for name in models:
                await self._until(
                    lambda name=name: self._is_ready(name),  # type: ignore[misc]
                    f"model {name!r} is not ready",
                )
        except HeadraceError:
            await self._undo(known | models.keys(), memory)
            raise

    async def index(self) -> list[dict[str, str]]:
        """The models of the store and those that are served, as Triton's repository index."""
        snapshot = self._controller.snapshot
        rows = [row for model in snapshot.models.values() for row in _rows(model)]
        idle = sorted(set(await self._stored()) - snapshot.models.keys())
        rows += [_row(name, "", "UNAVAILABLE", "not loaded") for name in idle]
        return sorted(rows, key=lambda row: (row["name"], row["version"]))

    def _check_versions(self, name: str, config: ModelConfig) -> None:
        """Refuse, before anything changes, versions that the store does not have."""
        one = self._controller.decision.models.get(name)
        if one is None or not one.entry.versions:
            return
        if not wanted_versions(config, one.entry.versions):
            held = ", ".join(map(str, one.entry.versions))
            raise NotFound(
                f"the store has none of the versions that are asked for of model {name!r}; it has "
                f"{held}"
            )

    async def _undo(self, names: Iterable[str], memory: Mapping[str, Override]) -> None:
        """Back to what was said before an order that failed."""
        controller = self._controller
        before = controller.models()
        controller.overrides.put_back(names, memory)
        await controller.models_changed(before)
        controller.say()

    async def _stored(self) -> list[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, self._controller.catalog.names)

    async def _until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for a round of the controller after which it is true; raises `Unavailable`."""
        controller = self._controller
        said = controller.say()
        try:
            async with asyncio.timeout(READY_S), controller.decided:
                await controller.decided.wait_for(lambda: controller.heard >= said and true())
        except TimeoutError:
            raise Unavailable(f"{what} after {READY_S:.0f} s") from None

    def _has_taken_over(self, name: str, version: int) -> bool:
        """Whether this version is the default; raises `Unavailable` once it has failed."""
        controller = self._controller
        one = controller.decision.models.get(name)
        for target in one.situation.wanted if one is not None else ():
            key = Key(name, *target)
            if target[0] == version and key in controller.failures:
                reason = controller.failures.reason(key)
                raise Unavailable(f"model {name!r} version {version} failed: {reason}")
        return one is not None and one.rollout.default == version

    def _is_ready(self, name: str) -> bool:
        one = self._controller.decision.models.get(name)
        if one is None:
            return False
        if not one.situation.wanted:
            raise Unavailable(one.entry.reason or f"model {name!r} has no version to load")
        self._raise_failure(one)
        return one.settled() and all(
            _serves(one, version, revision) for version, revision in one.situation.wanted
        )

    def _raise_failure(self, one: ModelDecision) -> None:
        controller, name = self._controller, one.entry.name
        for target in one.situation.wanted:
            key = Key(name, *target)
            if key in controller.failures:
                reason = controller.failures.reason(key)
                raise Unavailable(f"model {name!r} version {key.version} failed: {reason}")
            if key in controller.plan.waiting and not one.situation.done(target):
                raise Unavailable(
                    f"model {name!r} version {key.version} {controller.plan.waiting[key]}; "
                    "it is loaded as soon as there is room"
                )


def _serves(one: ModelDecision, version: int, revision: int) -> bool:
    return (version, revision) in one.rollout.serving


def _rows(model: ModelView) -> list[dict[str, str]]:
    rows = [_version_row(model.name, version) for version in model.versions]
    rows += [
        _row(model.name, str(version), "UNAVAILABLE", reason)
        for version, reason in model.incomplete.items()
    ]
    return rows or [_row(model.name, "", "UNAVAILABLE", model.reason)]


def _version_row(name: str, version: VersionView) -> dict[str, str]:
    if not version.served and version.state is State.READY:
        return _row(name, str(version.version), "UNAVAILABLE", "kept warm for a rollback")
    state = _INDEX_STATES.get(version.state, "UNAVAILABLE")
    return _row(name, str(version.version), state, version.reason)


def _row(name: str, version: str, state: str, reason: str) -> dict[str, str]:
    return {"name": name, "version": version, "state": state, "reason": reason}
