"""From a Ray Serve config file to typed values; every mistake at once, with line and field path."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from gateway.config_checks import cross_check, did_you_mean
from gateway.yaml_source import ConfigFileError, KeyPath, Problem, YamlSource, read_source
from headrace.config.args import Args, PoolConfig
from headrace.errors import ConfigError

SECRET_KEYS = frozenset({"secret", "admin_token"})
"""Keys whose values are not shown: a secret may stand where its reference should."""

_ROUNDS = 8
"""Cap on the times that a value is checked again without what was wrong in it."""
_REQUIRED: Mapping[KeyPath, Any] = {("schema",): 1}
"""What stands in for a required key whose own value was wrong."""

ModelT = TypeVar("ModelT", bound=BaseModel)


def validate(
    model: type[ModelT], value: Any, source: YamlSource, base: KeyPath, problems: list[Problem]
) -> ModelT | None:
    """The typed value without the parts that are wrong, which join `problems`; None without any.

    A check over several fields runs only once each field is valid, so wrong parts are taken out
    and the rest is checked again.
    """
    for _ in range(_ROUNDS):
        try:
            return model.model_validate(value)
        except ValidationError as error:
            problems.extend(explain(error, model, source, base))
            paths = {_document_path(e["loc"], value, e["type"]) for e in error.errors()}
        value = copy.deepcopy(value)
        taken = [_take_out(value, path) for path in sorted(paths, key=_last_first)]
        if not any(taken):
            return None
    return None


def unknown_keys(
    value: Any, kind: Any, source: YamlSource, path: KeyPath = ()
) -> Iterator[Problem]:
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


def _last_first(path: KeyPath) -> tuple[int, int]:
    """Sort key: the last items of a list are taken out first, so that positions stay true."""
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
    error: ValidationError, model: type[BaseModel], source: YamlSource, base: KeyPath
) -> Iterator[Problem]:
    """One problem for each path; the members of a union become `this or that`."""
    allowed: dict[KeyPath, list[str]] = {}
    found: dict[KeyPath, str] = {}
    root = value_at(source.value, base)
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


IMPORT_PATH = "gateway.app:build"
_OWN_SIZE = ("num_replicas", "autoscaling_config", "ray_actor_options")


@dataclass(frozen=True, slots=True)
class Config:
    """A valid file. `document` is what Ray Serve gets."""

    file: str
    application: str
    args: Args
    pool: PoolConfig
    document: Mapping[str, Any]
    warnings: tuple[Problem, ...] = ()

    @property
    def applications(self) -> tuple[str, ...]:
        """The names of all applications of the file, Headrace's among them."""
        return tuple(app.get("name", "default") for app in self.document["applications"])


def load_config(file: str | Path) -> Config:
    """Read and check a file; raises `ConfigFileError` with all that is wrong in it."""
    source = read_source(file)
    problems = [*source.duplicates, *_serve_problems(source)]
    application_path = _find_application(source, problems)
    if application_path is None:
        raise ConfigFileError(problems)
    application = value_at(source.value, application_path)
    args_path = (*application_path, "args")
    args = validate(Args, application.get("args", {}), source, args_path, problems)
    pool_path = _deployments(source, application_path, problems)
    user_config = value_at(source.value, pool_path) or {}
    pool = validate(PoolConfig, user_config, source, pool_path, problems)
    whole = not problems
    warnings = []
    if source.value.get("proxy_location") != "Disabled":
        message = "should be Disabled: Headrace has listeners of its own and Serve's stay idle"
        warnings.append(source.problem(("proxy_location",), message))
    for finding in cross_check(args, pool) if args and pool else ():
        base = args_path if finding.path[0] == "args" else pool_path
        problem = source.problem((*base, *finding.path[1:]), finding.message)
        if finding.warning:
            warnings.append(problem)
        elif whole or finding.path[-1] == "slot_class":  # a sum over parts would mislead
            problems.append(problem)
    if problems or args is None or pool is None:
        raise ConfigFileError(problems)
    return Config(
        file=source.file,
        application=application.get("name", "default"),
        args=args,
        pool=pool,
        document=source.value,
        warnings=tuple(sorted(warnings)),
    )


def check_document(document: Mapping[str, Any], application: str) -> None:
    """Raise `ConfigError` unless a document configures this running application.

    The command line has reported mistakes with their lines before it sent the document.
    """
    ours = [
        each
        for each in _mappings(document.get("applications"), "applications")
        if each.get("name", "default") == application
    ]
    if len(ours) != 1 or ours[0].get("import_path") != IMPORT_PATH:
        raise ConfigError(f"the config must hold the running application {application!r}")
    try:
        Args.model_validate(ours[0].get("args", {}))
        for deployment in _mappings(ours[0].get("deployments"), "deployments"):
            if deployment.get("name") == "Pool":
                PoolConfig.model_validate(deployment.get("user_config") or {})
    except ValidationError as error:
        raise ConfigError(f"the config is not valid: {error}") from None


def _mappings(value: Any, name: str) -> list[Mapping[str, Any]]:
    entries = [] if value is None else value
    if not isinstance(entries, list) or not all(isinstance(each, Mapping) for each in entries):
        raise ConfigError(f"the config is not valid: `{name}` should be a list of mappings")
    return entries


def _serve_problems(source: YamlSource) -> list[Problem]:
    """What Ray Serve's own schema says about the file around our part."""
    if not isinstance(source.value, Mapping):
        return [source.problem((), "should be a Ray Serve config: a mapping with `applications`")]
    try:
        from ray.serve.schema import ServeDeploySchema  # 1 s: only who checks a file pays it
    except ImportError:
        raise ConfigError("Ray Serve is not installed here: pip install headrace") from None
    problems: list[Problem] = []
    try:
        ServeDeploySchema.model_validate(source.value)
    except ValidationError as error:
        problems.extend(explain(error, ServeDeploySchema, source, ()))
    except Exception as error:
        # Its validators look into values whose types they have not checked yet.
        path = _unlike_serve(source.value)
        found = f"Ray Serve cannot read this ({type(error).__name__})"
        problems.append(source.problem(path or (), "should be a mapping" if path else found))
    return [*problems, *unknown_keys(source.value, ServeDeploySchema, source)]


def _unlike_serve(document: Mapping[str, Any]) -> KeyPath | None:
    """The first application or deployment that is no mapping."""
    applications = document.get("applications")
    for number, application in enumerate(applications if isinstance(applications, list) else ()):
        path: KeyPath = ("applications", number)
        if not isinstance(application, Mapping):
            return path
        deployments = application.get("deployments")
        for place, each in enumerate(deployments if isinstance(deployments, list) else ()):
            if not isinstance(each, Mapping):
                return (*path, "deployments", place)
    return None


def _find_application(source: YamlSource, problems: list[Problem]) -> KeyPath | None:
    """Where Headrace's application stands; None, with the reason in `problems`, without one."""
    applications = value_at(source.value, ("applications",))
    found: list[KeyPath] = []
    others: list[str] = []
    for number, entry in enumerate(applications if isinstance(applications, list) else ()):
        path = entry.get("import_path") if isinstance(entry, Mapping) else None
        if path == IMPORT_PATH:
            found.append(("applications", number))
        elif isinstance(path, str):
            others.append(path)
    if len(found) > 1:
        message = "a file holds one Headrace; give a second one a file and ports of its own"
        problems.append(source.problem(found[1], message))
    elif not found and not problems:
        seen = f" (found: {', '.join(others)})" if others else ""
        message = f"no application with `import_path: {IMPORT_PATH}`{seen}"
        problems.append(source.problem(("applications",), message))
    return found[0] if found else None


def _deployments(source: YamlSource, application_path: KeyPath, problems: list[Problem]) -> KeyPath:
    """Where the Pool's `user_config` stands; what is wrong around it joins `problems`."""
    path: KeyPath = (*application_path, "deployments")
    pool_path: KeyPath = (*path, "user_config")
    slots = value_at(source.value, (*application_path, "args", "slots"))
    known = {
        "Gateway",
        "Pool",
        *(f"Slot-{name}" for name in (slots if isinstance(slots, Mapping) else {"cpu": {}})),
    }
    entries = value_at(source.value, path)
    for number, entry in enumerate(entries if isinstance(entries, list) else ()):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            continue  # Serve's schema has already said so
        name, here = entry["name"], (*path, number)
        if name not in known:
            message = f"no deployment {name!r}{did_you_mean(name, known)}"
            problems.append(source.problem((*here, "name"), message))
        for key in _OWN_SIZE:
            if key in entry:
                message = "counts and resources stand in the application's `args:`"
                problems.append(source.problem((*here, key), message))
        if name == "Pool":
            pool_path = (*here, "user_config")
        elif "user_config" in entry:
            message = "only the deployment Pool takes a user_config"
            problems.append(source.problem((*here, "user_config"), message))
    return pool_path
