"""Request targets."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from headrace.errors import InvalidArgument, NotFound, PayloadTooLarge
from headrace.protocols.targets import (
    InferPath,
    KnownTargets,
    canonical_path,
    encode_error,
    infer_target,
    model_not_found,
    multi_inference_answer,
    multi_inference_tasks,
    parse,
    parse_infer_path,
    scan_infer_target,
    servable_not_found,
    serving_target,
)
from headrace.protocols.wire import delimited, message


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/v1/models/m:predict", InferPath("tfserving", "predict", "m")),
        (b"/v1/models/m:classify?a=/b", InferPath("tfserving", "classify", "m")),
        (b"/v1/models/m/versions/12:regress", InferPath("tfserving", "regress", "m", 12)),
        (
            b"/V1/Models/M/Labels/St%C3%A9:predict",
            InferPath("tfserving", "predict", "M", None, "Sté"),
        ),
        (b"/v2/models/m/infer", InferPath("openinference", "infer", "m")),
        (b"/v2/models/a%2Fb/versions/3/infer?x", InferPath("openinference", "infer", "a/b", 3)),
        (b"/base/path/v2/models/m/infer", InferPath("openinference", "infer", "m")),
        (b"/v2/models/v2/infer", InferPath("openinference", "infer", "v2")),
        (b"/v1/models/m", None),
        (b"/v1/models/m:other", None),
        (b"/v1/models/m:Predict", None),
        (b"/v1/models/m/versions/latest:predict", None),
        (b"/v1/models/m/versions/%31:predict", None),
        (b"/v1/models/m/versions/1/labels/x:predict", None),
        (b"/v1/models/:predict", None),
        (b"/v1/v2/models/m/infer", None),
        (b"/v2/models/m/ready", None),
        (b"/xv2/models/m/infer", None),
        (b"/v2/models/m/infer/", None),
        (b"", None),
        (b"/" + b"a/" * 1000 + b"v2/models/m/infer", InferPath("openinference", "infer", "m")),
    ],
)
def test_parse_infer_path(path: bytes, expected: InferPath | None) -> None:
    assert parse_infer_path(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/models/m/versions/9223372036854775808:predict",
        b"/v2/models/m/versions/9223372036854775808/infer",
        b"/v2/models/m/versions/-1/infer",
        b"/v2/models/m/versions/12345678901234567890/infer",
        "/v2/models/m/versions/\N{ARABIC-INDIC DIGIT ONE}/infer".encode(),
        b"/v2/models/%ff/infer",
    ],
)
def test_parse_infer_path_refuses(path: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_infer_path(path)


@given(st.binary(max_size=60))
def test_parse_infer_path_raises_nothing_else(tail: bytes) -> None:
    for prefix in (b"", b"/v1/models/", b"/v2/models/"):
        for suffix in (b"", b":predict", b"/infer"):
            try:
                found = parse_infer_path(prefix + tail + suffix)
            except InvalidArgument:
                continue
            assert found is None or found.model


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/V1/MODELS/Name/VERSIONS/1/Metadata", "/v1/models/Name/versions/1/metadata"),
        ("/V1/models/Name", "/v1/models/Name"),
        ("/V1/Other", "/v1/Other"),
        ("/v1/models/v2", "/v1/models/v2"),
        ("/base/v2/health/live", "/v2/health/live"),
        ("/base/v2", "/v2"),
        ("/v2/models/v2/ready", "/v2/models/v2/ready"),
        ("/healthz", "/healthz"),
    ],
)
def test_canonical_path(path: str, expected: str) -> None:
    assert canonical_path(path) == expected


def test_encode_error_has_one_key() -> None:
    encoded = encode_error(InvalidArgument('a "b" \ud800'))
    assert encoded.body == b'{"error":"a \\"b\\" ?"}'
    assert encoded.content_type == "application/json"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (servable_not_found("m"), "Servable not found for request: Latest(m)"),
        (servable_not_found("m", 7), "Servable not found for request: Specific(m, 7)"),
        (servable_not_found("m", label="new"), "Unrecognized servable version label: new"),
        (model_not_found("m"), "Request for unknown model: 'm' is not found"),
        (model_not_found("m", 7), "Request for unknown model: 'm' version 7 is not found"),
    ],
)
def test_not_found_texts(error: NotFound, text: str) -> None:
    assert error.message == text
    assert error.http_status == 404


MULTI = bytes.fromhex(
    "0a2e0a0f0a016d1a0a735f636c617373696679121b74656e736f72666c6f772f73657276696e672f636c617373696679"
    "0a2c0a0e0a016d1a09735f72656772657373121a74656e736f72666c6f772f73657276696e672f72656772657373"
    "12180a160a140a120a100a0473697a65120812060a040000c03f"
)
"""Of tensorflow-serving-api: classify with signature s_classify and regress with s_regress."""


def serving(full_name: str, **spec: Any) -> bytes:
    """A request with that model spec; `version` is a plain number."""
    request = message(f"tensorflow.serving.{full_name}")()
    version = spec.pop("version", None)
    for name, value in spec.items():
        setattr(request.model_spec, name, value)
    if version is not None:
        request.model_spec.version.value = version
    encoded: bytes = request.SerializeToString()
    return encoded


def multi(*specs: dict[str, Any], method: str = "tensorflow/serving/classify") -> bytes:
    """A request with a task for each model spec."""
    request = message("tensorflow.serving.MultiInferenceRequest")()
    for spec in specs:
        request.tasks.add(model_spec=spec, method_name=method)
    encoded: bytes = request.SerializeToString()
    return encoded


@given(st.text(min_size=1), st.one_of(st.none(), st.integers(0, 10**18)), st.text())
def test_infer_target_of_any_name(name: str, version: int | None, id: str) -> None:
    request = service_pb2.ModelInferRequest(
        model_name=name, model_version="" if version is None else str(version), id=id
    )
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(bytes(16))
    path = InferPath("openinference_grpc", "infer", name, version)
    assert infer_target(request.SerializeToString()) == (path, id)


def test_infer_target_whatever_the_order() -> None:
    tensors = delimited(7, bytes(300)) + delimited(99, b"new") + b"\x20\x01"
    body = tensors + delimited(3, b"7") + delimited(1, b"old") + delimited(1, b"m")
    path, id = infer_target(body)
    assert (path.model, id) == ("m", "7")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "names no model"),
        (delimited(1, b""), "names no model"),
        (delimited(1, b"\xff"), "'model_name' must be UTF-8"),
        (delimited(1, b"m") + delimited(3, b"\xff"), "'id' must be UTF-8"),
        (delimited(1, b"m") + delimited(2, b"latest"), "must be a number, not 'latest'"),
        (delimited(1, b"m") + delimited(2, b"-1"), "must be a number, not '-1'"),
        (delimited(1, b"m") + delimited(2, b"9" * 20), "must be a number"),
        (delimited(1, b"m")[:-1], "middle of a field"),
    ],
)
def test_infer_target_refuses(body: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        infer_target(body)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["", "1", "2"]), st.binary(max_size=2)),
        min_size=2,
        max_size=12,
    )
)
def test_known_targets_are_those_of_each_message(asked: list[tuple[str, str, bytes]]) -> None:
    known = KnownTargets(scan_infer_target)
    for name, version, tensor in asked:
        head = delimited(1, name.encode()) + delimited(2, version.encode())
        for body in (head + delimited(7, tensor), delimited(7, tensor) + head):
            assert known.find(body) == infer_target(body)[0]


def test_a_known_target_is_read_once_for_each_length() -> None:
    scanned = []

    def scan(body: bytes) -> tuple[InferPath, int]:
        scanned.append(body)
        return scan_infer_target(body)

    known = KnownTargets(scan)
    for tensor in (b"1234", b"5678", b"12345", b"0000"):
        assert known.find(delimited(1, b"m") + delimited(7, tensor)).model == "m"
    assert len(scanned) == 2
    with pytest.raises(InvalidArgument):
        known.find(delimited(1, b"m") + delimited(7, b"123456")[:-1])


def test_long_names_are_read_but_not_kept() -> None:
    name = "n" * 100_000
    assert infer_target(delimited(1, name.encode()))[0].model == name
    assert serving_target(serving("PredictRequest", name=name), "predict").model == name


@pytest.mark.parametrize(
    ("spec", "version", "label"),
    [({}, None, None), ({"version": 0}, 0, None), ({"version_label": "canary"}, None, "canary")],
)
def test_serving_target(spec: dict[str, Any], version: int | None, label: str | None) -> None:
    body = serving("PredictRequest", name="m", signature_name="s", **spec)
    expected = InferPath("tfserving_grpc", "predict", "m", version, label)
    assert serving_target(body, "predict") == expected
    assert serving_target(serving("RegressionRequest", name="m"), "regress").method == "regress"


def test_a_model_spec_in_two_pieces_is_one_as_protobuf_has_it() -> None:
    body = serving("PredictRequest", name="m") + serving("PredictRequest", version=3)
    assert serving_target(body, "predict") == InferPath("tfserving_grpc", "predict", "m", 3)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "names no model in its model_spec"),
        (serving("PredictRequest", version=3), "names no model in its model_spec"),
        (serving("PredictRequest", name="m", version=-1), "at least 0, not -1"),
        (
            delimited(1, delimited(1, b"m") + delimited(2, b"\x08\x03") + delimited(4, b"canary")),
            "not both",
        ),
        (delimited(1, b"\x0a\x05m"), "middle of a field"),
        (delimited(1, delimited(1, b"\xff")), "not a ModelSpec"),
    ],
)
def test_serving_target_refuses(body: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        serving_target(body, "predict")


def test_multi_inference_becomes_one_request_for_each_task() -> None:
    (first, first_body), (second, second_body) = multi_inference_tasks(MULTI)
    assert first == InferPath("tfserving_grpc", "classify", "m")
    assert second == InferPath("tfserving_grpc", "regress", "m")
    classify = parse("tensorflow.serving.ClassificationRequest", first_body)
    regress = parse("tensorflow.serving.RegressionRequest", second_body)
    assert classify.model_spec.signature_name == "s_classify"
    assert regress.model_spec.signature_name == "s_regress"
    feature = classify.input.example_list.examples[0].features.feature["size"]
    assert list(feature.float_list.value) == [1.5]
    assert regress.input == classify.input


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "has 0 tasks"),
        (multi(*[{"name": "m"}] * 17), "has 17 tasks; it may have 1 to 16"),
        (multi({"name": "m"}, {"name": "n"}), "same model and version"),
        (multi({"name": "m"}, {"name": "m", "version_label": "canary"}), "same model and version"),
        (multi({"name": "m"}, method="predict"), "must be one of .*, not 'predict'"),
        (multi({}), "names no model"),
        (b"\x0a\x05", "not a MultiInferenceRequest"),
    ],
)
def test_multi_inference_refuses(body: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        multi_inference_tasks(body)


def test_the_inputs_of_all_tasks_are_together_no_larger_than_one_may_be() -> None:
    tasks = {"name": "m"}, {"name": "m"}
    request = message("tensorflow.serving.MultiInferenceRequest")
    given = request.FromString(multi(*tasks))
    for _ in range(60):
        given.input.example_list.examples.add()
    body, size = given.SerializeToString(), given.input.ByteSize()
    assert len(multi_inference_tasks(body, 2 * size, 200)) == 2
    with pytest.raises(PayloadTooLarge, match=f"{size} bytes for each of 2 tasks"):
        multi_inference_tasks(body, 2 * size - 1, 200)
    with pytest.raises(PayloadTooLarge, match="more than 100 elements"):
        multi_inference_tasks(body, 2 * size, 100)


def test_multi_inference_answers_in_the_order_of_the_tasks() -> None:
    regress = message("tensorflow.serving.RegressionResponse")()
    regress.result.regressions.add(value=0.5)
    regress.model_spec.signature_name = "s_regress"
    classify = message("tensorflow.serving.ClassificationResponse")()
    classify.result.classifications.add().classes.add(label="cat", score=1)
    classify.model_spec.signature_name = "s_classify"
    parts = [
        ("regress", regress.SerializeToString()),
        ("classify", classify.SerializeToString()),
    ]
    answer = parse("tensorflow.serving.MultiInferenceResponse", multi_inference_answer(parts))
    assert [each.model_spec.signature_name for each in answer.results] == [
        "s_regress",
        "s_classify",
    ]
    assert answer.results[0].regression_result == regress.result
    assert answer.results[1].classification_result == classify.result


def test_parse_says_what_the_bytes_are_not() -> None:
    with pytest.raises(InvalidArgument, match=re.escape("the message is not a ModelInferRequest")):
        parse("inference.ModelInferRequest", memoryview(b"\x0a\x05"))
