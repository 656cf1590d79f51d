"""What codecs and engine share: a decoded request and an encoded answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

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
        if self.outputs is not None:
            return self.outputs
        return tuple(spec.name for spec in self.signature.outputs)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded answer; `json_length` is set when raw tensors follow the JSON part."""

    body: bytes
    content_type: str = "application/json"
    json_length: int | None = None
    content_encoding: str = ""


class Codec(Protocol):
    """A wire format. Codecs hold no state, do no I/O and raise only `HeadraceError`."""

    def decode(self, body: bytes | memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
        """Read a request body; raises `InvalidArgument` or `NotFound` (signature)."""

    def encode(
        self, request: InferenceRequest, outputs: Mapping[str, Tensor], model: ModelSpec
    ) -> Encoded:
        """Write the answer of one request; `outputs` holds at least the wanted ones."""
