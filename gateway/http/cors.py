"""CORS: which scripts in browsers may call and read answers (the Fetch standard). Pure.

Callers show their credentials in headers that a script sets by itself, never in cookies, so no
answer allows a browser to add credentials of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.config.args import CorsConfig
from headrace.errors import PermissionDenied, quoted

METHODS = "GET, HEAD, POST, DELETE"
USUAL = (
    "authorization",
    "content-encoding",
    "content-type",
    "inference-header-content-length",
    "prefer",
    "traceparent",
    "x-api-key",
    "x-headrace-options",
    "x-request-id",
    "x-request-timeout-seconds",
)
"""Headers of requests that our protocols have."""
SHOWN = ", ".join(
    (
        "inference-header-content-length",
        "location",
        "preference-applied",
        "ratelimit",
        "ratelimit-policy",
        "retry-after",
        "x-headrace-cold-start-ms",
        "x-request-id",
    )
)
"""Headers of answers that a script may read, besides those that every script may."""


class Cors:
    """The headers by which browsers know who may read an answer; none without a config."""

    def __init__(self, config: CorsConfig | None) -> None:
        self._on = config is not None
        origins = () if config is None else config.origins
        self._all = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)
        self._preflight: dict[str, str] = {}
        if config is not None:
            self._preflight = {
                "access-control-allow-methods": METHODS,
                "access-control-allow-headers": ", ".join((*USUAL, *config.headers)),
                "access-control-max-age": str(round(config.max_age_s)),
            }

    def fields(self, headers: Mapping[bytes, bytes]) -> dict[str, str]:
        """What stands in every answer to a request with these lower-case headers."""
        if not self._on:
            return {}
        shown = {"access-control-expose-headers": SHOWN}
        if self._all:
            return {"access-control-allow-origin": "*", **shown}
        # A cache must not give one origin what was made for another.
        found, origin = {"vary": "origin"}, headers.get(b"origin")
        if origin in self._origins:
            found |= {"access-control-allow-origin": origin.decode(), **shown}
        return found

    def lines(self, headers: Mapping[bytes, bytes]) -> bytes:
        """`fields` as they stand in an answer."""
        found = self.fields(headers)
        return "".join(f"{name}: {text}\r\n" for name, text in found.items()).encode()

    def preflight(self, method: str, headers: Mapping[bytes, bytes]) -> dict[str, str] | None:
        """What is answered to a browser that asks before it sends; None for any other request.

        Raises `PermissionDenied` for an origin that may not.
        """
        asked = method == "OPTIONS" and b"access-control-request-method" in headers
        if not self._on or not asked or (origin := headers.get(b"origin")) is None:
            return None
        if self._all or origin in self._origins:
            return self._preflight
        shown = quoted(origin.decode("latin-1"))
        raise PermissionDenied(f"the origin {shown} is not among those of `cors.origins`")


NO_CORS = Cors(None)
