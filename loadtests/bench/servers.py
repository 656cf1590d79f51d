"""The servers that the benchmark compares, each started on free ports of this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from loadtests.bench.generators import Target
from loadtests.bench.mlp import NAME, OUTPUT, Body, ask, framed, read_answer, unframed
from loadtests.bench.peers.environment import PEERS, peer_python
from loadtests.bench.tasks import (
    BINARY,
    GRPC,
    JSON,
    PICTURE,
    RAW,
    TFS_JSON,
    V2_BINARY,
    V2_GRPC,
    V2_JSON,
    Task,
)
from loadtests.headrace import (
    ANSWER_S,
    OPEN,
    START_S,
    BadAnswer,
    Running,
    headrace,
    known_key,
)
from loadtests.messages import LENGTH_HEADER, Values, WrongAnswer, read_infer, read_predictions
from loadtests.processes import ROOT, NotStarted, free_ports, running, wait_until

HEADRACE, BARE, EMPTY = "headrace", "bare", "empty_grpc"
ROWS = 64
MODELS: Mapping[str, Any] = {NAME: {}}
TIER = "premium"
TIERS: Mapping[str, Any] = {
    "tiers": {TIER: {"rate": "1000000/s", "burst": 1_000_000, "concurrency": 100_000}}
}
"""Limits that are checked for each request and never reached."""

TOLERANCE = 1e-4
STOP_S = 15.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server in one setting.

    `kind` is its name for `--only` and, but for Headrace, that of its file in `peers/`. `takes` has
    what it is sent for each task: the form of the body and the path, if it has one of its own.
    `batching` is what Headrace's config says of its model's batches.
    """

    kind: str
    setting: str
    takes: Mapping[str, tuple[str, str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    batching: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.setting

    def body(self, task: Task) -> Body:
        form, path = self.takes[task.name]
        body = task.bodies[form]
        return replace(body, path=path) if path else body


OURS = {
    JSON: (TFS_JSON, ""),
    BINARY: (V2_BINARY, ""),
    PICTURE: (V2_BINARY, ""),
    GRPC: (V2_GRPC, ""),
}
OFF = Server(HEADRACE, "Headrace, tiers off", OURS)
"""The setting with which peers are compared."""
LIMITED = Server(HEADRACE, "Headrace, tiers and a key", OURS)
FIXED_WAITS_S = (0.0, 0.001, 0.002, 0.005)
WAITS = (
    *(
        Server(HEADRACE, f"max_wait_s: {wait_s:g}", OURS, batching={"max_wait_s": wait_s})
        for wait_s in FIXED_WAITS_S
    ),
    Server(HEADRACE, "max_wait_s: auto", OURS),
)
"""Headrace with each of these waits of a batch, for `--waits`."""


def _handler(path: str) -> dict[str, tuple[str, str]]:
    """What a server takes whose users write the handler of a request."""
    return {JSON: (TFS_JSON, path), BINARY: (RAW, path), PICTURE: (RAW, path)}


SERVERS = (
    Server(BARE, "bare path", _handler("/v1")),
    OFF,
    LIMITED,
    Server("mosec", "mosec, batch 64", _handler("/inference")),
    Server("mosec", "mosec, no batch", _handler("/inference"), {"BENCH_ROWS": "1"}),
    Server("ray_serve", "Ray Serve", _handler("/")),
    Server(
        "ray_serve",
        "Ray Serve, HAProxy",
        _handler("/"),
        {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    ),
    Server("kserve", "KServe", OURS),
    Server("mlserver", "MLServer", {JSON: (V2_JSON, ""), GRPC: (V2_GRPC, "")}),
    Server("litserve", "LitServe", {JSON: (TFS_JSON, "/predict")}),
    Server("bentoml", "BentoML", {JSON: (TFS_JSON, "/predict")}),
    Server("pytriton", "Triton, Python backend", {**OURS, JSON: (V2_JSON, "")}),
    Server(EMPTY, "grpc.aio that does nothing", {GRPC: (V2_GRPC, "")}),
)


@contextmanager
def started(server: Server, task: Task, folder: Path) -> Iterator[Target]:
    """Run a server that holds the task's model while the block lasts, and has answered rightly.

    Raises `NotStarted`, `BadAnswer` and `PeerNotInstalled`.
    """
    body = server.body(task)
    start = _headrace if server.kind == HEADRACE else _peer
    with start(server, task, body, folder) as (process, headers):
        sent = replace(body, headers=(*body.headers, *headers))
        if body.label != V2_GRPC:
            check_answer(process, sent, task.answer, task.output)
            yield Target.of(sent, process.url)
        else:
            answer = check_grpc_answer(server, process.grpc, sent, task)
            url = f"http://{process.grpc}{body.path}"
            yield Target(url, body.file, headers, len(framed(answer)))


Started = tuple[Running, tuple[tuple[str, str], ...]]
"""A process, and the headers that a request needs besides its body's."""


@contextmanager
def _headrace(server: Server, task: Task, body: Body, folder: Path) -> Iterator[Started]:
    """The complete gateway with nothing set but its model, its tiers and where it listens."""
    limited = server == LIMITED
    access = TIERS if limited else OPEN
    home = Path(tempfile.mkdtemp(prefix="headrace-", dir=folder))
    models = {task.model: {"batching": dict(server.batching)} if server.batching else {}}
    with headrace(home, folder / "store", models, access=access) as process:
        key = "" if not limited else known_key(process, task.model, "bench", TIER)
        yield process, (("X-API-Key", key),) if key else ()


@contextmanager
def _peer(server: Server, task: Task, body: Body, folder: Path) -> Iterator[Started]:
    """A peer's file from `peers/`, in its own environment."""
    python = peer_python(server.kind, PEERS / f"{server.kind}.py")
    home = folder / server.kind
    home.mkdir(exist_ok=True)
    http, grpc, metrics = free_ports(3)
    settings = {
        "BENCH_MODEL": str(task.file),
        "BENCH_NAME": task.model,
        "BENCH_OUTPUT": task.output,
        "BENCH_FORM": body.label,
        "BENCH_PORTS": f"{http},{grpc},{metrics}",
        "BENCH_FOLDER": str(home),
        "BENCH_ROWS": str(ROWS),
        "PYTHONPATH": str(ROOT),
        **server.environment,
    }
    process = Running(f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}")

    last = ""

    def infers() -> bool:
        nonlocal last
        try:
            if body.label == V2_GRPC:
                check_grpc_answer(server, process.grpc, body, task)
            else:
                check_answer(process, body, task.answer, task.output)
        except (httpx.TransportError, BadAnswer) as error:
            last = str(error)
            return False
        return True

    log = folder / f"{server.kind}.log"
    command = [str(python), "-m", f"{__package__}.peers.{server.kind}"]
    sessions: set[int] = set()
    try:
        with running(command, log, settings, stop_s=STOP_S) as child:
            try:
                wait_until(infers, child, START_S)
                yield process, ()
            except NotStarted as error:
                raise NotStarted(f"{error}: {last}; its log: {last_line(log)}") from error
            finally:
                sessions = sessions_below(child.pid)
    finally:
        end_sessions(sessions)


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "empty"


def sessions_below(pid: int) -> set[int]:
    """The sessions of a leader of one and of its children, which may have begun others."""
    found = {pid}
    with suppress(psutil.Error, ProcessLookupError):
        found |= {os.getsid(each.pid) for each in psutil.Process(pid).children(recursive=True)}
    return found


def end_sessions(sessions: Set[int]) -> None:
    """Kill what is left of a stopped server, also what one of its processes started as it ended."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) in sessions:
                process.kill()


def check_answer(server: Running, body: Body, right: Values, output: str = OUTPUT) -> None:
    """One request must be answered with what the model says; raises `BadAnswer`."""
    where = f"{server.url}{body.path}"
    content = body.file.read_bytes()
    answer = httpx.post(where, content=content, headers=dict(body.headers), timeout=ANSWER_S)
    if answer.status_code != 200:
        raise BadAnswer(f"{where} answered {answer.status_code}: {answer.text[:200]}")
    try:
        values = read_values(answer, body, output)
    except WrongAnswer as error:
        raise BadAnswer(f"{where}: {error}") from error
    check_values(where, values, right)


def read_values(answer: httpx.Response, body: Body, output: str) -> Values:
    """The rows of an answer in the body's form; raises `WrongAnswer`."""
    if answer.content.startswith(b"["):
        # BentoML names no output.
        return np.asarray(answer.json(), np.float64)
    if body.label == RAW:
        return np.frombuffer(answer.content, "<f4").astype(np.float64)[np.newaxis]
    if body.method == "infer":
        return read_infer(answer.content, answer.headers.get(LENGTH_HEADER), output)
    return read_predictions(answer.content, output)


def check_grpc_answer(server: Server, address: str, body: Body, task: Task) -> bytes:
    """The right answer to a call over gRPC, as its message; raises `BadAnswer`."""
    message = unframed(body.file.read_bytes())
    try:
        answer = ask(address, message, ANSWER_S, body.headers)
        if server.kind != EMPTY:
            values = read_answer(answer, task.output)
            check_values(f"{server} over gRPC", values, task.answer)
    except WrongAnswer as error:
        raise BadAnswer(f"{server} over gRPC: {error}") from error
    return answer


def check_values(where: str, values: Values, right: Values) -> None:
    if values.shape != right.shape or not np.allclose(values, right, atol=TOLERANCE):
        raise BadAnswer(f"{where} answered {values.tolist()}, not {right.tolist()}"[:300])
