"""Operations on models while the system runs: load, unload, roll back, list."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from autoscale.catalog import wanted_versions
from autoscale.controller import Controller
from autoscale.decision import ModelDecision
from autoscale.rollout import VersionRevision
from autoscale.slot_book import LoadOrder
from headrace.config.args import ModelConfig
from headrace.errors import FailedPrecondition, HeadraceError, ModelLoadError, NotFound, Unavailable
from headrace.protocols.metadata import overridden
from headrace.snapshot import ModelVersion, ModelView, State
from replicas.repository import StoreAway

READY_S = 120.0
"""Longest wait of a load for the model to be ready."""
QUIET_S = 20.0
"""Longest wait, before that, for files of the model to stop changing."""

_INDEX_STATES = {
    State.READY: "READY",
    State.SLEEPING: "READY",
    State.PENDING: "LOADING",
    State.LOADING: "LOADING",
    State.WARMING: "LOADING",
    State.DRAINING: "UNLOADING",
}


class StillUnderWay(Unavailable):
    """Raised when an operation takes longer than its caller waits; it goes on all the same."""


class NoRoom(Unavailable):
    """Raised when no slot has room for the model."""


class Operations:
    """Operations on models; each returns once its change has taken effect.

    A load with a `config`, a reload and a rollback that fail are undone. All raise `Unavailable`
    with the reason, also while the store is away.
    """

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def load(self, name: str, config: Mapping[str, Any] | None = None) -> None:
        """Load a model of the store, or load it anew if its files or `config` have changed.

        `config` is in Triton's form. Waits first until the files stop changing. Without a `config`
        a failed load is not undone: the model is tried again. Raises `NotFound`, `InvalidArgument`,
        `Unimplemented` or `Unavailable`.
        """
        controller = self._controller
        known = controller.models().get(name) or controller.config.models.get(name)
        model = overridden(known or ModelConfig(), config or {})
        await self._check(name, model, known or ModelConfig())
        override = model if config or known is None else None

        async def loaded() -> None:
            await self._until_settled(name)
            renewed = controller.lookout.renew(name)
            try:
                await self._until_ready(name)
            except StillUnderWay:
                raise
            except HeadraceError:
                if config:
                    controller.lookout.keep(renewed)
                raise

        try:
            await self._carry_out(
                [name] if config else [],
                lambda: controller.overrides.load(name, override),
                loaded,
            )
        except NoRoom as error:
            if config:
                raise
            raise NoRoom(f"{error.message}; it is loaded as soon as there is room") from None

    async def unload(self, name: str) -> None:
        """Stop serving a model; requests in flight are answered. Raises `NotFound`."""
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
        """Serve the version before: `{model, from, to, warm}`.

        `warm` says that the version was ready already. Raises `NotFound`, `FailedPrecondition` if
        there is no such version, or `Unavailable`.
        """
        controller = self._controller
        one = controller.rounds.decision.models.get(name)
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
        # An earlier failure of that version must not refuse the rollback.
        controller.failures.forget_model(name, previous)
        try:
            await self._carry_out(
                [name],
                lambda: controller.overrides.reject(name, leaving),
                lambda: self._until(
                    lambda: self._has_taken_over(name, previous),
                    f"version {previous} of {name!r} is not ready",
                ),
            )
        except StillUnderWay:
            raise
        except HeadraceError as error:
            text = f"{error.message}; the rollback is undone"
            older = [str(version) for version in one.entry.versions if version < previous]
            if older:
                text += f"; older versions in the store: {', '.join(older)}"
            raise Unavailable(text) from None
        return {"model": name, "from": current, "to": previous, "warm": warm}

    async def serve_only(self, models: Mapping[str, ModelConfig]) -> None:
        """Serve exactly these models of the store; raises `NotFound` before anything changes."""
        controller = self._controller
        for name, config in models.items():
            await self._check(name, config, ModelConfig())
        known = controller.models().keys() | controller.config.models.keys()

        async def loaded() -> None:
            for name in models:
                await self._until_settled(name)
                await self._until_ready(name)

        await self._carry_out(
            known | models.keys(), lambda: controller.overrides.serve_only(models, known), loaded
        )

    async def index(self) -> list[dict[str, str]]:
        """The models of the store and those that are served, as Triton's repository index."""
        snapshot = self._controller.snapshot
        rows = [row for model in snapshot.models.values() for row in _rows(model)]
        stored = await self._controller.lookout.ask(self._controller.lookout.catalog.names)
        idle = set(stored) - snapshot.models.keys()
        rows += [_row(name, "", "UNAVAILABLE", "not loaded") for name in idle]
        return sorted(rows, key=lambda row: (row["name"], row["version"]))

    async def _check(self, name: str, config: ModelConfig, known: ModelConfig) -> None:
        """Raise `NotFound` for a model or versions that the store lacks.

        Versions that the config in force (`known`) names already are not checked.
        """
        catalog = self._controller.lookout.catalog

        def look() -> tuple[dict[int, str], str]:
            found = catalog.find(name, config)
            return found, "" if found else catalog.passed_over(name, {})

        try:
            found, passed_over = await self._controller.lookout.ask(look)
        except StoreAway as error:
            raise Unavailable(error.message) from None
        except ModelLoadError as error:
            raise NotFound(error.message) from None
        if not found:
            raise NotFound(f"there is no model {name!r} in the store{passed_over}")
        good = [version for version, problem in found.items() if not problem]
        lacking = sorted(_named(config) - _named(known) - set(good))
        if lacking or not good:
            what = f"version {', '.join(map(str, lacking))}" if lacking else "complete version"
            held = [f"{version} ({bad})" if bad else str(version) for version, bad in found.items()]
            raise NotFound(f"the store has no {what} of model {name!r}; it has {', '.join(held)}")

    async def _carry_out(
        self,
        names: Iterable[str],
        change: Callable[[], None],
        done: Callable[[], Awaitable[None]],
    ) -> None:
        """Make a change and wait for `done`; if that fails, undo it for the models `names`."""
        controller = self._controller
        models, before = controller.models(), controller.overrides.memory()
        change()
        said = controller.overrides.memory()
        try:
            await controller.models_changed(models)
            await done()
        except StillUnderWay:
            raise
        except HeadraceError:
            models = controller.models()
            controller.overrides.put_back(names, said, before)
            await controller.models_changed(models)
            with suppress(StillUnderWay):
                await self._until(lambda: True, "what was there before is not back")
            raise

    async def _until(
        self, true: Callable[[], bool], what: str = "", within_s: float | None = None
    ) -> None:
        """Wait until `true` holds after a round of the controller; raises `StillUnderWay`."""
        controller = self._controller
        said, within_s = controller.say(), READY_S if within_s is None else within_s
        try:
            async with asyncio.timeout(within_s), controller.decided:
                await controller.decided.wait_for(lambda: controller.heard >= said and true())
        except TimeoutError:
            raise StillUnderWay(f"{what} after {within_s:.0f} s; the work goes on") from None

    async def _until_settled(self, name: str) -> None:
        """Wait until the model's folder has stopped changing.

        Raises `Unavailable` if that takes too long or a wanted version is then not complete.
        """
        controller = self._controller
        lookout = controller.lookout
        try:
            await self._until(lambda: name not in lookout.changing, within_s=QUIET_S)
        except StillUnderWay:
            text = (
                f"model {name!r} is still changing in the store; load it once its files are there"
            )
            raise Unavailable(text) from None
        lacking, config = lookout.lacking.get(name, {}), controller.models().get(name)
        one = next((each for each in lookout.entries if each.name == name), None)
        if not lacking or config is None or one is None:
            return
        rejected = controller.overrides.rejected(name)
        for version in wanted_versions(config, {*one.versions, *lacking}, rejected):
            if version in lacking:
                what = f"model {name!r} version {version} is not complete"
                raise Unavailable(f"{what}: {lacking[version]}")

    async def _until_ready(self, name: str) -> None:
        await self._until(lambda: self._is_ready(name), f"model {name!r} is not ready")

    def _has_taken_over(self, name: str, version: int) -> bool:
        """Whether this version is the default; raises `Unavailable` if it cannot be."""
        one = self._decided(name)
        if one is None:
            return False
        for target in one.situation.wanted:
            if target[0] == version:
                self._raise_failure(one, target)
        return one.rollout.default == version

    def _is_ready(self, name: str) -> bool:
        one = self._decided(name)
        if one is None:
            return False
        if not one.situation.candidates:
            if one.entry.reason:
                raise Unavailable(one.entry.reason)
            return False  # its files may still be changing
        for target in one.situation.wanted:
            self._raise_failure(one, target)
        return one.settled() and set(one.situation.wanted) <= set(one.rollout.serving)

    def _decided(self, name: str) -> ModelDecision | None:
        """Decision about a model, None before the first; raises `Unavailable` once unloaded."""
        if name not in self._controller.models():
            raise Unavailable(f"model {name!r} was unloaded meanwhile")
        return self._controller.rounds.decision.models.get(name)

    def _raise_failure(self, one: ModelDecision, target: VersionRevision) -> None:
        """Raise `Unavailable` if the version has failed, `NoRoom` if it has no slot."""
        controller, key = self._controller, ModelVersion(one.entry.name, *target)
        what, plan = f"model {key.model!r} version {key.version}", controller.rounds.plan
        if key in controller.failures:
            raise Unavailable(f"{what} failed: {controller.failures.reason(key)}")
        if key in plan.waiting:
            # It can take traffic with one slot, though it lacks others.
            slots = [each.key for each in controller.fleet.placements()]
            slots += [move.key for move in plan.moves if isinstance(move, LoadOrder)]
            if key not in slots:
                raise NoRoom(f"{what} {plan.waiting[key]}")


def _named(config: ModelConfig) -> set[int]:
    """The versions that a config names."""
    listed = config.versions if isinstance(config.versions, tuple) else ()
    return {*listed, *config.labels.values()}


def _rows(model: ModelView) -> list[dict[str, str]]:
    rows = []
    for version in model.versions:
        state, reason = _INDEX_STATES.get(version.state, "UNAVAILABLE"), version.reason
        if not version.served and version.state is State.READY:
            state, reason = "UNAVAILABLE", "kept warm for a rollback"
        rows.append(_row(model.name, str(version.version), state, reason))
    rows += [
        _row(model.name, str(version), "UNAVAILABLE", reason)
        for version, reason in model.incomplete.items()
    ]
    return rows or [_row(model.name, "", "UNAVAILABLE", model.reason)]


def _row(name: str, version: str, state: str, reason: str) -> dict[str, str]:
    return {"name": name, "version": version, "state": state, "reason": reason}
