"""JSON text to Python values, JSON arrays to tensors, and back.

NaN and Infinity tokens are read and written, as clients use them. Arrays of plain numbers take a
quick way, which gives None for everything else; then the thorough way decides and explains.
"""

from __future__ import annotations

import binascii
import json
import math
import threading
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np
import orjson
import simdjson

from headrace.errors import InvalidArgument, quoted
from headrace.spec import BYTES, Tensor, bytes_tensor

_KEPT_PARSER_BYTES = 1024 * 1024
"""Longest text for a thread's own parser, which keeps buffers of its largest text's size."""

_LOCAL = threading.local()


def read_json(text: bytes) -> Any:
    """Python values of a JSON text; raises `InvalidArgument`."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in text and b"Infinity" not in text:
            raise InvalidArgument(f"JSON Parse error: {error}") from None
    try:
        value = json.loads(text.decode())
        if b"\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # refuses half a surrogate pair
        return value
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"JSON Parse error: not UTF-8 at offset {error.start}") from None
    except UnicodeEncodeError:
        raise InvalidArgument("JSON Parse error: no low surrogate in string") from None
    except RecursionError:
        raise InvalidArgument("JSON Parse error: nested too deeply") from None
    except ValueError as error:
        raise InvalidArgument(f"JSON Parse error: {error}") from None


def read_object(text: bytes) -> dict[str, Any]:
    """Like `read_json`, but the top level must be an object."""
    value = read_json(text)
    if not isinstance(value, dict):
        raise InvalidArgument("the request body must be a JSON object")
    return value


def parse_lazily(text: bytes) -> Any:
    """A simdjson proxy, or None for text that is not plain JSON (`read_json` says why).

    Also None while an earlier proxy of this thread lives.
    """
    try:
        parser = simdjson.Parser() if len(text) > _KEPT_PARSER_BYTES else own_parser()
        return parser.parse(text)
    except (ValueError, RuntimeError):
        return None


def own_parser() -> simdjson.Parser:
    """This thread's parser; only one proxy of it may live at a time."""
    try:
        parser: simdjson.Parser = _LOCAL.parser
    except AttributeError:
        parser = _LOCAL.parser = simdjson.Parser()
    return parser


def write_json(value: Any) -> bytes:
    """JSON text of a value that may hold C-contiguous arrays; floats in their shortest form.

    Answers hold no null of their own: a null in the text stands for a number that is not finite.
    """
    text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in text:
        tokens = json.dumps(value, default=_plain, ensure_ascii=False, separators=(",", ":"))
        return tokens.encode()
    return text


def text_of(value: bytes, name: str) -> str:
    """A string element as JSON text; raises `InvalidArgument` unless it is UTF-8."""
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise InvalidArgument(
            f"output '{name}' holds bytes that are not UTF-8 text, which JSON cannot carry"
        ) from None


def _plain(value: Any) -> Any:
    """Python numbers with the same shortest text as the narrower numpy floats."""
    array = np.asarray(value)
    if array.dtype.kind == "f":
        array = array.astype(np.str_).astype(np.float64)
    return array.tolist()


MAX_RANK = 32
"""Cap on dimensions; numpy itself stops at 64."""

_KINDS: dict[np.dtype[Any], Literal["d", "i", "u"]] = {
    **{np.dtype(t): "d" for t in (np.float16, np.float32, np.float64)},
    **{np.dtype(t): "i" for t in (np.int8, np.int16, np.int32, np.int64)},
    **{np.dtype(t): "i" for t in (np.uint8, np.uint16, np.uint32)},
    np.dtype(np.uint64): "u",
}
_WHITE_SPACE = b" \t\n\v\f\r"
_WIDE = {"d": np.dtype(np.float64), "i": np.dtype(np.int64), "u": np.dtype(np.uint64)}
_LARGEST_EXACT: dict[np.dtype[Any], int] = {
    np.dtype(np.float16): 2**11 - 1,
    np.dtype(np.float32): 2**24 - 1,
    np.dtype(np.float64): 2**53 - 1,
}
_LIMITS: dict[np.dtype[Any], tuple[int, int]] = {
    **{dtype: (-limit, limit) for dtype, limit in _LARGEST_EXACT.items()},
    **{
        np.dtype(t): (int(np.iinfo(t).min), int(np.iinfo(t).max))
        for t in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
    },
}


def quick_flat(array: Any, dtype: np.dtype[Any]) -> Tensor | None:
    """All numbers below a simdjson array, in order, however nested; None for other values."""
    kind = _KINDS.get(dtype)
    if kind is None or type(array) is not simdjson.Array:
        return None
    try:
        wide = np.frombuffer(array.as_buffer(of_type=kind), dtype=_WIDE[kind])
    except (TypeError, ValueError):
        return None
    return wide.astype(dtype, copy=False) if in_range(wide, dtype) else None


def rows_of_numbers(
    texts: Sequence[bytes],
    place: slice,
    dtype: np.dtype[Any],
    row_shape: tuple[int, ...],
    flat_rows: int | None = None,
) -> tuple[list[int], list[Tensor]]:
    """Rows and numbers of JSON arrays `[rows, *row_shape]` at a place in short texts.

    With `flat_rows` the arrays hold the numbers of so many rows in one list. A text of another form
    has 0 rows and no numbers. Numbers are wider than the dtype, and not checked for their range.
    """
    kind = _KINDS[dtype]
    wide_dtype = _WIDE[kind]
    flat_shape = None if flat_rows is None else (flat_rows * math.prod(row_shape),)
    parse = (getattr(_LOCAL, "parser", None) or own_parser()).parse
    rows: list[int] = []
    wides: list[Tensor] = []
    for text in texts:
        array: Any = None  # only one proxy may live at a time
        count = 0
        text = text[place]
        try:
            array = parse(text)
            wide = np.frombuffer(array.as_buffer(of_type=kind), wide_dtype)
            # The last bracket alone tells the shape of numbers in one list, and of one row of them.
            last = text.rfind(b"[") if text.startswith(b"[") else -1
            shape: tuple[int, ...] | None
            if last == 0:
                shape = wide.shape
            elif 0 < last == text.find(b"[", 1) and len(array) == 1:
                shape = (1, wide.size)
            else:
                shape = quick_shape(array, text.count(b"["))
            if flat_rows is None:
                if shape is not None and shape[1:] == row_shape:
                    count = shape[0]
            elif shape == flat_shape:
                count = flat_rows
            if count:
                wides.append(wide)
        except (ValueError, TypeError, AttributeError, RuntimeError):
            count = 0  # not JSON, or other values than numbers
        rows.append(count)
    return rows, wides


def narrowed(wides: Sequence[Tensor], dtype: np.dtype[Any]) -> Tensor | None:
    """Numbers of `rows_of_numbers` in one tensor of rank 1; None if some are out of range."""
    if not wides:
        return np.empty(0, dtype)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            flat: Tensor = np.concatenate(wides, dtype=dtype)
        return flat if in_range(flat, dtype) else None
    wide = np.concatenate(wides)
    return wide.astype(dtype, copy=False) if in_range(wide, dtype) else None


def reads_numbers(dtype: np.dtype[Any]) -> bool:
    """Whether JSON of this dtype is plain numbers."""
    return dtype in _KINDS


def in_range(wide: Tensor, dtype: np.dtype[Any]) -> bool:
    """Whether the dtype holds these numbers, and the integers among them exactly.

    Above the limit of a float integers cannot be told from decimals any more.
    """
    if not wide.size or (dtype.kind != "f" and dtype.itemsize == 8):
        return True
    low, high = _LIMITS[dtype]
    return bool(low <= wide.min() and wide.max() <= high)


def row_texts(tensor: Tensor, rows: int) -> list[bytes] | None:
    """The JSON text of each row `[...]` of a tensor of numbers, without the brackets around it.

    None for a tensor that has not so many rows, is empty, or holds other values or such that are
    not finite.
    """
    rank = tensor.ndim
    if tensor.dtype.kind not in "fiub" or not rank or tensor.shape[0] != rows or not tensor.size:
        return None
    try:
        text = orjson.dumps(np.ascontiguousarray(tensor), option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        return None
    if b"null" in text:
        return None
    between = b"]" * (rank - 1) + b"," + b"[" * (rank - 1)
    return text[rank:-rank].split(between)


def quick_shape(array: Any, arrays: int) -> tuple[int, ...] | None:
    """The shape of a simdjson array of `arrays` arrays in all, itself included; None if ragged.

    Once as many arrays were seen, level by level, all values below are scalars: numbers themselves
    are not looked at.
    """
    shape = [len(array)]
    level = [array]
    seen = 1
    while seen < arrays:
        level = [child for parent in level for child in parent]
        if not level or any(type(child) is not simdjson.Array for child in level):
            return None
        shape.append(len(level[0]))
        if any(len(child) != shape[-1] for child in level):
            return None
        seen += len(level)
    return tuple(shape) if seen == arrays and len(shape) <= MAX_RANK else None


def to_array(
    value: Any, dtype: np.dtype[Any], where: str, *, lossless: bool = True, b64: bool = True
) -> Tensor:
    """A tensor with the shape of the nested lists; a bare scalar has rank 0."""
    leaves, shape = flatten(value, where)
    return leaves_to_array(leaves, dtype, where, lossless=lossless, b64=b64).reshape(shape)


def flatten(
    value: Any, where: str, max_levels: int = MAX_RANK
) -> tuple[list[Any], tuple[int, ...]]:
    """Scalars of nested lists in row-major order, and the shape; `InvalidArgument` if ragged."""
    if type(value) is not list:
        return [value], ()
    shape = [len(value)]
    level = value
    while level and type(level[0]) is list:
        if len(shape) == max_levels:
            raise InvalidArgument(f"{where} has more than {max_levels} dimensions")
        if set(map(type, level)) != {list} or len(set(map(len, level))) > 1:
            raise _ragged(where)
        shape.append(len(level[0]))
        level = list(chain.from_iterable(level))
    if list in set(map(type, level)):
        raise _ragged(where)
    return level, tuple(shape)


def leaves_to_array(
    leaves: list[Any], dtype: np.dtype[Any], where: str, *, lossless: bool, b64: bool
) -> Tensor:
    """A rank 1 tensor of JSON scalars; `lossless` refuses integers that a float cannot hold.

    `b64` allows `{"b64": text}` in place of a string.
    """
    if dtype == BYTES:
        return bytes_tensor([_to_bytes(leaf, where, b64) for leaf in leaves])
    if dtype.kind == "b":
        _check_types(leaves, {bool}, "true or false", where)
        return np.array(leaves, dtype=dtype)
    if dtype.kind in "iu":
        _check_types(leaves, {int}, "integers", where)
        low, high = _LIMITS[dtype]
        if leaves and (min(leaves) < low or max(leaves) > high):
            raise InvalidArgument(
                f"{where} holds an integer outside of {low} to {high} ({dtype.name})"
            )
        return np.array(leaves, dtype=dtype)
    if dtype.kind == "f":
        return _to_floats(leaves, dtype, where, lossless)
    raise InvalidArgument(f"{where} of type {dtype.name} cannot be sent as JSON")


def decode_b64(text: Any, where: str) -> bytes:
    """The bytes of the value of `b64`; raises `InvalidArgument`."""
    if not isinstance(text, str):
        raise InvalidArgument(f"{where}: the value of 'b64' must be a string")
    try:
        return decode_base64(text)
    except ValueError as error:
        raise InvalidArgument(f"{where}: the value of 'b64' is not base64: {error}") from None


def decode_base64(text: str) -> bytes:
    """Bytes of base64 with white space anywhere, and full padding or none; raises `ValueError`.

    As in TensorFlow Serving `.` pads as well as `=`.
    """
    dense = text.encode(errors="replace").translate(None, _WHITE_SPACE)
    bare = dense.rstrip(b"=.")
    missing = b"=" * (-len(bare) % 4)
    if len(dense) - len(bare) not in (0, len(missing)):
        raise ValueError(f"it ends with {len(dense) - len(bare)} padding characters")
    try:
        return binascii.a2b_base64(bare + missing, strict_mode=True)
    except binascii.Error:
        raise ValueError(
            "it takes A to Z, a to z, 0 to 9, '+' and '/', and more than one for a byte"
        ) from None


def _to_bytes(leaf: Any, where: str, b64: bool) -> bytes:
    if isinstance(leaf, str):
        return leaf.encode()
    if b64 and isinstance(leaf, dict) and leaf.keys() == {"b64"}:
        return decode_b64(leaf["b64"], where)
    allowed = 'strings or {"b64": ...} objects' if b64 else "strings"
    raise InvalidArgument(f"{where} takes {allowed}, not {quoted(leaf)}")


def _to_floats(leaves: list[Any], dtype: np.dtype[Any], where: str, lossless: bool) -> Tensor:
    kinds = _check_types(leaves, {int, float}, "numbers", where)
    if lossless and int in kinds:
        limit = _LARGEST_EXACT[dtype]
        if any(type(leaf) is int and abs(leaf) > limit for leaf in leaves):
            raise InvalidArgument(
                f"{where} holds an integer beyond {limit}, which {dtype.name} cannot hold exactly"
            )
    try:
        wide = np.array(leaves, dtype=np.float64)
    except OverflowError:
        raise InvalidArgument(f"{where} holds a number too large for {dtype.name}") from None
    with np.errstate(over="ignore"):
        array = wide.astype(dtype)
    if not np.array_equal(np.isinf(wide), np.isinf(array)):
        raise InvalidArgument(f"{where} holds a number too large for {dtype.name}")
    return array


def _check_types(leaves: list[Any], allowed: set[type], words: str, where: str) -> set[type]:
    """The exact types of the leaves (True is an `int` to Python, but not to JSON)."""
    kinds = set(map(type, leaves))
    if not kinds <= allowed:
        wrong = next(leaf for leaf in leaves if type(leaf) not in allowed)
        raise InvalidArgument(f"{where} takes {words}, not {quoted(wrong)}")
    return kinds


def _ragged(where: str) -> InvalidArgument:
    return InvalidArgument(f"{where} is ragged: lists at the same level must have the same length")
