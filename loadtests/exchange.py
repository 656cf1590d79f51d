"""Requests and answers of the load test in both HTTP protocols.

Written without the project's own codecs, so that a mistake in those cannot hide itself.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

LENGTH_HEADER = "Inference-Header-Content-Length"
NUMPY_OF = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "UINT8": "u1"}

Values = NDArray[np.float64]


class WrongAnswer(Exception):
    """Raised when an answer has status 200 but not the content it must have."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request ready to send."""

    path: str
    body: bytes
    headers: dict[str, str]


def predict_message(model: str, instances: Sequence[Any], signature: str = "") -> Message:
    """A row-format predict request of TensorFlow Serving's REST protocol."""
    document: dict[str, Any] = {"signature_name": signature} if signature else {}
    body = orjson.dumps({**document, "instances": list(instances)})
    return Message(f"/v1/models/{model}:predict", body, {"Content-Type": "application/json"})


def picture_instance(picture: bytes) -> dict[str, str]:
    """An encoded picture as a binary value in JSON."""
    return {"b64": base64.b64encode(picture).decode("ascii")}


def infer_binary_message(model: str, name: str, tensor: NDArray[np.uint8], output: str) -> Message:
    """An Open Inference v2 request with one raw tensor that asks for one raw output."""
    raw = tensor.tobytes()
    described = {
        "name": name,
        "shape": list(tensor.shape),
        "datatype": "UINT8",
        "parameters": {"binary_data_size": len(raw)},
    }
    wanted = {"name": output, "parameters": {"binary_data": True}}
    head = orjson.dumps({"inputs": [described], "outputs": [wanted]})
    headers = {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(head))}
    return Message(f"/v2/models/{model}/infer", head + raw, headers)


def read_predictions(body: bytes, output: str) -> Values:
    """The named output of a row-format answer, or its only one: [rows, ...]."""
    document = _json(body)
    rows = document.get("predictions")
    if not isinstance(rows, list) or not rows:
        raise WrongAnswer("the answer has no predictions")
    try:
        return np.asarray([row[output] if isinstance(row, dict) else row for row in rows], float)
    except (KeyError, ValueError, TypeError) as error:
        raise WrongAnswer(f"predictions are not the output {output!r}: {error!r}") from error


def read_infer(body: bytes, json_length: str | None, output: str) -> Values:
    """The named output of a v2 answer, raw or JSON, in its shape."""
    head_bytes = len(body) if json_length is None else int(json_length)
    offset = head_bytes
    for described in _json(body[:head_bytes]).get("outputs", []):
        size = described.get("parameters", {}).get("binary_data_size")
        if described.get("name") == output:
            return _tensor(described, None if size is None else body[offset : offset + size])
        offset += size or 0
    raise WrongAnswer(f"the answer has no output {output!r}")


def read_version(body: bytes, json_length: str | None) -> str:
    """The version that a v2 answer names."""
    head = _json(body[: len(body) if json_length is None else int(json_length)])
    version = head.get("model_version")
    if not isinstance(version, str):
        raise WrongAnswer("the answer names no model_version")
    return version


def check_classes(scores: Values, expected: frozenset[int], classes: int) -> None:
    """Scores must be [1, classes] probabilities whose best class is one of the expected."""
    if scores.shape != (1, classes):
        raise WrongAnswer(f"scores have shape {scores.shape}, not (1, {classes})")
    if not np.isfinite(scores).all() or abs(float(scores.sum()) - 1) > 0.01:
        raise WrongAnswer("scores are not probabilities")
    best = int(scores[0].argmax())
    if expected and best not in expected:
        raise WrongAnswer(f"best class is {best}, not one of {sorted(expected)}")


def check_number(values: Values, low: float, high: float) -> None:
    """The answer must be one number in [low, high]."""
    if values.size != 1 or not low <= float(values.reshape(-1)[0]) <= high:
        raise WrongAnswer(f"expected one number from {low} to {high}, got shape {values.shape}")


def _json(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise WrongAnswer(f"the answer is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise WrongAnswer("the answer is not a JSON object")
    return document


def _tensor(described: Mapping[str, Any], raw: bytes | None) -> Values:
    try:
        shape = tuple(described["shape"])
        flat = (
            np.asarray(described["data"], dtype=np.float64)
            if raw is None
            else np.frombuffer(raw, NUMPY_OF[described["datatype"]]).astype(np.float64)
        )
        return flat.reshape(shape)
    except (KeyError, ValueError, TypeError) as error:
        raise WrongAnswer(f"an output cannot be read: {error!r}") from error
