"""Error answers of both REST protocols: a JSON object with the single key `error`."""

from __future__ import annotations

import orjson

from gateway.errors import HeadraceError, NotFound
from gateway.protocols.tensors import Encoded


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
    """The Open Inference Protocol's answer when there is no such model or version."""
    if version is None:
        return NotFound(f"unknown model: '{name}' is not served here")
    return NotFound(f"unknown model: '{name}' has no version {version}")
