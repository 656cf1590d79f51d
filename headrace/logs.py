"""Structured logs: one JSON object a line on stderr, without payloads or credentials."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

SECRET_KEYS = frozenset({"authorization", "x-api-key", "token", "secret", "password"})
REDACTED = "[redacted]"

MAX_TEXT = 2000
"""Longest text of a field, in characters; a longer one is cut, since it is data."""

KEPT_LINES = 20
KEPT_CHARACTERS = 500
"""Characters kept in memory of each of the latest lines, for reports of failures."""

FOREIGN_LOGGERS = ("asyncio", "grpc", "uvicorn")
"""Loggers of libraries, whose lines are written in our format too."""
SILENT_LOGGERS = ("python_multipart",)
"""Loggers of libraries that write a line for what a caller does wrong, as often as he likes."""

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(
    rb"(?!ff)(?!00-.{52}.)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    rb"(-[\x21-\x7e]{0,200})?"
)


_recent: deque[str] = deque(maxlen=KEPT_LINES)


def configure(level: str, role: str) -> None:
    """Log from `level` (a word of the config) up; every line says which role wrote it."""
    number = logging.getLevelNamesMapping()[level.upper()]

    def add_role(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event["role"] = role
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        add_role,
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[*shared, _render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _render],
        foreign_pre_chain=shared,
    )
    for name in FOREIGN_LOGGERS:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(formatter)
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(max(number, logging.INFO))
        logger.propagate = False
    for name in SILENT_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def recent_lines() -> list[str]:
    """The last lines that this process has logged, oldest first, without secrets and cut short."""
    return list(_recent)


def watched(task: asyncio.Task[None]) -> asyncio.Task[None]:
    """Log the error with which a lasting task ends."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            structlog.get_logger().error("task_ended", task=task.get_name(), exc_info=error)

    task.add_done_callback(ended)
    return task


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A processor: secrets by their key, bytes and arrays by their size, long text cut."""
    cleaned: EventDict = _clean(event)
    return cleaned


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]}… ({len(value)} characters)"
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return {
            str(key): REDACTED if str(key).lower() in SECRET_KEYS else _clean(inner)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(inner) for inner in value]
    if isinstance(value, (BaseException, os.PathLike)):
        return _clean(str(value))
    return f"<{type(value).__name__}>"


def _render(logger: WrappedLogger, method: str, event: EventDict) -> str:
    first = {key: event.pop(key) for key in ("time", "level", "event", "role") if key in event}
    line = orjson.dumps({**first, **event}, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    _recent.append(line if len(line) <= KEPT_CHARACTERS else f"{line[:KEPT_CHARACTERS]}…")
    return line


class _Ids:
    """Hex numbers counted up from a random start, different in each process."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start at another random number, below 2**63 so that 16 digits are enough."""
        self._next = itertools.count(int.from_bytes(os.urandom(8), "big") >> 1).__next__

    def __call__(self) -> str:
        """A new id of 16 hex digits: unique in practice, and no secret."""
        return f"{self._next():016x}"


new_request_id = _Ids()
os.register_at_fork(after_in_child=new_request_id.restart)


def valid_request_id(value: bytes) -> bool:
    """True for 1 to 128 visible ASCII characters: safe to return in a header and to log."""
    return _REQUEST_ID.fullmatch(value) is not None


def valid_traceparent(value: bytes) -> bool:
    """True for a W3C Trace Context `traceparent`: lower-case hex, neither id all zeros.

    Version 00 ends after the flags; later versions may go on after a dash; ff is forbidden.
    """
    return _TRACEPARENT.fullmatch(value) is not None
