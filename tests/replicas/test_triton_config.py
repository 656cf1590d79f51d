"""What a `config.pbtxt` changes of a model, and which ones are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ModelLoadError
from headrace.spec import ModelSpec, Tensor
from replicas.listing import MAX_BESIDE_BYTES
from replicas.triton_config import configured, own_file
from tests.headrace.protocols.specs import F4, model, signature, spec

PICTURES = model(
    signature(
        [spec("images", F4, None, None, None, 3)],
        [spec("scores", F4, None, 2), spec("features", F4, None, 5)],
    )
)
LABELS = {"labels.txt": b"cat\r\ndog\n", "names.txt": b"a\n\nc"}


def no_files(name: str) -> bytes | None:
    return None


class Doubling:
    """A runtime that gives twice its first input under every name, and keeps its shape."""

    single_threaded = True

    def __init__(self, spec_: ModelSpec) -> None:
        self.spec = spec_
        self.shapes: list[tuple[int, ...]] = []
        self.closed = False

    def run(
        self,
        signature: str,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        more: bool = False,
    ) -> dict[str, Tensor]:
        [given_] = inputs.values()
        self.shapes.append(given_.shape)
        return dict.fromkeys(outputs, given_ * 2)

    def close(self) -> None:
        self.closed = True


def applied(
    text: str, spec_: ModelSpec = PICTURES, files: Mapping[str, bytes] | None = None
) -> ModelSpec:
    runtime = configured(Doubling(spec_), text.encode(), (files or {}).get)
    return runtime.spec


def test_without_configuration_and_labels_nothing_changes() -> None:
    runtime = Doubling(PICTURES)
    assert configured(runtime, None, no_files) is runtime
    assert configured(runtime, b"", no_files) is runtime


def test_formats_dims_and_labels_are_taken_over() -> None:
    found = applied(
        """
        name: "m" platform: "onnxruntime_onnx" backend: "onnxruntime"
        input { name: "images" data_type: TYPE_FP32 format: FORMAT_NHWC dims: [ 24, -1, 3 ] }
        output [ { name: "scores" dims: [ 2 ] label_filename: "names.txt" } ]
        """,
        files=LABELS,
    )
    [images], [scores] = (
        found.signatures["serving_default"].inputs,
        (found.signatures["serving_default"].outputs),
    )
    assert (images.format, images.shape) == ("FORMAT_NHWC", (None, 24, None, 3))
    assert (scores.name, scores.label_filename) == ("scores", "names.txt")
    assert found.labels == {"scores": ["a", "", "c"]}
    assert (found.max_rows, found.row_limit, found.ignored) == (8, None, ())


def test_labels_without_configuration_go_to_the_output_with_as_many_classes() -> None:
    found = configured(Doubling(PICTURES), None, LABELS.get).spec
    assert found.labels == {"scores": ["cat", "dog"]}
    names = [each.label_filename for each in found.signatures["serving_default"].outputs]
    assert names == ["labels.txt", ""]


@pytest.mark.parametrize(
    ("text", "max_rows", "limit"),
    [
        ("max_batch_size: 0", 0, 0),
        ("max_batch_size: 4", 4, 4),
        ("max_batch_size: 64", 8, 64),
        ("# max_batch_size: 4", 8, None),
        ("default_model_filename: 'max_batch_size'", 8, None),
    ],
)
def test_max_batch_size_bounds_requests_and_batches(
    text: str, max_rows: int, limit: int | None
) -> None:
    found = applied(text)
    assert (found.max_rows, found.row_limit) == (max_rows, limit)


def test_without_a_batch_dimension_dims_are_whole() -> None:
    found = applied('max_batch_size: 0 output { name: "scores" dims: [ 1, 2 ] }')
    [scores] = found.signatures["serving_default"].outputs
    assert scores.shape == (1, 2)


def test_what_is_not_read_is_named_as_ignored() -> None:
    found = applied(
        """
        platform: "tensorflow_graphdef" backend: "python"
        instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0 ] } ]
        version_policy { all { } }
        dynamic_batching { }
        parameters { key: "x" value { string_value: "y" } }
        input { name: "images" allow_ragged_batch: true }
        """
    )
    assert found.ignored == (
        *(
            "platform",
            "backend",
            "version_policy",
            "input.allow_ragged_batch",
            "instance_group",
            "parameters",
        ),
    )


def test_reshape_changes_what_the_model_gets_and_what_callers_get() -> None:
    flat = model(signature([spec("x", F4, None)], [spec("y", F4, None)]))
    runtime = Doubling(flat)
    text = b"""
        input { name: "x" dims: [ 1 ] reshape { shape: [ ] } }
        output { name: "y" dims: [ 1, 1 ] reshape { shape: [ ] } }
    """
    shaped = configured(runtime, text, no_files)
    [x], [y] = (
        shaped.spec.signatures["serving_default"].inputs,
        (shaped.spec.signatures["serving_default"].outputs),
    )
    assert (x.shape, x.reshape, y.shape) == ((None, 1), (), (None, 1, 1))
    result = shaped.run("serving_default", {"x": np.array([[1], [2]], F4)}, ["y"])
    assert runtime.shapes == [(2,)] and result["y"].tolist() == [[[2]], [[4]]]
    shaped.close()
    assert runtime.closed and shaped.single_threaded


def test_reshape_keeps_free_sizes_in_their_order() -> None:
    wide = replace(
        model(signature([spec("x", F4, None, None, 6)], [spec("y", F4, None, None, 6)])), max_rows=0
    )
    runtime = Doubling(wide)
    text = b"""
        input { name: "x" dims: [ -1, -1, 2, 3 ] reshape { shape: [ -1, -1, 6 ] } }
        output { name: "y" dims: [ -1, -1, 3, 2 ] reshape { shape: [ -1, -1, 6 ] } }
    """
    result = configured(runtime, text, no_files).run(
        "serving_default", {"x": np.zeros((4, 5, 2, 3), F4)}, ["y"]
    )
    assert runtime.shapes == [(4, 5, 6)] and result["y"].shape == (4, 5, 3, 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("input {", "is not a model configuration: 1:7"),
        ('colour: "red"', 'has no field named "colour"'),
        ("max_batch_size: many", "is not a model configuration"),
        ("max_batch_size: -1", "at least 0, not -1"),
        ('name: "other"', "name is 'other', but the folder is 'm'"),
        ('input { name: "x" }', "input 'x' is none of the model's, which has 'images'"),
        ('output { name: "scores" } output { name: "scores" }', "is listed twice"),
        (
            'output { name: "scores" data_type: TYPE_INT8 }',
            "TYPE_INT8, but the model's is TYPE_FP32",
        ),
        ('output { name: "scores" dims: [ 3 ] }', r"shape \[3\], but the model's is \[2\] without"),
        ('output { name: "scores" dims: [ 1, 2 ] }', r"shape \[1, 2\]"),
        ('output { name: "scores" dims: [ 0 ] }', "at least 1, or -1, not 0"),
        ('output { name: "scores" reshape { shape: 2 } }', "needs dims"),
        ('output { name: "scores" dims: 1 reshape { shape: 2 } }', "different size for dims"),
        ('max_batch_size: 0 output { name: "scores" dims: 1 reshape { } }', "must not be empty"),
        ('output { name: "scores" label_filename: "../secret.txt" }', "outside of the model's"),
        ('output { name: "scores" label_filename: "/etc/passwd" }', "outside of the model's"),
        ('output { name: "scores" label_filename: "gone.txt" }', "neither beside the version"),
        ('output { name: "scores" label_filename: "bad.txt" }', "bad.txt is not UTF-8"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        applied(text, files={"bad.txt": b"\xff"})


def test_what_a_format_or_a_batch_dimension_needs_is_refused() -> None:
    flat = model(signature([spec("x", F4, None, 4), spec("z", F4, None)]))
    with pytest.raises(ModelLoadError, match="FORMAT_NCHW, which needs three dims"):
        applied('input { name: "x" format: FORMAT_NCHW } input { name: "z" }', flat)
    with pytest.raises(ModelLoadError, match="lists inputs, but not 'z'"):
        applied('input { name: "x" }', flat)
    with pytest.raises(ModelLoadError, match="it must be 0"):
        applied("max_batch_size: 4", replace(flat, max_rows=0))
    with pytest.raises(ModelLoadError, match="not UTF-8"):
        configured(Doubling(flat), b"\xff", no_files)


WORDS = ["input", "output", "{", "}", "[", "]", ":", "name", "dims", '"scores"', "-1", "2", "0"]
WORDS += ["reshape", "shape", "max_batch_size", "format", "FORMAT_NHWC", '"images"', "'", "#", "\n"]


def test_an_optional_input_that_is_not_listed_is_not_served() -> None:
    weight = replace(spec("w", F4), optional=True)
    both = model(signature([spec("x", F4, None, 4), weight]))
    assert not both.batches(both.signatures["serving_default"])
    found = applied('max_batch_size: 4 input { name: "x" dims: [ 4 ] }', both)
    [x] = found.signatures["serving_default"].inputs
    assert (x.name, x.shape) == ("x", (None, 4))
    assert found.batches(found.signatures["serving_default"])
    with pytest.raises(ModelLoadError, match="it must be 0"):
        applied("max_batch_size: 4", both)


@given(st.one_of(st.text(), st.lists(st.sampled_from(WORDS)).map(" ".join)))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found: Any = applied(text)
    except ModelLoadError as error:
        assert error.message
    else:
        assert set(found.signatures) == set(PICTURES.signatures)


def test_a_file_of_the_version_that_is_too_large_is_refused(tmp_path: Any) -> None:
    assert own_file(tmp_path, "labels.txt") is None
    with (tmp_path / "labels.txt").open("wb") as file:
        file.truncate(MAX_BESIDE_BYTES + 1)
    with pytest.raises(ModelLoadError, match="larger than"):
        own_file(tmp_path, "labels.txt")


def test_a_name_that_no_file_can_have_is_refused_without_a_path(tmp_path: Any) -> None:
    with pytest.raises(ModelLoadError, match="cannot be read: File name too long") as caught:
        own_file(tmp_path, "x" * 300)
    assert str(tmp_path) not in caught.value.message
