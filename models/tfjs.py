"""Reads a TensorFlow.js graph model: a JSON file with the nodes and binary files with weights."""

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = {
    "float32": "<f4",
    "float16": "<f2",
    "int32": "<i4",
    "uint16": "<u2",
    "uint8": "u1",
    "bool": "u1",
}
_RESULTS = {"float32": "f4", "int32": "i4", "bool": "?"}


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: its inputs are names of other nodes."""

    operator: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def text(self, name: str) -> str:
        return base64.b64decode(self.attributes[name]["s"]).decode()

    def texts(self, name: str) -> list[str]:
        values = self.attributes.get(name, {}).get("list", {}).get("s", [])
        return [base64.b64decode(value).decode() for value in values]

    def integers(self, name: str) -> list[int]:
        return [int(value) for value in self.attributes[name]["list"]["i"]]


def read_nodes(model: Mapping[str, Any]) -> dict[str, Node]:
    """The nodes of the parsed model.json by name; control inputs are left out."""
    return {
        node["name"]: Node(
            node["op"],
            tuple(name.split(":")[0] for name in node.get("input", ()) if name[0] != "^"),
            node.get("attr", {}),
        )
        for node in model["modelTopology"]["node"]
    }


def read_weights(model: Mapping[str, Any], folder: Path) -> dict[str, NDArray[Any]]:
    """The weights by name; those stored quantised come back as float32."""
    weights: dict[str, NDArray[Any]] = {}
    for group in model["weightsManifest"]:
        content = b"".join((folder / path).read_bytes() for path in group["paths"])
        offset = 0
        for entry in group["weights"]:
            array = _weight(entry, content, offset)
            offset += array.nbytes
            weights[entry["name"]] = _dequantised(entry, array)
        if offset != len(content):
            raise ValueError(f"weights end at byte {offset} of {len(content)}")
    return weights


def read_model(path: Path) -> tuple[dict[str, Node], dict[str, NDArray[Any]]]:
    """Nodes and weights of the model.json at `path`; its weight files lie beside it."""
    model = json.loads(path.read_text(encoding="utf-8"))
    return read_nodes(model), read_weights(model, path.parent)


def _weight(entry: Mapping[str, Any], content: bytes, offset: int) -> NDArray[Any]:
    stored = entry.get("quantization", {}).get("dtype", entry["dtype"])
    count = math.prod(entry["shape"])
    array = np.frombuffer(content, _DTYPES[stored], count, offset)
    return array.reshape(entry["shape"])


def _dequantised(entry: Mapping[str, Any], array: NDArray[Any]) -> NDArray[Any]:
    quantization = entry.get("quantization")
    if quantization and quantization["dtype"] != "float16":
        array = array.astype("f4") * quantization["scale"] + quantization["min"]
    return array.astype(_RESULTS[entry["dtype"]])
