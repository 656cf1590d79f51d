"""The real pictures that the load test sends, with what the tagger must see in them."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CACHE = Path(__file__).resolve().parent.parent / "models" / "cache"
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


class PicturesMissing(Exception):
    """Raised when the demo pictures have not been built."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as file (`png`) and as the tagger's tensor (`pixels`, uint8 [1,224,224,3])."""

    name: str
    png: bytes
    pixels: NDArray[np.uint8]
    expected: frozenset[int]


def cache_folder() -> Path:
    """The folder with the built pictures and requests."""
    return Path(os.environ.get(CACHE_VARIABLE, CACHE))


def load_pictures() -> list[Picture]:
    """The whole pictures, by name; raises `PicturesMissing`."""
    files = [
        file
        for file in sorted((cache_folder() / "pictures").glob("*.png"))
        if not file.stem.startswith("digit_") and not file.stem.endswith(f"_{SIDE}")
    ]
    if not files:
        raise PicturesMissing(
            f"no pictures in {cache_folder() / 'pictures'}: build them first (make models)"
        )
    return [read_picture(file.stem, file.read_bytes()) for file in files]


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
