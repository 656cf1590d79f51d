"""What the sharding benchmark sends: mosaics and clips of photographs, made from a seed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loadtests.processes import ROOT, NotStarted

Pixels = NDArray[np.uint8]
PATCH = 40
"""The side in pixels of a change that lies in the first tile alone."""
SCENES_S = 7.5
"""Four scenes of this length are 30 s."""
VIDEO_HEIGHT = 720


@dataclass(frozen=True, slots=True)
class Scene:
    """A stretch of a clip that shows one photograph; any of `labels` is right for it."""

    labels: tuple[str, ...]
    start_s: float
    end_s: float


class Inputs:
    """Files in a folder, each made when it is first asked for; raises `NotStarted`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed

    def mosaic(self, megapixels: int) -> Path:
        """A JPEG of 12 or 100 megapixels."""
        return self._made(f"mosaic-{megapixels}mp", f"mosaic_{megapixels}mp.jpg", "mosaics")

    def clip(self) -> Path:
        """Four scenes, two times each, in an order and of lengths that the seed decides on."""
        return self._made("scenes", "scenes.mp4", "clip", "--rounds", "2")

    def video(self, seconds: int) -> Path:
        """A clip of a multiple of 30 s."""
        rounds = ("--rounds", str(seconds // 30), "--scene-s", str(SCENES_S), str(SCENES_S))
        return self._made("scenes", "scenes.mp4", f"video-{seconds}", *rounds)

    def _made(self, name: str, file: str, folder: str, *options: str) -> Path:
        path = self._folder / folder / file
        if not path.exists():
            height = ("--height", str(VIDEO_HEIGHT))
            place = ("--seed", str(self._seed), "--out", str(path.parent))
            command = [sys.executable, str(ROOT / "models" / "media.py"), name]
            done = subprocess.run(
                [*command, *place, *height, *options],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise NotStarted(f"models/media.py failed: {done.stderr.strip()[-300:]}")
        return path


def scenes_of(clip: Path) -> list[Scene]:
    """What a clip shows when, from the file beside it."""
    told: Mapping[str, Any] = json.loads(clip.with_suffix(".json").read_text(encoding="utf-8"))
    return [Scene(tuple(each["labels"]), each["start_s"], each["end_s"]) for each in told["scenes"]]


def pixels_of(path: Path) -> Pixels:
    """A picture, uint8 [h, w, 3]."""
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def jpeg(pixels: Pixels) -> bytes:
    """Equal pixels give equal bytes, and a change of some leaves the blocks beside them alone."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def lighter(pixels: Pixels, levels: int) -> Pixels:
    """The picture with every pixel changed, so that no part of it is in a cache."""
    return np.minimum(pixels.astype(np.uint16) + levels, 255).astype(np.uint8)


def patched(pixels: Pixels) -> Pixels:
    """The picture with a black square in its first corner."""
    changed = pixels.copy()
    changed[:PATCH, :PATCH] = 0
    return changed


def variants(path: Path, first: int, count: int) -> Sequence[bytes]:
    """JPEGs of a picture that share no tile, numbered from `first` on."""
    pixels = pixels_of(path)
    return [jpeg(lighter(pixels, first + number)) for number in range(count)]
