"""Servers taking turns under load: one lives at a time, so a slow minute meets them all.

Beside them, what one request costs without a server, and what the runtime alone holds in memory.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from headrace.protocols.calls import call_number
from headrace.protocols.codecs import codecs
from headrace.protocols.tensors import Call, Codec
from loadtests.bench.generators import Target, run_grpcio, run_h2load, run_wrk
from loadtests.bench.mlp import NAME, V2_GRPC, Body, unframed
from loadtests.bench.outcome import GRPCIO, DirectCall, Measured
from loadtests.bench.servers import (
    EMPTY,
    HEADRACE,
    MOSEC,
    PYTRITON,
    ROWS,
    Contender,
    Site,
    started,
    started_grpc,
)
from loadtests.headrace import BadAnswer, Running
from loadtests.messages import LENGTH_HEADER
from loadtests.processes import Failed, process_memory
from loadtests.samples import percentile
from replicas.onnx_runtime import load
from replicas.runtime import Runtime, RuntimeSettings

CONNECTIONS = (1, 16, 64)
STREAMS = ((1, 1), (4, 4), (4, 16))
"""Connections and streams on each."""

WARM_UP_CONNECTIONS = 16
WARM_UP_STREAMS = (4, 4)
HTTP = (Contender(HEADRACE, ROWS), Contender(MOSEC, ROWS), Contender(MOSEC, 1))
GRPC = (HEADRACE, PYTRITON, EMPTY)
CALLS_MEASURED = 2000
T = TypeVar("T")
WARM_CALLS = 200
BARE = """
import sys
import numpy
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {session.get_inputs()[0].name: numpy.zeros((64, 784), numpy.float32)})
print("loaded", flush=True)
sys.stdin.read()
"""
"""Yardstick for a slot: a process with nothing but the runtime and the model."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often each server takes its turn, and the seconds before and of a measurement."""

    rounds: int
    warm_up: int
    seconds: int
    tell: Callable[[str], None]

    def turns(self, servers: Iterable[T]) -> Iterator[T]:
        for number in range(1, self.rounds + 1):
            for server in servers:
                self.tell(f"round {number} of {self.rounds}: {server}")
                yield server


def http_race(
    contenders: Iterable[Contender], site: Site, schedule: Schedule
) -> tuple[list[Measured], dict[str, int]]:
    """Every body at every number of connections, and the memory of Headrace's slot after it."""
    measured: list[Measured] = []
    memory: dict[str, int] = {}
    for contender in schedule.turns(contenders):
        with started(contender, site) as server:
            for body in contender.bodies(site):
                target = Target.of(body, server.url)
                run_wrk(target, WARM_UP_CONNECTIONS, schedule.warm_up)
                for connections in CONNECTIONS:
                    result = run_wrk(target, connections, schedule.seconds)
                    measured.append((str(contender), body.label, result))
            if contender.name == HEADRACE:
                memory = slot_memory(server, site.model)
    return measured, memory


def grpc_race(names: Iterable[str], site: Site, schedule: Schedule) -> list[Measured]:
    """One inference over gRPC at every number of streams, by h2load and by grpcio's client."""
    measured: list[Measured] = []
    label = site.grpc.label
    for name in schedule.turns(names):
        with started_grpc(name, site) as target:
            run_h2load(target, *WARM_UP_STREAMS, schedule.warm_up)
            for run, body in ((run_h2load, label), (run_grpcio, f"{label}, {GRPCIO}")):
                for connections, streams in STREAMS:
                    result = run(target, connections, streams, schedule.seconds)
                    measured.append((name, body, result))
    return measured


def slot_memory(server: Running, model: Path) -> dict[str, int]:
    """Bytes of the largest slot after the load, and of a bare process that has run the model."""
    slots = [process_memory(pid) for pid in server.admin.pids("slots")]
    if not slots:
        raise BadAnswer("the status lists no slots")
    slot = max(slots, key=lambda memory: memory.rss)
    with subprocess.Popen(
        [sys.executable, "-c", BARE, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        if process.stdout.readline().strip() != b"loaded":
            raise Failed("the bare runtime process did not load the model")
        bare = process_memory(process.pid)
        process.stdin.close()
    found = {"rss_bytes": slot.rss, "pss_bytes": slot.pss}
    return found | {"bare_rss_bytes": bare.rss, "bare_pss_bytes": bare.pss}


def direct_calls(site: Site, bodies: Iterable[Body]) -> list[DirectCall]:
    """What one request of each body costs in this process: decode, run and encode."""
    runtime = load(site.model.parent, NAME, 1, RuntimeSettings(cores=1.0, max_rows=64))
    found = []
    for body in bodies:
        content = body.file.read_bytes()
        if body.protocol == V2_GRPC:
            content = unframed(content)
        codec = codecs()[call_number(body.protocol, body.method)]
        length = dict(body.headers).get(LENGTH_HEADER)
        call = Call(body.method, json_length=None if length is None else int(length))
        timings = [_once(content, call, codec, runtime) for _ in range(WARM_CALLS + CALLS_MEASURED)]
        decode, run, encode = zip(*timings[WARM_CALLS:], strict=True)
        totals = [sum(parts) for parts in timings[WARM_CALLS:]]
        parts = (percentile(part, 0.5) * 1e6 for part in (decode, run, encode, totals))
        found.append(DirectCall(body.label, *parts))
    runtime.close()
    return found


def _once(content: bytes, call: Call, codec: Codec, runtime: Runtime) -> tuple[float, float, float]:
    spec = runtime.spec
    begin = time.perf_counter()
    request = codec.decode(content, call, spec)
    decoded = time.perf_counter()
    names = request.outputs or tuple(output.name for output in request.signature.outputs)
    outputs = runtime.run(request.signature.name, request.inputs, names)
    ran = time.perf_counter()
    codec.encode(request, outputs, spec)
    return decoded - begin, ran - decoded, time.perf_counter() - ran
