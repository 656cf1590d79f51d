"""What Headrace adds besides its rate: to one request, to a slot's memory, and until it answers.

Codec and runtime are called without a server, for the least that a request can take; a slot's
memory after a load is compared with that of a bare process which holds the same runtime and model;
and the demo is started from built state.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from headrace.protocols.calls import call_number
from headrace.protocols.codecs import codecs
from headrace.protocols.tensors import Call, Codec
from loadtests.bench.generators import Target, run_h2load, run_wrk
from loadtests.bench.mlp import NAME, V2_GRPC, Body, unframed
from loadtests.bench.servers import MODELS
from loadtests.bench.tasks import Site
from loadtests.headrace import DRAIN_S, BadAnswer, Running, answers, headrace, headrace_command
from loadtests.messages import LENGTH_HEADER
from loadtests.processes import ROOT, Failed, NotStarted, process_memory, running, wait_until
from loadtests.report import MIB, Report, Table, out_option, workplace
from loadtests.samples import percentile
from replicas.onnx_runtime import load
from replicas.runtime import Runtime, RuntimeSettings

STARTUP_LIMIT_S = 300.0
DEMO = ROOT / "examples" / "demo.yaml"
LOAD_IN_FLIGHT, LOAD_S, ALONE_S = 64, 3, 4
CALLS_MEASURED, WARM_CALLS = 2000, 200
PARTS = ("body", "decode µs", "run µs", "encode µs", "direct call µs", "gateway adds µs")
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
class DirectCall:
    """Medians over many calls of each part, and of the whole, in microseconds.

    `added_us` is the median latency of one request at a time beyond this call.
    """

    body: str
    decode_us: float
    run_us: float
    encode_us: float
    total_us: float
    added_us: float

    def cells(self) -> list[str]:
        parts_us = (self.decode_us, self.run_us, self.encode_us, self.total_us, self.added_us)
        return [self.body, *(f"{us:.0f}" for us in parts_us)]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a process: resident, and with shared pages divided among those who hold them."""

    rss: int
    pss: int

    @classmethod
    def of(cls, pid: int) -> Memory:
        found = process_memory(pid)
        return cls(found.rss, found.pss)

    def __str__(self) -> str:
        return f"{self.rss / MIB:.0f} MiB ({self.pss / MIB:.0f} with shared pages divided)"


@click.command(help=__doc__)
@out_option
def main(out: Path) -> None:
    report = Report("footprint", out)
    with workplace("footprint") as folder:
        site = Site.made(folder)
        with headrace(folder / "headrace", site.store, MODELS) as server:
            for body in site.bodies:
                target = Target.of(body, server.url)
                run_wrk(target, LOAD_IN_FLIGHT, LOAD_S)
            slot = slot_memory(server)
            calls = list(direct_calls(site, server))
        bare = bare_memory(site.model)
        ready_s = measure_startup(DEMO, folder / "demo.log")
    report.show(Table("One request at a time", PARTS, [call.cells() for call in calls]))
    report.say(
        f"After the load a slot holds {slot}, a bare process with the same model {bare}.",
        f"{DEMO.name}, from built state: the first model answered after "
        f"{min(ready_s.values()):.1f} s, all {len(ready_s)} after {max(ready_s.values()):.1f} s.",
    )
    report.write(direct=calls, slot=slot, bare=bare, startup=ready_s)
    report.end()


def slot_memory(server: Running) -> Memory:
    """Memory of the largest slot; raises `BadAnswer`."""
    slots = [Memory.of(pid) for pid in server.admin.pids("slots")]
    if not slots:
        raise BadAnswer("the status lists no slots")
    return max(slots, key=lambda memory: memory.rss)


def bare_memory(model: Path) -> Memory:
    """Memory of a process that has run the model once, without a server."""
    with subprocess.Popen(
        [sys.executable, "-c", BARE, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        if process.stdout.readline().strip() != b"loaded":
            raise Failed("the bare runtime process did not load the model")
        memory = Memory.of(process.pid)
        process.stdin.close()
    return memory


def direct_calls(site: Site, server: Running) -> Iterator[DirectCall]:
    """What one request of each body costs in this process, and how much longer a server takes."""
    runtime = load(site.model.parent, NAME, 1, RuntimeSettings(cores=1.0, max_rows=64))
    for body in (*site.bodies, site.grpc):
        codec = codecs()[call_number(body.protocol, body.method)]
        content = body.file.read_bytes()
        content = unframed(content) if body.protocol == V2_GRPC else content
        length = dict(body.headers).get(LENGTH_HEADER)
        call = Call(body.method, json_length=None if length is None else int(length))
        timings = [_once(content, call, codec, runtime) for _ in range(WARM_CALLS + CALLS_MEASURED)]
        decode, run, encode = zip(*timings[WARM_CALLS:], strict=True)
        totals = [sum(parts) for parts in timings[WARM_CALLS:]]
        parts = [percentile(part, 0.5) * 1e6 for part in (decode, run, encode, totals)]
        parts.append(_alone_us(body, server) - parts[-1])
        yield DirectCall(body.label, *parts)
    runtime.close()


def _alone_us(body: Body, server: Running) -> float:
    """Median latency through the gateway with one request in flight."""
    if body.protocol == V2_GRPC:
        target = Target(f"http://{server.grpc}{body.path}", body.file, answer_bytes=1)
        return run_h2load(target, 1, 1, ALONE_S).p50_ms * 1000
    return run_wrk(Target.of(body, server.url), 1, ALONE_S).p50_ms * 1000


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


if __name__ == "__main__":
    main()
