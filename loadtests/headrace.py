"""The complete gateway as a process: its config, its start, and what its admin listener tells."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml

from command.client import AdminClient
from command.instance import find_instance
from headrace.secrets import admin_token
from loadtests.processes import ROOT, Failed, NotStarted, free_ports, running, wait_until

REPOSITORY = ROOT / "models" / "repository"
START_S = 90.0
DRAIN_S = 60.0
ANSWER_S = 2.0
ADMIN_ANSWER_S = 10.0
KEY_LIMIT_S = 5.0
"""Time limit for a gateway to know a new key; a second is usual."""

KEY_S = 86_400.0
"""Lifetime of a key, in case a load test cannot revoke it."""

POLL_S = 0.05
OPEN: Mapping[str, Any] = {"tiers": False}
"""Access for everybody, for load tests of serving alone."""
NOTHING: Mapping[str, Any] = {}


class BadAnswer(Failed):
    """Raised when a server answers a load test with something else than it must."""


class Admin(AdminClient):
    """A client of an admin listener that makes keys of tiers and knows processes."""

    def make_key(self, name: str, tier: str) -> str:
        wanted = {"name": name, "tier": tier, "expires_in_s": KEY_S}
        return str(self.create_key(wanted)["key"])

    def pids(self, kind: str) -> list[int]:
        """The processes of the `gateways` or of the `slots`."""
        return [int(each["pid"]) for each in self.status()[kind]]


def local_system() -> tuple[str, Admin]:
    """The base URL of the system that runs here, and its admin listener; raises `HeadraceError`."""
    instance = find_instance(None, None)
    admin = Admin(instance.admin, admin_token(instance.token), timeout_s=ADMIN_ANSWER_S)
    return f"http://{instance.http}", admin


@dataclass(frozen=True, slots=True)
class Running:
    """A started server: its base URL and, for Headrace, what else it listens on and its token."""

    url: str
    grpc: str = ""
    admin_address: str = ""
    token_file: Path | None = None

    @property
    def admin(self) -> Admin:
        """Raises `ValueError` for a server that is not Headrace."""
        if self.token_file is None:
            raise ValueError("this server has no admin listener")
        token = self.token_file.read_text(encoding="utf-8").strip()
        return Admin(self.admin_address, token, timeout_s=ADMIN_ANSWER_S)


@contextmanager
def headrace(
    folder: Path,
    store: Path,
    models: Mapping[str, Any],
    slots: int = 1,
    access: Mapping[str, Any] = OPEN,
    more: Mapping[str, Any] = NOTHING,
    environment: Mapping[str, str] = NOTHING,
    tls: Mapping[str, Any] | None = None,
) -> Iterator[Running]:
    """Run the complete gateway in a folder of its own while the block lasts; raises `NotStarted`.

    `models` is what the config says of each; all are ready when the block begins. `access` is its
    part on `tiers` and `auth`, `more` goes into its `args`, and `tls` is
    `listen.tls`.
    """
    folder.mkdir(exist_ok=True)
    ports = free_ports(3)
    config = folder / "headrace.yaml"
    text = headrace_config(store, models, slots, ports, access, more, tls)
    config.write_text(text, encoding="utf-8")
    home = folder / "home"
    http, grpc, admin = (f"127.0.0.1:{port}" for port in ports)
    scheme = "http" if tls is None else "https"
    server = Running(f"{scheme}://{http}", grpc, admin, home / "admin.token")
    with running(
        [headrace_command(), "up", str(config)],
        folder / "headrace.log",
        {"HEADRACE_HOME": str(home), **environment},
        stop_s=DRAIN_S,
        whole_group=False,
    ) as process:
        for model in models:
            ready = partial(answers, f"{server.url}/v2/models/{model}/ready")
            wait_until(ready, process, START_S)
        yield server


def copy_models(folder: Path, models: Mapping[str, str]) -> Path:
    """A store with version 1 of demo models, by their names in it; raises `NotStarted`."""
    store = folder / "store"
    for name, model in models.items():
        built = REPOSITORY / model / "1"
        if not built.is_dir():
            raise NotStarted(f"{model} is not built: build the models first (make models)")
        shutil.copytree(built, store / name / "1")
    return store


def copy_version(store: Path, model: str, old: int, new: int) -> None:
    """Put a version beside another one as one should: under a hidden name first, then at once."""
    incoming = store / model / f".{new}-incoming"
    shutil.copytree(store / model / str(old), incoming)
    incoming.rename(store / model / str(new))


def headrace_command() -> str:
    return str(Path(sys.executable).with_name("headrace"))


def headrace_config(
    store: Path,
    models: Mapping[str, Any],
    slots: int,
    ports: list[int],
    access: Mapping[str, Any] = OPEN,
    more: Mapping[str, Any] = NOTHING,
    tls: Mapping[str, Any] | None = None,
) -> str:
    """One gateway process and slots of one core, as a Ray Serve config file."""
    names = ("http", "grpc", "admin")
    listen: dict[str, Any] = {
        name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)
    }
    if tls is not None:
        listen["tls"] = dict(tls)
    arguments = {
        "schema": 1,
        "listen": listen,
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
    try:
        return httpx.get(url, timeout=ANSWER_S, verify=False).status_code == 200
    except httpx.TransportError:
        return False


def known_key(server: Running, model: str, name: str, tier: str) -> str:
    """A new key that the gateway knows; raises `BadAnswer`, `HeadraceError`."""
    key = server.admin.make_key(name, tier)
    wait_for_key(server.url, model, key)
    return key


def wait_for_key(url: str, model: str, key: str) -> None:
    """Until the gateway at `url` knows the key; raises `BadAnswer` after some seconds."""
    limit_s = time.monotonic() + KEY_LIMIT_S
    where = f"{url}/v2/models/{model}"
    while True:
        headers = {"X-API-Key": key}
        answer = httpx.get(where, headers=headers, timeout=ADMIN_ANSWER_S, verify=False)
        if answer.status_code == 200:
            return
        if time.monotonic() > limit_s:
            raise BadAnswer(f"{where} answered {answer.status_code} to a new key")
        time.sleep(POLL_S)


@contextmanager
def keys(
    admin: Admin, url: str, model: str, name: str, tiers: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    """A key for each of `tiers`, by the environment variable for it; revoked after the block.

    Raises `BadAnswer`, `HeadraceError`.
    """
    made: dict[str, str] = {}
    try:
        for variable, tier in tiers.items():
            made[variable] = admin.make_key(f"{name}-{tier}", tier)
            wait_for_key(url, model, made[variable])
        yield made
    finally:
        for variable in made:
            admin.revoke_key(f"{name}-{tiers[variable]}")
