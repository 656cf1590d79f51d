"""The complete gateway as a process: its config, its start, and what its own status tells."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml

from loadtests.processes import free_ports, running, wait_until

START_S = 90.0
DRAIN_S = 60.0
ANSWER_S = 2.0
OPEN: Mapping[str, Any] = {"tiers": False}
"""Everybody is let in: what is measured is the serving."""
NOTHING: Mapping[str, Any] = {}


class BadAnswer(Exception):
    """Raised when a server answers the benchmark's request with something else than the model."""


@dataclass(frozen=True, slots=True)
class Running:
    """A started server: its base URL and, for Headrace, what else it listens on and its token."""

    url: str
    grpc: str = ""
    admin: str = ""
    token_file: Path | None = None

    def slot_pids(self) -> list[int]:
        """The processes of Headrace's slots, from its own status; raises `BadAnswer`."""
        if self.token_file is None:
            return []
        token = self.token_file.read_text(encoding="utf-8").strip()
        answer = httpx.get(
            f"{self.admin}/admin/v1/status",
            headers={"Authorization": f"Bearer {token}"},
            timeout=ANSWER_S,
        )
        if answer.status_code != 200:
            raise BadAnswer(f"/admin/v1/status answered {answer.status_code}")
        return [int(slot["pid"]) for slot in answer.json()["slots"]]


@contextmanager
def headrace(
    folder: Path,
    store: Path,
    models: Mapping[str, Any],
    slots: int = 1,
    access: Mapping[str, Any] = OPEN,
    more: Mapping[str, Any] = NOTHING,
) -> Iterator[Running]:
    """Run the complete gateway while the block lasts; raises `NotStarted`.

    `models` is what the config says of each; all are ready when the block begins. `access` is its
    part on `tiers` and `auth`, `more` goes into its `args`.
    """
    ports = free_ports(3)
    config = folder / "headrace.yaml"
    text = headrace_config(store, models, slots, ports, access, more)
    config.write_text(text, encoding="utf-8")
    home = folder / "home"
    http, grpc, admin = (f"127.0.0.1:{port}" for port in ports)
    server = Running(f"http://{http}", grpc, f"http://{admin}", home / "admin.token")
    with running(
        [headrace_command(), "up", str(config)],
        folder / "headrace.log",
        {"HEADRACE_HOME": str(home)},
        stop_s=DRAIN_S,
        whole_group=False,
    ) as process:
        for model in models:
            ready = partial(answers, f"{server.url}/v2/models/{model}/ready")
            wait_until(ready, process, START_S)
        yield server


def headrace_command() -> str:
    """The `headrace` of the environment that runs this."""
    return str(Path(sys.executable).with_name("headrace"))


def headrace_config(
    store: Path,
    models: Mapping[str, Any],
    slots: int,
    ports: list[int],
    access: Mapping[str, Any] = OPEN,
    more: Mapping[str, Any] = NOTHING,
) -> str:
    """One gateway process and slots of one core, as a Ray Serve config file."""
    names = ("http", "grpc", "admin")
    arguments = {
        "schema": 1,
        "listen": {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)},
        "gateways": 1,
        "slots": {"cpu": {"count": slots, "cpus": 1 / slots}},
        "store": str(store),
        **more,
    }
    pool = {"name": "Pool", "user_config": {"models": dict(models), **access}}
    application = {
        "name": "headrace",
        "import_path": "gateway.app:build",
        "args": arguments,
        "deployments": [pool],
    }
    document = {"proxy_location": "Disabled", "applications": [application]}
    return yaml.safe_dump(document, sort_keys=False)


def answers(url: str) -> bool:
    """Whether a GET is answered with 200 now."""
    try:
        return httpx.get(url, timeout=ANSWER_S).status_code == 200
    except httpx.TransportError:
        return False
