from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from headrace.config.args import Batching, Latest, ModelConfig
from headrace.errors import InvalidArgument, Unimplemented
from headrace.protocols.metadata import overridden, shown
from headrace.spec import BYTES
from tests.headrace.protocols.specs import F4, model, one_input, signature, spec

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
