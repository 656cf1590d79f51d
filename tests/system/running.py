"""A real Headrace on real Ray: one process tree, its own ports, store and state folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.house import affine_model

START_S = 90.0
ROW = [1.0, 2.0, 3.0, 4.0]
DOUBLED = [3.0, 5.0, 7.0, 9.0]
HEADRACE = (sys.executable, "-m", "command.cli")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """The first true value of `condition`; fails the test when it takes too long."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


@dataclass
class Running:
    """A started system and what a test asks of it."""

    home: Path
    file: Path
    http: str
    admin: str
    process: subprocess.Popen[Any]
    environment: dict[str, str]
    tree: set[psutil.Process] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://{self.http}"

    def status(self) -> dict[str, Any]:
        """`GET /admin/v1/status`."""
        token = (self.home / "admin.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx.get(f"http://{self.admin}/admin/v1/status", headers=headers, timeout=10)
        answer.raise_for_status()
        status: dict[str, Any] = answer.json()
        return status

    def ready_slots(self, model: str = "affine") -> list[str]:
        """The slots that hold a READY version of the model; empty while nothing answers."""
        try:
            models = self.status()["models"]
        except httpx.HTTPError:
            return []
        return [
            slot
            for each in models
            for version in each["versions"]
            if each["name"] == model and version["state"] == "READY"
            for slot in version["slots"]
        ]

    def pid_of(self, slot_id: str) -> int:
        """The process of a slot."""
        (pid,) = [s["pid"] for s in self.status()["slots"] if s["slot_id"] == slot_id]
        return int(pid)

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a Serve deployment."""
        self.remember()
        title = f"ServeReplica:headrace:{deployment}"
        return [p for p in self.tree if p.is_running() and title in " ".join(_command(p))]

    def remember(self) -> None:
        """Note every process of the tree: children of a dead parent are found no other way."""
        if self.process.poll() is None:
            self.tree |= set(psutil.Process(self.process.pid).children(recursive=True))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The `headrace` command against this system."""
        return subprocess.run(
            [*HEADRACE, *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=120,
            check=False,
        )

    def stop(self, number: int = signal.SIGINT, group: bool = False) -> int:
        """Stop it with a signal, to its whole process group if so; gives the exit code."""
        self.remember()
        if self.process.poll() is None:
            (os.killpg if group else os.kill)(self.process.pid, number)
        return self.process.wait(60)

    def survivors(self) -> list[psutil.Process]:
        """Processes of the tree that still run."""
        alive: list[psutil.Process] = psutil.wait_procs(list(self.tree), timeout=10)[1]
        return alive


def _command(process: psutil.Process) -> list[str]:
    try:
        command: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return command


def config(
    store: Path,
    ports: list[int],
    *,
    slots: int = 2,
    gateways: int = 1,
    models: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
    access: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A config document: `affine` on every slot, without limits, unless told otherwise."""
    http, grpc, admin = (f"127.0.0.1:{port}" for port in ports)
    affine = {"replicas": {"min": slots, "max": slots}, "batching": {"max_rows": 8}}
    return {
        "proxy_location": "Disabled",
        "applications": [
            {
                "name": "headrace",
                "import_path": "gateway.app:build",
                "args": {
                    "schema": 1,
                    "listen": {"http": http, "grpc": grpc, "admin": admin},
                    "gateways": gateways,
                    "slots": {"cpu": {"count": slots, "cpus": 0.1}},
                    "store": str(store),
                    **(more or {}),
                },
                "deployments": [
                    {
                        "name": "Pool",
                        "user_config": {
                            "models": models or {"affine": affine},
                            **(access or {"tiers": False}),
                        },
                    }
                ],
            }
        ],
    }


def make_home(folder: Path) -> Path:
    """A state folder with a token for Ray of its own; one that is there is used again."""
    home = folder / "home"
    home.mkdir(mode=0o700, exist_ok=True)
    token = home / "ray.token"
    token.write_text("0" * 64)
    token.chmod(0o600)
    return home


def environment_for(home: Path) -> dict[str, str]:
    """An environment in which nothing of this user's own Headrace is touched."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "HEADRACE_"))}
    token = home / "ray.token"
    return kept | {"HEADRACE_HOME": str(home), "RAY_AUTH_TOKEN_PATH": str(token)}


@contextmanager
def running(folder: Path, document: dict[str, Any]) -> Iterator[Running]:
    """Start `headrace up` and wait until it says that all models have settled."""
    home = make_home(folder)
    file = folder / "headrace.yaml"
    file.write_text(yaml.safe_dump(document))
    environment = environment_for(home)
    with (folder / "up.log").open("w") as log:
        process = subprocess.Popen(
            [*HEADRACE, "up", str(file), "--json"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,
        )
    listen = document["applications"][0]["args"]["listen"]
    system = Running(home, file, listen["http"], listen["admin"], process, environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("{"), line + (folder / "up.log").read_text()[-3000:]
        assert json.loads(line)["ready"], line
        yield system
    finally:
        system.stop()
        for left in system.survivors():
            left.kill()
        process.stdout.close()  # type: ignore[union-attr]


def affine_store(folder: Path) -> Path:
    """A store with version 1 of `affine`."""
    affine_model(folder / "store" / "affine" / "1" / "model.onnx")
    return folder / "store"
