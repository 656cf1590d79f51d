"""The quick way through infer requests: where it may be taken, and that it changes nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from headrace.protocols.openinference_json import OpenInferenceCodec, read_quickly
from headrace.protocols.tensors import Call
from headrace.spec import TensorSpec
from tests.headrace.protocols.specs import model, signature


def test_flat_numbers_are_read_quickly() -> None:
    text = b"""{"id": "1", "parameters": {"timeout": 5}, "outputs": [{"name": "y"}], "inputs": [
        {"name": "x", "shape": [2], "datatype": "UINT8", "data": [1, 255]}]}"""
    document = read_quickly(text)
    assert document is not None
    data = document["inputs"][0].pop("data")
    assert data.dtype == np.uint8 and data.tolist() == [1, 255]
    assert document == {
        "id": "1",
        "parameters": {"timeout": 5},
        "outputs": [{"name": "y"}],
        "inputs": [{"name": "x", "shape": [2], "datatype": "UINT8"}],
    }


@pytest.mark.parametrize(
    "entry",
    [
        '{"shape":[2],"datatype":"UINT8","data":[1,256]}',
        '{"shape":[2],"datatype":"UINT8","data":[1,[2]]}',
        '{"shape":[2],"datatype":"FP32","data":[1,NaN]}',
        '{"shape":[2],"datatype":"BOOL","data":[true,false]}',
        '{"shape":[2],"datatype":"BYTES","data":["a","["]}',
        '{"shape":[2],"datatype":"FP99","data":[1,2]}',
        '{"shape":[2],"datatype":"FP32"}',
        '{"shape":[2],"datatype":"FP32","data":3}',
        "7",
    ],
)
def test_everything_else_is_left_to_the_thorough_way(entry: str) -> None:
    assert read_quickly(f'{{"inputs":[{entry}]}}'.encode()) is None


NESTED = st.recursive(
    st.integers(-300, 300) | st.sampled_from([0.5, 2**24 + 1, 1e39, 2**63, 2**64 - 1, True, "["]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
KINDS = {"FP32": np.float32, "FP64": np.float64, "UINT8": np.uint8, "UINT64": np.uint64}


@given(NESTED, st.lists(st.integers(0, 3), max_size=3), st.sampled_from(sorted(KINDS)))
def test_quick_way_agrees_with_thorough_way(data: Any, shape: list[int], datatype: str) -> None:
    any_rank = model(signature([TensorSpec("x", np.dtype(KINDS[datatype]), None)]))
    entry = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    results: list[Any] = []
    # Brackets elsewhere are ignored, but send the request down the thorough way.
    for document in ({"inputs": [entry]}, {"inputs": [entry], "ignored": [[]]}):
        body = json.dumps(document).encode()
        try:
            x = OpenInferenceCodec().decode(body, Call("infer"), any_rank).inputs["x"]
            results.append((x.dtype, x.shape, x.tolist()))
        except HeadraceError as error:
            results.append(error.message)
    assert results[0] == results[1]
