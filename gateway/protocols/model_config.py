"""The parts of Triton's ModelConfig that a load request may override."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from gateway.config import ModelConfig
from gateway.errors import InvalidArgument, Unimplemented
from gateway.protocols.quoting import listed

_INFORMATIVE = frozenset({"name", "platform", "backend", "input", "output"})
"""What the model's files say anyway; clients send back what they read."""
_OVERRIDING = frozenset({"max_batch_size", "dynamic_batching", "version_policy"})
_NEUTRAL = {"model_transaction_policy": {"decoupled": False}, "response_cache": {"enable": False}}
"""Values that describe what Headrace does anyway."""
_DYNAMIC = frozenset({"max_queue_delay_microseconds", "preferred_batch_size"})
"""A preferred size is no limit: what it asks for is what joining rows does."""
_POLICIES = {"all": (), "latest": ("num_versions", "numVersions"), "specific": ("versions",)}


def overridden(config: ModelConfig, document: Mapping[str, Any]) -> ModelConfig:
    """The config with the document's versions and batching.

    Raises `Unimplemented` for keys that cannot be overridden, `InvalidArgument` for wrong values.
    """
    neutral = {key for key, value in _NEUTRAL.items() if document.get(key) == value}
    _check_keys(document, _INFORMATIVE | _OVERRIDING | neutral)
    changes: dict[str, Any] = {}
    batching = dict(config.batching.model_dump())
    if document.get("max_batch_size"):
        batching["max_rows"] = _number(document["max_batch_size"], "max_batch_size")
    dynamic = document.get("dynamic_batching") or {}
    if not isinstance(dynamic, Mapping):
        raise InvalidArgument("'dynamic_batching' must be an object")
    _check_keys(dynamic, _DYNAMIC, "dynamic_batching.")
    if "max_queue_delay_microseconds" in dynamic:
        delay = _number(dynamic["max_queue_delay_microseconds"], "max_queue_delay_microseconds")
        batching["max_wait_s"] = delay / 1e6
    changes["batching"] = batching
    if document.get("version_policy"):
        changes["versions"] = _versions(document["version_policy"])
    try:
        return ModelConfig.model_validate({**config.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidArgument(
            f"the overriding config is wrong at {where}: {first['msg']}"
        ) from None


def _versions(policy: Any) -> Any:
    if isinstance(policy, Mapping) and len(policy) == 1:
        [(kind, value)] = policy.items()
        if kind in _POLICIES:
            if not isinstance(value, Mapping):
                raise InvalidArgument(f"'version_policy.{kind}' must be an object")
            _check_keys(value, _POLICIES[kind], f"version_policy.{kind}.")
        if kind == "all":
            return "all"
        if kind == "latest":
            count = value.get("num_versions", value.get("numVersions", 1))
            return {"latest": _number(count, "num_versions")}
        if kind == "specific":
            versions = value.get("versions", ())
            if isinstance(versions, (list, tuple)):
                if not versions:
                    raise InvalidArgument("'version_policy.specific' needs at least one version")
                return tuple(_number(version, "versions") for version in versions)
    raise InvalidArgument("'version_policy' must have exactly one of 'latest', 'all', 'specific'")


def _check_keys(document: Mapping[str, Any], known: Collection[str], within: str = "") -> None:
    """What is not read would be dropped without a word."""
    unknown = sorted(f"{within}{key}" for key in document if key not in known)
    if unknown:
        raise Unimplemented(f"a load request cannot override {listed(unknown)}")


def _number(value: Any, where: str) -> int:
    """Protobuf's JSON writes 64 bit integers as strings."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    if type(value) is int:
        return value
    raise InvalidArgument(f"'{where}' must be an integer")
