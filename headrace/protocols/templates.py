"""How the values of bodies with one template are read: JSON numbers, and raw bytes.

The bytes around the values are equal in all of them, so they mean the same in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from headrace.errors import InvalidArgument
from headrace.protocols.json_bodies import in_range, narrowed, rows_of_numbers
from headrace.protocols.tensors import InferenceRequest, Template, Values
from headrace.protocols.wire import delimited_fields
from headrace.spec import BYTES, Tensor

MAX_AROUND_BYTES = 4096
"""Limit on what a template keeps of a body around its values; others are decoded one by one."""


class JsonValues(Values):
    """The numbers of one input, in a JSON array between two texts that are always the same.

    The array has the shape `[rows, *row_shape]`; it is flat where the text in front tells `rows`.
    """

    __slots__ = (
        "_around",
        "_dtype",
        "_name",
        "_place",
        "_prefix",
        "_row_shape",
        "_rows",
        "_suffix",
        "_until",
    )

    def __init__(
        self,
        prefix: bytes,
        suffix: bytes,
        name: str,
        tensor: Tensor,
        max_elements: int,
        *,
        rows: int | None = None,
    ) -> None:
        self._prefix, self._suffix = prefix, suffix
        self._around = len(prefix) + len(suffix)
        self._place = slice(len(prefix), -len(suffix) or None)
        self._until = 2 * max_elements  # shorter texts cannot hold too many
        self._name, self._dtype = name, tensor.dtype
        self._row_shape, self._rows = tensor.shape[1:], rows

    def fits(self, body: bytes) -> bool:
        return (
            body.startswith(self._prefix)
            and body.endswith(self._suffix)
            and self._around < len(body) < self._until
        )

    def read(self, bodies: Sequence[bytes]) -> tuple[dict[str, Tensor], list[int]]:
        dtype = self._dtype
        rows, wides = rows_of_numbers(bodies, self._place, dtype, self._row_shape, self._rows)
        flat = narrowed(wides, dtype)
        if flat is None:
            left = iter(wides)
            rows = [count if count and in_range(next(left), dtype) else 0 for count in rows]
            wides = [wide for wide in wides if in_range(wide, dtype)]
            flat = narrowed(wides, dtype)
            assert flat is not None
        return {self._name: flat.reshape(sum(rows), *self._row_shape)}, rows


class Span(NamedTuple):
    """Where the raw bytes of an input `[rows, ...]` lie in a body."""

    name: str
    tensor: Tensor
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.tensor.nbytes


def spans_of(
    body: bytes, request: InferenceRequest, places: Sequence[tuple[int, int]]
) -> list[Span] | None:
    """The inputs at these places (start, stop) of a body, in order; None where that cannot be."""
    inputs = request.inputs
    if len(places) != len(inputs) or not inputs:
        return None
    spans = []
    for (start, stop), (name, tensor) in zip(places, inputs.items(), strict=True):
        if tensor.dtype == BYTES or not tensor.nbytes or stop - start != tensor.nbytes:
            return None
        spans.append(Span(name, tensor, start))
    around = len(body) - sum([tensor.nbytes for tensor in inputs.values()])
    return spans if around <= MAX_AROUND_BYTES else None


def places_of(
    body: bytes, number: int, start: int = 0, stop: int | None = None
) -> list[tuple[int, int]]:
    """Start and end of each field of this number in a protobuf message; none if it is broken."""
    fields = delimited_fields(body, start, len(body) if stop is None else stop)
    try:
        return [(start, stop) for found, start, stop in fields if found == number]
    except InvalidArgument:
        return []


class RawValues(Values):
    """Little-endian tensors at fixed places of bodies of one length; no strings."""

    __slots__ = ("_between", "_length", "_prefix", "_rows", "_spans", "_suffix")

    def __init__(self, body: bytes, spans: Sequence[Span], rows: int) -> None:
        self._length, self._rows = len(body), rows
        self._spans = [
            (each.name, each.tensor.dtype, each.tensor.shape[1:], each.start, each.stop)
            for each in spans
        ]
        self._prefix, self._suffix = body[: spans[0].start], body[spans[-1].stop :]
        self._between = [
            (one.stop, other.start, body[one.stop : other.start])
            for one, other in pairwise(spans)
            if one.stop < other.start
        ]

    def fits(self, body: bytes) -> bool:
        if len(body) != self._length:
            return False
        if not body.startswith(self._prefix) or not body.endswith(self._suffix):
            return False
        return not self._between or all(
            body[start:stop] == same for start, stop, same in self._between
        )

    def read(self, bodies: Sequence[bytes]) -> tuple[dict[str, Tensor], list[int]]:
        inputs: dict[str, Tensor] = {}
        for name, dtype, row_shape, start, stop in self._spans:
            raw = b"".join([body[start:stop] for body in bodies])
            if dtype.kind == "b" and (wrong := _not_boolean(raw, len(bodies))).any():
                return self._read_right(bodies, wrong.tolist())
            stack = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype, copy=False)
            inputs[name] = stack.reshape(len(bodies) * self._rows, *row_shape)
        return inputs, [self._rows] * len(bodies)

    def _read_right(
        self, bodies: Sequence[bytes], wrong: Sequence[bool]
    ) -> tuple[dict[str, Tensor], list[int]]:
        """Leave out the bodies that are wrong."""
        right = [body for body, bad in zip(bodies, wrong, strict=True) if not bad]
        inputs, counts = self.read(right) if right else ({}, [])
        left = iter(counts)
        return inputs, [0 if bad else next(left) for bad in wrong]


def proven(template: Template, body: bytes, request: InferenceRequest) -> Template | None:
    """The template, if it reads the body that it was made of as the codec did."""
    if not template.values.fits(body):
        return None
    inputs, rows = template.values.read([body])
    same = rows == [request.rows] and all(
        inputs[name].tobytes() == tensor.tobytes() for name, tensor in request.inputs.items()
    )
    return template if same else None


def _not_boolean(raw: bytes, bodies: int) -> Any:
    """Which of these bodies hold a byte that is neither 0 nor 1."""
    return np.frombuffer(raw, np.uint8).reshape(bodies, -1).max(axis=1) > 1
