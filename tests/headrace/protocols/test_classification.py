"""The strings against Triton's documented example and C++'s own way to write numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headrace.errors import InvalidArgument
from headrace.protocols.classification import check_classes, top_classes
from headrace.spec import BYTES, TensorSpec


def classes(values: Any, count: int, *labels: str, batched: bool = False) -> Any:
    return top_classes(np.asarray(values), count, labels, batched=batched).tolist()


def test_the_documented_examples() -> None:
    assert classes([1, 5, 10, 4], 2) == [b"10:2", b"5:1"]
    assert classes([1, 5, 10, 4], 2, "a", "pickle", "apple") == [b"10:2:apple", b"5:1:pickle"]
    scores = np.array([1.1, 3.3, 0.5, 2.4], np.float32)
    assert classes(scores, 2) == [b"3.300000:1", b"2.400000:3"]


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        (np.float32, 0.1, "0.100000"),
        (np.float64, 1e20, "100000000000000000000.000000"),
        (np.float32, 1e-9, "0.000000"),
        (np.float32, -np.inf, "-inf"),
        (np.uint64, 2**64 - 1, "18446744073709551615"),
        (np.int8, -128, "-128"),
    ],
)
def test_values_are_written_as_cpp_writes_them(dtype: Any, value: Any, text: str) -> None:
    assert classes(np.array([value], dtype), 1) == [f"{text}:0".encode()]


def test_equal_values_go_by_index_and_nan_last() -> None:
    assert classes([3, 7, 7, 3], 9) == [b"7:1", b"7:2", b"3:0", b"3:3"]
    assert classes([np.nan, 1.0, -np.inf], 3)[0] == b"1.000000:1"


def test_each_row_of_a_batch_is_for_itself() -> None:
    rows = np.array([[[1, 2], [3, 4]], [[8, 7], [6, 5]]], np.int16)
    assert classes(rows, 1, batched=True) == [[b"4:3"], [b"8:0"]]
    assert classes(rows, 1) == [b"8:4"]
    assert classes(rows, 9, "", "", "", "d", batched=True)[0] == [b"4:3:d", b"3:2", b"2:1", b"1:0"]
    assert top_classes(rows[:0], 2, (), batched=True).shape == (0, 0)
    assert classes(np.float32(2), 1, batched=True) == [b"2.000000:0"]


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3), elements=st.floats(width=32)),
    st.integers(1, 50),
)
def test_the_highest_come_in_order(values: Any, count: int) -> None:
    found = top_classes(values, count, (), batched=True)
    width = values.size // len(values)
    assert found.shape == (len(values), min(count, width))
    for row, texts in zip(values.reshape(len(values), width), found.tolist(), strict=True):
        ranked = sorted(range(width), key=lambda i: (np.isnan(row[i]), -row[i], i))
        indices = [int(text.split(b":")[1]) for text in texts]
        if not np.isnan(row).any():
            assert indices == ranked[:count]
        assert len(set(indices)) == len(indices)


@pytest.mark.parametrize(("dtype", "name"), [(np.float16, "FP16"), (np.bool_, "BOOL")])
def test_what_has_no_classes_is_refused(dtype: Any, name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"due to unsupported type '{name}'"):
        check_classes(TensorSpec("y", np.dtype(dtype), (None, 2)))
    with pytest.raises(InvalidArgument, match="unsupported type 'BYTES'"):
        check_classes(TensorSpec("y", BYTES, (None, 2)))


def test_an_output_of_too_many_classes_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="classification output tensor too large"):
        top_classes(np.zeros(1_000_001, np.int8), 1, (), batched=False)
    with pytest.raises(InvalidArgument, match="2 of 3 classes for 500001 rows"):
        top_classes(np.zeros((500_001, 3), np.int8), 2, (), batched=True)
