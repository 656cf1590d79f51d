"""tritonclient, unmodified, against the running gateway: HTTP and gRPC, blocking and aio."""

from __future__ import annotations

import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

from tests.clients.conftest import Addresses
from tests.system.running import DOUBLED, ROW, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

KINDS = {"http": triton_http, "grpc": triton_grpc}
AIO_KINDS = {"http": triton_http_aio, "grpc": triton_grpc_aio}
ANSWER_S = 20


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """The protocol."""
    return str(request.param)


@pytest.fixture
def client(kind: str, gateway: Addresses) -> Iterator[Any]:
    """The blocking client of the protocol."""
    with KINDS[kind].InferenceServerClient(getattr(gateway, kind)) as client:
        yield client


def rows(kind: str, count: int = 2) -> list[Any]:
    """`x` with this many rows, as raw bytes."""
    tensor = KINDS[kind].InferInput("x", [count, 4], "FP32")
    tensor.set_data_from_numpy(np.array([ROW] * count, np.float32))
    return [tensor]


def as_document(client: Any, kind: str, name: str, *arguments: Any) -> Any:
    """What a method answers, with gRPC's messages as JSON documents."""
    options = {} if kind == "http" else {"as_json": True}
    return getattr(client, name)(*arguments, **options)


def test_health(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("affine") and client.is_model_ready("affine", "1")
    assert not client.is_model_ready("affine", "9") and not client.is_model_ready("nobody")


def test_infer_echoes_the_id_and_names_the_version(client: Any, kind: str) -> None:
    result = client.infer("affine", rows(kind), request_id="7")
    assert result.as_numpy("y").tolist() == [DOUBLED, DOUBLED]
    answer = client_answer(result, kind)
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "affine", "2")
    older = client.infer("affine", rows(kind), model_version="1")
    assert client_answer(older, kind)["model_version"] == "1"


def client_answer(result: Any, kind: str) -> Any:
    """The answer behind an InferResult."""
    return result.get_response() if kind == "http" else result.get_response(as_json=True)


def test_wanted_outputs_are_given(client: Any, kind: str) -> None:
    wanted = [KINDS[kind].InferRequestedOutput("y")]
    result = client.infer("affine", rows(kind, 1), outputs=wanted, timeout=10_000_000)
    assert result.as_numpy("y").tolist() == [DOUBLED]


@pytest.mark.parametrize(
    ("model", "version", "status"), [("nobody", "", "NOT_FOUND"), ("affine", "9", "NOT_FOUND")]
)
def test_errors_have_status_and_message(
    client: Any, kind: str, model: str, version: str, status: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, rows(kind), model_version=version)
    wanted = "404" if kind == "http" else f"StatusCode.{status}"
    assert caught.value.status() == wanted and model in caught.value.message()


def test_a_wrong_shape_is_an_invalid_argument(client: Any, kind: str) -> None:
    tensor = KINDS[kind].InferInput("x", [1, 3], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 3), np.float32))
    with pytest.raises(InferenceServerException, match="x") as caught:
        client.infer("affine", [tensor])
    wanted = "400" if kind == "http" else "StatusCode.INVALID_ARGUMENT"
    assert caught.value.status() == wanted


def test_async_infer_calls_back(gateway: Addresses) -> None:
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with triton_grpc.InferenceServerClient(gateway.grpc) as client:
        client.async_infer(
            "affine", rows("grpc"), lambda result, error: answers.put((result, error))
        )
        result, error = answers.get(timeout=ANSWER_S)
    assert error is None and result.as_numpy("y").tolist() == [DOUBLED, DOUBLED]


def test_a_stream_answers_each_request_and_goes_on_after_an_error(gateway: Addresses) -> None:
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with triton_grpc.InferenceServerClient(gateway.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(3):
            client.async_stream_infer("affine", rows("grpc", 1), request_id=str(number))
        told = [answers.get(timeout=ANSWER_S) for _ in range(3)]
        client.async_stream_infer("nobody", rows("grpc", 1))
        _, failed = answers.get(timeout=ANSWER_S)
        client.async_stream_infer("affine", rows("grpc", 1), request_id="last")
        last, _ = answers.get(timeout=ANSWER_S)
        client.stop_stream()
    assert [error for _, error in told] == [None, None, None]
    assert {result.get_response().id for result, _ in told} == {"0", "1", "2"}
    assert "nobody" in failed.message()
    assert last.get_response().id == "last" and last.as_numpy("y").tolist() == [DOUBLED]


def test_metadata(client: Any, kind: str) -> None:
    server = as_document(client, kind, "get_server_metadata")
    assert server["name"] and "statistics" in server["extensions"]
    model = as_document(client, kind, "get_model_metadata", "affine")
    assert sorted(model["versions"]) == ["1", "2"]
    [tensor] = model["inputs"]
    assert (tensor["name"], tensor["datatype"]) == ("x", "FP32")
    assert [int(size) for size in tensor["shape"]] == [-1, 4]


def test_config(client: Any, kind: str) -> None:
    document = as_document(client, kind, "get_model_config", "affine")
    config = document if kind == "http" else document["config"]
    assert (config["name"], int(config["max_batch_size"])) == ("affine", 8)
    [tensor] = config["input"]
    assert (tensor["name"], tensor["data_type"]) == ("x", "TYPE_FP32")
    assert "dynamic_batching" in config


def test_statistics_grow_with_requests(client: Any, kind: str) -> None:
    def counted() -> dict[str, int]:
        document = as_document(client, kind, "get_inference_statistics", "affine", "2")
        [entry] = document["model_stats"]
        success = entry["inference_stats"]["success"]
        return {"rows": int(entry["inference_count"]), "requests": int(success["count"])}

    before = counted()
    for _ in range(3):
        client.infer("affine", rows(kind))

    def grown() -> bool:
        now = counted()
        return (now["requests"], now["rows"]) >= (before["requests"] + 3, before["rows"] + 6)

    assert wait_for(grown, "three more requests in the statistics", 15)


def test_repository_index(client: Any, kind: str) -> None:
    document = as_document(client, kind, "get_model_repository_index")
    entries = document if kind == "http" else document["models"]
    states = {(entry["name"], entry["version"]): entry["state"] for entry in entries}
    assert states["affine", "1"] == states["affine", "2"] == "READY"


def test_unload_and_load(client: Any, kind: str) -> None:
    client.unload_model("other")
    wait_for(lambda: not client.is_model_ready("other"), "other unloaded")
    client.load_model("other")
    wait_for(lambda: client.is_model_ready("other"), "other loaded")
    assert client.infer("other", rows(kind, 1)).as_numpy("y").tolist() == [DOUBLED]


@pytest.mark.parametrize("kind", list(AIO_KINDS))
async def test_aio_infers(kind: str, gateway: Addresses) -> None:
    async with AIO_KINDS[kind].InferenceServerClient(getattr(gateway, kind)) as client:
        assert await client.is_server_ready() and await client.is_model_ready("affine")
        result = await client.infer("affine", rows(kind))
        with pytest.raises(InferenceServerException, match="nobody"):
            await client.infer("nobody", rows(kind))
    assert result.as_numpy("y").tolist() == [DOUBLED, DOUBLED]


async def test_aio_streams(gateway: Addresses) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(3):
            yield {
                "model_name": "affine",
                "inputs": rows("grpc", 1),
                "request_id": str(number),
            }

    async with triton_grpc_aio.InferenceServerClient(gateway.grpc) as client:
        told = [answer async for answer in client.stream_infer(requests())]
    assert [error for _, error in told] == [None, None, None]
    assert {result.get_response().id for result, _ in told} == {"0", "1", "2"}
