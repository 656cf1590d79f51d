"""TensorFlow Serving over gRPC, spoken with plain channels and messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from headrace.config.args import Batching, Latest, ModelConfig
from headrace.protocols.wire import message
from tests.house import House, affine_model, grpc_channel, open_house

PACKAGE = "tensorflow.serving"
DT_FLOAT = 1
AVAILABLE = 30
ROW = [1.0, 2.0, 3.0, 4.0]
DOUBLED = [3.0, 5.0, 7.0, 9.0]
LABELLED = ModelConfig(batching=Batching(max_rows=8), labels={"stable": 1})

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@dataclass
class Client:
    """Calls methods of both services as generated stubs do."""

    channel: Any

    async def __call__(self, name: str, request: Any, answer: str, **more: Any) -> Any:
        service = (
            "Model" if name in ("GetModelStatus", "HandleReloadConfigRequest") else "Prediction"
        )
        call = self.channel.unary_unary(
            f"/{PACKAGE}.{service}Service/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message(f"{PACKAGE}.{answer}").FromString,
        )
        return await call(request, **more)

    async def predict(self, **spec: Any) -> Any:
        return await self("Predict", predict_request(**spec), "PredictResponse")

    async def fails(self, name: str, request: Any, **more: Any) -> tuple[str, str]:
        """Status and details of a call that must fail."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self(name, request, "PredictResponse", **more)
        return caught.value.code().name, caught.value.details() or ""


@asynccontextmanager
async def serving(house: House) -> AsyncIterator[Client]:
    async with grpc_channel(house) as channel:
        yield Client(channel)


def spec_of(
    name: str = "affine", version: int | None = None, label: str = "", signature: str = ""
) -> Any:
    spec = message(f"{PACKAGE}.ModelSpec")(name=name, signature_name=signature)
    if version is not None:
        spec.version.value = version
    if label:
        spec.version_label = label
    return spec


def predict_request(**spec: Any) -> Any:
    request = message(f"{PACKAGE}.PredictRequest")(model_spec=spec_of(**spec))
    tensor = request.inputs["x"]
    tensor.dtype = DT_FLOAT
    for size in (1, 4):
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = np.array(ROW, np.float32).tobytes()
    return request


def floats(tensor: Any) -> list[float]:
    if tensor.tensor_content:
        return list(np.frombuffer(tensor.tensor_content, np.float32).tolist())
    return list(tensor.float_val)


async def test_predict_fills_in_the_effective_version(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, serving(house) as client:
        answer = await client.predict()
        pinned = await client.predict(version=1)
    assert floats(answer.outputs["y"]) == DOUBLED == floats(pinned.outputs["y"])
    spec = answer.model_spec
    assert (spec.name, spec.version.value) == ("affine", 1)
    assert spec.signature_name == "serving_default"


async def test_labels_name_versions(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", config=LABELLED) as house, serving(house) as client:
        stable = await client.predict(label="stable")
        unknown = await client.fails("Predict", predict_request(label="canary"))
        # Messages cannot hold both, bytes can.
        both = b"".join(
            spec.SerializeToString() for spec in (spec_of(label="stable"), spec_of(version=1))
        )
        call = client.channel.unary_unary(f"/{PACKAGE}.PredictionService/Predict")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"\x0a" + bytes([len(both)]) + both)
    assert floats(stable.outputs["y"]) == DOUBLED and stable.model_spec.version.value == 1
    assert unknown == ("NOT_FOUND", "Unrecognized servable version label: canary")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_errors_are_in_tensorflow_servings_words(tmp_path: Path) -> None:
    empty = message(f"{PACKAGE}.PredictRequest")
    async with open_house(tmp_path, "a") as house, serving(house) as client:
        unknown = await client.fails("Predict", predict_request(name="nobody"))
        version = await client.fails("Predict", predict_request(version=9))
        nameless = await client.fails("Predict", empty())
        inputs = await client.fails("Predict", empty(model_spec=spec_of()))
        signature = await client.fails("Predict", predict_request(signature="other"))
    assert unknown == ("NOT_FOUND", "Servable not found for request: Latest(nobody)")
    assert version == ("NOT_FOUND", "Servable not found for request: Specific(affine, 9)")
    assert nameless[0] == inputs[0] == "INVALID_ARGUMENT"
    assert signature[0] in ("INVALID_ARGUMENT", "NOT_FOUND") and "other" in signature[1]


async def test_status_lists_the_versions(tmp_path: Path) -> None:
    request = message(f"{PACKAGE}.GetModelStatusRequest")
    async with open_house(tmp_path, "a", config=LABELLED) as house, serving(house) as client:
        affine_model(tmp_path / "store" / "affine" / "2" / "model.onnx")
        await house.place("a", "affine", 2, LABELLED)
        answers = [
            await client("GetModelStatus", request(model_spec=spec), "GetModelStatusResponse")
            for spec in (spec_of(), spec_of(version=2), spec_of(label="stable"))
        ]
        unknown = await client.fails("GetModelStatus", request(model_spec=spec_of("nobody")))
        version = await client.fails("GetModelStatus", request(model_spec=spec_of(version=9)))
    every, second, stable = (answer.model_version_status for answer in answers)
    assert [(status.version, status.state) for status in every] == [(2, AVAILABLE), (1, AVAILABLE)]
    assert [status.version for status in second] == [2]
    assert [status.version for status in stable] == [1]
    assert every[0].status.error_code == 0
    assert unknown[0] == version[0] == "NOT_FOUND" and "nobody" in unknown[1]


async def test_metadata_packs_the_signatures(tmp_path: Path) -> None:
    request = message(f"{PACKAGE}.GetModelMetadataRequest")
    async with open_house(tmp_path, "a") as house, serving(house) as client:
        wanted = request(model_spec=spec_of(), metadata_field=["signature_def"])
        answer = await client("GetModelMetadata", wanted, "GetModelMetadataResponse")
        nothing = await client.fails("GetModelMetadata", request(model_spec=spec_of()))
        unknown = await client.fails(
            "GetModelMetadata",
            request(model_spec=spec_of("nobody"), metadata_field=["signature_def"]),
        )
    assert answer.model_spec.version.value == 1
    packed = answer.metadata["signature_def"]
    assert packed.type_url.endswith("/tensorflow.serving.SignatureDefMap")
    signatures = message(f"{PACKAGE}.SignatureDefMap").FromString(packed.value).signature_def
    tensor = signatures["serving_default"].inputs["x"]
    assert (tensor.dtype, [dim.size for dim in tensor.tensor_shape.dim]) == (DT_FLOAT, [-1, 4])
    assert nothing[0] == "INVALID_ARGUMENT" and "signature_def" in nothing[1]
    assert unknown[0] == "NOT_FOUND"


@asynccontextmanager
async def line(tmp_path: Path) -> AsyncIterator[tuple[House, Client]]:
    """A house that serves `line`, y = 2x + 1 of one feature, and a client."""
    affine_model(tmp_path / "store" / "line" / "1" / "model.onnx", features=1)
    async with open_house(tmp_path, "a") as house, serving(house) as client:
        await house.place("a", "line", 1, ModelConfig())
        yield house, client


def examples(request: Any, *values: float) -> Any:
    for value in values:
        example = request.input.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(value)
    return request


def example_request(kind: str, name: str = "line") -> Any:
    request = message(f"{PACKAGE}.{kind}Request")(model_spec=spec_of(name))
    return examples(request, 1.0, 2.0)


async def test_classify_and_regress(tmp_path: Path) -> None:
    async with line(tmp_path) as (_, client):
        classified = await client(
            "Classify", example_request("Classification"), "ClassificationResponse"
        )
        regressed = await client("Regress", example_request("Regression"), "RegressionResponse")
        unknown = await client.fails("Classify", example_request("Classification", "nobody"))
        empty = message(f"{PACKAGE}.RegressionRequest")(model_spec=spec_of("line"))
        nothing = await client.fails("Regress", empty)
    scores = [[each.score for each in row.classes] for row in classified.result.classifications]
    assert scores == [[3.0], [5.0]]
    assert [each.value for each in regressed.result.regressions] == [3.0, 5.0]
    assert regressed.model_spec.version.value == 1
    assert unknown[0] == "NOT_FOUND" and nothing[0] == "INVALID_ARGUMENT"


def multi_request(*names: str) -> Any:
    """A request that classifies and regresses in turn."""
    request = message(f"{PACKAGE}.MultiInferenceRequest")()
    for number, name in enumerate(names):
        method = ("classify", "regress")[number % 2]
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.CopyFrom(spec_of(name))
    return examples(request, 1.0, 2.0)


async def test_multi_inference_joins_the_tasks_of_one_version(tmp_path: Path) -> None:
    async with line(tmp_path) as (house, client):
        request = multi_request("line", "line")
        answer = await client("MultiInference", request, "MultiInferenceResponse")
        counted = house.recorder.snapshot().samples["headrace_requests_total"]
    first, second = answer.results
    assert first.classification_result.classifications[1].classes[0].score == 5.0
    assert [each.value for each in second.regression_result.regressions] == [3.0, 5.0]
    assert {each.model_spec.version.value for each in answer.results} == {1}
    assert sum(numbers[0] for numbers in counted.values()) == 2


async def test_multi_inference_refuses_what_it_cannot_join(tmp_path: Path) -> None:
    async with line(tmp_path) as (house, client):
        several = await client.fails("MultiInference", multi_request("line", "affine"))
        none = await client.fails("MultiInference", multi_request())
        unknown = await client.fails("MultiInference", multi_request("nobody", "nobody"))
        affine = await client.fails("MultiInference", multi_request("affine", "affine"))
        assert not len(house.plane.router)
    assert several[0] == none[0] == affine[0] == "INVALID_ARGUMENT"
    assert "same model" in several[1] and unknown[0] == "NOT_FOUND"


def reload_request(*entries: Any) -> Any:
    request = message(f"{PACKAGE}.ReloadConfigRequest")()
    request.config.model_config_list.SetInParent()
    request.config.model_config_list.config.extend(entries)
    return request


def entry(name: str = "affine", **more: Any) -> Any:
    return message(f"{PACKAGE}.ModelConfig")(name=name, **more)


async def test_a_reload_names_what_is_served(tmp_path: Path) -> None:
    specific = entry("other", base_path="/srv/models/other/", version_labels={"stable": 3})
    specific.model_version_policy.specific.versions.extend([3, 4])
    newest = entry(base_path="affine")
    newest.model_version_policy.latest.num_versions = 2
    every = entry("third")
    every.model_version_policy.all.SetInParent()
    more: dict[str, Any] = {"repository_control": "public"}
    async with open_house(tmp_path, "a", **more) as house, serving(house) as client:
        request = reload_request(specific, newest, every)
        answer = await client("HandleReloadConfigRequest", request, "ReloadConfigResponse")
    assert answer.status.error_code == 0
    models = {
        "other": ModelConfig(versions=(3, 4), labels={"stable": 3}),
        "affine": ModelConfig(versions=Latest(latest=2)),
        "third": ModelConfig(versions="all"),
    }
    assert house.told == [("serve_only", models)]


async def test_a_reload_that_cannot_be_done_changes_nothing(tmp_path: Path) -> None:
    custom = message(f"{PACKAGE}.ReloadConfigRequest")()
    custom.config.custom_model_config.SetInParent()
    name = "HandleReloadConfigRequest"
    async with open_house(tmp_path, "a") as house, serving(house) as client:
        closed = await client.fails(name, reload_request(entry()))
        house.view.repository_control = "public"
        elsewhere = await client.fails(name, reload_request(entry(base_path="/srv/elsewhere")))
        twice = await client.fails(name, reload_request(entry(), entry()))
        nameless = await client.fails(name, reload_request(entry("")))
        nothing = await client.fails(name, message(f"{PACKAGE}.ReloadConfigRequest")())
        refused = await client.fails(name, custom)
    assert closed[0] == "PERMISSION_DENIED" and "repository.control: public" in closed[1]
    assert elsewhere[0] == "INVALID_ARGUMENT" and "base_path" in elsewhere[1]
    assert twice[0] == nameless[0] == nothing[0] == "INVALID_ARGUMENT"
    assert refused[0] == "UNIMPLEMENTED" and not house.told


async def test_many_predictions_at_once(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", "b") as house, serving(house) as client:
        answers = await asyncio.gather(*[client.predict() for _ in range(64)])
    assert [floats(answer.outputs["y"]) for answer in answers] == [DOUBLED] * 64
