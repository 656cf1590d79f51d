"""Raw tensors, both ways."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headrace.errors import InvalidArgument
from headrace.protocols.raw_tensors import RawTail, decode_raw, encode_raw
from headrace.spec import BYTES, Tensor
from tests.headrace.protocols.specs import F4

DTYPES = st.one_of(
    st.sampled_from([np.dtype(np.bool_)]),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@given(hnp.arrays(DTYPES, SHAPES), st.integers(0, 3))
def test_numbers_round_trip_at_any_offset(tensor: Tensor, offset: int) -> None:
    raw = memoryview(b"x" * offset + encode_raw(tensor))[offset:]
    again = decode_raw(raw, tensor.dtype, tensor.shape, "input")
    np.testing.assert_array_equal(again, tensor)
    assert again.flags.aligned
    assert again.dtype == tensor.dtype


@given(st.lists(st.binary(max_size=9) | st.sampled_from([b"long" * 999]), max_size=6))
def test_strings_round_trip(strings: list[bytes]) -> None:
    tensor = np.array(strings, dtype=BYTES)
    raw = memoryview(encode_raw(tensor))
    again = decode_raw(raw, BYTES, tensor.shape, "input").tolist()
    assert again == strings and set(map(type, again)) <= {bytes}


def test_text_is_encoded_as_utf_8() -> None:
    assert encode_raw(np.array(["ö", b"a"], dtype=BYTES)) == b"\x02\0\0\0\xc3\xb6\x01\0\0\0a"


def test_aligned_numbers_are_not_copied() -> None:
    raw = memoryview(bytes(8))
    assert not decode_raw(raw, np.dtype(np.uint8), (8,), "input").flags.owndata


@pytest.mark.parametrize(
    ("raw", "shape", "text"),
    [
        (b"", (1,), "exactly 1 strings"),
        (b"\x01\x00\x00", (1,), "exactly 1 strings"),
        (b"\x05\x00\x00\x00ab", (1,), "string 0 is longer than the data"),
        (b"\x00\x00\x00\x00\x05\x00\x00\x00ab", (2,), "string 1 is longer than the data"),
        (b"\x00\x08\x00\x00" + bytes(2000), (1,), "string 0 is longer than the data"),
        (b"\x00\x00\x00\x00" * 3 + b"\x01\x00", (4,), "exactly 4 strings"),
        (b"\x00\x00\x00\x00" * 3, (2,), "exactly 2 strings"),
        (b"\x00\x00\x00\x00", (10**9,), "exactly 1000000000 strings"),
    ],
)
def test_decode_refuses_strings(raw: bytes, shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_raw(memoryview(raw), BYTES, shape, "input 'x'")
    assert text in caught.value.message


def test_decode_refuses_wrong_size_and_wrong_bool() -> None:
    with pytest.raises(InvalidArgument, match="needs 8 bytes"):
        decode_raw(memoryview(bytes(7)), F4, (2,), "input 'x'")
    with pytest.raises(InvalidArgument, match="neither 0 nor 1"):
        decode_raw(memoryview(b"\x00\x02"), np.dtype(np.bool_), (2,), "input 'x'")


def test_tail_hands_out_each_byte_once() -> None:
    tail = RawTail(memoryview(b"abcdef"))
    assert bytes(tail.take(2, "a")) == b"ab"
    assert bytes(tail.take(0, "b")) == b""
    with pytest.raises(InvalidArgument, match="2 bytes of the body belong to no input"):
        tail.take(2, "c")
        tail.check_end()
    with pytest.raises(InvalidArgument, match="only 2 bytes are left"):
        tail.take(3, "d")
    with pytest.raises(InvalidArgument, match="must be an integer"):
        tail.take(True, "e")
    with pytest.raises(InvalidArgument, match="at least 0"):
        tail.take(-1, "f")
