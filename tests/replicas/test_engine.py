"""What an engine counts and says of its times; the path around it is in `test_serving`."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from headrace.config.args import Limits
from headrace.errors import InvalidArgument, OutOfMemory
from headrace.link.channel import Channel
from headrace.link.frames import Item, Reply
from headrace.metrics import Recorder
from headrace.protocols.calls import call_number
from headrace.protocols.tensors import Call, InferenceRequest
from headrace.spec import BYTES, ModelSpec, Signature, Tensor, TensorSpec
from replicas.batcher import Batcher, Pending
from replicas.compute import ComputeThread
from replicas.engine import (
    AVERAGED_RUNS,
    BRIEF_S,
    HEAVY_BYTES,
    HEAVY_DIVISOR,
    INLINE_BYTES,
    Engine,
    Work,
)
from replicas.media_codec import MediaCodec
from replicas.statistics import ModelStatistics
from sharding.parts import Box
from tests.house import until

FLOAT = np.dtype(np.float32)
PREDICT = call_number("tfserving", "predict")
PART = call_number("media", "part")
WAITED_S = 0.5
LIMITS = Limits(max_elements=2**18)


class Gateway(Channel):
    """Keeps the answers."""

    def __init__(self) -> None:
        self.answers: list[Reply] = []
        self.came = asyncio.Event()

    def send_replies(self, replies: Sequence[Reply]) -> None:
        self.answers.extend(replies)
        self.came.set()

    async def wait_for(self, count: int) -> list[Reply]:
        while len(self.answers) < count:
            self.came.clear()
            await self.came.wait()
        return self.answers


class Doubler:
    """Runs when `go` is set; refuses negative numbers, breaks at zero."""

    def __init__(self) -> None:
        x, y = TensorSpec("x", FLOAT, (None,)), TensorSpec("y", FLOAT, (None,))
        signature = Signature("serving_default", (x,), (y,))
        self.spec = ModelSpec(
            "m", 3, "onnxruntime_onnx", {"serving_default": signature}, max_rows=4
        )
        self.go = threading.Event()
        self.go.set()
        self.single_threaded = True
        self.work_s = 0.0
        self.on_loop = False
        self.more: list[bool] = []

    def run(
        self,
        signature: str,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        more: bool = False,
    ) -> dict[str, Tensor]:
        self.go.wait(10)
        self.more.append(more)
        self.on_loop = threading.current_thread() is threading.main_thread()
        end_s = time.thread_time() + self.work_s
        while time.thread_time() < end_s:
            pass
        if (inputs["x"] < 0).any():
            raise InvalidArgument("below zero") from ValueError("below zero at /source.cc:3")
        if (inputs["x"] == 0).any():
            raise RuntimeError("broken")
        return {"y": inputs["x"] * 2}

    def close(self) -> None:
        pass


class Measurer(Doubler):
    """Gives the lengths of strings."""

    def __init__(self) -> None:
        super().__init__()
        x, y = TensorSpec("x", BYTES, (None,)), TensorSpec("y", FLOAT, (None,))
        self.spec = replace(
            self.spec, signatures={"serving_default": Signature("serving_default", (x,), (y,))}
        )

    def run(
        self,
        signature: str,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        more: bool = False,
    ) -> dict[str, Tensor]:
        self.go.wait(10)
        return {"y": np.array([len(each) for each in inputs["x"]], np.float32)}


@dataclass
class Bench:
    engine: Engine
    statistics: ModelStatistics
    runtime: Doubler
    gateway: Gateway
    sent: int = 0

    def send(self, *values: float, remaining_s: float = 10.0, padding: int = 0) -> int:
        body = json.dumps({"instances": list(values)}).encode() + b" " * padding
        return self.send_body(body, remaining_s)

    def send_body(self, body: bytes, remaining_s: float = 10.0, call: int = PREDICT) -> int:
        self.sent += 1
        item = Item(self.sent, len(body), 1, call, 0, None, remaining_s, 0, b"", body, WAITED_S)
        self.engine.accept(self.gateway, [item])
        return self.sent

    def send_tile(self, key: str, *, more: bool) -> None:
        self.sent += 1
        head = {
            "kind": "tile",
            "width": 1,
            "height": 1,
            "preprocess": f"{__name__}:Mean",
            "postprocess": f"{__name__}:nothing",
            "key": key,
            "more": more,
        }
        text = json.dumps(head).encode()
        body = text + bytes([3, 3, 3])
        item = Item(self.sent, len(body), 1, PART, 0, len(text), 10.0, 0, b"", body, WAITED_S)
        self.engine.accept(self.gateway, [item])

    def stats(self) -> dict[str, Any]:
        return dict(self.statistics.document()["inference_stats"])


class Mean:
    """A preprocessor."""

    short_side, multiple = None, 1

    def __call__(self, rgb: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": rgb.mean(axis=(1, 2), dtype=np.float32)}


def nothing(
    outputs: Mapping[str, Tensor], part_size: tuple[int, int], labels: Sequence[str]
) -> list[Box]:
    """A postprocessor."""
    return []


class SlowVideo(MediaCodec):
    """Decodes until the loop says so."""

    def __init__(self) -> None:
        super().__init__(Path(), Path())
        self.go = threading.Event()

    def decode(self, body: bytes | memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
        if not self.go.wait(5):
            raise InvalidArgument("the loop waited for the decoder")
        raise InvalidArgument("no frame can be decoded")


@asynccontextmanager
async def bench(
    max_wait_s: float = 0.0, media: MediaCodec | None = None, runtime: Doubler | None = None
) -> AsyncIterator[Bench]:
    compute, statistics, runtime = ComputeThread(), ModelStatistics(), runtime or Doubler()
    batcher = Batcher[Work](4, max_wait_s)
    engine = Engine(
        runtime, batcher, compute, Recorder("slot"), LIMITS, asyncio.Semaphore(1), statistics, media
    )
    try:
        yield Bench(engine, statistics, runtime, Gateway())
    finally:
        runtime.go.set()
        compute.close()


def sizes(document: Mapping[str, Any]) -> dict[int, int]:
    return {each["batch_size"]: each["compute_infer"]["count"] for each in document["batch_stats"]}


async def test_requests_rows_and_runs_are_counted() -> None:
    async with bench() as b:
        b.send(1.0, 2.0)
        b.send(3.0)
        b.engine.flush()  # both share a run
        await b.gateway.wait_for(2)
        b.send(4.0)
        b.engine.flush()
        await b.gateway.wait_for(3)
        document = b.statistics.document()
    assert (document["inference_count"], document["execution_count"]) == (4, 2)
    assert sizes(document) == {1: 1, 3: 1}
    stats = document["inference_stats"]
    computed = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    assert {name: stats[name]["count"] for name in computed} == dict.fromkeys(computed, 3)
    assert {stats[name]["count"] for name in ("fail", "cache_hit", "cache_miss")} == {0}


async def test_answered_requests_are_freed_without_the_collector() -> None:
    async with bench() as b:
        gc.collect()
        gc.disable()
        try:
            for number in range(1, 6):
                b.send(float(number))
                b.engine.flush()
                await b.gateway.wait_for(number)
            alive = [each for each in gc.get_objects() if isinstance(each, Pending)]
        finally:
            gc.enable()
    assert len(alive) <= 1, "the compute thread keeps its last job"


async def test_all_that_a_runtime_said_is_logged_now_and_then() -> None:
    async with bench() as b:
        with capture_logs() as logs:
            for count, later_s in enumerate((0, 60, -120), 1):
                b.engine._told_s += later_s
                b.send(-1.0)
                b.engine.flush()
                await b.gateway.wait_for(count)
    told = [(each["event"], each["reason"], each["said"]) for each in logs]
    assert told == [("run_failed", "below zero", "below zero at /source.cc:3")] * 2


async def test_times_add_up_to_less_than_the_whole_and_hold_the_wait_in_the_gateway() -> None:
    async with bench() as b:
        b.send(1.0)
        b.engine.flush()
        (answer,) = await b.gateway.wait_for(1)
        document = b.statistics.document()
    stats = {name: pair["ns"] for name, pair in document["inference_stats"].items()}
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert all(stats[name] > 0 for name in parts)
    assert sum(stats[name] for name in parts) <= stats["success"]
    assert stats["queue"] >= WAITED_S * 1e9
    (run,) = document["batch_stats"]
    assert {name: run[name]["ns"] for name in parts[1:]} == {
        name: stats[name] for name in parts[1:]
    }
    assert answer.slot_s == pytest.approx(
        answer.batch_wait_s + answer.compute_s + answer.encode_s, abs=1e-9
    )


async def test_a_request_of_several_runs_counts_all_of_them() -> None:
    async with bench() as b:
        b.send(*range(1, 11))
        b.engine.flush()
        (answer,) = await b.gateway.wait_for(1)
        document = b.statistics.document()
    assert json.loads(bytes(answer.body))["predictions"] == [2.0 * n for n in range(1, 11)]  # type: ignore[arg-type]
    assert (document["inference_count"], document["execution_count"]) == (10, 3)
    assert sizes(document) == {2: 1, 4: 2}
    stats = document["inference_stats"]
    runs_ns = sum(each["compute_infer"]["ns"] for each in document["batch_stats"])
    assert stats["compute_infer"]["count"] == 1
    assert stats["compute_infer"]["ns"] == pytest.approx(runs_ns, abs=10)
    assert stats["queue"]["ns"] + stats["compute_infer"]["ns"] <= stats["success"]["ns"]


async def runs_on_loop(b: Bench) -> bool:
    b.send(1.0)
    b.engine.flush()
    await b.gateway.wait_for(b.sent)
    return b.runtime.on_loop


async def test_brief_runs_come_to_the_loop_and_a_long_one_sends_them_back() -> None:
    async with bench() as b:
        runs = 1
        while not await runs_on_loop(b) and runs < 20_000:
            runs += 1
        assert AVERAGED_RUNS < runs < 20_000
        b.runtime.work_s = AVERAGED_RUNS * BRIEF_S
        await runs_on_loop(b)
        b.runtime.work_s = 0.0
        assert not await runs_on_loop(b)


async def test_a_runtime_that_waits_for_others_never_runs_on_the_loop() -> None:
    async with bench() as b:
        b.runtime.single_threaded = False
        assert not any([await runs_on_loop(b) for _ in range(500)])


@pytest.mark.parametrize("value", [-1.0, 0.0], ids=["refused", "broken"])
async def test_a_failed_neighbour_fails_alone(value: float) -> None:
    async with bench() as b:
        b.send(1.0)
        b.send(value)
        b.engine.flush()
        answers = await b.gateway.wait_for(2)
        document = b.statistics.document()
    assert sorted(answer.status == 200 for answer in answers) == [False, True]
    stats = document["inference_stats"]
    assert stats["success"]["count"] == stats["fail"]["count"] == 1
    assert stats["fail"]["ns"] >= WAITED_S * 1e9
    # Only runs that succeeded count: neither the one that both shared nor the bad one's own.
    assert (document["inference_count"], document["execution_count"]) == (1, 1)


@pytest.mark.parametrize(
    ("body", "call"),
    [(b"{", PREDICT), (b'{"instances": [1, "a"]}', PREDICT), (b"{}", 255)],
    ids=["json", "dtype", "call"],
)
async def test_what_cannot_be_read_counts_as_failed(body: bytes, call: int) -> None:
    async with bench() as b:
        b.send_body(body, call=call)
        b.engine.flush()
        (answer,) = await b.gateway.wait_for(1)
        stats = b.stats()
    assert answer.status != 200
    assert (stats["fail"]["count"], stats["success"]["count"], stats["queue"]["count"]) == (1, 0, 0)
    assert stats["fail"]["ns"] >= WAITED_S * 1e9


async def test_a_deadline_that_passes_in_the_slot_counts_as_failed() -> None:
    async with bench() as b:
        b.send(1.0, remaining_s=0.0)
        b.engine.flush()
        (answer,) = await b.gateway.wait_for(1)
        document = b.statistics.document()
    assert answer.status == 504 and answer.encode_s == 0
    assert document["inference_stats"]["fail"]["count"] == 1
    assert document["execution_count"] == 0


async def test_a_cancelled_request_is_not_counted_though_its_run_is() -> None:
    async with bench() as b:
        b.runtime.go.clear()
        left = b.send(1.0, 2.0)
        b.send(3.0)
        b.engine.flush()
        assert b.engine.cancel(b.gateway, left)
        b.runtime.go.set()
        await b.gateway.wait_for(1)
        document = b.statistics.document()
    assert document["inference_stats"]["success"]["count"] == document["inference_count"] == 1
    assert document["inference_stats"]["fail"]["count"] == 0
    assert sizes(document) == {3: 1}


async def test_large_bodies_are_counted_like_small_ones() -> None:
    async with bench() as b:
        b.send(1.0, padding=INLINE_BYTES)
        (answer,) = await b.gateway.wait_for(1)
        stats = b.stats()
    assert answer.status == 200
    assert stats["success"]["count"] == 1
    assert 0 < stats["compute_input"]["ns"] < stats["success"]["ns"]


async def test_the_loop_answers_while_a_segment_of_a_video_is_decoded() -> None:
    video = SlowVideo()
    async with bench(media=video) as b:
        b.send_body(b'{"kind": "segment"}', call=PART)
        b.send(1.0)
        b.engine.flush()
        await b.gateway.wait_for(1)
        video.go.set()
        first, second = await b.gateway.wait_for(2)
    assert first.status == 200
    assert b"no frame can be decoded" in bytes(second.body)  # type: ignore[arg-type]


async def test_a_run_knows_whether_more_parts_of_the_input_follow() -> None:
    async with bench(media=MediaCodec(Path(), Path())) as b:
        for number, more in enumerate([True, False]):
            b.send_tile(f"{number:02x}", more=more)
            b.engine.flush()
            await b.gateway.wait_for(b.sent)
        b.send(1.0)
        b.engine.flush()
        answers = await b.gateway.wait_for(3)
    assert [answer.status for answer in answers] == [200] * 3
    assert b.runtime.more == [True, False, False]


async def test_out_of_memory_answers_what_runs_and_leaves_what_waits() -> None:
    async with bench() as all_:
        all_.runtime.go.clear()
        running = [all_.send(1.0, 2.0), all_.send(3.0, 4.0)]
        all_.engine.flush()
        waiting = all_.send(5.0)
        all_.engine.flush()
        decoding = all_.send(6.0, padding=INLINE_BYTES)
        all_.engine.out_of_memory(OutOfMemory("the slot ran out of memory"))
        answered = {reply.id: reply.status for reply in all_.gateway.answers}
        assert answered == {**dict.fromkeys(running, 507), decoding: 507}
        assert len(all_.engine) == 1
        all_.runtime.go.set()
        replies = await all_.gateway.wait_for(4)
    assert (replies[3].id, replies[3].status) == (waiting, 200)


async def test_large_tensors_never_run_on_the_loop() -> None:
    async with bench() as all_:
        all_.engine._run_s = 0.0
        all_.engine._batcher.configure(INLINE_BYTES, 0.0)
        all_.send(1.0)
        all_.engine.flush()
        await all_.gateway.wait_for(1)
        assert all_.runtime.on_loop
        all_.send(*[1.0] * (INLINE_BYTES // 4 + 1))
        await all_.gateway.wait_for(2)
    assert not all_.runtime.on_loop


async def test_of_many_strings_a_slot_holds_one_request_at_a_time() -> None:
    def heavy(strings: int) -> bytes:
        body = json.dumps({"instances": ["a"] * strings}).encode()
        return body + b" " * HEAVY_BYTES

    most = LIMITS.max_elements // HEAVY_DIVISOR
    async with bench(runtime=Measurer()) as all_:
        engine, waiting = all_.engine, all_.engine._waiting
        engine._batcher.configure(LIMITS.max_elements, 0.0)
        all_.runtime.go.clear()
        first, second = all_.send_body(heavy(most + 1)), all_.send_body(heavy(most + 2))
        third = all_.send_body(heavy(most + 3))
        await until(lambda: waiting[all_.gateway, first].decoded)
        light = all_.send_body(b'{"instances": ["a"]}' + b" " * INLINE_BYTES)
        await until(lambda: waiting[all_.gateway, light].decoded)
        assert not waiting[all_.gateway, second].decoded
        engine.cancel(all_.gateway, second)
        engine.cancel(all_.gateway, first)
        await until(lambda: waiting[all_.gateway, third].decoded)
        fourth = all_.send_body(heavy(LIMITS.max_elements + 1))
        fifth = all_.send_body(heavy(most))
        sixth = all_.send_body(heavy(most))
        all_.runtime.go.set()
        replies = {reply.id: reply.status for reply in await all_.gateway.wait_for(5)}
    assert replies == {light: 200, third: 200, fourth: 413, fifth: 200, sixth: 200}
    assert not engine._heavy.locked()
