"""Requests and answers of the load tests over HTTP, and the real pictures that they send.

Written without the project's own codecs, so that a mistake in those cannot hide itself.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from loadtests.processes import Failed

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
        flat = (
            described["data"]
            if raw is None
            else np.frombuffer(raw, NUMPY_OF[described["datatype"]])
        )
        return np.asarray(flat, np.float64).reshape(tuple(described["shape"]))
    except (KeyError, ValueError, TypeError) as error:
        raise WrongAnswer(f"an output cannot be read: {error!r}") from error


CACHE = Path(__file__).resolve().parents[1] / "models" / "cache"
"""Where `models/build.py` leaves `pictures/` and `requests/`."""

CACHE_VARIABLE = "HEADRACE_LOADTEST_CACHE"
"""Environment variable that names another such folder."""

SIDE = 224
"""Edge of the square that the tagger takes."""

CROP = 0.875
"""Share of the shorter edge kept by the centre crop, as the network was trained."""

EXPECTED: dict[str, frozenset[int]] = {
    "coffee": frozenset({504, 967, 968}),  # coffee mug, espresso, cup
    "chelsea": frozenset({281, 282, 285}),  # tabby, tiger cat, Egyptian cat
    "motorcycle_left": frozenset({665, 670}),  # moped, motor scooter
}
"""ImageNet classes that may win, by picture; a picture that is not listed may be anything."""


class PicturesMissing(Failed):
    """Raised when the demo pictures have not been built."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as file (`png`) and as the tagger's tensor (`pixels`, uint8 [1,224,224,3])."""

    name: str
    png: bytes
    pixels: NDArray[np.uint8]
    expected: frozenset[int]


def cached(*names: str) -> list[Path]:
    """What `models/build.py` left, by patterns; raises `PicturesMissing` for what is not there."""
    folder = Path(os.environ.get(CACHE_VARIABLE, CACHE))
    found = []
    for name in names:
        files = sorted(folder.glob(name))
        if not files:
            raise PicturesMissing(f"no {folder / name}: build the models first (make models)")
        found += files
    return found


def load_pictures() -> list[Picture]:
    """The whole pictures, by name; raises `PicturesMissing`."""
    return [
        read_picture(file.stem, file.read_bytes())
        for file in cached("pictures/*.png")
        if not file.stem.startswith("digit_") and not file.stem.endswith(f"_{SIDE}")
    ]


def read_picture(name: str, png: bytes) -> Picture:
    """Decode a picture, crop its centre and scale it to the tagger's size."""
    with Image.open(io.BytesIO(png)) as image:
        rgb = image.convert("RGB")
    edge = round(min(rgb.size) * CROP)
    left, top = (rgb.width - edge) // 2, (rgb.height - edge) // 2
    square = rgb.crop((left, top, left + edge, top + edge))
    scaled = square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(scaled, dtype=np.uint8)[np.newaxis]
    return Picture(name, png, pixels, EXPECTED.get(name, frozenset()))


DIGITS = 10
LOWEST_PRICE, HIGHEST_PRICE = 60.0, 160.0
"""Bounds of a right answer: the real price is 105 a night, the model's mean error 11."""


def digit_messages() -> list[tuple[int, Message]]:
    """Each digit with the request that carries its picture; raises `PicturesMissing`."""
    files = cached(*(f"pictures/digit_{digit}.png" for digit in range(DIGITS)))
    pictures = (picture_instance(file.read_bytes()) for file in files)
    return list(enumerate(predict_message("digits", [picture]) for picture in pictures))


def price_message() -> Message:
    """A booking as v2 JSON; raises `PicturesMissing`."""
    [file] = cached("requests/price.json")
    json_type = {"Content-Type": "application/json"}
    return Message("/v2/models/price/infer", file.read_bytes(), json_type)


TAGGER = "tagger"
CLASSES = 1000


def tagger_message(picture: Picture, model: str = TAGGER) -> Message:
    return infer_binary_message(model, "images", picture.pixels, "scores")


def check_tagged(body: bytes, json_length: str | None, picture: Picture) -> None:
    """A tagger's v2 answer must be what the picture shows; raises `WrongAnswer`."""
    check_classes(read_infer(body, json_length, "scores"), picture.expected, CLASSES)
