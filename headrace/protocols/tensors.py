"""What codecs and engine share: a decoded request, an encoded answer, templates of bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.spec import ModelSpec, Signature, Tensor


@dataclass(frozen=True, slots=True)
class Call:
    """What path and headers tell of a request.

    `method` is `predict`, `classify`, `regress` or `infer`. `json_length` is the value of
    `Inference-Header-Content-Length` (None: absent). Encodings are single lower-case codings.
    """

    method: str
    json_length: int | None = None
    content_encoding: str = ""
    reply_encoding: str = ""


@dataclass(slots=True)
class InferenceRequest:
    """A decoded request. All `inputs` share their first dimension when `rows` is not None.

    `outputs` names the wanted outputs in order (None: all). `timeout_s` comes from the body.
    `encoding` is the codec's own note on how to encode the answer.
    """

    signature: Signature
    inputs: dict[str, Tensor]
    rows: int | None
    outputs: tuple[str, ...] | None = None
    timeout_s: float | None = None
    encoding: Any = field(default=None, repr=False)

    def output_names(self) -> tuple[str, ...]:
        """The outputs to send, in order."""
        return self.signature.output_names if self.outputs is None else self.outputs


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded answer; `json_length` is set when raw tensors follow the JSON part."""

    body: bytes
    content_type: str = "application/json"
    json_length: int | None = None
    content_encoding: str = ""


class Values:
    """Reads the values of bodies that fit one template."""

    __slots__ = ()

    def fits(self, body: bytes) -> bool:
        """Whether the body differs from the template's in nothing but the values, as far as can be
        told without reading them.
        """
        raise NotImplementedError

    def read(self, bodies: Sequence[bytes]) -> tuple[dict[str, Tensor], list[int]]:
        """Inputs `[rows, ...]` of all these bodies that fit, and the rows of each one.

        A body with 0 rows is not in the inputs: the codec decodes it by itself.
        """
        raise NotImplementedError


class Answers:
    """Writes the answers to requests of one template."""

    __slots__ = ()

    def write(
        self, outputs: Mapping[str, Tensor], rows: Sequence[int]
    ) -> tuple[list[bytes], int | None] | None:
        """Bodies of answers from outputs `[rows, ...]`, of which the requests have so many each.

        Also the `json_length` that all of them share. None where the codec must encode one by one.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """What bodies have in common that differ only in the values of their tensors.

    They are decoded into the rows of one array, and answered from those of another, with the bytes
    that the codec would give. `request` is a request of theirs without its inputs.
    """

    request: InferenceRequest
    values: Values
    answers: Answers
    content_type: str = "application/json"


class Codec:
    """A wire format. Codecs hold no state, do no I/O and raise only `HeadraceError`."""

    __slots__ = ()

    def decode(self, body: bytes | memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
        """Read a request body; raises `InvalidArgument` or `NotFound` (signature)."""
        raise NotImplementedError

    def encode(
        self, request: InferenceRequest, outputs: Mapping[str, Tensor], model: ModelSpec
    ) -> Encoded:
        """Write the answer of one request; `outputs` holds at least the wanted ones."""
        raise NotImplementedError

    def template(
        self, body: bytes, call: Call, request: InferenceRequest, model: ModelSpec
    ) -> Template | None:
        """The template of a body without content coding that was decoded as `request`.

        None where it has none.
        """
        return None
