from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from gateway.config_file import load_config
from headrace.config.args import ModelConfig
from loadtests.processes import ROOT
from loadtests.sharding.inputs import (
    ALONE,
    PATCH,
    ROWS,
    SMALL,
    jpeg,
    lighter,
    model_config,
    patched,
    pixels_of,
)
from loadtests.sharding.memory import peak_bytes, reset_peaks


def photograph() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    chance = np.random.default_rng(1)
    coarse = chance.integers(0, 240, (16, 24, 3), dtype=np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)


def test_a_patch_leaves_what_lies_beyond_its_blocks_as_it_was(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one.jpg", "other.jpg")]
    paths[0].write_bytes(jpeg(photograph()))
    paths[1].write_bytes(jpeg(patched(photograph())))
    one, other = map(pixels_of, paths)
    border = PATCH + 16
    assert (one[:PATCH, :PATCH] != other[:PATCH, :PATCH]).any()
    assert (one[border:] == other[border:]).all()
    assert (one[:, border:] == other[:, border:]).all()


def test_a_lighter_picture_differs_everywhere() -> None:
    pixels = photograph()
    assert (lighter(pixels, 3) == pixels.astype(int) + 3).all()
    assert lighter(np.full((1, 1, 3), 254, np.uint8), 3).max() == 255


@pytest.mark.parametrize("model", ROWS)
def test_models_are_configured_as_in_the_demo(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = ModelConfig.model_validate(model_config(model))
    models = load_config("examples/demo.yaml").pool.models
    assert found.sharding == models["faces" if model == ALONE else model].sharding
    assert (found.sharding is None) == (model == SMALL)


def test_peaks_begin_anew() -> None:
    block = bytearray(64 * 2**20)
    before = peak_bytes(os.getpid())
    del block
    reset_peaks([os.getpid()])
    assert peak_bytes("self") <= before - 50 * 2**20
