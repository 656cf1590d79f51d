"""Pydantic's errors in the words and places of the config file."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from gateway.config_checks import did_you_mean
from gateway.yaml_source import KeyPath, Problem, Source

SECRET_KEYS = frozenset({"secret", "admin_token"})
"""Under these keys values are not shown: a secret may stand where its reference should."""

_ROUNDS = 8
_REQUIRED: Mapping[KeyPath, Any] = {("schema",): 1}
"""What stands in for a required key whose own value was wrong."""

ModelT = TypeVar("ModelT", bound=BaseModel)


def validate(
    model: type[ModelT], value: Any, source: Source, base: KeyPath, problems: list[Problem]
) -> ModelT | None:
    """The typed value, also when parts of it were wrong: those count as not given.

    A check over several fields runs only once each field is valid, so wrong parts are taken out
    and the rest is checked again. None means that nothing typed can be made of it.
    """
    for _ in range(_ROUNDS):
        try:
            return model.model_validate(value)
        except ValidationError as error:
            problems.extend(explain(error, model, source, base))
            paths = {_document_path(e["loc"], value, e["type"]) for e in error.errors()}
        value = copy.deepcopy(value)
        taken = [_take_out(value, path) for path in sorted(paths, key=_depth)]
        if not any(taken):
            return None
    return None


def unknown_keys(value: Any, kind: Any, source: Source, path: KeyPath = ()) -> Iterator[Problem]:
    """Keys that a lenient model (Ray Serve's) would silently ignore."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from unknown_keys(item, _item(kind), source, (*path, number))
        return
    models = list(_models(kind))
    if not models or not isinstance(value, Mapping):
        return
    known = {key: kind for model in models for key, kind in _by_key(model).items()}
    lenient = all(model.model_config.get("extra") != "forbid" for model in models)
    for key, item in value.items():
        if key in known:
            yield from unknown_keys(item, known[key], source, (*path, key))
        elif lenient:
            message = f"unknown key{did_you_mean(str(key), known)}"
            yield source.problem((*path, str(key)), message)


def value_at(value: Any, path: KeyPath) -> Any:
    """The value at a path, None when there is none."""
    for part in path:
        if not _has(value, part):
            return None
        value = value[part]
    return value


def _has(value: Any, part: int | str) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, Mapping) and part in value


def _depth(path: KeyPath) -> tuple[int, int]:
    """Sorts what must be taken out last to first, so that list positions stay true."""
    last = path[-1] if path else 0
    return -len(path), -last if isinstance(last, int) else 0


def _take_out(value: Any, path: KeyPath) -> bool:
    above: Any = value_at(value, path[:-1])
    if not path or not _has(above, path[-1]):
        return False
    if path in _REQUIRED:
        above[path[-1]] = _REQUIRED[path]
    else:
        del above[path[-1]]
    return True


def explain(
    error: ValidationError, model: type[BaseModel], source: Source, base: KeyPath
) -> Iterator[Problem]:
    """One problem for each path; the members of a union become `this or that`."""
    allowed: dict[KeyPath, list[str]] = {}
    found: dict[KeyPath, str] = {}
    root = value_at(source.value, base) if base else source.value
    for detail in error.errors(include_url=False):
        path = _document_path(detail["loc"], root, detail["type"])
        if detail["type"] == "extra_forbidden":
            text = f"unknown key{did_you_mean(str(path[-1]), _keys(model, path[:-1]))}"
        elif detail["type"] == "missing":
            text = "this key is required"
        else:
            found[path] = _found(path, detail["input"])
            text = _allowed(path, detail["msg"], detail["type"])
        allowed.setdefault(path, []).append(text)
    for path, texts in allowed.items():
        if any(other != path and other[: len(path)] == path for other in allowed) and all(
            text.startswith("should be '") for text in texts
        ):
            continue  # a union: the deeper error tells more than "or one of these words"
        message = " or ".join(dict.fromkeys(texts)).replace(" or should be ", " or ")
        yield source.problem((*base, *path), found.get(path, "") + message)


def _document_path(loc: tuple[int | str, ...], value: Any, kind: str) -> KeyPath:
    """The parts of pydantic's location that are keys of the file; union members are not."""
    path: list[int | str] = []
    for number, part in enumerate(loc):
        if _has(value, part):
            value = value[part]
        elif not (kind == "missing" and number == len(loc) - 1):
            continue
        path.append(part)
    return tuple(path)


def _found(path: KeyPath, value: Any) -> str:
    if not SECRET_KEYS.isdisjoint(path) or isinstance(value, Mapping | BaseModel):
        return ""
    text = repr(value)
    return f"found {text if len(text) <= 60 else text[:57] + '...'}; "


def _allowed(path: KeyPath, message: str, kind: str) -> str:
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind == "string_pattern_mismatch":
        return "should be a name of letters, digits, '_', '-' and '.'"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        secret = path and path[-1] in SECRET_KEYS
        return "should be {file: PATH} or {env: NAME}" if secret else "should be a mapping"
    text = message.partition(", unable")[0].partition("should")[2] or f" be valid ({message})"
    return "should" + text.replace("valid tuple", "list").replace("valid list", "list")


def _keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that the model knows at a path below it."""
    kind: Any = model
    for part in path:
        models = list(_models(kind))
        if any(part in _by_key(candidate) for candidate in models):
            kind = next(_by_key(m)[str(part)] for m in models if part in _by_key(m))
        elif not models or isinstance(part, int):
            kind = _item(kind)
    return [key for candidate in _models(kind) for key in _by_key(candidate)]


def _by_key(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models among the members of a type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    elif get_origin(kind) in (Union, UnionType, Annotated):
        for member in get_args(kind):
            yield from _models(member)


def _item(kind: Any) -> Any:
    """The type of a list's items or a mapping's values, looking through unions."""
    if get_origin(kind) in (Union, UnionType, Annotated):
        return next((item for member in get_args(kind) if (item := _item(member))), None)
    members = [member for member in get_args(kind) if member is not Ellipsis]
    return members[-1] if members else None
