"""The system of the soak: TLS on its public listeners, budgets and keys in Redis, and its load."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headrace.config.tiers import DEFAULT_TIERS
from loadtests.bench.mlp import NAME, mlp_graph, right_answer, write_bodies, write_version
from loadtests.headrace import copy_models, headrace, known_key
from loadtests.kills import SLOTS, System
from loadtests.redis_server import PERSISTENT, running_redis
from loadtests.soak.events import BRIEF, KEY, SPARE, Events
from loadtests.soak.figures import Figures, read_figures
from loadtests.soak.load import FACES, Load, questions
from loadtests.tls import Authority

ALWAYS = {"replicas": {"min": SLOTS, "max": SLOTS}}
MODELS: dict[str, Any] = {
    NAME: {**ALWAYS, "batching": {"max_rows": 32}},
    FACES: {
        **ALWAYS,
        "batching": {"max_rows": 1},
        "sharding": {
            "kind": "image-tiles",
            "tile": 512,
            "overlap": 256,
            "preprocess": "centerface",
            "postprocess": "centerface",
        },
    },
    BRIEF: {
        "replicas": {"min": 0, "max": 1},
        "scaling": {"idle_s": 1.0, "down_delay_s": 0.5},
        "slot_class": SPARE,
    },
}
SLOT_CLASSES = {
    "cpu": {"count": SLOTS, "cpus": 0.1, "max_models": 6},
    SPARE: {"min": 0, "warm": 1, "max": 2, "cpus": 0.1},
}


@dataclass(frozen=True, slots=True)
class Site:
    """A started system and all that acts on it."""

    system: System
    load: Load
    events: Events
    home: Path

    def figures(self) -> list[Figures]:
        return read_figures(self.system.raylet, self.home, self.system.admin)


@contextmanager
def started(folder: Path, chance: random.Random) -> Iterator[Site]:
    """All of it in a folder while the block lasts; raises `NotStarted`."""
    store, place = folder / "store", folder / "system"
    model = write_version(store, NAME, mlp_graph())
    shutil.copytree(store / NAME, store / BRIEF)
    copy_models(folder, {FACES: FACES})
    bodies, answer = write_bodies(folder), right_answer(model)
    authority = Authority(folder)
    with (
        running_redis(folder, *PERSISTENT) as redis,
        headrace(
            place,
            store,
            MODELS,
            access={"tiers": dict(DEFAULT_TIERS)},
            more={
                "slots": SLOT_CLASSES,
                "repository": {"poll_s": 1.0},
                "budgets": {"store": redis.url},
            },
            tls={**authority.files, "admin": False},
        ) as server,
    ):
        key = known_key(server, NAME, KEY, "premium")
        load = Load(server, authority.root, key, bodies, answer)
        system = System(server, 1, place / "headrace.yaml", (NAME, FACES))
        wake = questions(bodies, answer, BRIEF)[0]
        wake = replace(wake, sort="wake")
        events = Events(system, load, redis, authority, store, server.url, wake, chance)
        yield Site(system, load, events, place / "home")
