"""How foreign text appears in error messages: quoted and short."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN_CHARACTERS = 80
"""Enough to recognise a name; a body may hold megabytes where a name belongs."""

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
