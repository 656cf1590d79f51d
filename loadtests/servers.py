"""The servers that the benchmark compares, each started on a free port of this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np
import yaml

from loadtests.exchange import (
    LENGTH_HEADER,
    Values,
    WrongAnswer,
    read_infer,
    read_predictions,
)
from loadtests.mlp import NAME, OUTPUT, Body
from loadtests.outcome import HEADRACE, MOSEC
from loadtests.peers.environment import peer_python
from loadtests.processes import free_ports, running, wait_until

ROWS = 64
START_S = 90.0
DRAIN_S = 60.0
ANSWER_S = 2.0
TOLERANCE = 1e-4
PINS = ("mosec==0.9.8", "msgspec==0.22.0")


class BadAnswer(Exception):
    """Raised when a server answers the benchmark's request with something else than the model."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where one run of the benchmark keeps its files; `answer` is what the model must say."""

    folder: Path
    store: Path
    model: Path
    bodies: tuple[Body, ...]
    answer: Values


@dataclass(frozen=True, slots=True)
class Running:
    """A started server: its base URL and, for Headrace, its admin address and token file."""

    url: str
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


@dataclass(frozen=True, slots=True)
class Contender:
    """A server in one setting; `rows` is the largest batch that it may make."""

    name: str
    rows: int

    @property
    def label(self) -> str:
        """The name with its setting."""
        if self.name == HEADRACE:
            return self.name
        return f"{self.name}, batch {self.rows}" if self.rows > 1 else f"{self.name}, no batch"

    def bodies(self, site: Site) -> tuple[Body, ...]:
        """The bodies it understands: mosec's example server only the first."""
        if self.name == HEADRACE:
            return site.bodies
        body = site.bodies[0]
        return (Body(body.label, body.method, "/inference", body.file, body.headers),)


@contextmanager
def started(contender: Contender, site: Site) -> Iterator[Running]:
    """Run a contender while the block lasts; raises `NotStarted` and `BadAnswer`."""
    start = _headrace if contender.name == HEADRACE else _mosec
    with start(contender, site) as server:
        for body in contender.bodies(site):
            check_answer(server, body, site.answer)
        yield server


def install_peers() -> Path:
    """The interpreter of mosec's environment, with our own versions of runtime and numpy."""
    shared = [f"{package}=={version(package)}" for package in ("numpy", "onnxruntime")]
    return peer_python(MOSEC, (*PINS, *shared))


def headrace_command() -> str:
    """The `headrace` of the environment that runs this."""
    return str(Path(sys.executable).with_name("headrace"))


def headrace_config(site: Site, rows: int, ports: list[int]) -> str:
    """The complete gateway with one slot, as a Ray Serve config file."""
    names = ("http", "grpc", "admin")
    arguments = {
        "schema": 1,
        "listen": {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)},
        "gateways": 1,
        "slots": {"cpu": {"count": 1, "cpus": 1}},
        "store": str(site.store),
    }
    pool = {"name": "Pool", "user_config": {"models": {NAME: {"batching": {"max_rows": rows}}}}}
    application = {
        "name": "headrace",
        "import_path": "gateway.app:build",
        "args": arguments,
        "deployments": [pool],
    }
    document = {"proxy_location": "Disabled", "applications": [application]}
    return yaml.safe_dump(document, sort_keys=False)


def check_answer(server: Running, body: Body, right: Values) -> None:
    """One request must be answered with what the model says; raises `BadAnswer`."""
    where = f"{server.url}{body.path}"
    content = body.file.read_bytes()
    answer = httpx.post(where, content=content, headers=dict(body.headers), timeout=ANSWER_S)
    if answer.status_code != 200:
        raise BadAnswer(f"{where} answered {answer.status_code}: {answer.text[:200]}")
    try:
        values = (
            read_infer(answer.content, answer.headers.get(LENGTH_HEADER), OUTPUT)
            if body.method == "infer"
            else read_predictions(answer.content, OUTPUT)
        )
    except WrongAnswer as error:
        raise BadAnswer(f"{where}: {error}") from error
    if values.shape != right.shape or not np.allclose(values, right, atol=TOLERANCE):
        raise BadAnswer(f"{where} answered {values.tolist()}, not {right.tolist()}")


@contextmanager
def _headrace(contender: Contender, site: Site) -> Iterator[Running]:
    ports = free_ports(3)
    config = site.folder / "headrace.yaml"
    config.write_text(headrace_config(site, contender.rows, ports), encoding="utf-8")
    home = site.folder / "home"
    server = Running(
        f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[2]}", home / "admin.token"
    )
    with running(
        [headrace_command(), "up", str(config)],
        site.folder / "headrace.log",
        {"HEADRACE_HOME": str(home)},
        stop_s=DRAIN_S,
        whole_group=False,
    ) as process:
        wait_until(lambda: answers(f"{server.url}/v2/models/{NAME}/ready"), process, START_S)
        yield server


@contextmanager
def _mosec(contender: Contender, site: Site) -> Iterator[Running]:
    python = install_peers()
    [port] = free_ports(1)
    sockets = site.folder / f"mosec-{contender.rows}"
    script = Path(__file__).resolve().parent / "peers" / "mosec_server.py"
    where = ["--address", "127.0.0.1", "--port", str(port), "--path", str(sockets)]
    settings = {"BENCH_MODEL": str(site.model), "BENCH_ROWS": str(contender.rows)}
    with running(
        [str(python), str(script), *where], site.folder / "mosec.log", settings
    ) as process:
        server = Running(f"http://127.0.0.1:{port}")
        [body] = contender.bodies(site)
        wait_until(lambda: _infers(server, body, site.answer), process, START_S)
        yield server


def answers(url: str) -> bool:
    """Whether a GET is answered with 200 now."""
    try:
        return httpx.get(url, timeout=ANSWER_S).status_code == 200
    except httpx.TransportError:
        return False


def _infers(server: Running, body: Body, right: Values) -> bool:
    try:
        check_answer(server, body, right)
    except (httpx.TransportError, BadAnswer):
        return False
    return True
