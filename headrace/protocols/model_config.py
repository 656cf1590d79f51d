"""Triton's ModelConfig: what is shown of a model, and what a load request may override."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from headrace.config.args import ModelConfig
from headrace.errors import InvalidArgument, Unimplemented, listed
from headrace.protocols.datatypes import config_name
from headrace.protocols.metadata import default_signature, shown_shape
from headrace.spec import TENSORFLOW, ModelSpec, TensorSpec

_BACKENDS = {"onnxruntime_onnx": "onnxruntime", TENSORFLOW: "tensorflow"}
_FILES = {"onnxruntime_onnx": "model.onnx", TENSORFLOW: "saved_model.pb"}
_INFORMATIVE = frozenset(
    {"name", "platform", "backend", "input", "output", "default_model_filename"}
)
"""What the model's files say anyway; clients send back what they read."""
_OVERRIDING = frozenset({"max_batch_size", "dynamic_batching", "version_policy"})
_BEFORE: dict[str, Any] = {
    "batch_input": [],
    "batch_output": [],
    "optimization": {
        "priority": "PRIORITY_DEFAULT",
        "input_pinned_memory": {"enable": True},
        "output_pinned_memory": {"enable": True},
        "gather_kernel_buffer_threshold": 0,
        "eager_batching": False,
    },
}
_AFTER: dict[str, Any] = {
    "cc_model_filenames": {},
    "metric_tags": {},
    "parameters": {},
    "model_warmup": [],
    "model_transaction_policy": {"decoupled": False},
    "response_cache": {"enable": False},
}
_NEUTRAL = {"runtime": "", "instance_group": [], **_BEFORE, **_AFTER}
"""Values that describe what Headrace does anyway: Triton's defaults."""
_DYNAMIC_NEUTRAL = {
    "preserve_ordering": False,
    "priority_levels": 0,
    "default_priority_level": 0,
    "priority_queue_policy": {},
}
_DYNAMIC = frozenset({"max_queue_delay_microseconds", "preferred_batch_size"})
"""A preferred size is no limit: what it asks for is what joining rows does."""
_POLICIES = {"all": (), "latest": ("num_versions", "numVersions"), "specific": ("versions",)}


def backend_of(spec: ModelSpec) -> str:
    """Triton's name of what runs the model."""
    return _BACKENDS.get(spec.platform, "")


def shown(config: ModelConfig, spec: ModelSpec) -> dict[str, Any]:
    """The model configuration body: every field that Triton shows, with its default.

    With a `max_batch_size` above 0 the first dimension is left out of `dims`.
    """
    signature = default_signature(spec)
    batched = spec.batches(signature)
    document: dict[str, Any] = {
        "name": spec.name,
        "platform": spec.platform,
        "backend": backend_of(spec),
        "runtime": "",
        "version_policy": _version_policy(config.versions),
        "max_batch_size": _row_limit(config, spec) if batched else 0,
        "input": [_input(tensor, batched) for tensor in signature.inputs],
        "output": [_output(tensor, batched) for tensor in signature.outputs],
        **_BEFORE,
    }
    if batched:
        document["dynamic_batching"] = {
            "preferred_batch_size": [spec.max_rows],
            "max_queue_delay_microseconds": round(config.batching.max_wait_s * 1e6),
            **_DYNAMIC_NEUTRAL,
        }
    document["instance_group"] = []
    document["default_model_filename"] = _FILES.get(spec.platform, "")
    return {**document, **_AFTER}


def _version_policy(versions: Any) -> dict[str, Any]:
    if versions == "all":
        return {"all": {}}
    if isinstance(versions, tuple):
        return {"specific": {"versions": list(versions)}}
    return {"latest": {"num_versions": 1 if versions == "latest" else versions.latest}}


def _input(tensor: TensorSpec, batched: bool) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": config_name(tensor.dtype),
        "format": tensor.format,
        **_dims(tensor, batched),
        "is_shape_tensor": False,
        "allow_ragged_batch": False,
        "optional": tensor.optional,
        "is_non_linear_format_io": False,
    }


def _row_limit(config: ModelConfig, spec: ModelSpec) -> int:
    return config.batching.row_limit or spec.row_limit or config.batching.max_rows


def _output(tensor: TensorSpec, batched: bool) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": config_name(tensor.dtype),
        **_dims(tensor, batched),
        "label_filename": tensor.label_filename,
        "is_shape_tensor": False,
        "is_non_linear_format_io": False,
    }


def _dims(tensor: TensorSpec, batched: bool) -> dict[str, Any]:
    sizes = shown_shape(tensor)
    shape: dict[str, Any] = {"dims": sizes[1:] if batched else sizes}
    if tensor.reshape is not None:
        inside = [-1 if size is None else size for size in tensor.reshape]
        shape["reshape"] = {"shape": inside}
    return shape


def overridden(config: ModelConfig, document: Mapping[str, Any]) -> ModelConfig:
    """The config with the document's versions and batching.

    Raises `Unimplemented` for keys that cannot be overridden, `InvalidArgument` for wrong values.
    """
    neutral = {key for key, value in _NEUTRAL.items() if document.get(key) == value}
    _check_keys(document, _INFORMATIVE | _OVERRIDING | neutral)
    changes: dict[str, Any] = {}
    batching = dict(config.batching.model_dump())
    if document.get("max_batch_size"):
        rows = _number(document["max_batch_size"], "max_batch_size")
        batching |= {"max_rows": rows, "row_limit": rows}
    dynamic = document.get("dynamic_batching") or {}
    if not isinstance(dynamic, Mapping):
        raise InvalidArgument("'dynamic_batching' must be an object")
    neutral = {key for key, value in _DYNAMIC_NEUTRAL.items() if dynamic.get(key) == value}
    _check_keys(dynamic, _DYNAMIC | neutral, "dynamic_batching.")
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
