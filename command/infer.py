"""`headrace infer`: one prediction over HTTP, from a picture or a JSON body."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from command.client import HttpClient, JsonObject
from command.readiness import request_path
from headrace.errors import ConfigError, InvalidArgument
from headrace.runtimes import version_folders

STEP = 32
"""Divisor of sides in pixels that fully convolutional models take."""

LARGEST_SIDE = 512
"""Cap in pixels on the longer side where the model leaves the size free."""


class InferenceClient(HttpClient):
    """Predictions over HTTP."""

    def infer_image(self, model: str, version: str | None, picture: bytes) -> JsonObject:
        """Predict from a picture, sent in the form that the model's metadata asks for."""
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
        metadata = self.ask("GET", path)
        header, data = image_request(metadata, picture)
        head = json.dumps(header).encode()
        return self.ask(
            "POST",
            f"{path}/infer",
            content=head + data,
            headers={
                "Inference-Header-Content-Length": str(len(head)),
                "Content-Type": "application/octet-stream",
            },
        )

    def infer_json(self, model: str, version: str | None, body: bytes) -> JsonObject:
        """Predict from a JSON body, sent to the path of its protocol; raises `InvalidArgument`."""
        path = request_path(body, model, version)
        if path is None:
            raise InvalidArgument(
                "the body is neither TensorFlow Serving's JSON (`instances`, `inputs` or "
                "`examples`) nor Open Inference v2 (`inputs` with name, datatype and shape)"
            )
        return self.ask("POST", path, content=body, headers={"Content-Type": "application/json"})


def image_request(metadata: Mapping[str, Any], picture: bytes) -> tuple[JsonObject, bytes]:
    """The v2 header and the raw tensor for a model's one picture input; raises `ConfigError`."""
    inputs = metadata.get("inputs", ())
    if len(inputs) != 1:
        names = ", ".join(tensor["name"] for tensor in inputs)
        raise ConfigError(f"the model takes {len(inputs)} inputs ({names}); send --json instead")
    name, datatype, shape = (inputs[0][key] for key in ("name", "datatype", "shape"))
    if datatype == "BYTES":
        data = struct.pack("<I", len(picture)) + picture
        return _header(name, datatype, (1,) * max(1, len(shape)), data), data
    if len(shape) == 4 and shape[3] == 3 and datatype == "UINT8":
        pixels = _pixels(picture, shape[1], shape[2])
    elif len(shape) == 4 and shape[1] == 3 and datatype == "FP32":
        pixels = _pixels(picture, shape[2], shape[3]).transpose(2, 0, 1).astype(np.float32)
    else:
        raise ConfigError(f"{name} {datatype}{list(shape)} takes no picture; send --json instead")
    data = np.ascontiguousarray(pixels).tobytes()
    return _header(name, datatype, (1, *pixels.shape), data), data


def _header(name: str, datatype: str, shape: Sequence[int], data: bytes) -> JsonObject:
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": name, "datatype": datatype, "shape": list(shape), "parameters": parameters}
    return {"inputs": [tensor]}


def _pixels(picture: bytes, height: int, width: int) -> np.ndarray[Any, Any]:
    """RGB `[height, width, 3]` uint8; a free side (-1) is the picture's, rounded to `STEP`."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        message = "resizing pictures needs Pillow: pip install 'headrace[media]'"
        raise ConfigError(message) from None
    try:
        with Image.open(io.BytesIO(picture)) as image:
            scale = min(1.0, LARGEST_SIDE / max(image.size))
            free_width, free_height = (_to_step(side * scale) for side in image.size)
            size = (width if width > 0 else free_width, height if height > 0 else free_height)
            return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise InvalidArgument(f"the file is not a picture that Pillow reads: {error}") from None


def _to_step(side: float) -> int:
    return max(STEP, round(side / STEP) * STEP)


@dataclass(frozen=True, slots=True)
class Output:
    """One output of an answer, as lines of text."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    lines: tuple[str, ...]


def describe(answer: JsonObject, labels: Sequence[str], top: int) -> list[Output]:
    """The outputs of a v2 answer; a row of scores becomes its best labels."""
    found: list[Output] = []
    for tensor in answer.get("outputs", ()):
        shape, data = tuple(tensor["shape"]), tensor.get("data", [])
        lines = _best(data, labels, top) if _is_scores(tensor) else _first(data, top)
        found.append(Output(tensor["name"], tensor["datatype"], shape, lines))
    return found


def read_labels(store: str, model: str, version: str) -> list[str]:
    """`labels.txt` of a version, or of the model, in a local store; empty when there is none."""
    top = Path(store, model)
    names = version_folders(entry.name for entry in top.iterdir()) if top.is_dir() else {}
    name = names.get(int(version), version) if version.isdigit() else version
    for folder in (top / name, top):
        file = folder / "labels.txt"
        if file.is_file():
            return file.read_text(encoding="utf-8").splitlines()
    return []


def _is_scores(tensor: Mapping[str, Any]) -> bool:
    """True for one row of floats that add up to one."""
    shape, data = tensor["shape"], tensor.get("data", [])
    floats = tensor["datatype"] in ("FP16", "FP32", "FP64")
    return floats and len(shape) == 2 and shape[0] == 1 and abs(sum(data) - 1.0) < 0.01


def _best(data: Sequence[float], labels: Sequence[str], top: int) -> tuple[str, ...]:
    order = sorted(range(len(data)), key=lambda index: -data[index])[:top]
    return tuple(
        f"{data[index]:.3f}  {labels[index] if index < len(labels) else index}" for index in order
    )


def _first(data: Sequence[Any], top: int) -> tuple[str, ...]:
    shown = ", ".join(
        f"{item:.4g}" if isinstance(item, float) else str(item) for item in data[:top]
    )
    return (f"{shown}, … ({len(data)} values)" if len(data) > top else shown,)
