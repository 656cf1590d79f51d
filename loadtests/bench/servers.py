"""The servers that the benchmark compares, each started on a free port of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np

from loadtests.bench.mlp import NAME, OUTPUT, Body
from loadtests.bench.outcome import HEADRACE, MOSEC
from loadtests.bench.peers.environment import peer_python
from loadtests.exchange import (
    LENGTH_HEADER,
    Values,
    WrongAnswer,
    read_infer,
    read_predictions,
)
from loadtests.headrace import ANSWER_S, START_S, BadAnswer, Running, headrace
from loadtests.processes import free_ports, running, wait_until

ROWS = 64
TOLERANCE = 1e-4
PINS = ("mosec==0.9.8", "msgspec==0.22.0")


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
        return (replace(body, path="/inference"),)


def gateway(site: Site, rows: int) -> AbstractContextManager[Running]:
    """The complete gateway with one slot."""
    models = {NAME: {"batching": {"max_rows": rows}}}
    return headrace(site.folder, site.store, models)


@contextmanager
def started(contender: Contender, site: Site) -> Iterator[Running]:
    """Run a contender while the block lasts; raises `NotStarted` and `BadAnswer`."""
    ours = contender.name == HEADRACE
    with gateway(site, contender.rows) if ours else _mosec(contender, site) as server:
        for body in contender.bodies(site):
            check_answer(server, body, site.answer)
        yield server


def install_mosec() -> Path:
    """The interpreter of mosec's environment, with our own versions of runtime and numpy."""
    shared = [f"{package}=={version(package)}" for package in ("numpy", "onnxruntime")]
    return peer_python(MOSEC, (*PINS, *shared))


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
    """Raise `BadAnswer` unless the values are what the model says."""
    if values.shape != right.shape or not np.allclose(values, right, atol=TOLERANCE):
        raise BadAnswer(f"{where} answered {values.tolist()}, not {right.tolist()}")


@contextmanager
def _mosec(contender: Contender, site: Site) -> Iterator[Running]:
    python = install_mosec()
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


def _infers(server: Running, body: Body, right: Values) -> bool:
    try:
        check_answer(server, body, right)
    except (httpx.TransportError, BadAnswer):
        return False
    return True
