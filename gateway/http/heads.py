"""What makes the head of an HTTP/1.1 request legal, and what its target means. Pure.

RFC 9110 and 9112: the version, `Host`, the form of the target and the transfer coding. The parser
sees to the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from headrace.errors import InvalidArgument, Unimplemented, VersionNotSupported, quoted

VERSIONS = ("1.1", "1.0")
_NAME = rb"\[[0-9A-Fa-f:.v%\-_~!$&'()*+,;=A-Z]+\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})"
_HOST = re.compile(rb"(?:%b*)(?::[0-9]*)?" % _NAME)
_ABSOLUTE = re.compile(
    rb"https?://(?:%b+)(?::[0-9]*)?(?P<path>/[^?]*)?(?P<query>\?.*)?" % _NAME, re.IGNORECASE
)


def read_target(
    version: str, method: bytes, target: bytes, headers: Mapping[bytes, bytes]
) -> bytes:
    """Path and query that a request asks for; raises what is wrong with its head.

    `headers` have lower-case names; several lines of one are joined by a comma and a space, which
    no legal `Host` has.
    """
    if version not in VERSIONS:
        raise VersionNotSupported(f"this port speaks HTTP/1.1, not HTTP/{version}")
    host = headers.get(b"host")
    if host is None:
        if version == "1.1":
            raise InvalidArgument("a request of HTTP/1.1 must have a Host header")
    elif not _HOST.fullmatch(host):
        raise InvalidArgument("a request must have one Host header: a host, and its port if any")
    coding = headers.get(b"transfer-encoding")
    if coding is not None and coding.strip().lower() != b"chunked":
        _refuse_coding(coding.lower())
    if b"#" in target:
        raise InvalidArgument("the target of a request must have no fragment (#)")
    if target.startswith(b"/"):
        return target
    if target == b"*" and method == b"OPTIONS":
        return b"/"
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise InvalidArgument(
            "the target of a request must be a path, or http://, a host and a path"
        )
    return (absolute["path"] or b"/") + (absolute["query"] or b"")


def may_stay(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a connection that HTTP/1.0 asks to keep may be kept (RFC 9112, 6.1 and 9.3).

    `close` outweighs `keep-alive`, and old proxies do not know how a chunked body ends.
    """
    options = headers.get(b"connection", b"").lower().split(b",")
    closes = any(option.strip() == b"close" for option in options)
    return not closes and b"transfer-encoding" not in headers


def _refuse_coding(coding: bytes) -> None:
    shown = quoted(coding.decode("latin-1"))
    names = [name.strip() for name in coding.split(b",")]
    if names[-1] != b"chunked" or names.count(b"chunked") > 1:
        raise InvalidArgument(f"Transfer-Encoding {shown} does not end with chunked, once")
    raise Unimplemented(f"Transfer-Encoding {shown} is not undone; use chunked alone")
