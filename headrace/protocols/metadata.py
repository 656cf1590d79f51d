"""Answers that describe models: status, metadata and configuration, in both REST protocols."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from headrace.protocols.datatypes import datatype_name, tensorflow_name
from headrace.snapshot import ANSWERING, ModelView, State, VersionView
from headrace.spec import ModelSpec, Signature, TensorSpec

EXTENSIONS = (
    "classification",
    "model_repository",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""What is supported of Triton's extensions; perf_analyzer relies on each name listed."""

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
    """What KServe's first protocol tells at the same path: whether some version can be called."""
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
                        "outputs": {name: _operation_info(operation)},
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


def shown_shape(tensor: TensorSpec) -> list[int]:
    """The shape with -1 for free dimensions; an unknown rank is one free dimension."""
    shape = (None,) if tensor.shape is None else tensor.shape
    return [-1 if size is None else size for size in shape]


def _tensor_info(tensor: TensorSpec) -> dict[str, Any]:
    unknown = tensor.shape is None
    sizes = [] if unknown else shown_shape(tensor)
    return {
        "dtype": tensorflow_name(tensor.dtype),
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in sizes],
            "unknown_rank": unknown,
        },
        "name": tensor.graph_name or f"{tensor.name}:0",
    }


def _operation_info(operation: str) -> dict[str, Any]:
    shape = {"dim": [], "unknown_rank": True}
    return {"dtype": "DT_INVALID", "tensor_shape": shape, "name": operation}


def _tensor_metadata(tensor: TensorSpec) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": datatype_name(tensor.dtype),
        "shape": shown_shape(tensor),
    }
