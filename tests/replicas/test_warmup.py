"""Made-up inputs are legal, and may be refused; recorded requests are run and may not."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headrace.errors import InternalError, InvalidArgument, ModelLoadError
from headrace.protocols.calls import CALLS
from headrace.protocols.wire import delimited, message
from headrace.spec import BYTES, ModelSpec, Signature, Tensor, TensorSpec
from replicas.warmup import (
    MAX_BYTES,
    MAX_FILES,
    PICTURE_PNG,
    RECORDS,
    Recorded,
    read_records,
    recorded_requests,
    synthetic_inputs,
    warm_up,
)

FLOAT = np.dtype(np.float32)


class FakeRuntime:
    """Records its runs; raises `error` in each of them if there is one."""

    single_threaded = False

    def __init__(
        self, *signatures: Signature, error: Exception | None = None, max_rows: int = 0
    ) -> None:
        named = {each.name: each for each in signatures}
        self.spec = ModelSpec("demo", 1, "fake", named, max_rows=max_rows)
        self.runs: list[tuple[str, list[str], list[str]]] = []
        self.inputs: list[Mapping[str, Tensor]] = []
        self._error = error

    def run(
        self,
        signature: str,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        more: bool = False,
    ) -> dict[str, Tensor]:
        self.runs.append((signature, sorted(inputs), list(outputs)))
        self.inputs.append(inputs)
        if self._error is not None:
            raise self._error
        return {}

    def close(self) -> None:
        raise AssertionError("a warm-up closes nothing")


def signature(*inputs: TensorSpec, name: str = "serving_default") -> Signature:
    return Signature(name, inputs, (TensorSpec("y", FLOAT, (None,)),))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((None, 10), (3, 10)),
        ((None, None), (3, 1)),
        ((2, None), (2, 1)),
        ((None, None, None, 3), (3, 64, 64, 3)),
        ((None, 3, None, None), (3, 3, 64, 64)),
        ((1, 224, 224, 3), (1, 224, 224, 3)),
        ((), ()),
    ],
)
def test_synthetic_inputs_fill_free_dimensions(
    shape: tuple[int | None, ...], expected: tuple[int, ...]
) -> None:
    made = synthetic_inputs(signature(TensorSpec("x", FLOAT, shape)), rows=3)
    assert made is not None
    assert made["x"].shape == expected
    assert made["x"].dtype == FLOAT
    assert not made["x"].any()


def test_synthetic_inputs_give_a_picture_to_an_input_named_for_one() -> None:
    specs = (TensorSpec("image_bytes", BYTES, (None,)), TensorSpec("text", BYTES, (None, 1)))
    made = synthetic_inputs(signature(*specs), rows=2)
    assert made is not None
    assert made["image_bytes"].tolist() == [PICTURE_PNG, PICTURE_PNG]
    assert made["text"].tolist() == [[b""], [b""]]
    assert Image.open(BytesIO(PICTURE_PNG)).convert("RGB").getpixel((7, 7)) == (255, 0, 0)


def test_synthetic_inputs_are_none_when_a_rank_is_unknown() -> None:
    assert synthetic_inputs(signature(TensorSpec("x", FLOAT, None)), rows=1) is None


def test_warm_up_runs_every_signature_that_it_can() -> None:
    one = signature(TensorSpec("x", FLOAT, (None,)))
    two = signature(TensorSpec("z", FLOAT, (None,)), name="second")
    unknown = signature(TensorSpec("x", FLOAT, None), name="unknown")
    runtime = FakeRuntime(one, unknown, two)
    warm_up(runtime)
    assert runtime.runs == [("serving_default", ["x"], ["y"]), ("second", ["z"], ["y"])]


def test_warm_up_goes_on_when_a_model_refuses_zeros() -> None:
    specs = TensorSpec("x", FLOAT, (None,))
    runtime = FakeRuntime(
        signature(specs), signature(specs, name="second"), error=InvalidArgument("no zeros")
    )
    warm_up(runtime)
    assert [name for name, _, _ in runtime.runs] == ["serving_default", "second"]


def test_warm_up_raises_what_is_not_about_the_inputs() -> None:
    runtime = FakeRuntime(signature(TensorSpec("x", FLOAT, ())), error=InternalError("no memory"))
    with pytest.raises(InternalError, match="no memory"):
        warm_up(runtime)


def write_request(folder: Path, name: str, document: object) -> None:
    (folder / "warmup").mkdir(exist_ok=True)
    (folder / "warmup" / name).write_text(json.dumps(document))


def test_recorded_requests_are_run_in_place_of_made_up_ones(tmp_path: Path) -> None:
    spec = TensorSpec("x", FLOAT, (None, 2))
    runtime = FakeRuntime(signature(spec), signature(spec, name="second"))
    write_request(tmp_path, "a.json", {"instances": [[1, 2]]})
    write_request(tmp_path, "b.json", {"signature_name": "second", "inputs": [[3, 4]]})
    warm_up(runtime, tmp_path)
    assert runtime.runs == [("serving_default", ["x"], ["y"]), ("second", ["x"], ["y"])]
    assert [given["x"].tolist() for given in runtime.inputs] == [[[1, 2]], [[3, 4]]]


def test_made_up_requests_are_run_where_none_is_recorded(tmp_path: Path) -> None:
    runtime = FakeRuntime(signature(TensorSpec("x", FLOAT, (None, 2))))
    warm_up(runtime, tmp_path)
    assert [given["x"].tolist() for given in runtime.inputs] == [[[0, 0]]]


def test_a_recorded_request_runs_no_more_rows_than_a_batch_holds(tmp_path: Path) -> None:
    runtime = FakeRuntime(signature(TensorSpec("x", FLOAT, (None, 1))), max_rows=2)
    write_request(tmp_path, "a.json", {"instances": [[1], [2], [3]]})
    warm_up(runtime, tmp_path)
    assert [given["x"].tolist() for given in runtime.inputs] == [[[1], [2]]]


@pytest.mark.parametrize("error", [InvalidArgument("not so"), InternalError("not so")])
def test_a_recorded_request_that_the_model_refuses_fails_the_version(
    tmp_path: Path, error: Exception
) -> None:
    runtime = FakeRuntime(signature(TensorSpec("x", FLOAT, (None, 1))), error=error)
    write_request(tmp_path, "a.json", {"instances": [[1]]})
    write_request(tmp_path, "b.json", {"instances": [[1]]})
    with pytest.raises(ModelLoadError, match=r"^warm-up request warmup/a\.json: not so$"):
        warm_up(runtime, tmp_path)
    assert len(runtime.runs) == 1


def test_a_recorded_request_that_is_for_another_model_fails_the_version(tmp_path: Path) -> None:
    runtime = FakeRuntime(signature(TensorSpec("x", FLOAT, (None, 1))))
    write_request(tmp_path, "a.json", {"inputs": {"z": [[1]]}})
    with pytest.raises(ModelLoadError, match=r"^warm-up request warmup/a\.json: missing inputs"):
        warm_up(runtime, tmp_path)
    assert runtime.runs == []


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
