"""Headrace with an elastic pool, what is asked of it, and models of a chosen run time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from loadtests.bench.mlp import finished, write_version
from loadtests.clients import AskFailed, post
from loadtests.headrace import Running, headrace
from loadtests.messages import Message
from loadtests.pool.log import PoolLog, read_log
from loadtests.processes import Failed

COLD_HEADER = "X-Headrace-Cold-Start-Ms"
ANSWER_S = 70.0
POLL_S = 0.05
LIMIT_S = 120.0


class NotReached(Failed):
    """Raised when models or slots did not come or go in time."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: when it was due and when it left (epoch seconds), and what came of it.

    `cold_s` is what the gateway said it waited for its model, 0 for a warm one.
    """

    model: str
    due_s: float
    latency_s: float
    cold_s: float = 0.0
    error: str = ""


async def ask(client: httpx.AsyncClient, model: str, message: Message, due_s: float) -> Asked:
    error, cold_s = "", 0.0
    try:
        answer = await post(client, message)
        cold_s = float(answer.headers.get(COLD_HEADER, 0)) / 1000
    except AskFailed as failed:
        error = str(failed)
    return Asked(model, due_s, time.time() - due_s, cold_s, error)


@dataclass(frozen=True, slots=True)
class PoolSystem:
    """A running system; `folder` is where its Ray leaves the logs of all processes."""

    server: Running
    folder: Path

    async def asleep(self, model: str, *, slots: int = 2**31) -> None:
        """Wait until a model sleeps, no slot holds any, and at most `slots` are left."""

        def sleeps(status: dict[str, Any]) -> bool:
            [own] = (each for each in status["models"] if each["name"] == model)
            states = {version["state"] for version in own["versions"]}
            held = any(slot["models"] for slot in status["slots"])
            return states == {"SLEEPING"} and not held and len(status["slots"]) <= slots

        await self.until(sleeps)

    async def until(self, true: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until something is true of the status; raises `NotReached`."""
        limit_s = time.monotonic() + LIMIT_S
        admin = self.server.admin
        while not true(status := await asyncio.to_thread(admin.status)):
            if time.monotonic() > limit_s:
                slots, models = len(status["slots"]), status["models"]
                raise NotReached(f"after {LIMIT_S:g} s there are {slots} slots, models {models}")
            await asyncio.sleep(POLL_S)

    def log(self) -> PoolLog:
        sessions = [each for each in self.folder.glob("session_2*") if each.is_dir()]
        return read_log(max(sessions, key=lambda each: each.stat().st_mtime))


@contextmanager
def elastic(
    folder: Path, store: Path, models: Mapping[str, Any], slots: Mapping[str, Any]
) -> Iterator[PoolSystem]:
    """Run Headrace while the block lasts, with its own folder for Ray; raises `NotStarted`."""
    more, environment = {"slots": dict(slots)}, {"RAY_TMPDIR": str(folder)}
    with headrace(folder, store, models, more=more, environment=environment) as server:
        yield PoolSystem(server, folder / "ray" if (folder / "ray").is_dir() else folder)


WIDTH = 64
TRY_ROUNDS = 2_000
TRY_S = 1.0


def loop_graph(rounds: int) -> onnx.GraphProto:
    """FP32 `x` [rows, 64] to `y` [rows, 64]: `rounds` products with a matrix, one by one."""
    matrix = np.eye(WIDTH, dtype=np.float32) * np.float32(0.9999)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("MatMul", ["state", "matrix"], ["next_state"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["rows", WIDTH]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_state", TensorProto.FLOAT, ["rows", WIDTH]),
        ],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    return helper.make_graph(
        [helper.make_node("Loop", ["rounds", "always", "x"], ["y"], body=body)],
        "loop",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", WIDTH])],
        [
            numpy_helper.from_array(np.int64(rounds), "rounds"),
            numpy_helper.from_array(np.bool_(True), "always"),
        ],
    )


def run_s(model: onnx.ModelProto) -> float:
    """The median time of a run with one row, on one core, of as many as a second takes.

    Shorter tries tell little: the pace of a shared machine doubles and halves within milliseconds.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    row = {"x": np.zeros((1, WIDTH), np.float32)}
    times: list[float] = []
    end_s = time.perf_counter() + TRY_S
    while not times or time.perf_counter() < end_s:
        begin_s = time.perf_counter()
        session.run(None, row)
        times.append(time.perf_counter() - begin_s)
    return median(times)


def write_model(store: Path, name: str, seconds: float) -> None:
    """Write version 1 of a model whose run takes about `seconds` on this machine."""
    rounds = max(1, round(TRY_ROUNDS * seconds / run_s(finished(loop_graph(TRY_ROUNDS)))))
    write_version(store, name, loop_graph(rounds))
