"""The quick way through an Open Inference Protocol JSON request of flat arrays of numbers."""

from __future__ import annotations

from typing import Any

import simdjson

from headrace.errors import HeadraceError
from headrace.protocols.datatypes import dtype_of
from headrace.protocols.json_arrays import quick_flat
from headrace.protocols.json_bodies import parse_lazily


def read_quickly(text: bytes) -> dict[str, Any] | None:
    """The document with rank 1 numpy arrays of the right dtype for each input's `data`.

    None if it is anything but that: nested data, strings, tokens, errors. Brackets are counted
    to find nested data: each array that may be there has one, and a string has none or more.
    """
    document = parse_lazily(text)
    if type(document) is not simdjson.Object or "inputs" not in document:
        return None
    inputs = document["inputs"]
    if type(inputs) is not simdjson.Array:
        return None
    plain = _plain_members(document, "inputs")
    arrays = 1 + isinstance(plain.get("outputs"), list)
    entries = []
    for tensor in inputs:
        entry = _read_tensor(tensor)
        if entry is None:
            return None
        arrays += 1 + isinstance(entry.get("shape"), list)
        entries.append(entry)
    if text.count(b"[") != arrays:
        return None
    plain["inputs"] = entries
    return plain


def _read_tensor(tensor: Any) -> dict[str, Any] | None:
    if type(tensor) is not simdjson.Object or "data" not in tensor:
        return None
    entry = _plain_members(tensor, "data")
    try:
        flat = quick_flat(tensor["data"], dtype_of(entry.get("datatype")))
    except HeadraceError:
        return None
    if flat is None:
        return None
    entry["data"] = flat
    return entry


def _plain_members(proxy: Any, left_out: str) -> dict[str, Any]:
    """All members but one as Python values (`items()` would convert that one too)."""
    plain = {}
    for key in proxy:
        if key != left_out:
            value = proxy[key]
            if type(value) is simdjson.Array:
                value = value.as_list()
            elif type(value) is simdjson.Object:
                value = value.as_dict()
            plain[key] = value
    return plain
