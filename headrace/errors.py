"""One tree of errors; each class has its HTTP and its gRPC status."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class HeadraceError(Exception):
    """Raised when a request or an operation cannot be carried out; never raised itself.

    `reason` is one word for logs and metrics: which limit refused it, "" where none did.
    """

    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    reason: str = ""

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, reason: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        if reason is not None:
            self.reason = reason


class InvalidArgument(HeadraceError):
    """Raised when the request is malformed: JSON, names, dtypes, shapes or sizes."""

    http_status = 400
    grpc_status = "INVALID_ARGUMENT"


class FilesRefused(InvalidArgument):
    """Raised when a load request brings files of its own; over gRPC with Triton's status."""

    grpc_status = "INTERNAL"


class Unauthenticated(HeadraceError):
    """Raised when credentials are missing or wrong."""

    reason = "credential"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"


class PermissionDenied(HeadraceError):
    """Raised when the operation is not open to this caller or on this listener."""

    reason = "permission"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"


class NotFound(HeadraceError):
    """Raised when the model, version, signature or path does not exist."""

    http_status = 404
    grpc_status = "NOT_FOUND"


class MethodNotAllowed(HeadraceError):
    """Raised when the path exists but not with this HTTP method; `allow` lists those that do."""

    http_status = 405
    grpc_status = "UNIMPLEMENTED"

    def __init__(self, message: str, allow: str = "") -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(HeadraceError):
    """Raised when the client sends its headers or body too slowly."""

    http_status = 408
    grpc_status = "DEADLINE_EXCEEDED"


class FailedPrecondition(HeadraceError):
    """Raised when the state of the system does not allow the operation."""

    http_status = 409
    grpc_status = "FAILED_PRECONDITION"


class AlreadyExists(InvalidArgument):
    """Raised when a name is taken already; over HTTP a 400, as in Triton."""

    grpc_status = "ALREADY_EXISTS"


class PayloadTooLarge(HeadraceError):
    """Raised when the body, or the picture or video in it, is larger than a limit."""

    reason = "body_size"
    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"


class HeadersTooLarge(InvalidArgument):
    """Raised when a request has too many headers or trailers, or too many bytes of them."""

    http_status = 431
    grpc_status = "RESOURCE_EXHAUSTED"


class UnsupportedMedia(HeadraceError):
    """Raised when the body is of a kind, or in a codec, that Headrace does not read."""

    reason = "media"
    http_status = 415
    grpc_status = "INVALID_ARGUMENT"


class UnsupportedCoding(UnsupportedMedia):
    """Raised when a body has a content coding that is not read; `accepted` lists those that are."""

    def __init__(self, message: str, accepted: str) -> None:
        super().__init__(message)
        self.accepted = accepted


class TooManyRequests(HeadraceError):
    """Raised when a limit of the caller's tier is reached; `reason` names it."""

    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"


class Cancelled(HeadraceError):
    """Raised when the caller left before the answer."""

    http_status = 499
    grpc_status = "CANCELLED"


class InternalError(HeadraceError):
    """Raised when Headrace is at fault; details are in the log, not in the answer."""

    def __init__(
        self,
        message: str = "internal error",
        *,
        retry_after_s: float | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s, reason=reason)


class Unimplemented(HeadraceError):
    """Raised when the request asks for something that Headrace does not do."""

    http_status = 501
    grpc_status = "UNIMPLEMENTED"


class VersionNotSupported(HeadraceError):
    """Raised when the request is of a version of HTTP that its port does not speak."""

    http_status = 505
    grpc_status = "UNIMPLEMENTED"


class Unavailable(HeadraceError):
    """Raised when no slot can answer now; trying again later can help."""

    http_status = 503
    grpc_status = "UNAVAILABLE"


class OutOfMemory(HeadraceError):
    """Raised when a slot ran out of memory while it held the request, whatever the cause."""

    http_status = 507
    grpc_status = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(HeadraceError):
    """Raised when the request's deadline passed before its answer was ready."""

    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"


class ModelLoadError(HeadraceError):
    """Raised when a model version cannot be fetched, verified, loaded or warmed up."""

    http_status = 503
    grpc_status = "UNAVAILABLE"


class ConfigError(HeadraceError):
    """Raised when the configuration is wrong; the message names the field path."""

    grpc_status = "FAILED_PRECONDITION"


class LinkError(HeadraceError):
    """Raised when a frame breaks the link's protocol; that link is closed, no other."""


_BY_STATUS: dict[int, type[HeadraceError]] = {
    error.http_status: error
    for error in (
        *(InvalidArgument, Unauthenticated, PermissionDenied, NotFound, MethodNotAllowed),
        *(RequestTimeout, FailedPrecondition, PayloadTooLarge, UnsupportedMedia, TooManyRequests),
        *(Cancelled, InternalError, Unimplemented, Unavailable, OutOfMemory, DeadlineExceeded),
    )
}


def error_for_status(http_status: int, message: str) -> HeadraceError:
    """The error of the tree with this HTTP status; an unknown status is an `InternalError`."""
    return _BY_STATUS.get(http_status, InternalError)(message)


_SHOWN_CHARACTERS = 80
"""Length of shown text: a body may hold megabytes in place of a name."""

_LISTED_NAMES = 20


def quoted(value: object) -> str:
    """A JSON value as text of at most 80 characters; containers show only their kind."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if value is None or isinstance(value, bool):
        return {None: "null", False: "false", True: "true"}[value]
    if isinstance(value, int) and value.bit_length() > 256:
        return "a very large integer"
    text = value[: _SHOWN_CHARACTERS + 1] if isinstance(value, str) else str(value)
    if len(text) > _SHOWN_CHARACTERS:
        text = text[:_SHOWN_CHARACTERS] + "…"
    return f"'{text}'" if isinstance(value, str) else text


def listed(names: Iterable[str]) -> str:
    """Names in quotes with commas between them, at most 20."""
    texts = [quoted(name) for name in names]
    if len(texts) > _LISTED_NAMES:
        texts[_LISTED_NAMES:] = [f"and {len(texts) - _LISTED_NAMES} more"]
    return ", ".join(texts) or "none"
