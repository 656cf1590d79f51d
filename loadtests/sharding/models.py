"""The system that the sharding benchmark measures: its config, and who does what in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from loadtests.headrace import Running, copy_models, headrace

FACES = {
    "kind": "image-tiles",
    "tile": 1024,
    "overlap": 256,
    "preprocess": "centerface",
    "postprocess": "centerface",
    "boxes": {"iou": 0.3},
}
OBJECTS = {
    "kind": "image-tiles",
    "tile": 512,
    "overlap": 256,
    "preprocess": "centernet",
    "postprocess": "centernet",
    "labels": "labels.txt",
}
TAGS = {
    "kind": "video-segments",
    "fps": 2,
    "segment_s": 2,
    "preprocess": "imagenet-224",
    "postprocess": "class-scores",
    "labels": "labels.txt",
}
SHARDING: Mapping[str, Mapping[str, Any]] = {"faces": FACES, "objects": OBJECTS, "tagger": TAGS}
"""As in the demo's config."""

ALONE = "faces_alone"
"""The same model on one shard, beside `faces` on two: so a slow minute meets both."""

SMALL = "price"
ROWS = {"faces": 1, "objects": 4, "tagger": 8, ALONE: 1, SMALL: 256}
SHARDS = {"faces": 2, "objects": 2, "tagger": 2, ALONE: 1, SMALL: 1}


def built_as(model: str) -> str:
    """The demo model's own name."""
    return "faces" if model == ALONE else model


def model_config(model: str) -> dict[str, Any]:
    """What the config says of a model."""
    found: dict[str, Any] = {
        "runtime": "onnx",
        "batching": {"max_rows": ROWS[model]},
        "replicas": {"min": SHARDS[model], "max": SHARDS[model]},
    }
    sharding = SHARDING.get(built_as(model))
    return {**found, "sharding": dict(sharding)} if sharding else found


@dataclass(frozen=True, slots=True)
class Fleet:
    """A started system: its URL, and the processes of the stage, the gateway and the shards.

    `shards` has the slots of each model by their ids.
    """

    url: str
    stage: tuple[int, ...]
    gateways: tuple[int, ...]
    shards: Mapping[str, Mapping[str, int]]


@contextmanager
def fleet(folder: Path, models: Iterable[str], memory_bytes: int) -> Iterator[Fleet]:
    """Headrace with these models on slots of one thread, each of which may take so much memory.

    Raises `NotStarted`.
    """
    names = list(models)
    store = copy_models(folder, {name: built_as(name) for name in names})
    count = sum(SHARDS[name] for name in names)
    slots = {"cpu": {"count": count, "cpus": 1 / count, "memory": memory_bytes}}
    configs = {name: model_config(name) for name in names}
    with headrace(folder, store, configs, more={"slots": slots}) as server:
        yield described(server, names)


def described(server: Running, names: Iterable[str]) -> Fleet:
    """Who is who, from the status of a server and the names of its processes."""
    status = server.admin.status()
    slots = status["slots"]
    shards = {
        name: {slot["slot_id"]: int(slot["pid"]) for slot in slots if f"{name}/1" in slot["models"]}
        for name in names
    }
    gateways = tuple(int(each["pid"]) for each in status["gateways"])
    return Fleet(server.url, stage_pids(int(slots[0]["pid"])), gateways, shards)


def stage_pids(relative: int) -> tuple[int, ...]:
    """The stage's processes in the session of another process of the same system."""
    session = os.getsid(relative)
    found = []
    for process in psutil.process_iter(["cmdline"]):
        named = any(":ShardStage" in word for word in process.info["cmdline"] or ())
        if named and os.getsid(process.pid) == session:
            found.append(process.pid)
    return tuple(sorted(found))
