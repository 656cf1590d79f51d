"""The tagger behind its configuration, as Triton's `image_client.py` asks for it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from PIL import Image

from headrace.config.args import ModelConfig
from headrace.snapshot import State
from tests.house import House, open_house

KINDS = {"http": tritonclient.http, "grpc": tritonclient.grpc}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def client(house: House, kind: str) -> Any:
    aio = KINDS[kind].aio
    return aio.InferenceServerClient(getattr(house, kind).address)


@pytest.mark.parametrize("kind", KINDS)
async def test_image_client_finds_what_it_needs(
    tmp_path: Path, repository: Path, pictures: Path, kind: str
) -> None:
    shutil.copytree(repository / "tagger", tmp_path / "store" / "tagger")
    with Image.open(pictures / "coffee_224.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))[None].repeat(2, 0)
    tensor = KINDS[kind].InferInput("images", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    wanted = [KINDS[kind].InferRequestedOutput("scores", class_count=3)]
    async with open_house(tmp_path, "a") as house, client(house, kind) as triton:
        assert await house.place("a", "tagger", 1, ModelConfig()) is State.READY
        as_json = {} if kind == "http" else {"as_json": True}
        metadata = await triton.get_model_metadata("tagger", **as_json)
        config = await triton.get_model_config("tagger", **as_json)
        classes = (await triton.infer("tagger", [tensor], outputs=wanted)).as_numpy("scores")
    config = config.get("config", config)
    assert [each["name"] for each in metadata["outputs"]] == ["scores"]
    assert metadata["outputs"][0]["datatype"] == "FP32"
    [given] = config["input"]
    assert (given["format"], [*map(int, given["dims"])]) == ("FORMAT_NHWC", [224, 224, 3])
    assert config["max_batch_size"] > 0
    assert classes.shape == (2, 3)
    value, index, label = classes[0][0].decode().split(":")
    assert (float(value) > 0.8, index, label) == (True, "967", "espresso")
