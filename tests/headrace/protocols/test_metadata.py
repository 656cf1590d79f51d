"""Answers that describe models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from headrace.config.args import Batching, Latest, ModelConfig
from headrace.errors import InvalidArgument, Unimplemented
from headrace.protocols import metadata
from headrace.protocols.metadata import PAIRS, blank, overridden, shown, statistics_document
from headrace.snapshot import ModelView, Snapshot, State, VersionView
from headrace.spec import BYTES, Signature, TensorSpec, decode_spec, encode_spec
from tests.headrace.protocols.specs import F4, model, one_input, signature, spec

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


SNAPSHOT = Snapshot(
    models={
        "b": ModelView(
            "b",
            ModelConfig(),
            (
                VersionView(1, State.READY, served=False),
                VersionView(9, State.READY),
                VersionView(10, State.READY),
            ),
        ),
        "a": ModelView("a", ModelConfig(), (VersionView(1, State.LOADING),)),
    }
)


def counted(model: str, version: int, requests: int) -> dict[str, Any]:
    document = blank()
    document["inference_count"] = requests
    document["inference_stats"]["success"] = {"count": requests, "ns": 7}
    return {"model": model, "version": version, **document}


def names(body: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["name"], each["version"]) for each in body["model_stats"]]


def test_every_served_version_has_an_entry_in_order() -> None:
    body = statistics_document([], SNAPSHOT)
    assert names(body) == [("a", "1"), ("b", "9"), ("b", "10")]
    for entry in body["model_stats"]:
        assert entry.keys() == {"name", "version", *blank()}
        assert entry["inference_stats"] == {name: {"count": 0, "ns": 0} for name in PAIRS}
        assert entry["batch_stats"] == []


def test_versions_that_are_no_longer_served_keep_their_counts() -> None:
    body = statistics_document([counted("b", 1, 5), counted("old", 3, 2)], SNAPSHOT)
    assert names(body) == [("a", "1"), ("b", "1"), ("b", "9"), ("b", "10"), ("old", "3")]
    assert [each["inference_count"] for each in body["model_stats"]] == [0, 5, 0, 0, 2]
    assert "model" not in body["model_stats"][1]


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("b", None, [("b", "9"), ("b", "10")]),
        ("b", 10, [("b", "10")]),
        ("b", 3, []),
        ("nobody", None, []),
    ],
)
def test_entries_can_be_asked_for_by_name_and_version(
    name: str, version: int | None, expected: list[tuple[str, str]]
) -> None:
    assert names(statistics_document([], SNAPSHOT, name, version)) == expected


def test_a_pair_that_the_totals_lack_is_zero() -> None:
    totals = [{"model": "a", "version": 1, "inference_stats": {"success": {"count": 1, "ns": 2}}}]
    (entry,) = statistics_document(totals, SNAPSHOT, "a")["model_stats"]
    assert set(entry["inference_stats"]) == set(PAIRS)
    assert entry["inference_stats"]["success"] == {"count": 1, "ns": 2}


BASE = ModelConfig(batching=Batching(max_rows=8, max_wait_s=0.5), labels={"stable": 1})


SEEN = replace(
    model(signature([spec("x", F4, None, 28, 28, 1)], [spec("label", BYTES, None, 1)])),
    row_limit=64,
)


def test_every_field_is_shown_with_its_default() -> None:
    seen = shown(BASE, SEEN)
    assert seen["max_batch_size"] == 64
    assert seen["input"] == [
        {
            "name": "x",
            "data_type": "TYPE_FP32",
            "format": "FORMAT_NONE",
            "dims": [28, 28, 1],
            "is_shape_tensor": False,
            "allow_ragged_batch": False,
            "optional": False,
            "is_non_linear_format_io": False,
        }
    ]
    assert seen["output"] == [
        {
            "name": "label",
            "data_type": "TYPE_STRING",
            "dims": [1],
            "label_filename": "",
            "is_shape_tensor": False,
            "is_non_linear_format_io": False,
        }
    ]
    assert seen["version_policy"] == {"latest": {"num_versions": 1}}
    assert seen["dynamic_batching"]["preferred_batch_size"] == [8]
    assert seen["dynamic_batching"]["max_queue_delay_microseconds"] == 500_000
    assert seen["default_model_filename"] == "model.onnx"


@pytest.mark.parametrize("max_rows", [0, 8])
def test_no_field_of_tritons_message_is_left_out(max_rows: int) -> None:
    [given], [result] = SEEN.signatures["serving_default"].inputs, [spec("y", F4, None, 2)]
    given = replace(given, format="FORMAT_NHWC", reshape=(None, 784))
    result = replace(result, reshape=(1, 2), label_filename="labels.txt")
    config = BASE.model_copy(update={"versions": (1, 3)})
    seen = shown(config, replace(model(signature([given], [result])), max_rows=max_rows))
    read = json_format.ParseDict(seen, model_config_pb2.ModelConfig())
    printed = json_format.MessageToDict(
        read, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    assert as_numbers(printed) == seen
    assert seen["input"][0]["reshape"] == {"shape": [-1, 784]}


def as_numbers(value: Any) -> Any:
    """Protobuf's JSON has integers of 64 bits as strings, Triton's has numbers."""
    if isinstance(value, dict):
        return {key: as_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [as_numbers(each) for each in value]
    return int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value


@pytest.mark.parametrize(
    ("versions", "policy"),
    [("all", {"all": {}}), (Latest(latest=2), {"latest": {"num_versions": 2}})],
)
def test_the_version_policy_is_the_models(versions: Any, policy: Any) -> None:
    config = BASE.model_copy(update={"versions": versions})
    assert shown(config, SEEN)["version_policy"] == policy


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ({"all": {}}, "all"),
        ({"latest": {"num_versions": 2}}, Latest(latest=2)),
        ({"latest": {}}, Latest(latest=1)),
        ({"specific": {"versions": ["1", 3]}}, (1, 3)),
    ],
)
def test_a_version_policy_is_taken_over(policy: dict[str, Any], versions: Any) -> None:
    assert overridden(BASE, {"version_policy": policy}).versions == versions


def test_batching_is_taken_over_and_the_rest_stays() -> None:
    document = {
        "name": "m",
        "platform": "onnxruntime_onnx",
        "max_batch_size": 16,
        "dynamic_batching": {"max_queue_delay_microseconds": "2000"},
    }
    new = overridden(BASE, document)
    assert new.batching == Batching(max_rows=16, max_wait_s=0.002, row_limit=16)
    assert new.labels == BASE.labels and new.versions == BASE.versions
    assert overridden(BASE, {"dynamic_batching": {}}) == BASE


def test_what_the_configuration_endpoint_says_may_be_sent_back() -> None:
    config = BASE.model_copy(update={"versions": Latest(latest=1)})
    assert overridden(config, shown(config, replace(one_input(), max_rows=0))) == config
    again = overridden(config, shown(config, one_input()))
    # What was shown as a limit is one then.
    batching = config.batching.model_copy(update={"row_limit": 8})
    assert again == config.model_copy(update={"batching": batching})


def test_an_overriding_row_limit_replaces_the_one_of_the_files() -> None:
    new = overridden(BASE, {"max_batch_size": 16})
    assert shown(BASE, SEEN)["max_batch_size"] == 64
    assert shown(new, SEEN)["max_batch_size"] == 16


@pytest.mark.parametrize(
    ("document", "error", "words"),
    [
        ({"instance_group": [{"count": 2}]}, Unimplemented, "instance_group"),
        ({"optimization": {"graph": {"level": 1}}}, Unimplemented, "optimization"),
        ({"dynamic_batching": {"preserve_ordering": True}}, Unimplemented, "preserve_ordering"),
        ({"versions": [1]}, Unimplemented, "versions"),
        ({"response_cache": {"enable": True}}, Unimplemented, "response_cache"),
        ({"dynamic_batching": {"delay": 3}}, Unimplemented, "dynamic_batching.delay"),
        ({"version_policy": {"latest": {"count": 2}}}, Unimplemented, "latest.count"),
        ({"version_policy": {"specific": {"version": [2]}}}, Unimplemented, "specific.version"),
        ({"version_policy": {"all": {"of": 2}}}, Unimplemented, "all.of"),
        ({"version_policy": {"latest": 2}}, InvalidArgument, "latest"),
        ({"version_policy": {"specific": {}}}, InvalidArgument, "at least one version"),
        ({"max_batch_size": "many"}, InvalidArgument, "max_batch_size"),
        ({"max_batch_size": -1}, InvalidArgument, "batching.max_rows"),
        ({"dynamic_batching": 3}, InvalidArgument, "dynamic_batching"),
        ({"version_policy": {"newest": {}}}, InvalidArgument, "version_policy"),
        ({"version_policy": {"latest": {"num_versions": 0}}}, InvalidArgument, "versions"),
    ],
)
def test_what_cannot_be_overridden_is_named(
    document: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        overridden(BASE, document)
