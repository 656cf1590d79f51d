"""What the sharding benchmark sends: mosaics and clips of photographs, made from a seed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from numpy.typing import NDArray
from PIL import Image

from headrace.config.sharding import ShardingConfig
from loadtests.headrace import copy_models, headrace
from loadtests.processes import ROOT, NotStarted

Pixels = NDArray[np.uint8]
PATCH = 40
"""Side in pixels of a change that lies in the first tile alone."""
SCENES_S = 7.5
"""Length of a scene; four are 30 s."""
VIDEO_HEIGHT = 720
DEMO = ROOT / "examples" / "demo.yaml"


class Inputs:
    """Files in a folder, each made when it is first asked for; raises `NotStarted`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed

    def mosaic(self, megapixels: int) -> Path:
        return self._made(f"mosaic-{megapixels}mp", f"mosaic_{megapixels}mp.jpg", "mosaics")

    def video(self, seconds: int) -> Path:
        rounds = ("--rounds", str(seconds // 30), "--scene-s", str(SCENES_S), str(SCENES_S))
        return self._made("scenes", "scenes.mp4", f"video-{seconds}", *rounds)

    def _made(self, name: str, file: str, folder: str, *options: str) -> Path:
        path = self._folder / folder / file
        if not path.exists():
            command = [
                *(sys.executable, str(ROOT / "models" / "media.py"), name, *options),
                *("--seed", str(self._seed), "--out", str(path.parent)),
                *("--height", str(VIDEO_HEIGHT)),
            ]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NotStarted(f"models/media.py failed: {done.stderr.strip()[-300:]}")
        return path


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


ALONE = "faces_alone"
"""The same model on one shard, beside `faces` on two: so a slow minute meets both."""

SMALL = "price"
ROWS = {"faces": 1, "tagger": 8, ALONE: 1, SMALL: 256}
SHARDS = {"faces": 2, "tagger": 2, ALONE: 1, SMALL: 1}


def sharding_of(model: str) -> ShardingConfig:
    """What the demo's config says of large inputs to a model."""
    return ShardingConfig.model_validate(_demo_models()[model]["sharding"])


@cache
def _demo_models() -> dict[str, Any]:
    document = yaml.safe_load(DEMO.read_text(encoding="utf-8"))
    [pool] = (each for each in document["applications"][0]["deployments"] if each["name"] == "Pool")
    models: dict[str, Any] = pool["user_config"]["models"]
    return models


def model_config(model: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "runtime": "onnx",
        "batching": {"max_rows": ROWS[model]},
        "replicas": {"min": SHARDS[model], "max": SHARDS[model]},
    }
    demo = _demo_models()["faces" if model == ALONE else model]
    return {**found, "sharding": demo["sharding"]} if "sharding" in demo else found


@dataclass(frozen=True, slots=True)
class ShardedSystem:
    """A started system: its URL, and the processes of the stage, the gateway and the shards.

    `shards` has the slots of each model by their ids; each may take `bound_bytes`.
    """

    url: str
    bound_bytes: int
    stage: tuple[int, ...]
    gateways: tuple[int, ...]
    shards: Mapping[str, Mapping[str, int]]


@contextmanager
def fleet(folder: Path, models: Iterable[str], memory_bytes: int) -> Iterator[ShardedSystem]:
    """Headrace with these models on slots of one thread, each with a limit of memory.

    Raises `NotStarted`.
    """
    names = list(models)
    store = copy_models(folder, {name: "faces" if name == ALONE else name for name in names})
    count = sum(SHARDS[name] for name in names)
    slots = {"cpu": {"count": count, "cpus": 1 / count, "memory": memory_bytes}}
    configs = {name: model_config(name) for name in names}
    with headrace(folder, store, configs, more={"slots": slots}) as server:
        status = server.admin.status()
        shards: dict[str, dict[str, int]] = {name: {} for name in names}
        for slot in status["slots"]:
            for name in names:
                if f"{name}/1" in slot["models"]:
                    shards[name][slot["slot_id"]] = int(slot["pid"])
        gateways = tuple(int(each["pid"]) for each in status["gateways"])
        stage = stage_pids(int(status["slots"][0]["pid"]))
        yield ShardedSystem(server.url, memory_bytes, stage, gateways, shards)


def stage_pids(relative: int) -> tuple[int, ...]:
    """The stage's processes in the session of another process of the same system."""
    session = os.getsid(relative)
    stages = (
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(":ShardStage" in word for word in process.info["cmdline"] or ())
    )
    return tuple(sorted(pid for pid in stages if os.getsid(pid) == session))
