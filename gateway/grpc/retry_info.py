"""google.rpc.Status with RetryInfo: how gRPC says when to come back.

Three small messages, so they are written by hand: Status {code, message, details}, Any {type_url,
value}, RetryInfo {Duration {seconds, nanos}}.
"""

from __future__ import annotations

from headrace.protocols.wire import delimited, varint

RETRY_INFO_URL = b"type.googleapis.com/google.rpc.RetryInfo"


def status_with_retry(code: int, message: str, retry_s: float) -> bytes:
    """The value of `grpc-status-details-bin`; `code` is gRPC's number of the status."""
    seconds, rest_s = divmod(max(0.0, retry_s), 1.0)
    duration = _number(1, int(seconds)) + _number(2, int(rest_s * 1e9))
    detail = delimited(1, RETRY_INFO_URL) + delimited(2, delimited(1, duration))
    return _number(1, code) + delimited(2, message.encode()) + delimited(3, detail)


def _number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)
