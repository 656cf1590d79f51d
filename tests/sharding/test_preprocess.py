from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.errors import ConfigError
from sharding.preprocess import PREPROCESSORS, CentreCrop, load_preprocessor, pad
from tests.sharding.media_files import array, photograph


class Grey:
    """A user's own, as the documentation shows it."""

    short_side: int | None = None
    multiple = 1

    def __call__(self, rgb: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        return {"images": rgb.mean(axis=2, dtype=np.float32)[None]}


@pytest.mark.parametrize("size", [(33, 50), (64, 96), (1, 1)])
def test_built_in_ones_make_one_row_for_any_size(size: tuple[int, int]) -> None:
    rgb = np.full((*size, 3), 77, np.uint8)
    high, wide = (-(-side // 32) * 32 for side in size)
    shapes = {name: load_preprocessor(name)(rgb)["images"] for name in sorted(PREPROCESSORS)}
    assert shapes["imagenet-224"].shape == (1, 224, 224, 3)
    assert shapes["imagenet-224"].dtype == np.uint8
    assert shapes["centernet"].shape == (1, high, wide, 3)
    assert shapes["centerface"].shape == (1, 3, high, wide)
    assert shapes["centerface"].dtype == np.float32
    assert shapes["centerface"].max() == 77


def test_the_centre_crop_takes_the_middle_seven_eighths() -> None:
    rgb = np.zeros((256, 400, 3), np.uint8)
    rgb[16:240, 88:312] = 255
    crop = CentreCrop()
    assert crop.short_side == 256
    assert crop(rgb)["images"].min() == 255
    photo = array(photograph())
    assert crop(photo)["images"].std() > 20


def test_pad_adds_at_the_right_and_at_the_bottom() -> None:
    rgb = np.full((5, 7, 3), 9, np.uint8)
    padded = pad(rgb, (10, 3), 4)
    assert padded.shape == (8, 12, 3)
    assert (padded[:5, :7] == 9).all() and padded.sum() == rgb.sum()
    assert pad(rgb) is rgb


def test_a_users_own_is_found_by_its_import_path() -> None:
    found = load_preprocessor(f"{__name__}:Grey")
    assert found(np.full((2, 2, 3), 3, np.uint8))["images"].tolist() == [[[3.0, 3.0], [3.0, 3.0]]]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("imagenet", "neither one of centerface"),
        ("no_such_module:x", "cannot be imported"),
        (f"{__name__}:absent", "cannot be imported"),
        ("math:pi", "has no `short_side`"),
    ],
)
def test_what_cannot_be_used_is_a_config_error(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_preprocessor(name)
