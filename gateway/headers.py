"""Headers: lines of one name as one value, and the seconds that some hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from headrace.errors import (
    HeadraceError,
    InvalidArgument,
    MethodNotAllowed,
    Unauthenticated,
    UnsupportedCoding,
)

RETRY_MARGIN_S = 0.05
"""A retry must find the token that it was promised, though clocks and stores are not exact."""


def error_headers(error: HeadraceError) -> dict[str, str]:
    """Headers that say when to come back, and with what; or what is taken instead."""
    found = {}
    if error.retry_after_s is not None:
        found["retry-after"] = str(max(1, math.ceil(error.retry_after_s + RETRY_MARGIN_S)))
    if isinstance(error, Unauthenticated):
        found["www-authenticate"] = "Bearer"
    elif isinstance(error, UnsupportedCoding):
        found["accept-encoding"] = error.accepted
    elif isinstance(error, MethodNotAllowed):
        found["allow"] = error.allow
    return found


def given_timeout_s(headers: Mapping[bytes, bytes]) -> float | None:
    """Seconds of X-Request-Timeout-Seconds, None without one; raises `InvalidArgument`."""
    given = headers.get(b"x-request-timeout-seconds")
    return None if given is None else parse_timeout_s(given.decode("latin-1"))


def parse_timeout_s(text: str) -> float:
    """Seconds from a header's text; raises `InvalidArgument` unless it is a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise InvalidArgument(f"time-out must be a positive number of seconds, not {text[:40]!r}")
    return value


def combined(lines: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name; lines of the same name become one list, in their order (RFC 9110, 5.3).

    So nothing that a proxy added is lost, and two different credentials are no credential.
    """
    found = dict(lines)
    if len(found) == len(lines):
        return found
    found.clear()
    for name, value in lines:
        found[name] = found[name] + b", " + value if name in found else value
    return found
