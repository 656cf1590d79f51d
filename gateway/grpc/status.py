"""How a call ends: gRPC's status codes, and our errors as code, details and metadata."""

from __future__ import annotations

import math
from enum import IntEnum

from gateway.grpc.retry_info import status_with_retry
from gateway.grpc.wire import Metadata
from gateway.http.prediction import RETRY_MARGIN_S
from headrace.errors import HeadraceError

MAX_DETAILS = 2000
"""Longer details may not fit into the headers that a client accepts."""


class StatusCode(IntEnum):
    """gRPC's status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


def status_of(error: HeadraceError) -> tuple[int, str, Metadata]:
    """Code, details and metadata of this error; with RetryInfo where a retry can help."""
    details = error.message[:MAX_DETAILS].encode(errors="replace").decode()
    code = StatusCode[error.grpc_status]
    if error.retry_after_s is None:
        return code, details, ()
    wait_s = error.retry_after_s + RETRY_MARGIN_S
    return (
        code,
        details,
        (
            ("grpc-retry-pushback-ms", str(math.ceil(wait_s * 1000))),
            ("grpc-status-details-bin", status_with_retry(code, details, wait_s)),
        ),
    )
