"""Options of a request for media: from its query, a header, a part of a form, or parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from pydantic import ValidationError

from headrace.config.sharding import ProcessOptions, ShardingConfig
from headrace.errors import InvalidArgument, quoted

HEADER = "x-headrace-options"
LISTS = ("classes", "scales")
"""Options with several values: JSON, or separated by commas; in a query also several parameters."""


def query_options(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Options from the parameters of a URL; a class of digits is a class id."""
    found: dict[str, Any] = {}
    for name, text in pairs:
        if name in LISTS:
            found.setdefault(name, []).extend(_several(text))
        elif name in found:
            raise InvalidArgument(f"the option {quoted(name)} is given twice")
        else:
            found[name] = text
    return found


def parameter_options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Options among the parameters of an Open Inference request; other parameters are skipped."""
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        if name in ProcessOptions.model_fields:
            found |= query_options([(name, value)]) if isinstance(value, str) else {name: value}
    return found


def json_options(text: bytes | str, where: str) -> dict[str, Any]:
    """Options from a JSON object."""
    try:
        value = orjson.loads(text) if text else {}
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"{where} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidArgument(f'{where} should be a JSON object, such as {{"threshold": 0.5}}')
    return {
        name: _several(given) if name in LISTS and isinstance(given, str) else given
        for name, given in value.items()
    }


def read_options(*sources: Mapping[str, Any]) -> ProcessOptions:
    """The options of all sources, of which later ones win; raises `InvalidArgument`."""
    given: dict[str, Any] = {}
    for source in sources:
        given |= source
    known = ProcessOptions.model_fields
    for name in given:
        if name not in known:
            raise InvalidArgument(
                f"there is no option {quoted(name)}; these are known: {', '.join(known)}"
            )
    try:
        return ProcessOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        text = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise InvalidArgument(f"the option {name!r} {text}" if name else text) from None


def check_tiling(options: ProcessOptions, sharding: ShardingConfig) -> None:
    """Raises `InvalidArgument` for options that do not fit the model's config."""
    try:
        sharding.tiling(options)
    except ValueError as error:
        raise InvalidArgument(f"the options do not fit: {error}") from None


def encode_options(options: ProcessOptions) -> str:
    """The options without defaults as JSON text, for the header."""
    return json.dumps(options.model_dump(mode="json", exclude_defaults=True))


def _several(text: str) -> list[Any]:
    """The values of a list as text: JSON where it is that."""
    if text.lstrip().startswith("["):
        try:
            values: list[Any] = orjson.loads(text)
        except orjson.JSONDecodeError:
            pass  # a label may begin with a bracket
        else:
            return values
    return [_class(each.strip()) for each in text.split(",") if each.strip()]


def _class(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text
