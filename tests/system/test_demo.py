"""The demo as users run it: every model answers a real input over HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import yaml
from numpy.typing import NDArray
from PIL import Image

from loadtests.processes import free_ports
from tests.system.running import Running, running

ROOT = Path(__file__).parent.parent.parent
CACHE = ROOT / "models" / "cache"

pytestmark = [pytest.mark.ray, pytest.mark.tensorflow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """examples/demo.yaml on ports of its own."""
    document = yaml.safe_load((ROOT / "examples" / "demo.yaml").read_text())
    args = document["applications"][0]["args"]
    ports = free_ports(3)
    args["listen"] = {
        name: f"127.0.0.1:{port}"
        for name, port in zip(("http", "grpc", "admin"), ports, strict=True)
    }
    args["store"] = str(ROOT / "models" / "repository")
    with running(tmp_path_factory.mktemp("demo"), document) as system:
        yield system


def ask(demo: Running, path: str, body: Any) -> Any:
    """The JSON answer to a POST."""
    answer = httpx.post(f"{demo.url}{path}", content=json.dumps(body), timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def picture(name: str, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A real picture as RGB bytes [height, width, 3]."""
    with Image.open(CACHE / "pictures" / f"{name}.png") as image:
        rgb = image.convert("RGB")
        return np.asarray(rgb.resize(size) if size else rgb)


def infer(demo: Running, model: str, **inputs: NDArray[Any]) -> triton.InferResult:
    """Ask with the unmodified Triton client; tensors travel binary both ways."""
    kinds = {"uint8": "UINT8", "float32": "FP32"}
    tensors = []
    for name, value in inputs.items():
        tensor = triton.InferInput(name, list(value.shape), kinds[value.dtype.name])
        tensor.set_data_from_numpy(value)
        tensors.append(tensor)
    with triton.InferenceServerClient(demo.http, network_timeout=60) as client:
        return client.infer(model, tensors)


def labels(model: str) -> list[str]:
    return (ROOT / "models" / "repository" / model / "1" / "labels.txt").read_text().splitlines()


def test_tagger_sees_an_espresso(demo: Running) -> None:
    result = infer(demo, "tagger", images=picture("coffee", (224, 224))[None])
    scores = result.as_numpy("scores")[0]
    assert "espresso" in labels("tagger")[int(scores.argmax())] and scores.max() > 0.8
    assert result.as_numpy("features") is None  # its configuration does not list them


def test_tagger_tf_takes_an_encoded_picture(demo: Running) -> None:
    data = base64.b64encode((CACHE / "pictures" / "coffee.png").read_bytes()).decode()
    body = {"signature_name": "image_bytes", "instances": [{"b64": data}]}
    (prediction,) = ask(demo, "/v1/models/tagger_tf:predict", body)["predictions"]
    assert "espresso" in labels("tagger")[int(np.argmax(prediction["scores"]))]


def test_a_picture_that_is_none_is_refused_in_the_protocols_words(demo: Running) -> None:
    body = {"signature_name": "image_bytes", "instances": [{"b64": "bm90IGEgcGljdHVyZQ=="}]}
    answer = httpx.post(f"{demo.url}/v1/models/tagger_tf:predict", json=body, timeout=60)
    assert answer.status_code == 400 and answer.json()["error"]


@pytest.mark.parametrize("version", ["", "/versions/1", "/versions/2"])
def test_both_versions_of_digits_read_a_seven(demo: Running, version: str) -> None:
    body = json.loads((CACHE / "requests" / "digits_7.json").read_text())
    (prediction,) = ask(demo, f"/v1/models/digits{version}:predict", body)["predictions"]
    assert prediction["classes"] == 7


def test_digits_are_classified(demo: Running) -> None:
    body = json.loads((CACHE / "requests" / "digits_7_classify.json").read_text())
    (pairs,) = ask(demo, "/v1/models/digits:classify", body)["results"]
    assert len(pairs) == 10 and max(pairs, key=lambda pair: pair[1])[0] == "7"


def test_price_estimates_a_booking(demo: Running) -> None:
    body = json.loads((CACHE / "requests" / "price.json").read_text())
    (output,) = ask(demo, "/v2/models/price/infer", body)["outputs"]
    assert output["shape"] == [1, 1] and 19 < output["data"][0] < 426


def test_faces_finds_the_astronauts_face(demo: Running) -> None:
    astronaut = picture("astronaut").astype(np.float32).transpose(2, 0, 1)[None]
    metadata = httpx.get(f"{demo.url}/v2/models/faces").json()
    (name,) = [tensor["name"] for tensor in metadata["inputs"]]
    heat = metadata["outputs"][0]["name"]
    heatmap = infer(demo, "faces", **{name: astronaut}).as_numpy(heat)[0, 0]
    y, x = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    assert heatmap.max() > 0.8 and 181 < 4 * x < 269 and 58 < 4 * y < 177


def test_objects_finds_a_person(demo: Running) -> None:
    result = infer(demo, "objects", images=picture("astronaut", (512, 512))[None])
    best = int(result.as_numpy("scores")[0].argmax())
    assert labels("objects")[int(result.as_numpy("classes")[0][best])] == "person"


def test_status_of_versions_is_told_as_tensorflow_serving_does(demo: Running) -> None:
    status = httpx.get(f"{demo.url}/v1/models/digits").json()["model_version_status"]
    assert {(each["version"], each["state"]) for each in status} == {
        ("1", "AVAILABLE"),
        ("2", "AVAILABLE"),
    }
