"""Classifications and `config.pbtxt`, from the model's folder to unmodified clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from headrace.config.args import Batching, ModelConfig
from headrace.snapshot import State
from tests.house import House, affine_model, client, open_house

CONFIG = """
    name: "letters"
    max_batch_size: 2
    input { name: "x" data_type: TYPE_FP32 dims: [ 2, 2 ] reshape { shape: [ 4 ] } }
    output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "letters.txt" }
    instance_group { kind: KIND_CPU }
"""
ROWS = np.array([[[1, 4], [3, 2]], [[0, 0], [0, 5]]], np.float32)
TOP = [[b"9.000000:1:b", b"7.000000:2:c"], [b"11.000000:3", b"1.000000:0:a"]]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


async def place_letters(
    house: House, config: str = CONFIG, batching: Batching | None = None
) -> State:
    """Serve `letters`, which is y = 2x + 1 behind a configuration."""
    folder = house.store / "letters"
    affine_model(folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text(config)
    (folder / "letters.txt").write_text("a\nb\nc\n")
    return await house.place(
        "a", "letters", 1, ModelConfig(batching=batching or Batching(max_rows=8))
    )


def tensors(kind: Any, values: Any = ROWS) -> list[Any]:
    tensor = kind.InferInput("x", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    return [tensor]


async def test_classes_come_over_every_way_to_ask(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        assert await place_letters(house) is State.READY
        found = []
        async with tritonclient.http.aio.InferenceServerClient(house.http.address) as http:
            for binary in (True, False):
                asked = tritonclient.http.InferRequestedOutput("y", binary, class_count=2)
                answer = await http.infer("letters", tensors(tritonclient.http), outputs=[asked])
                found.append(answer.as_numpy("y"))
        wanted = [tritonclient.grpc.InferRequestedOutput("y", class_count=2)]

        async def requests() -> Any:
            for _ in range(2):
                given = tensors(tritonclient.grpc)
                yield {"model_name": "letters", "inputs": given, "outputs": wanted}

        async with tritonclient.grpc.aio.InferenceServerClient(house.grpc.address) as grpc:
            answer = await grpc.infer("letters", tensors(tritonclient.grpc), outputs=wanted)
            found.append(answer.as_numpy("y"))
            async for answer, error in grpc.stream_infer(requests()):
                assert error is None
                found.append(answer.as_numpy("y"))
    assert len(found) == 5
    for each in found:
        texts = [text if isinstance(text, bytes) else text.encode() for text in each.flat]
        assert np.reshape(texts, each.shape).tolist() == TOP


async def test_the_configuration_is_shown_and_its_batch_size_is_a_limit(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        await place_letters(house)
        config = (await http.get("/v2/models/letters/config")).json()
        metadata = (await http.get("/v2/models/letters")).json()
        async with tritonclient.grpc.aio.InferenceServerClient(house.grpc.address) as grpc:
            same = (await grpc.get_model_config("letters")).config
            three = np.zeros((3, 2, 2), np.float32)
            with pytest.raises(InferenceServerException) as caught:
                await grpc.infer("letters", tensors(tritonclient.grpc, three))
        body = {"instances": three.tolist()}
        refused = await http.post("/v1/models/letters:predict", json=body)
    [given], [result] = config["input"], config["output"]
    assert (given["dims"], given["reshape"]) == ([2, 2], {"shape": [4]})
    assert (result["dims"], result["label_filename"]) == ([4], "letters.txt")
    assert config["max_batch_size"] == same.max_batch_size == 2
    assert metadata["inputs"][0]["shape"] == [-1, 2, 2]
    assert list(same.input[0].reshape.shape) == [4]
    text = "inference request batch-size must be <= 2 for 'letters'"
    assert (refused.status_code, refused.json()["error"]) == (400, text)
    assert caught.value.message() == text


async def test_a_row_limit_replaces_the_batch_size_of_the_file(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        await place_letters(house, batching=Batching(max_rows=8, row_limit=3))
        answers = [
            await http.post(
                "/v1/models/letters:predict", json={"instances": np.zeros((rows, 2, 2)).tolist()}
            )
            for rows in (3, 4)
        ]
        config = (await http.get("/v2/models/letters/config")).json()
    assert [answer.status_code for answer in answers] == [200, 400]
    assert "batch-size must be <= 3" in answers[1].json()["error"]
    assert config["max_batch_size"] == 3


async def test_a_broken_configuration_is_the_reason_of_the_failure(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        assert await place_letters(house, "max_batch_size: ?") is State.FAILED
        reason = house.snapshot.models["letters"].versions[0].reason
        assert await place_letters(house, 'output { name: "z" }') is State.FAILED
        other = house.snapshot.models["letters"].versions[0].reason
    assert reason.startswith("config.pbtxt is not a model configuration: 1:17")
    assert other == "config.pbtxt: output 'z' is none of the model's, which has 'y'"
