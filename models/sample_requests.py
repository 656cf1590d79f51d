"""requests: bodies for curl, made of the pictures beside them."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from catalog import Job
from PIL import Image
from sources import BuildError

# A held-out booking of the table, which cost 105.00 a night.
NUMBERS = {
    "lead_time": 3.0,
    "weekend_nights": 0.0,
    "week_nights": 1.0,
    "adults": 1.0,
    "children": 0.0,
    "special_requests": 1.0,
    "arrival_day": 150.0,
}
CATEGORIES = {
    "room_type": "d",
    "meal": "bed_and_breakfast",
    "market_segment": "online_travel_agent",
    "customer_type": "transient",
}


def build(job: Job) -> None:
    pictures = job.cache / "pictures"
    if not (pictures / "coffee.png").is_file():
        raise BuildError("requests are made of pictures: build those first (build.py pictures).")
    job.say("writing request bodies")
    coffee = _base64(pictures / "coffee.png")
    bodies = {
        "tagger_coffee": {"inputs": [_image_tensor(pictures / "coffee_224.png")]},
        "tagger_tf_coffee": {"signature_name": "image_bytes", "instances": [coffee]},
        "digits_7": {"instances": [_base64(pictures / "digit_7.png")]},
        "digits_7_classify": {
            "signature_name": "classify",
            "examples": [{"image_bytes": _base64(pictures / "digit_7.png")}],
        },
        "price": {"inputs": _price_tensors()},
    }
    for name, body in bodies.items():
        text = json.dumps(body, separators=(",", ":"))
        (job.folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _base64(path: Path) -> dict[str, str]:
    return {"b64": base64.b64encode(path.read_bytes()).decode("ascii")}


def _image_tensor(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    data = pixels.reshape(-1).tolist()
    return {"name": "images", "shape": [1, *pixels.shape], "datatype": "UINT8", "data": data}


def _price_tensors() -> list[dict[str, Any]]:
    tensors: list[dict[str, Any]] = []
    for datatype, values in (("FP32", NUMBERS), ("BYTES", CATEGORIES)):
        for name, value in values.items():
            tensor = {"name": name, "shape": [1, 1], "datatype": datatype, "data": [value]}
            tensors.append(tensor)
    return tensors
