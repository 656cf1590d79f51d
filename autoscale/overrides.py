"""Operators' changes of models while the system runs, on top of the config; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from headrace.config.args import ModelConfig
from headrace.snapshot import Override


class Overrides:
    """Changes by model; a model without one is served as the config says."""

    def __init__(self) -> None:
        self._by_model: dict[str, Override] = {}

    def memory(self) -> dict[str, Override]:
        """A copy, for the snapshot."""
        return dict(self._by_model)

    def restore(self, memory: Mapping[str, Override]) -> None:
        """Take over an earlier pool's changes, except of models changed since."""
        self._by_model = {**memory, **self._by_model}

    def effective(self, config: Mapping[str, ModelConfig]) -> dict[str, ModelConfig]:
        """The models to serve: the config's and loaded ones, without the unloaded."""
        loaded = {n: o.config for n, o in self._by_model.items() if o.config is not None}
        return {
            name: model
            for name, model in {**config, **loaded}.items()
            if name not in self._by_model or not self._by_model[name].unloaded
        }

    def rejected(self, model: str) -> frozenset[int]:
        """Versions that were rolled back."""
        return frozenset(self._of(model).rejected)

    def load(self, model: str, config: ModelConfig | None) -> None:
        """Serve a model with all its versions; a `config` replaces the earlier one."""
        before = self._of(model)
        self._set(model, Override(config=config or before.config))

    def unload(self, model: str) -> None:
        """Stop serving a model."""
        self._set(model, replace(self._of(model), unloaded=True))

    def reject(self, model: str, versions: Iterable[int]) -> None:
        """Roll back from these versions."""
        before = self._of(model)
        self._set(model, replace(before, rejected=tuple(sorted({*before.rejected, *versions}))))

    def serve_only(self, models: Mapping[str, ModelConfig], known: Iterable[str]) -> None:
        """Serve these models with these configs, and unload the other known ones."""
        for name in known:
            if name not in models:
                self.unload(name)
        for name, config in models.items():
            self._set(name, Override(config=config))

    def put_back(
        self,
        models: Iterable[str],
        said: Mapping[str, Override],
        before: Mapping[str, Override],
    ) -> None:
        """Undo an operation on these models: where `said` still holds, restore what was `before`.

        A later change of a model stays.
        """
        for name in models:
            if self._of(name) == said.get(name, Override()):
                self._set(name, before.get(name, Override()))

    def forget(self, models: Iterable[str]) -> None:
        """Drop the changes of these models, so that the config decides again."""
        for name in models:
            self._by_model.pop(name, None)

    def _of(self, model: str) -> Override:
        return self._by_model.get(model, Override())

    def _set(self, model: str, override: Override) -> None:
        self._by_model[model] = override
        if override == Override():
            del self._by_model[model]
