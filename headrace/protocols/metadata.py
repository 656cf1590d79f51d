"""Answers that describe models in all protocols: status, metadata, configuration, statistics.

A statistics *document* is one version's entry without its name: `last_inference` (ms since 1970),
`inference_count` (rows), `execution_count` (runs), `inference_stats` and `batch_stats`. Each stat
is a pair `{count, ns}` of integers that only grow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from headrace.config.args import ModelConfig
from headrace.errors import InvalidArgument, Unimplemented, listed
from headrace.protocols.datatypes import config_name, datatype_name, tensorflow_name
from headrace.protocols.wire import encode_json, encode_message, message
from headrace.runtimes import runtime_of
from headrace.snapshot import ANSWERING, ModelView, Snapshot, State, VersionView
from headrace.spec import ModelSpec, Signature, TensorSpec, shown_shape

EXTENSIONS = (
    "classification",
    "model_repository",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""Triton's extensions that are supported; perf_analyzer relies on each name listed."""

_TFSERVING_STATES = {
    State.PENDING: "START",
    State.LOADING: "LOADING",
    State.WARMING: "LOADING",
    State.READY: "AVAILABLE",
    State.SLEEPING: "AVAILABLE",
    State.DRAINING: "UNLOADING",
    State.FAILED: "END",
    State.END: "END",
}


def tfserving_status(versions: Iterable[VersionView]) -> dict[str, Any]:
    """The status body, newest version first."""
    return {
        "model_version_status": [
            {
                "version": str(view.version),
                "state": _TFSERVING_STATES.get(view.state, "UNKNOWN"),
                "status": {
                    "error_code": "UNKNOWN" if view.state is State.FAILED else "OK",
                    "error_message": view.reason if view.state is State.FAILED else "",
                },
            }
            for view in sorted(versions, key=lambda view: view.version, reverse=True)
        ]
    }


def kserve_status(name: str, versions: Iterable[VersionView]) -> dict[str, Any]:
    """KServe's first protocol at the same path: whether some version can be called."""
    return {"name": name, "ready": any(view.state in ANSWERING for view in versions)}


def tfserving_metadata(spec: ModelSpec) -> dict[str, Any]:
    """The metadata body: protobuf's JSON of a SignatureDefMap, default values printed."""
    return {
        "model_spec": {"name": spec.name, "signature_name": "", "version": str(spec.version)},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    name: {
                        "inputs": {t.name: _tensor_info(t) for t in signature.inputs},
                        "outputs": {t.name: _tensor_info(t) for t in signature.outputs},
                        "method_name": signature.method,
                    }
                    for name, signature in spec.signatures.items()
                }
                | {
                    name: {
                        "inputs": {},
                        "outputs": {
                            name: {
                                "dtype": "DT_INVALID",
                                "tensor_shape": {"dim": [], "unknown_rank": True},
                                "name": operation,
                            }
                        },
                        "method_name": "",
                    }
                    for name, operation in spec.operations.items()
                }
            }
        },
    }


def openinference_server(version: str, *, shared_memory: bool = False) -> dict[str, Any]:
    """The server metadata body; the name is what Triton's examples compare (decision 017)."""
    more = ["system_shared_memory"] if shared_memory else []
    return {"name": "triton", "version": version, "extensions": [*EXTENSIONS, *more]}


def openinference_model(model: ModelView, spec: ModelSpec) -> dict[str, Any]:
    """The model metadata body, of the default signature; `versions` are those that can infer."""
    signature = default_signature(spec)
    return {
        "name": spec.name,
        "versions": [str(v.version) for v in model.versions if v.served and v.state in ANSWERING],
        "platform": spec.platform,
        "inputs": [_tensor_metadata(tensor) for tensor in signature.inputs],
        "outputs": [_tensor_metadata(tensor) for tensor in signature.outputs],
    }


def default_signature(spec: ModelSpec) -> Signature:
    """The default signature, or the first one if the model has none of that name."""
    found = spec.signatures.get(spec.default_signature)
    return found or next(iter(spec.signatures.values()), Signature("", (), ()))


def _tensor_info(tensor: TensorSpec) -> dict[str, Any]:
    unknown = tensor.shape is None
    sizes = [] if unknown else shown_shape(tensor.shape)
    return {
        "dtype": tensorflow_name(tensor.dtype),
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in sizes],
            "unknown_rank": unknown,
        },
        "name": tensor.graph_name or f"{tensor.name}:0",
    }


def _tensor_metadata(tensor: TensorSpec) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": datatype_name(tensor.dtype),
        "shape": shown_shape(tensor.shape),
    }


PAIRS = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)
"""Counts by request; perf_analyzer reads each unchecked, so none may be missing."""
BATCH_PAIRS = ("compute_input", "compute_infer", "compute_output")
"""Counts by run, for each number of rows."""
SCALARS = ("last_inference", "inference_count", "execution_count")


def blank() -> dict[str, Any]:
    """The document of a version that has had no request."""
    return {
        **dict.fromkeys(SCALARS, 0),
        "inference_stats": {name: {"count": 0, "ns": 0} for name in PAIRS},
        "batch_stats": [],
    }


def statistics_document(
    totals: Iterable[Mapping[str, Any]],
    snapshot: Snapshot,
    name: str | None = None,
    version: int | None = None,
) -> dict[str, Any]:
    """The answer to a request for statistics, of all models or of one, ordered by name and version.

    `totals` are documents with `model` and `version`. Served versions without traffic have zeros;
    versions that are no longer served keep what they have counted.
    """
    entries: dict[tuple[str, int], Mapping[str, Any]] = {
        (model.name, view.version): {}
        for model in snapshot.models.values()
        for view in model.versions
        if view.served
    }
    entries |= {(each["model"], each["version"]): each for each in totals}
    empty = blank()
    return {
        "model_stats": [
            {
                "name": model,
                "version": str(number),
                **{scalar: counted.get(scalar, 0) for scalar in SCALARS},
                "inference_stats": empty["inference_stats"] | counted.get("inference_stats", {}),
                "batch_stats": counted.get("batch_stats", []),
            }
            for (model, number), counted in sorted(entries.items(), key=lambda entry: entry[0])
            if name in (None, model) and version in (None, number)
        ]
    }


_INFORMATIVE = frozenset(
    {"name", "platform", "backend", "input", "output", "default_model_filename"}
)
"""Fields that repeat the model's files: clients send back what they read."""
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
"""Triton's defaults, which are what Headrace does: accepted in an overriding config."""
_DYNAMIC_NEUTRAL = {
    "preserve_ordering": False,
    "priority_levels": 0,
    "default_priority_level": 0,
    "priority_queue_policy": {},
}
_DYNAMIC = frozenset({"max_queue_delay_microseconds", "preferred_batch_size"})
"""Fields that are read. A preferred batch size is no limit, and has no effect."""
_POLICIES = {"all": (), "latest": ("num_versions", "numVersions"), "specific": ("versions",)}


def shown(config: ModelConfig, spec: ModelSpec) -> dict[str, Any]:
    """The model configuration body: all fields that Triton shows, with their defaults.

    With a `max_batch_size` above 0 the first dimension is left out of `dims`.
    """
    signature = default_signature(spec)
    batched = spec.batches(signature)
    runtime = runtime_of(spec.platform)
    policy: dict[str, Any]
    if config.versions == "all":
        policy = {"all": {}}
    elif isinstance(config.versions, tuple):
        policy = {"specific": {"versions": list(config.versions)}}
    else:
        newest = 1 if config.versions == "latest" else config.versions.latest
        policy = {"latest": {"num_versions": newest}}
    row_limit = config.batching.row_limit or spec.row_limit or config.batching.max_rows
    document: dict[str, Any] = {
        "name": spec.name,
        "platform": spec.platform,
        "backend": runtime.backend if runtime else "",
        "runtime": "",
        "version_policy": policy,
        "max_batch_size": row_limit if batched else 0,
        "input": [
            {
                "name": tensor.name,
                "data_type": config_name(tensor.dtype),
                "format": tensor.format,
                **_dims(tensor, batched),
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": tensor.optional,
                "is_non_linear_format_io": False,
            }
            for tensor in signature.inputs
        ],
        "output": [
            {
                "name": tensor.name,
                "data_type": config_name(tensor.dtype),
                **_dims(tensor, batched),
                "label_filename": tensor.label_filename,
                "is_shape_tensor": False,
                "is_non_linear_format_io": False,
            }
            for tensor in signature.outputs
        ],
        **_BEFORE,
    }
    if batched:
        document["dynamic_batching"] = {
            "preferred_batch_size": [spec.max_rows],
            "max_queue_delay_microseconds": round((config.batching.wait_s or 0.0) * 1e6),
            **_DYNAMIC_NEUTRAL,
        }
    document["instance_group"] = []
    document["default_model_filename"] = runtime.file if runtime else ""
    return {**document, **_AFTER}


def _dims(tensor: TensorSpec, batched: bool) -> dict[str, Any]:
    sizes = shown_shape(tensor.shape)
    shape: dict[str, Any] = {"dims": sizes[1:] if batched else sizes}
    if tensor.reshape is not None:
        shape["reshape"] = {"shape": shown_shape(tensor.reshape)}
    return shape


def overridden(config: ModelConfig, document: Mapping[str, Any]) -> ModelConfig:
    """The config with the document's versions and batching.

    Raises `Unimplemented` for keys that cannot be overridden, `InvalidArgument` for wrong values.
    """
    neutral = {key for key, value in _NEUTRAL.items() if document.get(key) == value}
    _check_keys(document, _INFORMATIVE | _OVERRIDING | neutral)
    changes = config.model_dump()
    batching = changes["batching"]
    if document.get("max_batch_size"):
        rows = _number(document["max_batch_size"], "max_batch_size")
        batching["max_rows"] = batching["row_limit"] = rows
    dynamic = document.get("dynamic_batching") or {}
    if not isinstance(dynamic, Mapping):
        raise InvalidArgument("'dynamic_batching' must be an object")
    neutral = {key for key, value in _DYNAMIC_NEUTRAL.items() if dynamic.get(key) == value}
    _check_keys(dynamic, _DYNAMIC | neutral, "dynamic_batching.")
    if "max_queue_delay_microseconds" in dynamic:
        delay = _number(dynamic["max_queue_delay_microseconds"], "max_queue_delay_microseconds")
        batching["max_wait_s"] = delay / 1e6
    if document.get("version_policy"):
        changes["versions"] = _versions(document["version_policy"])
    try:
        return ModelConfig.model_validate(changes)
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
    """Raises `Unimplemented` for a key that is not read, rather than drop it in silence."""
    unknown = sorted(f"{within}{key}" for key in document if key not in known)
    if unknown:
        raise Unimplemented(f"a load request cannot override {listed(unknown)}")


def _number(value: Any, where: str) -> int:
    """An integer, or one as a string: protobuf's JSON writes 64 bit integers so."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    if type(value) is int:
        return value
    raise InvalidArgument(f"'{where}' must be an integer")


_ERROR_CODES = {"OK": "OK", "UNKNOWN": "UNKNOWN_ERROR"}


def stream_error(text: str, id: str, model: str) -> bytes:
    """ModelStreamInferResponse for a request that failed; the id tells the client which."""
    return encode_message(
        "inference.ModelStreamInferResponse",
        error_message=text,
        infer_response=message("inference.ModelInferResponse")(id=id, model_name=model),
    )


def serving_status(versions: Iterable[VersionView]) -> bytes:
    """GetModelStatusResponse."""
    document = tfserving_status(versions)
    for row in document["model_version_status"]:
        row["status"]["error_code"] = _ERROR_CODES[row["status"]["error_code"]]
    return encode_json("tensorflow.serving.GetModelStatusResponse", document)


def serving_metadata(spec: ModelSpec) -> bytes:
    """GetModelMetadataResponse with the signatures packed as `Any`."""
    document = tfserving_metadata(spec)
    answer = message("tensorflow.serving.GetModelMetadataResponse")()
    answer.model_spec.name = spec.name
    answer.model_spec.version.value = spec.version
    packed = answer.metadata["signature_def"]
    packed.type_url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    signatures = document["metadata"]["signature_def"]
    packed.value = encode_json("tensorflow.serving.SignatureDefMap", signatures)
    encoded: bytes = answer.SerializeToString()
    return encoded
