"""The exit codes of `headrace`, and which error gives which.

The API key or token of commands that ask as any caller does: its source, and how it is sent.

It is never an argument, which other users of the machine could read, and never shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import click

from headrace.errors import ConfigError, HeadraceError, Unauthenticated, Unavailable


class Exit(IntEnum):
    """What scripts can rely on."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG_INVALID = 3
    NOT_REACHABLE = 4
    REFUSED = 5
    TIMED_OUT = 6


class TimedOut(HeadraceError):
    """Raised when something did not happen within `--timeout`."""


_CODES: tuple[tuple[type[HeadraceError], Exit], ...] = (
    (ConfigError, Exit.CONFIG_INVALID),
    (Unavailable, Exit.NOT_REACHABLE),
    (Unauthenticated, Exit.REFUSED),
    (TimedOut, Exit.TIMED_OUT),
)


class Failure(click.ClickException):
    """An error as click shows it: one message on stderr, then the exit code."""

    def __init__(self, error: HeadraceError) -> None:
        super().__init__(error.message)
        # click reads it from the instance, though it declares it for the class.
        code = next((code for kind, code in _CODES if isinstance(error, kind)), Exit.FAILED)
        vars(self)["exit_code"] = int(code)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn every `HeadraceError` into its message and exit code."""
    try:
        yield
    except HeadraceError as error:
        raise Failure(error) from error


KEY_VARIABLE = "HEADRACE_KEY"


def with_key(command: Any) -> Any:
    """The option of commands that may need an API key."""
    text = f"File with an API key or token (default: the variable {KEY_VARIABLE})."
    return click.option("--key-file", type=click.Path(), help=text)(command)


def read_key(key_file: str | None) -> str:
    """The key of the file, else of the environment, else ""; raises `ConfigError`."""
    from headrace.config.types import SecretRef
    from headrace.secrets import resolve

    key = (
        resolve(SecretRef(file=key_file)) if key_file else os.environ.get(KEY_VARIABLE, "").strip()
    )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError("the key should be printable ASCII: it is sent in a header")
    return key
