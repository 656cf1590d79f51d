"""A model's spec as JSON, for the pool and the gateways to know what a slot has loaded."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.protocols.tensors import BYTES, ModelSpec, Signature, TensorSpec


def encode_spec(spec: ModelSpec) -> dict[str, Any]:
    """Plain JSON values; dtypes by numpy's names, strings as `bytes`. Labels stay in the slot."""
    return {
        "name": spec.name,
        "version": spec.version,
        "platform": spec.platform,
        "default_signature": spec.default_signature,
        "max_rows": spec.max_rows,
        "operations": dict(spec.operations),
        "row_limit": spec.row_limit,
        "ignored": spec.ignored,
        "signatures": [
            {
                "name": signature.name,
                "method": signature.method,
                "shapes_bind": signature.shapes_bind,
                "inputs": [_encode_tensor(tensor) for tensor in signature.inputs],
                "outputs": [_encode_tensor(tensor) for tensor in signature.outputs],
            }
            for signature in spec.signatures.values()
        ],
    }


def decode_spec(data: dict[str, Any]) -> ModelSpec:
    """The inverse of `encode_spec`, but for labels."""
    signatures = [
        Signature(
            each["name"],
            tuple(map(_decode_tensor, each["inputs"])),
            tuple(map(_decode_tensor, each["outputs"])),
            each["method"],
            each.get("shapes_bind", True),
        )
        for each in data["signatures"]
    ]
    return ModelSpec(
        data["name"],
        data["version"],
        data["platform"],
        {signature.name: signature for signature in signatures},
        data["default_signature"],
        data["max_rows"],
        data.get("operations", {}),
        row_limit=data.get("row_limit"),
        ignored=tuple(data.get("ignored", ())),
    )


def _encode_tensor(tensor: TensorSpec) -> dict[str, Any]:
    dtype = "bytes" if tensor.dtype == BYTES else tensor.dtype.name
    return {
        "name": tensor.name,
        "dtype": dtype,
        "shape": tensor.shape,
        "graph_name": tensor.graph_name,
        "optional": tensor.optional,
        "format": tensor.format,
        "reshape": tensor.reshape,
        "label_filename": tensor.label_filename,
    }


def _decode_tensor(data: dict[str, Any]) -> TensorSpec:
    # NumPy knows `bfloat16` by its name as well: `tensors` has imported it.
    dtype = BYTES if data["dtype"] == "bytes" else np.dtype(data["dtype"])
    shape, reshape = data["shape"], data.get("reshape")
    return TensorSpec(
        data["name"],
        dtype,
        None if shape is None else tuple(shape),
        data.get("graph_name", ""),
        data.get("optional", False),
        data.get("format", "FORMAT_NONE"),
        None if reshape is None else tuple(reshape),
        data.get("label_filename", ""),
    )
