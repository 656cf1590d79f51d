"""The exit codes of `headrace`, and which error gives which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

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
