"""Five requests in flight at a target of one: how soon five slots serve, and when they go again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from loadtests.exchange import predict_message
from loadtests.pool.figures import Spike
from loadtests.pool.models import WIDTH, write_model
from loadtests.pool.server import Asked, Site, ask, elastic, open_client

MODEL = "loop"
CALLERS = 5
HOLD_S = 6.0
IDLE_S = 5.0
DOWN_S = 2.0
SLOTS: dict[str, Any] = {
    "cpu": {"min": 0, "warm": CALLERS, "max": CALLERS, "cpus": 0.1, "preload": ["onnx"]}
}
MODELS: dict[str, Any] = {
    MODEL: {
        "runtime": "onnx",
        "replicas": {"min": 0, "max": CALLERS},
        "scaling": {"target_in_flight": 1.0, "idle_s": IDLE_S, "down_delay_s": DOWN_S},
        "batching": {"max_rows": 1},
    }
}


def measure_spike(folder: Path, service_s: float) -> Spike:
    """Callers that ask one request after the other, of a model that runs for `service_s`.

    Raises `NotStarted`, `NeverAsleep`.
    """
    write_model(folder / "store", MODEL, service_s)
    with elastic(folder, folder / "store", MODELS, SLOTS) as site:
        begin_s, end_s, answers = asyncio.run(_run(site))
        log = site.log()
    ready = log.ready[MODEL]
    return Spike(CALLERS, begin_s, end_s, IDLE_S, ready, log.slots, tuple(answers))


async def _run(site: Site) -> tuple[float, float, list[Asked]]:
    message = predict_message(MODEL, [[0.0] * WIDTH])
    answers: list[Asked] = []
    async with open_client(site.server.url) as client:
        await _all_there(site)
        await site.asleep(MODEL)
        begin_s = time.time()

        async def caller() -> None:
            while (now_s := time.time()) < begin_s + HOLD_S:
                answers.append(await ask(client, MODEL, message, now_s))

        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(caller())
        end_s = time.time()
        await site.asleep(MODEL)
    return begin_s, end_s, answers


async def _all_there(site: Site) -> None:
    """Serve gives the first slot to start with and the others when it has time."""
    limit_s = time.monotonic() + 60.0
    while time.monotonic() < limit_s:
        status = await asyncio.to_thread(site.status)
        if len(status["slots"]) >= CALLERS:
            return
        await asyncio.sleep(0.2)
