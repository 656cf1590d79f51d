"""Preprocessors, which make a model's inputs of the pixels of a part; those of the demo models.

A user's own stands in the config as `module:name`, for example

    class Grey:
        short_side, multiple = None, 1

        def __call__(self, rgb):
            return {"images": rgb.mean(axis=2, dtype="float32")[None]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from headrace.config.types import import_named
from headrace.errors import ConfigError

PAD_VALUE = 0
"""Value of padding: black, as the zeros that convolutions pad with."""


@runtime_checkable
class Preprocessor(Protocol):
    """Makes one row of a model's inputs out of a tile or a frame, uint8 [h, w, 3] sRGB.

    Every array has a first axis of 1. `short_side` is the size in pixels that a video's frames may
    be scaled down to before they come here, None to leave them; `multiple` is what the model wants
    the sides of a tile to be multiples of. It must give the same for the same pixels, as results
    are kept by the part's content, and is called from several threads.
    """

    short_side: int | None
    multiple: int

    def __call__(self, rgb: NDArray[np.uint8]) -> dict[str, NDArray[Any]]: ...


class CentreCrop:
    """`images` uint8 [1, size, size, 3]: the middle `fraction` of the shorter side, scaled.

    As EfficientNet-Lite0 is evaluated (Tan and Le 2019): 0.875 of it, 224 pixels.
    """

    multiple = 1

    def __init__(self, size: int = 224, fraction: float = 0.875) -> None:
        self._size = size
        self._fraction = fraction
        self.short_side: int | None = round(size / fraction)

    def __call__(self, rgb: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        height, width = rgb.shape[:2]
        side = max(1, round(self._fraction * min(height, width)))
        top, left = (height - side) // 2, (width - side) // 2
        square = rgb[top : top + side, left : left + side]
        if side != self._size:
            # Only those who resize need it.
            from PIL import Image

            scaled = Image.fromarray(square).resize((self._size,) * 2, Image.Resampling.BILINEAR)
            square = np.asarray(scaled, np.uint8)
        return {"images": np.ascontiguousarray(square)[None]}


class CentreNetImages:
    """`images` uint8 [1, H, W, 3], padded to multiples of 32."""

    short_side: int | None = None
    multiple = 32

    def __call__(self, rgb: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        return {"images": pad(rgb, multiple=self.multiple)[None]}


class CentreFaceImages:
    """`images` float32 [1, 3, H, W], RGB 0 to 255, padded to multiples of 32."""

    short_side: int | None = None
    multiple = 32

    def __call__(self, rgb: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        planes = pad(rgb, multiple=self.multiple).transpose(2, 0, 1)
        # Twice as fast as `ascontiguousarray`, which walks the planes in another order.
        images = np.empty((1, *planes.shape), np.float32)
        np.copyto(images[0], planes)
        return {"images": images}


PREPROCESSORS: Mapping[str, type[Preprocessor]] = {
    "imagenet-224": CentreCrop,
    "centernet": CentreNetImages,
    "centerface": CentreFaceImages,
}
"""By the name that stands in the config."""


def load_preprocessor(name: str) -> Preprocessor:
    """A built-in, or what `module:name` leads to; raises `ConfigError`."""
    found = make(name, PREPROCESSORS)
    if not isinstance(found, Preprocessor):
        raise ConfigError(f"`preprocess: {name}` has no `short_side`, no `multiple` or no call")
    return found


def make(name: str, known: Mapping[str, type]) -> object:
    """An instance of the `known` class, or what `module:name` leads to; raises `ConfigError`.

    A class is called without arguments.
    """
    if name in known:
        instance: object = known[name]()
        return instance
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigError(
            f"{name!r} is neither one of {', '.join(sorted(known))} nor written as `module:name`"
        )
    try:
        found: object = import_named(name)
        return found() if isinstance(found, type) else found
    except Exception as error:  # whatever a user's module raises while it is imported
        raise ConfigError(f"{name!r} cannot be imported: {error}") from error


def pad(
    pixels: NDArray[np.uint8], sides: tuple[int, int] = (0, 0), multiple: int = 1
) -> NDArray[np.uint8]:
    """Pixels [h, w, 3] with `PAD_VALUE` at the right and at the bottom.

    To at least `sides` (width, height), and then to the next `multiple`.
    """
    height, width = pixels.shape[:2]
    wide, high = (
        -(-max(side, least) // multiple) * multiple
        for side, least in zip((width, height), sides, strict=True)
    )
    if (wide, high) == (width, height):
        return pixels
    padded = np.full((high, wide, 3), PAD_VALUE, np.uint8)
    padded[:height, :width] = pixels
    return padded
