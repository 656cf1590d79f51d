"""Scale from zero and back on real Ray: models move onto warm slots, slots follow demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from headrace.protocols.wire import message
from tests.system.pool_system import model_state, slot_pids, tell
from tests.system.running import DOUBLED, ROW, Running, wait_for
from tests.system.sleepers.conftest import AT_ONCE, MOST, WARM, asleep, has_none

COLD_HEADER = "x-headrace-cold-start-ms"
INFER = "/inference.GRPCInferenceService/ModelInfer"

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def predict(system: Running, model: str = "affine") -> tuple[Any, str]:
    """The answer over HTTP v1 and what it says of a cold start."""
    url = f"{system.url}/v1/models/{model}:predict"
    answer = httpx.post(url, json={"instances": [ROW]}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"], answer.headers.get(COLD_HEADER, "")


def infer(system: Running) -> tuple[Any, str]:
    """The same over HTTP v2."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": ROW}
    url = f"{system.url}/v2/models/affine/infer"
    answer = httpx.post(url, json={"inputs": [tensor]}, timeout=30)
    assert answer.status_code == 200, answer.text
    return [answer.json()["outputs"][0]["data"]], answer.headers.get(COLD_HEADER, "")


def infer_grpc(system: Running) -> tuple[Any, str]:
    """The same over gRPC."""
    request = message("inference.ModelInferRequest")(model_name="affine")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    tensor.contents.fp32_contents.extend(ROW)
    reply = message("inference.ModelInferResponse")
    with grpc.insecure_channel(system.status()["addresses"]["grpc"]) as channel:
        ask = channel.unary_unary(
            INFER,
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        answer, call = ask.with_call(request, timeout=30)
        cold = dict(call.trailing_metadata()).get(COLD_HEADER, "")
    if answer.raw_output_contents:
        return [np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()], cold
    return [list(answer.outputs[0].contents.fp32_contents)], cold


@pytest.mark.parametrize("ask", [predict, infer, infer_grpc], ids=["v1", "v2", "grpc"])
def test_the_first_request_wakes_the_model_and_says_how_long_it_took(
    system: Running, ask: Callable[[Running], tuple[Any, str]]
) -> None:
    asleep(system)
    answer, cold_ms = ask(system)
    again, warm_ms = ask(system)
    assert answer == again == [DOUBLED]
    assert 0 < int(cold_ms) < 3000
    assert warm_ms == ""


def test_asking_about_a_sleeping_model_does_not_wake_it(system: Running) -> None:
    asleep(system)
    for path, told in {
        "/v1/models/affine/metadata": "signature_def",
        "/v1/models/affine": "AVAILABLE",
        "/v2/models/affine": "FP32",
        "/v2/models/affine/ready": "true",
    }.items():
        answer = httpx.get(f"{system.url}{path}")
        assert answer.status_code == 200 and told in answer.text, path
    time.sleep(0.5)  # a cold start takes less
    assert model_state(system, "affine") == "SLEEPING"


def test_five_requests_in_flight_get_five_slots_and_give_them_back(system: Running) -> None:
    asleep(system)
    wait_for(lambda: len(slot_pids(system)) == WARM, "only the warm slots", 30)
    before = slot_pids(system)
    ended = threading.Event()

    def ask_on() -> int:
        count = 0
        while not ended.is_set():
            answer = http.post(url, json={"instances": [ROW]})
            assert answer.json() == {"predictions": [DOUBLED]}, answer.text
            count += 1
        return count

    url = f"{system.url}/v1/models/affine:predict"
    with httpx.Client(timeout=30) as http, ThreadPoolExecutor(AT_ONCE) as clients:
        start_s = time.monotonic()
        asking = [clients.submit(ask_on) for _ in range(AT_ONCE)]
        try:
            wait_for(lambda: len(system.ready_slots()) == AT_ONCE, "five slots serve", 10)
            five_s = time.monotonic() - start_s
            # A sixth slot stands by: one of the warm ones, as far as the class goes.
            wait_for(lambda: len(slot_pids(system)) == MOST, "the class grows", 30)
            time.sleep(1.0)
            held = len(system.ready_slots())
        finally:
            ended.set()
        assert all(each.result() > 2 for each in asking), "a client had no answers"
    tell(f"five slots served after {five_s:.2f} s")
    assert held == AT_ONCE
    wait_for(lambda: len(system.ready_slots()) == 1, "one slot is enough", 10)
    asleep(system)
    wait_for(lambda: len(slot_pids(system)) == WARM, "the class shrinks", 30)
    assert len(slot_pids(system) & before) >= WARM - 1
    assert five_s < 3, "warm slots take over within a moment"


def test_a_class_without_warm_slots_has_none_until_somebody_asks(system: Running) -> None:
    wait_for(lambda: not slot_pids(system, "rare"), "no slot of the class", 30)
    answer, cold_ms = predict(system, "lone")
    assert answer == [DOUBLED] and int(cold_ms) > 0
    assert len(slot_pids(system, "rare")) == 1
    wait_for(lambda: not slot_pids(system, "rare"), "the slot is given back", 30)
    assert model_state(system, "lone") == "SLEEPING"
    wait_for(lambda: has_none(system, "rare"), "its process has ended", 30)
