"""TensorFlow Serving's model config list as Headrace's own configs; only models of the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from headrace.config.args import Latest, ModelConfig
from headrace.errors import InvalidArgument, Unimplemented

Versions = Any
"""What `ModelConfig.versions` takes."""


def reloaded_models(config: Any) -> Mapping[str, ModelConfig]:
    """The models of a ModelServerConfig message.

    Raises `Unimplemented` for a custom config, `InvalidArgument` for what cannot be served.
    """
    kind = config.WhichOneof("config")
    if kind == "custom_model_config":
        raise Unimplemented("only a `model_config_list` can be loaded")
    if kind is None:
        raise InvalidArgument("the request needs a `model_config_list`")
    models: dict[str, ModelConfig] = {}
    for entry in config.model_config_list.config:
        if entry.name in models:
            raise InvalidArgument(f"model {entry.name!r} is listed twice")
        models[entry.name] = _model(entry)
    return models


def _model(entry: Any) -> ModelConfig:
    if not entry.name:
        raise InvalidArgument("every model of the list needs a name")
    _check_path(entry.name, entry.base_path)
    try:
        return ModelConfig(
            versions=_versions(entry.model_version_policy), labels=dict(entry.version_labels)
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidArgument(f"model {entry.name!r}: {where}: {first['msg']}") from None


def _check_path(name: str, base_path: str) -> None:
    """The store decides where models lie; of a path only the last part can be compared."""
    if base_path and base_path.rstrip("/").rpartition("/")[2] != name:
        raise InvalidArgument(
            f"`base_path` of model {name!r} must be empty or end with the model's name: "
            "models are read from the store of the configuration"
        )


def _versions(policy: Any) -> Versions:
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return "all"
    if kind == "specific":
        if not policy.specific.versions:
            raise InvalidArgument("a `specific` version policy needs at least one version")
        return tuple(policy.specific.versions)
    count = policy.latest.num_versions if kind == "latest" else 0
    return Latest(latest=count) if count > 1 else "latest"
