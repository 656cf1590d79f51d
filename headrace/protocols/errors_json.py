"""Error answers of both REST protocols: a JSON object with the single key `error`."""

from __future__ import annotations

import orjson

from headrace.errors import HeadraceError, NotFound, quoted
from headrace.protocols.tensors import Encoded


def encode_error(error: HeadraceError) -> Encoded:
    """The body; the status is `error.http_status`."""
    text = error.message.encode(errors="replace").decode()
    return Encoded(orjson.dumps({"error": text}))


def servable_not_found(name: str, version: int | None = None, label: str | None = None) -> NotFound:
    """TensorFlow Serving's answer when no such model, version or label can be called."""
    if version is not None:
        return NotFound(f"Servable not found for request: Specific({name}, {version})")
    if label is not None:
        return NotFound(f"Unrecognized servable version label: {label}")
    return NotFound(f"Servable not found for request: Latest({name})")


def model_not_found(name: str, version: int | None = None) -> NotFound:
    """The Open Inference Protocol's answer when there is no such model or version.

    Triton's clients and examples compare how it begins.
    """
    which = quoted(name) if version is None else f"{quoted(name)} version {version}"
    return NotFound(f"Request for unknown model: {which} is not found")
