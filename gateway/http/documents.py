"""The small JSON objects that requests other than predictions carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request

from headrace.errors import Cancelled, InvalidArgument, PayloadTooLarge, quoted
from headrace.protocols.json_bodies import read_object

MAX_DOCUMENT_BYTES = 1024 * 1024


async def read_document(request: Request) -> dict[str, Any]:
    """The JSON object of the body; an empty body is an empty object. Raises `InvalidArgument`."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_DOCUMENT_BYTES:
                raise PayloadTooLarge(f"the body is over {MAX_DOCUMENT_BYTES} bytes")
    except ClientDisconnect:
        raise Cancelled("the client has left") from None
    return read_object(bytes(body)) if body.strip() else {}


def flag_of(holder: Mapping[str, Any], name: str) -> bool:
    """A member that is true or false, false where it is left out; raises `InvalidArgument`."""
    value = holder.get(name, False)
    if not isinstance(value, bool):
        raise InvalidArgument(f"'{name}' must be true or false, not {quoted(value)}")
    return value
