"""Recorded requests: which are found, how they are read, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ModelLoadError
from headrace.protocols.calls import CALLS
from headrace.protocols.wire import delimited, message
from headrace.spec import ModelSpec, Signature, TensorSpec
from replicas.warmup import (
    MAX_BYTES,
    MAX_FILES,
    RECORDS,
    Recorded,
    read_records,
    recorded_requests,
)

FLOAT = np.dtype(np.float32)
INPUTS = (TensorSpec("x", FLOAT, (None, 2)),)
OUTPUTS = (TensorSpec("y", FLOAT, (None,)),)
SPEC = ModelSpec("m", 1, "fake", {"serving_default": Signature("serving_default", INPUTS, OUTPUTS)})
OPEN = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}


def add(folder: Path, name: str, content: bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def add_json(folder: Path, name: str, document: Any) -> None:
    add(folder, f"warmup/{name}", json.dumps(document).encode())


def framed(*records: bytes) -> bytes:
    """As TFRecord files are, but for the checksums, which nobody checks."""
    return b"".join(struct.pack("<Q4x", len(each)) + each + b"\0\0\0\0" for each in records)


def predict_request(values: list[float]) -> bytes:
    request = message("tensorflow.serving.PredictRequest")()
    request.model_spec.name = "whatever it was called"
    tensor = request.inputs["x"]
    tensor.dtype = 1
    for size in (1, len(values)):
        tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.extend(values)
    encoded: bytes = request.SerializeToString()
    return encoded


def log_of(field: int, request: bytes) -> bytes:
    """A PredictionLog with its metadata first."""
    return delimited(1, b"") + delimited(field, delimited(1, request))


def kinds(folder: Path) -> list[tuple[str, str, str]]:
    return [
        (each.where, CALLS[each.call].protocol, CALLS[each.call].method)
        for each in recorded_requests(folder)
    ]


def test_a_folder_without_requests_has_none(tmp_path: Path) -> None:
    add(tmp_path, "warmup/README", b"not a request")
    assert kinds(tmp_path) == kinds(tmp_path / "absent") == []


def test_json_bodies_are_told_apart_by_their_form(tmp_path: Path) -> None:
    add_json(tmp_path, "c.json", {"instances": [[1, 2]]})
    add_json(tmp_path, "a.json", OPEN)
    add_json(tmp_path, "b.json", {"inputs": [[1, 2]]})
    assert kinds(tmp_path) == [
        ("warmup/a.json", "openinference", "infer"),
        ("warmup/b.json", "tfserving", "predict"),
        ("warmup/c.json", "tfserving", "predict"),
    ]
    for recorded in recorded_requests(tmp_path):
        assert recorded.decode(SPEC).inputs["x"].tolist() == [[1, 2]]


def test_records_of_tensorflow_serving_are_read(tmp_path: Path) -> None:
    add(
        tmp_path,
        RECORDS,
        framed(log_of(6, predict_request([3, 4])), log_of(2, b""), log_of(3, b"")),
    )
    found = list(recorded_requests(tmp_path))
    assert [CALLS[each.call].method for each in found] == ["predict", "classify", "regress"]
    assert {CALLS[each.call].protocol for each in found} == {"tfserving_grpc"}
    assert found[0].where == f"{RECORDS}, record 1"
    assert found[0].decode(SPEC).inputs["x"].tolist() == [[3, 4]]


def test_the_tasks_of_a_recorded_multi_inference_are_requests_each(tmp_path: Path) -> None:
    request = message("tensorflow.serving.MultiInferenceRequest")()
    for method in ("classify", "regress"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name = "m"
    add(tmp_path, RECORDS, framed(log_of(4, request.SerializeToString())))
    assert [method for _, _, method in kinds(tmp_path)] == ["classify", "regress"]


def test_records_of_kinds_that_are_not_served_are_left_out(tmp_path: Path) -> None:
    logs = [log_of(5, b""), log_of(7, b""), log_of(6, predict_request([1, 2]))]
    add(tmp_path, RECORDS, framed(*logs))
    assert [where for where, _, _ in kinds(tmp_path)] == [f"{RECORDS}, record 3"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("warmup/a.json", b"{", r"^warm-up request warmup/a\.json: "),
        ("warmup/a.json", b"[1]", r"^warm-up request warmup/a\.json: "),
        (RECORDS, b"12345", "is not a TFRecord file, or it is cut short"),
        (RECORDS, framed(b"12345")[:-1], "cut short"),
        (RECORDS, framed(log_of(6, b""))[:20], "cut short"),
        (RECORDS, struct.pack("<Q4x", 2**64 - 1), "cut short"),
        (RECORDS, framed(b"\x32\xff"), "record 1: the message ends in the middle"),
        (RECORDS, framed(log_of(4, b"\xff")), "record 1: the message is not a MultiInference"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    add(tmp_path, name, content)
    with pytest.raises(ModelLoadError, match=said):
        kinds(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("warmup/a.json", b'{"instances": [[1, 2, 3]]}', r"^warm-up request warmup/a\.json: .*x"),
        ("warmup/a.json", b"{}", "Missing 'inputs' or 'instances'"),
        ("warmup/a.json", b'{"inputs": [{"datatype": "FP32"}]}', "warmup/a.json: .*name"),
        (RECORDS, framed(log_of(6, b"")), "tf_serving_warmup_requests, record 1: .*x"),
        (RECORDS, framed(log_of(6, b"\xff")), "record 1: the message is not a PredictRequest"),
    ],
)
def test_a_request_that_is_not_for_the_model_is_refused_by_its_name(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    add(tmp_path, name, content)
    (recorded,) = recorded_requests(tmp_path)
    with pytest.raises(ModelLoadError, match=said):
        recorded.decode(SPEC)


def test_too_many_files_or_bytes_are_refused_before_any_is_read(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 1):
        add_json(tmp_path / "many", f"{number}.json", OPEN)
    with pytest.raises(ModelLoadError, match="holds 101 requests; at most 100"):
        kinds(tmp_path / "many")
    large = tmp_path / "large" / RECORDS
    large.parent.mkdir(parents=True)
    with large.open("wb") as file:
        file.truncate(MAX_BYTES)
    add_json(tmp_path / "large", "a.json", OPEN)
    with pytest.raises(ModelLoadError, match=rf"at most {MAX_BYTES} are run"):
        kinds(tmp_path / "large")


def test_too_many_records_are_refused(tmp_path: Path) -> None:
    add(tmp_path, RECORDS, framed(log_of(6, b"")) * 1001)
    with pytest.raises(ModelLoadError, match="more than 1000 requests"):
        kinds(tmp_path)


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(1, 15))
def test_records_come_as_they_were_written_or_not_at_all(records: list[bytes], cut: int) -> None:
    content = framed(*records)
    assert list(read_records(content)) == records
    if records:
        with pytest.raises(ModelLoadError, match="cut short"):
            list(read_records(content[:-cut]))


def test_a_recorded_request_says_where_it_comes_from() -> None:
    with pytest.raises(ModelLoadError, match=r"^warm-up request here: "):
        Recorded("here", 0, b"nonsense").decode(SPEC)
