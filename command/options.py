"""What commands share: options, exit codes, JSON or text.

An API key or token is never an argument, which other users of the machine could read.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import click

from headrace.errors import (
    ConfigError,
    DeadlineExceeded,
    HeadraceError,
    Unauthenticated,
    Unavailable,
)


class Exit(IntEnum):
    """Exit codes, on which scripts rely."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG_INVALID = 3
    NOT_REACHABLE = 4
    REFUSED = 5
    TIMED_OUT = 6


_CODES: tuple[tuple[type[HeadraceError], Exit], ...] = (
    (ConfigError, Exit.CONFIG_INVALID),
    (Unavailable, Exit.NOT_REACHABLE),
    (Unauthenticated, Exit.REFUSED),
    (DeadlineExceeded, Exit.TIMED_OUT),
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


def say(document: Any, text: str, as_json: bool) -> None:
    """Print the document as JSON, else the text."""
    click.echo(json.dumps(document) if as_json else text)


def checked_address(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """`HOST:PORT`, refused as wrong usage before anything is asked."""
    from headrace.config.args import split_address

    try:
        if value is not None:
            split_address(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} {error}") from None
    return value


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One decorator for several options, which `--help` shows in this order."""
    return lambda command: functools.reduce(lambda made, add: add(made), reversed(options), command)


KEY_VARIABLE = "HEADRACE_KEY"
CA_VARIABLE = "HEADRACE_CA"

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
config_file = click.argument("file", required=False, type=click.Path(dir_okay=False))
watched = click.option("--watch", is_flag=True, help="Show it again each second until Ctrl-C.")
model_version = click.option(
    "--version", "model_version", type=click.IntRange(min=1), help="A model version."
)
trusted = click.option(
    "--ca",
    type=click.Path(),
    envvar=CA_VARIABLE,
    help="Speak TLS: file of authorities, or `system` for those of this machine "
    f"(default: the variable {CA_VARIABLE}; what runs here is known).",
)
at_admin = _options(
    click.option(
        "--admin", callback=checked_address, metavar="HOST:PORT", help="Its admin listener."
    ),
    click.option("--token-file", type=click.Path(), help="File with the admin token."),
    trusted,
)
"""Options of commands that ask a running instance's admin API."""
at_http = _options(
    click.option(
        "--http", callback=checked_address, metavar="HOST:PORT", help="The public listener to ask."
    ),
    click.option(
        "--key-file",
        type=click.Path(),
        help=f"File with an API key or token (default: the variable {KEY_VARIABLE}).",
    ),
    trusted,
    click.option(
        "--cert",
        "certificate",
        type=click.Path(dir_okay=False),
        help="PEM file with a client certificate and its key, to be shown.",
    ),
)
"""Options of commands that ask as any client does."""


def asks_admin(timeout_s: float = 5.0) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of `at_admin`; the command's first argument is an `AdminClient`.

    Errors of the whole command become exit codes.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def asked(admin: str | None, token_file: str | None, ca: str | None, **rest: Any) -> None:
            from command.instance import find_instance

            with exit_codes(), find_instance(admin, token_file, ca).client(timeout_s) as client:
                command(client, **rest)

        decorated: Callable[..., None] = at_admin(asked)
        return decorated

    return decorate


def read_key(key_file: str | None) -> str:
    """The API key of the file, else of the environment, else ""; raises `ConfigError`."""
    from headrace.config.types import SecretRef
    from headrace.secrets import resolve

    key = (
        resolve(SecretRef(file=key_file)) if key_file else os.environ.get(KEY_VARIABLE, "").strip()
    )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError("the key should be printable ASCII: it is sent in a header")
    return key
