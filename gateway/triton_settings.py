"""Triton's log and trace settings: they can be read; the configuration sets them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from headrace.errors import InvalidArgument, Unimplemented, quoted
from headrace.protocols.wire import message

TRACE_SETTINGS: Mapping[str, Any] = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
"""Triton's own defaults: no request is traced into files."""
_KINDS = {bool: "true or false", int: "a number", str: "a string"}


def log_settings(level: int) -> dict[str, Any]:
    """Triton's settings for a level of `logging`; lines go to stderr with ISO times."""
    return {
        "log_file": "",
        "log_info": level <= logging.INFO,
        "log_warning": level <= logging.WARNING,
        "log_error": level <= logging.ERROR,
        "log_verbose_level": int(level <= logging.DEBUG),
        "log_format": "ISO8601",
    }


def check_log_settings(given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises `InvalidArgument` for what is no log setting, `Unimplemented` for a change."""
    for name, value in given.items():
        if name not in settings:
            raise _unknown("log", name, settings)
        kind = type(settings[name])
        if value is not None and type(value) is not kind:
            raise InvalidArgument(f"'{name}' must be {_KINDS[kind]}, not {quoted(value)}")
        if value not in (None, settings[name]):
            raise Unimplemented(
                f"'{name}' can not be updated through network protocol: "
                "`log_level` of the configuration sets what is logged"
            )


def check_trace_settings(given: Mapping[str, Any]) -> None:
    """Raises as `check_log_settings` does; a setting without a value is to be cleared."""
    for name, value in given.items():
        if name not in TRACE_SETTINGS:
            raise _unknown("trace", name, TRACE_SETTINGS)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if any(not isinstance(each, str) for each in values):
            raise InvalidArgument(f"'{name}' must be a string or an array of strings")
        if values and values != _strings(TRACE_SETTINGS[name]):
            raise Unimplemented(
                f"'{name}' can not be updated through network protocol: requests are not traced "
                "into files; `traceparent` follows a request through the logs"
            )


def read_log_settings(request: Any) -> dict[str, Any]:
    """The values of a LogSettingsRequest; None for one that is not set."""
    found = {}
    for name, value in request.settings.items():
        kind = value.WhichOneof("parameter_choice")
        found[name] = None if kind is None else getattr(value, kind)
    return found


def encode_log_settings(settings: Mapping[str, Any]) -> bytes:
    """LogSettingsResponse."""
    answer = message("inference.LogSettingsResponse")()
    fields = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    for name, value in settings.items():
        setattr(answer.settings[name], fields[type(value)], value)
    encoded: bytes = answer.SerializeToString()
    return encoded


def encode_trace_settings() -> bytes:
    """TraceSettingResponse."""
    answer = message("inference.TraceSettingResponse")()
    for name, value in TRACE_SETTINGS.items():
        answer.settings[name].value.extend(_strings(value))
    encoded: bytes = answer.SerializeToString()
    return encoded


def _strings(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _unknown(kind: str, name: str, known: Mapping[str, Any]) -> InvalidArgument:
    return InvalidArgument(
        f"there is no {kind} setting {quoted(name)}; known are {', '.join(known)}"
    )
