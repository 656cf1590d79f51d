"""The servers that the benchmark compares over gRPC, each on a free port of this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path

from loadtests.bench.grpc_exchange import ask, framed, read_answer, unframed
from loadtests.bench.h2load import GrpcTarget
from loadtests.bench.mlp import NAME, OUTPUT
from loadtests.bench.outcome import EMPTY, HEADRACE, PYTRITON
from loadtests.bench.peers.environment import find_interpreter, peer_python
from loadtests.bench.servers import ROWS, Site, check_values, gateway
from loadtests.exchange import WrongAnswer
from loadtests.headrace import ANSWER_S, START_S, BadAnswer, answers
from loadtests.processes import free_ports, running, wait_until

PEERS = Path(__file__).resolve().parent / "peers"
PINS = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
"""This pytriton takes numpy 1 only; the runtime is our own version."""

OLDEST, NEWEST = (3, 11, 0), (3, 11, 2)
"""Our onnxruntime wants 3.11, and the Python backend of this pytriton ends at 3.11.2."""

STOP_S = 10.0


@contextmanager
def started_grpc(name: str, site: Site) -> Iterator[GrpcTarget]:
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
        yield GrpcTarget(url, site.grpc.file, len(framed(answer)))


def install_pytriton() -> Path:
    """The interpreter of pytriton's environment, with our own version of the runtime."""
    base = find_interpreter(PYTRITON, OLDEST, NEWEST)
    return peer_python(PYTRITON, (*PINS, f"onnxruntime=={version('onnxruntime')}"), base)


@contextmanager
def _headrace(site: Site) -> Iterator[str]:
    with gateway(site, ROWS) as server:
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
    command = [sys.executable, str(PEERS / "empty_grpc.py"), str(port)]
    with running(command, site.folder / "empty-grpc.log") as process:
        wait_until(lambda: _answers_grpc(address), process, START_S)
        yield address


def _answers_grpc(address: str) -> bool:
    try:
        ask(address, b"", ANSWER_S)
    except WrongAnswer:
        return False
    return True


STARTS: dict[str, Callable[[Site], AbstractContextManager[str]]] = {
    HEADRACE: _headrace,
    PYTRITON: _pytriton,
    EMPTY: _empty,
}
