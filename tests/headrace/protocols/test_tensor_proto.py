"""TensorFlow's TensorProto, both ways."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headrace.errors import InvalidArgument
from headrace.protocols.tensor_proto import append_list, decode_tensor, encode_tensor, read_list
from headrace.protocols.wire import message
from headrace.spec import BYTES, Tensor
from tests.headrace.protocols.specs import F4
from tests.headrace.protocols.test_raw_tensors import DTYPES, SHAPES

LIMIT_BYTES = 1000
FLOAT, STRING, HALF, INT8 = 1, 7, 19, 6


def proto(dtype: int, *shape: int, **lists: Any) -> Any:
    """A TensorProto by the number of its dtype."""
    dims = [{"size": size} for size in shape]
    return message("tensorflow.TensorProto")(dtype=dtype, tensor_shape={"dim": dims}, **lists)


def again(tensor: Tensor) -> Tensor:
    """What is read of a tensor that we wrote."""
    written = message("tensorflow.TensorProto")()
    encode_tensor(tensor, written)
    sent = type(written).FromString(written.SerializeToString())
    return decode_tensor(sent, 8 * max(tensor.size, 1), "input")


@given(hnp.arrays(DTYPES, SHAPES))
def test_numbers_round_trip(tensor: Tensor) -> None:
    found = again(tensor)
    np.testing.assert_array_equal(found, tensor)
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)


@given(st.lists(st.binary(max_size=9), max_size=6))
def test_strings_round_trip(strings: list[bytes]) -> None:
    tensor = np.empty(len(strings), dtype=BYTES)
    tensor[:] = strings
    assert again(tensor).tolist() == strings


@given(hnp.arrays(DTYPES, SHAPES))
def test_content_is_little_endian_memory(tensor: Tensor) -> None:
    written = message("tensorflow.TensorProto")()
    encode_tensor(tensor, written)
    content = tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
    sent = proto(written.dtype, *tensor.shape, tensor_content=content)
    found = decode_tensor(sent, LIMIT_BYTES, "input")
    np.testing.assert_array_equal(found, tensor)
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)


def test_a_tensor_that_is_not_contiguous_is_written_in_order() -> None:
    assert again(np.arange(6, dtype=F4).reshape(2, 3).T).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_text_is_written_as_bytes() -> None:
    assert again(np.array(["é", b"b"], dtype=BYTES)).tolist() == ["é".encode(), b"b"]


@pytest.mark.parametrize(
    ("sent", "values"),
    [
        (proto(FLOAT, 2, 2, float_val=[1, 2]), [[1, 2], [2, 2]]),
        (proto(FLOAT, 3), [0, 0, 0]),
        (proto(FLOAT, float_val=[5]), 5),
        (proto(HALF, 3, half_val=[0x3C00, 0xC000]), [1, -2, -2]),
        (proto(INT8, 2, int_val=[-128]), [-128, -128]),
        (proto(10, 2, bool_val=[True]), [True, True]),
        (proto(STRING, 3, string_val=[b"a", b"b"]), [b"a", b"b", b"b"]),
        (proto(STRING, 2), [b"", b""]),
        (proto(STRING, string_val=[b"a"]), b"a"),
        (proto(FLOAT, 0, 5), []),
    ],
)
def test_the_last_value_fills_the_shape(sent: Any, values: Any) -> None:
    assert decode_tensor(sent, LIMIT_BYTES, "input").tolist() == values


def test_unknown_fields_are_ignored() -> None:
    sent = proto(FLOAT, 1, float_val=[5])
    sent.MergeFromString(b"\xf8\x07\x01")
    assert decode_tensor(sent, LIMIT_BYTES, "input").tolist() == [5]


@pytest.mark.parametrize("long", [b"x" * 900, b"x" * 100])
def test_the_bytes_that_a_repeated_string_stands_for_count(long: bytes) -> None:
    few = LIMIT_BYTES // (len(long) + 8)
    assert decode_tensor(proto(STRING, few, string_val=[long]), LIMIT_BYTES, "input").size == few
    with pytest.raises(InvalidArgument, match=r"takes? more than the 1000 bytes"):
        decode_tensor(proto(STRING, few + 1, string_val=[long]), LIMIT_BYTES, "input")


def test_long_strings_that_were_sent_whole_are_no_repetition() -> None:
    sent = proto(STRING, 1, string_val=[b"x" * 5000])
    assert decode_tensor(sent, LIMIT_BYTES, "input").tolist() == [b"x" * 5000]


def test_the_limit_itself_fits() -> None:
    assert decode_tensor(proto(FLOAT, 250), LIMIT_BYTES, "input").nbytes == LIMIT_BYTES


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (proto(FLOAT, 251, float_val=[1]), "shape .251. takes more than the 1000 bytes"),
        (proto(FLOAT, 10**12, float_val=[1]), "takes more than the 1000 bytes"),
        (proto(STRING, 126), "takes more than the 1000 bytes"),
        (proto(FLOAT, 2**40, 2**40, float_val=[1]), "larger than any tensor"),
        (proto(FLOAT, 2**40, 2**40, 0), "larger than any tensor"),
        (proto(FLOAT, 2**62, float_val=[1]), "integers of at least 0"),
        (proto(FLOAT, -1, float_val=[1]), "integers of at least 0, not -1"),
        (proto(FLOAT, *[1] * 33, float_val=[1]), "at most 32 dimensions"),
        (proto(FLOAT, 1, float_val=[1, 2]), "has 2 values in 'float_val', but its shape takes 1"),
        (proto(FLOAT, 0, float_val=[1]), "has 1 values in 'float_val', but its shape takes 0"),
        (proto(FLOAT, 2, tensor_content=bytes(7)), "needs 8 bytes for its shape .2., not 7"),
        (proto(10, 1, tensor_content=b"\x02"), "BOOL byte that is neither 0 nor 1"),
        (proto(STRING, 1, tensor_content=b"\x01a"), "strings belong into 'string_val'"),
        (proto(HALF, 1, half_val=[65536]), "does not fit UINT16"),
        (
            proto(FLOAT, 1, tensor_content=bytes(4), float_val=[1]),
            "input has values in 'tensor_content' and in 'float_val'; give one of them",
        ),
        (
            proto(FLOAT, 1, float_val=[5], double_val=[7]),
            "input has values in 'double_val', but its dtype takes 'float_val'",
        ),
        (proto(FLOAT, 1, int_val=[5]), "in 'int_val', but its dtype takes 'float_val'"),
        (proto(STRING, 1, tensor_content=b"a", string_val=[b"a"]), "give one of them"),
        (proto(INT8, 1, int_val=[128]), "does not fit INT8"),
        (proto(0), "input has the unknown dtype 0"),
        (proto(99), "input has the unknown dtype 99"),
        (proto(8, 1), "unknown datatype 'DT_COMPLEX64'"),
    ],
)
def test_refuses(sent: Any, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        decode_tensor(sent, LIMIT_BYTES, "input")


def test_refuses_an_unknown_rank_and_dtype() -> None:
    unknown = message("tensorflow.TensorProto")(dtype=FLOAT, tensor_shape={"unknown_rank": True})
    with pytest.raises(InvalidArgument, match="input has no known rank; give its shape"):
        decode_tensor(unknown, LIMIT_BYTES, "input")
    with pytest.raises(InvalidArgument, match="complex64"):
        encode_tensor(np.zeros(1, np.complex64), message("tensorflow.TensorProto")())


@pytest.mark.tensorflow
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (100,)])
def test_tensorflow_writes_what_we_read_and_reads_what_we_write(shape: tuple[int, ...]) -> None:
    import tensorflow as tf

    names = "bool int8 uint16 int64 uint64 float16 bfloat16 float32 float64"
    for name in names.split():
        tensor = np.arange(math.prod(shape)).reshape(shape).astype(name)
        theirs = tf.make_tensor_proto(tensor).SerializeToString()
        sent = message("tensorflow.TensorProto").FromString(theirs)
        np.testing.assert_array_equal(decode_tensor(sent, LIMIT_BYTES, "input"), tensor)
        written = message("tensorflow.TensorProto")()
        encode_tensor(tensor, written)
        theirs_again = type(tf.make_tensor_proto(0)).FromString(written.SerializeToString())
        read = tf.make_ndarray(theirs_again)
        np.testing.assert_array_equal(read, tensor)
        assert read.dtype == tensor.dtype


def test_floats_are_read_whatever_else_is_set() -> None:
    holder = message("inference.InferTensorContents")(
        bool_contents=[True] * 9, fp32_contents=[1.5, float("nan")], bytes_contents=[b"x"] * 5000
    )
    found = read_list(holder, "fp32_contents", F4, "input")
    np.testing.assert_array_equal(found, [1.5, np.nan])
    assert found.dtype == F4


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
