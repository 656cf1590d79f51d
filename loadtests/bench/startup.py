"""How long `headrace up` takes until the first and until the last model answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml

from loadtests.bench.outcome import Startup
from loadtests.headrace import DRAIN_S, answers, headrace_command
from loadtests.processes import NotStarted, running, wait_until

LIMIT_S = 300.0


def measure_startup(config: Path, log: Path) -> Startup:
    """Start the config as a user would, from what is built; raises `NotStarted`."""
    base, models = read_config(yaml.safe_load(config.read_text(encoding="utf-8")))
    if answers(f"{base}/v2/health/live"):
        raise NotStarted(f"a system already answers at {base}: stop it first (headrace down)")
    ready_s: dict[str, float] = {}
    begin = time.monotonic()

    def all_ready() -> bool:
        for model in models - ready_s.keys():
            if answers(f"{base}/v2/models/{model}/ready"):
                ready_s[model] = time.monotonic() - begin
        return len(ready_s) == len(models)

    command = [headrace_command(), "up", str(config)]
    with running(command, log, stop_s=DRAIN_S, whole_group=False) as process:
        wait_until(all_ready, process, LIMIT_S)
    return Startup(config.name, ready_s)


def read_config(document: Any) -> tuple[str, set[str]]:
    """Base URL and model names of a Headrace config file."""
    [application] = document["applications"]
    listen = application["args"].get("listen", {}).get("http", "127.0.0.1:8080")
    pools = [each for each in application["deployments"] if each["name"] == "Pool"]
    return f"http://{listen}", set(pools[0]["user_config"]["models"])
