"""From zero: how long the first caller of a sleeping model waits, again and again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from loadtests.exchange import Message
from loadtests.pool.figures import Cold
from loadtests.pool.ray_cold import ray_cold
from loadtests.pool.server import Asked, ask, elastic, open_client
from loadtests.tagger import MODEL

IDLE_S = 0.5
REST_S = 0.2
RAY_REST_S = 6.0
"""Ray Serve needs some seconds until its last replica has gone."""

TENSORFLOW_MODEL = "tagger_tf"
SLOT = {"cpus": 0.25}
ONNX_SLOT = {**SLOT, "preload": ["onnx"]}
TENSORFLOW_SLOT = {**SLOT, "preload": ["tensorflow"]}


def sleeping(runtime: str) -> dict[str, Any]:
    """A model's config: it goes as soon as nobody calls it."""
    return {
        "runtime": runtime,
        "replicas": {"min": 0, "max": 1},
        "scaling": {"target_in_flight": 4.0, "idle_s": IDLE_S, "down_delay_s": 0.2},
    }


def measure_cold(
    folder: Path, store: Path, model: str, message: Message, cycles: int, *, warm: bool
) -> Cold:
    """So many cold starts of a model with a warm slot, or without any; raises `NotStarted`."""
    tensorflow = model == TENSORFLOW_MODEL
    kind = "tensorflow" if tensorflow else "cpu"
    slot = TENSORFLOW_SLOT if tensorflow else ONNX_SLOT
    slots = {kind: {**slot, "min": 0, "warm": int(warm), "max": 1}}
    models = {model: sleeping("tensorflow" if tensorflow else "onnx")}
    with elastic(folder, store, models, slots) as site:

        async def run() -> list[Asked]:
            answers = []
            async with open_client(site.server.url) as client:
                for _ in range(cycles):
                    await site.asleep(model, slots=None if warm else 0)
                    await asyncio.sleep(REST_S)
                    answers.append(await ask(client, model, message, time.time()))
            return answers

        answers = asyncio.run(run())
        log = site.log()
    starts = [_start_s(answer, log.joined_s) for answer in answers] if not warm else []
    name = f"{model}, {'warm slot' if warm else 'no warm slot'}"
    # The first load was to learn its inputs and outputs, before anybody called it.
    loads = log.loads_s.get(model, ())[-cycles:]
    return Cold(name, tuple(answers), median(loads) if loads else 0.0, tuple(starts))


def _start_s(answer: Asked, joined_s: tuple[float, ...]) -> float:
    """From when a request was sent until a slot joined: Serve's way and the replica's start."""
    came = [at_s for at_s in joined_s if answer.due_s < at_s < answer.due_s + answer.latency_s]
    return came[0] - answer.due_s if came else 0.0


def measure_ray(folder: Path, model: Path, message: Message, cycles: int) -> Cold:
    """Ray Serve's own `min_replicas: 0` with the same ONNX model; raises `NotStarted`."""
    with ray_cold(folder, model) as url:

        async def run() -> list[Asked]:
            answers = []
            async with httpx.AsyncClient(base_url=url, timeout=60.0) as client:
                for _ in range(cycles):
                    await asyncio.sleep(RAY_REST_S)
                    answers.append(await ask(client, MODEL, message, time.time()))
            return answers

        answers = asyncio.run(run())
    return Cold("tagger, Ray Serve's own min_replicas: 0", tuple(answers), 0.0, ())
