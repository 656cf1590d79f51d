"""The Open Inference Protocol over gRPC, spoken by the unmodified tritonclient."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import onnx
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from gateway.grpc.prediction import MAX_IN_FLIGHT
from gateway.view import RELEASE
from headrace.config.args import Batching, Limits, ModelConfig
from headrace.config.scaling import Routing
from headrace.protocols.wire import message
from headrace.snapshot import ModelView
from tests.house import House, grpc_channel, open_house, until
from tests.link_ends import MAX_BODY_BYTES

ROW = np.array([[1, 2, 3, 4]], np.float32)
DOUBLED = [[3, 5, 7, 9]]
WAITING = ModelConfig(batching=Batching(max_rows=8, max_wait_s=20))
INFER = "/inference.GRPCInferenceService/ModelInfer"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@asynccontextmanager
async def triton(house: House) -> AsyncIterator[Any]:
    """tritonclient's asynchronous client of that house."""
    async with tritonclient.grpc.aio.InferenceServerClient(house.grpc.address) as client:
        yield client


def rows(values: NDArray[np.float32] = ROW) -> list[Any]:
    tensor = tritonclient.grpc.InferInput("x", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    return [tensor]


def echo_model(path: Path) -> None:
    """Write an ONNX model `y = x` of strings [rows]."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "echo",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["rows"])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["rows"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path))


async def code_of(awaitable: Any) -> tuple[str, str]:
    """Status and details of a call that must fail."""
    with pytest.raises(InferenceServerException) as caught:
        await awaitable
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


async def test_the_asynchronous_client_infers(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, triton(house) as client:
        answer = await client.infer("affine", rows(), request_id="mine", model_version="1")
        newest = await client.infer("affine", rows(np.repeat(ROW, 21, axis=0)))
    assert answer.as_numpy("y").tolist() == DOUBLED
    assert newest.as_numpy("y").tolist() == DOUBLED * 21
    found = answer.get_response()
    assert (found.id, found.model_name, found.model_version) == ("mine", "affine", "1")


async def test_the_blocking_client_infers(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:

        def infer() -> Any:
            client = tritonclient.grpc.InferenceServerClient(house.grpc.address)
            with client:
                assert client.is_server_live() and client.is_server_ready()
                return client.infer("affine", rows(), compression_algorithm="gzip")

        answer = await asyncio.to_thread(infer)
    assert answer.as_numpy("y").tolist() == DOUBLED


async def test_a_large_tensor_passes_both_ways(tmp_path: Path) -> None:
    values = np.tile(ROW, (1_250_000, 1))
    config = ModelConfig(batching=Batching(max_rows=65_536))
    more: dict[str, Any] = {"config": config, "limits": Limits(max_body_bytes=64 * 1024 * 1024)}
    async with open_house(tmp_path, "a", **more) as house, triton(house) as client:
        answer = await client.infer("affine", rows(values))
    assert answer.as_numpy("y").shape == values.shape
    assert (answer.as_numpy("y") == np.array(DOUBLED, np.float32)).all()


async def test_strings_pass(tmp_path: Path) -> None:
    echo_model(tmp_path / "store" / "echo" / "1" / "model.onnx")
    words = np.array([b"one", "zwölf".encode(), b""], object)
    tensor = tritonclient.grpc.InferInput("x", [3], "BYTES")
    tensor.set_data_from_numpy(words)
    async with open_house(tmp_path, "a") as house, triton(house) as client:
        await house.place("a", "echo", 1, ModelConfig())
        answer = await client.infer("echo", [tensor])
    assert answer.as_numpy("y").tolist() == words.tolist()


async def test_too_many_strings_are_refused_with_the_limit(tmp_path: Path) -> None:
    echo_model(tmp_path / "store" / "echo" / "1" / "model.onnx")
    tensor = tritonclient.grpc.InferInput("x", [1025], "BYTES")
    tensor.set_data_from_numpy(np.full(1025, b"a", object))
    body = {"inputs": ["a"] * 1025}
    limits = Limits(max_body_bytes=MAX_BODY_BYTES, max_elements=1024)
    async with open_house(tmp_path, "a", limits=limits) as house, triton(house) as client:
        await house.place("a", "echo", 1, ModelConfig())
        with pytest.raises(InferenceServerException, match=r"RESOURCE_EXHAUSTED.*1024 elements"):
            await client.infer("echo", [tensor])
        async with httpx.AsyncClient(base_url=house.url, verify=False) as http:
            answer = await http.post("/v1/models/echo:predict", json=body)
            body["inputs"] = body["inputs"][:1000]
            assert (await http.post("/v1/models/echo:predict", json=body)).status_code == 200
    assert answer.status_code == 413 and "max_elements" in answer.json()["error"]


async def test_what_a_client_asks_before_it_infers(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, triton(house) as client:
        empty = ModelView("empty", ModelConfig(), ())
        house.publish(replace(house.snapshot, models={**house.snapshot.models, "empty": empty}))
        ready = [
            await client.is_model_ready("affine"),
            await client.is_model_ready("affine", "1"),
            await client.is_model_ready("affine", "9"),
            await client.is_model_ready("nobody"),
            await client.is_model_ready("empty"),
        ]
        server = await client.get_server_metadata()
        metadata = await client.get_model_metadata("affine")
        config = (await client.get_model_config("affine")).config
    assert ready == [True, True, False, False, False]
    assert (server.name, server.version) == ("triton", RELEASE) and server.extensions
    assert (metadata.name, list(metadata.versions)) == ("affine", ["1"])
    (tensor,) = metadata.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("x", "FP32", [-1, 4])
    assert config.max_batch_size == 8 and list(config.input[0].dims) == [4]


async def test_statistics_count_requests(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, triton(house) as client:
        await client.infer("affine", rows())
        every = await client.get_inference_statistics()
        one = await client.get_inference_statistics("affine", "1")
        unknown = await code_of(client.get_inference_statistics("nobody"))
    (stats,) = every.model_stats
    assert (stats.name, stats.version, stats.inference_count) == ("affine", "1", 1)
    assert stats.inference_stats.success.count == 1 and stats.inference_stats.success.ns > 0
    assert one.model_stats[0].inference_count == 1
    assert unknown[0] == "NOT_FOUND"


async def test_the_index_lists_the_store(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, triton(house) as client:
        index = await client.get_model_repository_index()
    found = {(model.name, model.version, model.state) for model in index.models}
    assert found == {("idle", "", "UNAVAILABLE"), ("affine", "1", "READY")}


async def test_loading_is_refused_where_it_is_not_open(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, triton(house) as client:
        load = await code_of(client.load_model("affine"))
        unload = await code_of(client.unload_model("affine"))
    assert load[0] == unload[0] == "PERMISSION_DENIED" and not house.told
    assert "repository.control: public" in load[1] and "admin listener" in load[1]


async def test_models_are_loaded_and_unloaded_where_it_is_open(tmp_path: Path) -> None:
    more: dict[str, Any] = {"repository_control": "public"}
    async with open_house(tmp_path, "a", **more) as house, triton(house) as client:
        await client.load_model("affine")
        await client.load_model("affine", config=json.dumps({"max_batch_size": 4}))
        await client.unload_model("affine")
        wrong = await code_of(client.load_model("affine", config="[1]"))
        files = await code_of(
            client.load_model("affine", config="{}", files={"file:1/model.onnx": b"bytes"})
        )
    assert house.told == [
        ("load", "affine", None),
        ("load", "affine", {"max_batch_size": 4}),
        ("unload", "affine"),
    ]
    assert wrong[0] == "INVALID_ARGUMENT" and wrong[1].startswith("failed to load 'affine', ")
    assert files[0] == "INTERNAL" and "failed to poll from model repository" in files[1]


async def test_errors_are_a_status_with_details(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, triton(house) as client:
        unknown = await code_of(client.infer("nobody", rows()))
        version = await code_of(client.infer("affine", rows(), model_version="9"))
        number = await code_of(client.infer("affine", rows(), model_version="one"))
        shape = await code_of(client.infer("affine", rows(ROW[:, :3])))
        large = await code_of(client.infer("affine", rows(np.zeros((70_000, 4), np.float32))))
        fine = await client.infer("affine", rows())
    assert unknown == ("NOT_FOUND", "Request for unknown model: 'nobody' is not found")
    assert version == ("NOT_FOUND", "Request for unknown model: 'affine' version 9 is not found")
    assert number[0] == shape[0] == "INVALID_ARGUMENT"
    assert large[0] == "RESOURCE_EXHAUSTED" and str(MAX_BODY_BYTES) in large[1]
    assert fine.as_numpy("y").tolist() == DOUBLED


async def test_raw_and_typed_contents_do_not_mix(tmp_path: Path) -> None:
    request = message("inference.ModelInferRequest")(model_name="affine")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    tensor.contents.fp32_contents.extend(ROW[0].tolist())
    async with open_house(tmp_path, "a") as house, grpc_channel(house) as channel:
        call = channel.unary_unary(INFER)
        typed = await call(request.SerializeToString())
        request.raw_input_contents.append(ROW.tobytes())
        with pytest.raises(grpc.aio.AioRpcError) as mixed:
            await call(request.SerializeToString())
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            await call(b"\xff\xff\xff")
        counted = house.recorder.snapshot().samples["headrace_requests_total"]
    answer = message("inference.ModelInferResponse").FromString(typed)
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == DOUBLED[0]
    assert counted[("", 0, "grpc", 400, "none")] == (1,)
    assert mixed.value.code() is broken.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_request_id_comes_back(tmp_path: Path) -> None:
    request = message("inference.ModelInferRequest")(model_name="nobody").SerializeToString()
    async with open_house(tmp_path, "a") as house, grpc_channel(house) as channel:
        call = channel.unary_unary(INFER)
        kept = call(request, metadata=(("x-request-id", "my-id"),))
        made = call(request, metadata=(("x-request-id", "not valid"),))
        codes = {await kept.code(), await made.code()}
        ids = [dict(await each.trailing_metadata())["x-request-id"] for each in (kept, made)]
    assert codes == {grpc.StatusCode.NOT_FOUND}
    assert ids[0] == "my-id" and len(ids[1]) == 16


async def test_who_should_try_again_is_told_when(tmp_path: Path) -> None:
    request = message("inference.ModelInferRequest")(model_name="affine").SerializeToString()
    async with open_house(tmp_path) as house, grpc_channel(house) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(INFER)(request)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1050"


async def test_hash_routing_keys_on_metadata(tmp_path: Path) -> None:
    routing = Routing(policy="hash", header="X-User")
    config = ModelConfig(batching=Batching(max_rows=8), routing=routing)
    slots = ("a", "b")
    async with open_house(tmp_path, *slots, config=config) as house, triton(house) as client:
        seats = house.plane.router._seats
        await until(lambda: all(seats[slot, 1].credit for slot in slots))
        for _ in range(12):
            await client.infer("affine", rows(), headers={"x-user": "somebody"})
        runs = [
            len(service._recorder.snapshot().samples["headrace_batch_rows"])
            for service in house.services.values()
        ]
    assert sorted(runs) == [0, 1]


async def test_a_cancelled_call_is_cancelled_in_the_slot(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", config=WAITING) as house, triton(house) as client:
        engine = house.services["a"]._placements.engine(1)
        assert engine is not None
        task = asyncio.create_task(client.infer("affine", rows()))
        await until(lambda: len(engine))
        task.cancel()
        await until(lambda: not len(engine))
        counted = house.services["a"]._recorder.snapshot().samples["headrace_cancellations_total"]
        assert not len(house.plane.router)
    assert counted == {("affine",): (1,)}


async def test_a_deadline_that_passes(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", config=WAITING) as house, triton(house) as client:
        await house.hold("a")
        late = await code_of(client.infer("affine", rows(), client_timeout=0.2))
        await until(lambda: not len(house.plane.router))
        counted = house.recorder.snapshot().samples["headrace_requests_total"]
    assert late[0] == "DEADLINE_EXCEEDED"
    assert counted == {("affine", 1, "openinference_grpc", 504, "none"): (1,)}


async def test_without_a_deadline_the_configured_one_holds(tmp_path: Path) -> None:
    limits = Limits(default_deadline_s=0.05)
    async with open_house(tmp_path, "a", limits=limits) as house, triton(house) as client:
        await house.hold("a")
        late = await code_of(client.infer("affine", rows()))
    assert late == ("DEADLINE_EXCEEDED", "the deadline passed before the answer was ready")


async def test_a_slot_that_dies_is_not_noticed(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", "b") as house, triton(house) as client:
        await house.hold("a")
        await house.hold("b")
        tasks = [asyncio.create_task(client.infer("affine", rows())) for _ in range(8)]
        await until(lambda: len(house.plane.router) == 8)
        for service in house.services.values():
            service.set_capacity({1: 32})
        await until(lambda: len(house.plane.router._lanes["a"].in_flight))
        await house.kill_slot("a")
        answers = await asyncio.gather(*tasks)
        retried = house.recorder.snapshot().samples["headrace_retries_total"]
    assert [answer.as_numpy("y").tolist() for answer in answers] == [DOUBLED] * 8
    assert retried[("affine",)][0] >= 1


async def inputs(*models: str) -> AsyncIterator[dict[str, Any]]:
    """A stream's requests; the first row's first value numbers them, and so does their id."""
    for number, model in enumerate(models):
        values = np.full((1, 4), number, np.float32)
        yield {"model_name": model, "inputs": rows(values), "request_id": str(number)}


async def test_a_stream_answers_in_order_and_survives_errors(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, triton(house) as client:
        models = ["affine"] * 100 + ["nobody"] + ["affine"] * 100
        answers = [each async for each in client.stream_infer(inputs(*models))]
    assert len(answers) == 201
    failed = answers.pop(100)
    assert failed[0] is None and "nobody" in failed[1].message()
    ids = [int(result.get_response().id) for result, _ in answers]
    assert ids == [number for number in range(201) if number != 100]
    firsts = [result.as_numpy("y")[0, 0] for result, _ in answers]
    assert firsts == [2 * number + 1 for number in ids]


async def test_an_error_in_a_stream_names_its_request(tmp_path: Path) -> None:
    request = message("inference.ModelInferRequest")(model_name="nobody", id="mine")
    response = message("inference.ModelStreamInferResponse")
    async with open_house(tmp_path, "a") as house, grpc_channel(house) as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
        await call.write(request.SerializeToString())
        named = response.FromString(await call.read())
        await call.write(b"\xff\xff\xff")
        broken = response.FromString(await call.read())
        await call.done_writing()
        end, code = await call.read(), await call.code()
    assert named.infer_response.id == "mine" and "nobody" in named.error_message
    assert broken.error_message
    assert end is grpc.aio.EOF and code is grpc.StatusCode.OK


async def test_a_stream_is_read_only_so_far_ahead(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, triton(house) as client:
        await house.hold("a")
        stream = client.stream_infer(inputs(*["affine"] * 200))
        task = asyncio.create_task(anext(stream))
        await until(lambda: len(house.plane.router) == MAX_IN_FLIGHT)
        fine = await client.is_server_live()
        held = len(house.plane.router)
        house.services["a"].set_capacity({1: 32})
        answers = [await task, *[each async for each in stream]]
    assert fine and held == MAX_IN_FLIGHT
    assert len(answers) == 200 and all(error is None for _, error in answers)


async def test_a_cancelled_stream_frees_its_places(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", config=WAITING) as house, triton(house) as client:
        engine = house.services["a"]._placements.engine(1)
        assert engine is not None
        stream = client.stream_infer(inputs("affine", "affine", "affine"))
        task = asyncio.create_task(anext(stream))
        await until(lambda: len(engine) == 3)
        stream.cancel()
        await until(lambda: not len(engine) and not len(house.plane.router))
        with pytest.raises((InferenceServerException, asyncio.CancelledError, StopAsyncIteration)):
            await task
        counted = house.recorder.snapshot().samples["headrace_cancellations_total"]
    assert counted == {("affine",): (3,)}


async def test_a_listener_that_stops_ends_its_streams(tmp_path: Path) -> None:
    request = message("inference.ModelInferRequest")(model_name="nobody").SerializeToString()
    async with open_house(tmp_path, "a") as house, grpc_channel(house) as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
        await call.write(request)
        first = await call.read()
        async with asyncio.timeout(10):
            await house.grpc.stop(60)
        code = await call.code()
    assert isinstance(first, bytes) and code is grpc.StatusCode.UNAVAILABLE
