"""Repeated fields as flat tensors."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.errors import InvalidArgument
from headrace.protocols.tensor_proto import append_list, read_list
from headrace.protocols.wire import message
from tests.headrace.protocols.specs import F4


def test_floats_are_read_whatever_else_is_set() -> None:
    holder = message("inference.InferTensorContents")(
        bool_contents=[True] * 9, fp32_contents=[1.5, float("nan")], bytes_contents=[b"x"] * 5000
    )
    np.testing.assert_array_equal(read_list(holder, "fp32_contents", F4, "input"), [1.5, np.nan])


def test_values_are_added_to_those_there() -> None:
    holder = message("inference.InferTensorContents")(fp64_contents=[1], int_contents=[2])
    append_list(holder, "fp64_contents", np.array([0.1, np.inf]))
    append_list(holder, "int_contents", np.array([-3], np.int16))
    append_list(holder, "fp64_contents", np.empty(0))
    assert list(holder.fp64_contents) == [1, 0.1, np.inf]
    assert list(holder.int_contents) == [2, -3]


def test_empty_lists_have_their_dtype() -> None:
    for field, dtype in (("fp32_contents", F4), ("int_contents", np.dtype(np.int8))):
        found = read_list(message("inference.InferTensorContents")(), field, dtype, "input")
        assert (found.dtype, found.shape) == (dtype, (0,))


@pytest.mark.parametrize(("dtype", "value"), [(np.int8, -129), (np.int16, 2**15)])
def test_refuses_integers_out_of_range(dtype: type, value: int) -> None:
    holder = message("inference.InferTensorContents")(int_contents=[value])
    with pytest.raises(InvalidArgument, match="input holds a number that does not fit INT"):
        read_list(holder, "int_contents", np.dtype(dtype), "input")
