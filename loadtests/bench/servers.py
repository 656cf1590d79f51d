"""The servers that the benchmark compares, each started on a free port of this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from loadtests.bench.generators import Target
from loadtests.bench.mlp import (
    NAME,
    OUTPUT,
    Body,
    ask,
    framed,
    mlp_graph,
    read_answer,
    right_answer,
    unframed,
    write_bodies,
    write_grpc_body,
    write_version,
)
from loadtests.bench.peers.environment import find_interpreter, peer_python
from loadtests.headrace import (
    ANSWER_S,
    DRAIN_S,
    START_S,
    BadAnswer,
    Running,
    answers,
    headrace,
    headrace_command,
)
from loadtests.messages import LENGTH_HEADER, Values, WrongAnswer, read_infer, read_predictions
from loadtests.processes import NotStarted, free_ports, running, wait_until

HEADRACE = "headrace"
MOSEC = "mosec"
PYTRITON = "pytriton"
EMPTY = "empty grpc.aio"
ROWS = 64
MODELS = {NAME: {"batching": {"max_rows": ROWS}}}
TOLERANCE = 1e-4
PEERS = Path(__file__).resolve().parent / "peers"
MOSEC_PINS = ("mosec==0.9.8", "msgspec==0.22.0")
PYTRITON_PINS = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
"""This pytriton takes numpy 1 only; the runtime is our own version."""

OLDEST, NEWEST = (3, 11, 0), (3, 11, 2)
"""Our onnxruntime wants 3.11, and the Python backend of this pytriton ends at 3.11.2."""

STOP_S = 10.0
STARTUP_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Site:
    """Where one run of the benchmark keeps its files; `answer` is what the model must say.

    `bodies` are for HTTP, `grpc` for gRPC.
    """

    folder: Path
    store: Path
    model: Path
    bodies: tuple[Body, ...]
    grpc: Body
    answer: Values

    @classmethod
    def made(cls, folder: Path) -> Site:
        model = write_version(folder / "store", NAME, mlp_graph())
        bodies, grpc = write_bodies(folder), write_grpc_body(folder)
        return cls(folder, folder / "store", model, bodies, grpc, right_answer(model))


@dataclass(frozen=True, slots=True)
class Contender:
    """A server in one setting; `rows` is the largest batch that it may make."""

    name: str
    rows: int

    def __str__(self) -> str:
        if self.name == HEADRACE:
            return self.name
        return f"{self.name}, batch {self.rows}" if self.rows > 1 else f"{self.name}, no batch"

    def bodies(self, site: Site) -> tuple[Body, ...]:
        """The bodies it understands: mosec's example server only the first."""
        if self.name == HEADRACE:
            return site.bodies
        return (replace(site.bodies[0], path="/inference"),)


@contextmanager
def started(contender: Contender, site: Site) -> Iterator[Running]:
    """Run a contender while the block lasts; raises `NotStarted` and `BadAnswer`."""
    ours = contender.name == HEADRACE
    gateway = headrace(site.folder, site.store, MODELS) if ours else _mosec(contender, site)
    with gateway as server:
        for body in contender.bodies(site):
            check_answer(server, body, site.answer)
        yield server


def install_mosec() -> Path:
    """The interpreter of mosec's environment, with our own versions of runtime and numpy."""
    shared = [f"{package}=={version(package)}" for package in ("numpy", "onnxruntime")]
    return peer_python(MOSEC, (*MOSEC_PINS, *shared))


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
    check_values(where, values, right)


def check_values(where: str, values: Values, right: Values) -> None:
    if values.shape != right.shape or not np.allclose(values, right, atol=TOLERANCE):
        raise BadAnswer(f"{where} answered {values.tolist()}, not {right.tolist()}")


@contextmanager
def _mosec(contender: Contender, site: Site) -> Iterator[Running]:
    python = install_mosec()
    [port] = free_ports(1)
    sockets = site.folder / f"mosec-{contender.rows}"
    where = ["--address", "127.0.0.1", "--port", str(port), "--path", str(sockets)]
    settings = {"BENCH_MODEL": str(site.model), "BENCH_ROWS": str(contender.rows)}
    with running(
        [str(python), str(PEERS / "mosec_server.py"), *where], site.folder / "mosec.log", settings
    ) as process:
        server = Running(f"http://127.0.0.1:{port}")
        [body] = contender.bodies(site)

        def infers() -> bool:
            try:
                check_answer(server, body, site.answer)
            except (httpx.TransportError, BadAnswer):
                return False
            return True

        wait_until(infers, process, START_S)
        yield server


@contextmanager
def started_grpc(name: str, site: Site) -> Iterator[Target]:
    """Run a server while the block lasts; raises `NotStarted` and `BadAnswer`."""
    with STARTS[name](site) as address:
        message = unframed(site.grpc.file.read_bytes())
        try:
            answer = ask(address, message, ANSWER_S)
            if name != EMPTY:
                check_values(f"{name} over gRPC", read_answer(answer, OUTPUT), site.answer)
        except WrongAnswer as error:
            raise BadAnswer(f"{name} over gRPC: {error}") from error
        url = f"http://{address}{site.grpc.path}"
        yield Target(url, site.grpc.file, answer_bytes=len(framed(answer)))


def install_pytriton() -> Path:
    """The interpreter of pytriton's environment, with our own version of the runtime."""
    base = find_interpreter(PYTRITON, OLDEST, NEWEST)
    return peer_python(PYTRITON, (*PYTRITON_PINS, f"onnxruntime=={version('onnxruntime')}"), base)


@contextmanager
def _headrace(site: Site) -> Iterator[str]:
    with headrace(site.folder, site.store, MODELS) as server:
        yield server.grpc


@contextmanager
def _pytriton(site: Site) -> Iterator[str]:
    http, grpc, metrics = free_ports(3)
    home = site.folder / "pytriton"
    home.mkdir(exist_ok=True)
    settings = {
        "BENCH_MODEL": str(site.model),
        "BENCH_ROWS": str(ROWS),
        "BENCH_PORTS": f"{http},{grpc},{metrics}",
        "BENCH_FOLDER": str(home / str(grpc)),
        "PYTRITON_HOME": str(home),
    }
    command = [str(install_pytriton()), str(PEERS / "pytriton_server.py")]
    log = site.folder / "pytriton.log"
    with running(command, log, settings, stop_s=STOP_S) as process:
        ready = f"http://127.0.0.1:{http}/v2/models/{NAME}/ready"
        wait_until(lambda: answers(ready), process, START_S)
        yield f"127.0.0.1:{grpc}"


@contextmanager
def _empty(site: Site) -> Iterator[str]:
    [port] = free_ports(1)
    address = f"127.0.0.1:{port}"

    def infers() -> bool:
        try:
            ask(address, b"", ANSWER_S)
        except WrongAnswer:
            return False
        return True

    command = [sys.executable, str(PEERS / "empty_grpc.py"), str(port)]
    with running(command, site.folder / "empty-grpc.log") as process:
        wait_until(infers, process, START_S)
        yield address


STARTS: dict[str, Callable[[Site], AbstractContextManager[str]]] = {
    HEADRACE: _headrace,
    PYTRITON: _pytriton,
    EMPTY: _empty,
}


def measure_startup(config: Path, log: Path) -> dict[str, float]:
    """Seconds from `headrace up` until each model of a config answers; raises `NotStarted`."""
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
        wait_until(all_ready, process, STARTUP_LIMIT_S)
    return ready_s


def read_config(document: Any) -> tuple[str, set[str]]:
    """Base URL and model names of a Headrace config file."""
    [application] = document["applications"]
    listen = application["args"].get("listen", {}).get("http", "127.0.0.1:8080")
    pools = [each for each in application["deployments"] if each["name"] == "Pool"]
    return f"http://{listen}", set(pools[0]["user_config"]["models"])
