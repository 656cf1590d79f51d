"""The API key or token of commands that ask as any caller does: its source, and how it is sent.

It is never an argument, which other users of the machine could read, and never shown.
"""

from __future__ import annotations

import os
from typing import Any

import click

from headrace.errors import ConfigError

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


def key_headers(key: str) -> dict[str, str]:
    """What a request says of its caller; nothing for the key ""."""
    return {"Authorization": f"Bearer {key}"} if key else {}
