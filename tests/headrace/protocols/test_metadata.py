"""Answers that describe models."""

from __future__ import annotations

from headrace.config.args import ModelConfig
from headrace.protocols import metadata
from headrace.protocols.metadata import shown
from headrace.snapshot import ModelView, State, VersionView
from headrace.spec import BYTES, Signature, TensorSpec, decode_spec, encode_spec
from tests.headrace.protocols.specs import F4, model, signature, spec

SPEC = model(signature([spec("x", F4, None, 28, 28)], [spec("label", BYTES, None)]))
VIEW = ModelView(
    "m",
    ModelConfig(),
    (VersionView(2, State.FAILED, None, "no file"), VersionView(3, State.READY, SPEC)),
)


def test_tfserving_status_lists_newest_first() -> None:
    assert metadata.tfserving_status(VIEW.versions) == {
        "model_version_status": [
            {
                "version": "3",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            },
            {
                "version": "2",
                "state": "END",
                "status": {"error_code": "UNKNOWN", "error_message": "no file"},
            },
        ]
    }


def test_tfserving_status_knows_every_state() -> None:
    states = {
        state: metadata.tfserving_status([VersionView(1, state)])["model_version_status"][0][
            "state"
        ]
        for state in State
    }
    assert states == {
        State.PENDING: "START",
        State.LOADING: "LOADING",
        State.WARMING: "LOADING",
        State.READY: "AVAILABLE",
        State.SLEEPING: "AVAILABLE",
        State.DRAINING: "UNLOADING",
        State.FAILED: "END",
        State.END: "END",
    }


def test_tfserving_metadata_is_a_signature_def_map() -> None:
    body = metadata.tfserving_metadata(SPEC)
    assert body["model_spec"] == {"name": "m", "signature_name": "", "version": "3"}
    found = body["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert found["method_name"] == "tensorflow/serving/predict"
    assert found["outputs"]["label"]["dtype"] == "DT_STRING"
    assert found["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {
            "dim": [{"size": size, "name": ""} for size in ("-1", "28", "28")],
            "unknown_rank": False,
        },
        "name": "x:0",
    }


def test_tfserving_metadata_of_unknown_rank() -> None:
    unknown = model(signature([TensorSpec("x", F4, None)]))
    body = metadata.tfserving_metadata(unknown)
    found = body["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert found["inputs"]["x"]["tensor_shape"] == {"dim": [], "unknown_rank": True}


def test_openinference_model() -> None:
    assert metadata.openinference_model(VIEW, SPEC) == {
        "name": "m",
        "versions": ["3"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 28, 28]}],
        "outputs": [{"name": "label", "datatype": "BYTES", "shape": [-1]}],
    }


def test_optional_inputs_are_listed_as_such() -> None:
    inputs = (spec("x", F4, None), TensorSpec("w", F4, (), optional=True))
    taken = model(Signature("serving_default", inputs, (spec("y", F4, None),)))
    assert decode_spec(encode_spec(taken)) == taken
    listed = metadata.openinference_model(ModelView("m", ModelConfig(), ()), taken)["inputs"]
    assert [each["name"] for each in listed] == ["x", "w"]
    config = shown(ModelConfig(), taken)
    assert [each["optional"] for each in config["input"]] == [False, True]


def test_openinference_server_lists_only_what_is_supported() -> None:
    assert metadata.openinference_server("1.2") == {
        "name": "triton",
        "version": "1.2",
        "extensions": [
            "classification",
            "model_repository",
            "model_configuration",
            "binary_tensor_data",
            "parameters",
            "statistics",
        ],
    }
