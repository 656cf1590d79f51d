"""The quick starts and examples of TensorFlow Serving and KServe, with their models."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from headrace.config.args import Batching, ModelConfig
from headrace.errors import ModelLoadError
from headrace.snapshot import State
from tests.clients.packages import run_with
from tests.house import House, client, open_house
from tests.saved_models import half_plus_three, half_plus_two, mnist, resnet

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(400)]

VERSION = 123
CURL = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "*/*"}
"""What `curl -d` sends."""
IMAGES = 2000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from replicas import tensorflow_runtime
    from replicas.runtime import RuntimeSettings

    store = tmp_path_factory.mktemp("examples") / "store"
    # The runtime first: it sets what can be set only before TensorFlow computes.
    with pytest.raises(ModelLoadError):
        tensorflow_runtime.load(store, "half", 1, RuntimeSettings())
    half_plus_two(store / "half_plus_two" / "00000123")
    half_plus_three(store / "saved_model_half_plus_three" / "00000123")
    shutil.rmtree(store / "saved_model_half_plus_three" / "source")
    mnist(store / "mnist" / "1")
    resnet(store)
    return store


@asynccontextmanager
async def serving(store: Path, folder: Path, *models: str) -> AsyncIterator[House]:
    """A house that serves these models of the store."""
    for model in models:
        shutil.copytree(store / model, folder / "store" / model)
    async with open_house(folder, "a") as house:
        for model in models:
            [version] = (store / model).iterdir()
            config = ModelConfig(batching=Batching(max_rows=8))
            assert await house.place("a", model, int(version.name), config) is State.READY
        yield house


async def post(http: httpx.AsyncClient, path: str, body: str) -> Any:
    return (await http.post(f"/v1/models/{path}", content=body, headers=CURL)).json()


async def test_the_curl_lines_of_tensorflow_serving_are_answered(
    store: Path, tmp_path: Path
) -> None:
    two, three = "half_plus_two", "saved_model_half_plus_three"
    async with serving(store, tmp_path, two, three) as house, client(house) as http:
        predict = '{"instances": [1.0, 2.0, 5.0]}'
        assert await post(http, f"{two}:predict", predict) == {"predictions": [2.5, 3.0, 4.5]}
        assert await post(http, f"{three}:predict", predict) == {"predictions": [3.5, 4.0, 5.5]}
        pinned = await post(http, f"{three}/versions/00000123:predict", predict)
        assert pinned == {"predictions": [3.5, 4.0, 5.5]}
        columns = await post(http, f"{two}:predict", '{"inputs": [3.0, 4.0]}')
        assert columns == {"outputs": [3.5, 4.0]}

        examples = '"examples": [{"x": 1.0}, {"x": 2.0}]'
        regress = '{"signature_name": "regress_x_to_y", ' + examples + "}"
        for model, results in ((two, [2.5, 3.0]), (three, [3.5, 4.0])):
            assert await post(http, f"{model}:regress", regress) == {"results": results}
        classify = '{"signature_name": "classify_x_to_y", ' + examples + "}"
        classes = await post(http, f"{three}:classify", classify)
        assert classes == {"results": [[["", 3.5]], [["", 4.0]]]}

        status = (await http.get(f"/v1/models/{three}")).json()
        assert status["model_version_status"] == [
            {
                "version": str(VERSION),
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
        metadata = (await http.get(f"/v1/models/{three}/metadata")).json()
        signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
        assert signature["inputs"]["x"]["name"] == "x:0"

        nobody = await http.post("/v1/models/half:predict", content=predict, headers=CURL)
        assert nobody.status_code == 404
        assert nobody.json() == {"error": "Servable not found for request: Latest(half)"}
        shouted = await http.post(f"/v1/models/{two}:Predict", content=predict, headers=CURL)
        assert shouted.status_code == 400
        assert shouted.json() == {"error": f"Malformed request: POST /v1/models/{two}:Predict"}


async def test_kserves_example_of_flowers_is_answered(store: Path, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (0, 200, 0)).save(file, "JPEG")
    lines = base64.encodebytes(file.getvalue()).decode()
    instance = {"image_bytes": {"b64": lines}, "key": "   1"}
    async with serving(store, tmp_path, "flowers") as house, client(house) as http:
        answer = await http.post("/v1/models/flowers:predict", json={"instances": [instance]})
    assert "\n" in lines
    [prediction] = answer.json()["predictions"]
    assert (prediction["prediction"], prediction["key"]) == (1, "   1")
    assert len(prediction["scores"]) == 3


@pytest.mark.slow
async def test_the_example_clients_of_tensorflow_serving_run(store: Path, tmp_path: Path) -> None:
    async with serving(store, tmp_path, "mnist", "resnet", "resnet_jpg") as house:
        arguments = [house.http.address, house.grpc.address]
        told = json.loads(
            await asyncio.to_thread(run_with, "tensorflow-serving-api", "ask_examples", arguments)
        )
    assert told == {
        "digits": {"right": IMAGES, "wrong": 0, "failed": 0},
        "resnet_grpc": 0,
        "resnet_rest": 0,
        "resnet_jpg": 0,
    }
