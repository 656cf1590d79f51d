"""JSON text to Python values and back, with the NaN and Infinity tokens that clients use."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import orjson
import simdjson

from headrace.errors import InvalidArgument

_KEPT_PARSER_BYTES = 1024 * 1024
"""A simdjson parser keeps buffers as large as its largest text; larger texts get their own."""

_LOCAL = threading.local()


def read_json(text: bytes) -> Any:
    """Python values of a JSON text; raises `InvalidArgument`."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in text and b"Infinity" not in text:
            raise InvalidArgument(f"JSON Parse error: {error}") from None
    return _read_with_tokens(text)


def read_object(text: bytes) -> dict[str, Any]:
    """Like `read_json`, but the top level must be an object."""
    value = read_json(text)
    if not isinstance(value, dict):
        raise InvalidArgument("the request body must be a JSON object")
    return value


def parse_lazily(text: bytes) -> Any:
    """A simdjson proxy, or None if the text is not plain JSON (`read_json` then says why).

    The proxy must be gone before this thread parses again, else None is returned too.
    """
    try:
        if len(text) > _KEPT_PARSER_BYTES:
            return simdjson.Parser().parse(text)
        return _LOCAL.parser.parse(text)
    except AttributeError:
        _LOCAL.parser = simdjson.Parser()
        return parse_lazily(text)
    except (ValueError, RuntimeError):
        return None


def write_json(value: Any) -> bytes:
    """JSON text of a value that may hold C-contiguous arrays; floats are as short as they can be.

    No answer has a null of its own, so that a null tells of a number that is not finite.
    """
    text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return text if b"null" not in text else _write_with_tokens(value)


def text_of(value: bytes, name: str) -> str:
    """A string element as JSON text; raises `InvalidArgument` unless it is UTF-8."""
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise InvalidArgument(
            f"output '{name}' holds bytes that are not UTF-8 text, which JSON cannot carry"
        ) from None


def _read_with_tokens(text: bytes) -> Any:
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


def _write_with_tokens(value: Any) -> bytes:
    return json.dumps(value, default=_plain, ensure_ascii=False, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """Python numbers whose shortest text equals that of the narrower numpy float."""
    array = np.asarray(value)
    if array.dtype.kind == "f":
        array = array.astype(np.str_).astype(np.float64)
    return array.tolist()
