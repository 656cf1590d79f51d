"""From a Ray Serve config file to typed values; every mistake at once, with line and field path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gateway.config_checks import cross_check, did_you_mean
from gateway.config_problems import explain, unknown_keys, validate, value_at
from gateway.yaml_source import ConfigFileError, KeyPath, Problem, Source, read_source
from headrace.config.args import Args, PoolConfig
from headrace.errors import ConfigError

IMPORT_PATH = "gateway.app:build"
_OWN_SIZE = ("num_replicas", "autoscaling_config", "ray_actor_options")


@dataclass(frozen=True, slots=True)
class Config:
    """A valid file. `document` is what Ray Serve gets; `warnings` are doubts, not mistakes."""

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


def load_config(file: str | Path, import_path: str = IMPORT_PATH) -> Config:
    """Read and check a file; raises `ConfigFileError` with all that is wrong in it."""
    source = read_source(file)
    problems = [*source.duplicates, *_serve_problems(source)]
    place = _find_application(source, import_path, problems)
    if place is None:
        raise ConfigFileError(problems)
    application = value_at(source.value, place)
    args_path = (*place, "args")
    args = validate(Args, application.get("args", {}), source, args_path, problems)
    pool_path = _deployments(source, place, problems)
    user_config = value_at(source.value, pool_path) or {}
    pool = validate(PoolConfig, user_config, source, pool_path, problems)
    whole = not problems
    warnings = list(_proxy_warnings(source))
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
    """Raise `ConfigError` unless a document, already read, configures this running application.

    The command line has reported mistakes with their lines; this is the last look of the system.
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


def _serve_problems(source: Source) -> list[Problem]:
    """What Ray Serve's own schema says about the file around our part."""
    if not isinstance(source.value, Mapping):
        return [source.problem((), "should be a Ray Serve config: a mapping with `applications`")]
    try:
        from ray.serve.schema import ServeDeploySchema  # 1 s: only who checks a file pays it
    except ImportError:
        raise ConfigError("Ray Serve is not installed here: pip install headrace") from None
    try:
        ServeDeploySchema.model_validate(source.value)
    except ValidationError as error:
        return [
            *explain(error, ServeDeploySchema, source, ()),
            *unknown_keys(source.value, ServeDeploySchema, source),
        ]
    return list(unknown_keys(source.value, ServeDeploySchema, source))


def _find_application(source: Source, import_path: str, problems: list[Problem]) -> KeyPath | None:
    applications = source.value.get("applications") if isinstance(source.value, Mapping) else None
    found: list[KeyPath] = []
    others: list[str] = []
    for number, entry in enumerate(applications if isinstance(applications, list) else ()):
        path = entry.get("import_path") if isinstance(entry, Mapping) else None
        if path == import_path:
            found.append(("applications", number))
        elif isinstance(path, str):
            others.append(path)
    if len(found) > 1:
        message = "a file holds one Headrace; give a second one a file and ports of its own"
        problems.append(source.problem(found[1], message))
    elif not found and not problems:
        seen = f" (found: {', '.join(others)})" if others else ""
        message = f"no application with `import_path: {import_path}`{seen}"
        problems.append(source.problem(("applications",), message))
    return found[0] if found else None


def _deployments(source: Source, place: KeyPath, problems: list[Problem]) -> KeyPath:
    """Where the Pool's `user_config` stands; what is wrong around it joins `problems`."""
    path: KeyPath = (*place, "deployments")
    pool_path: KeyPath = (*path, "user_config")
    slots = value_at(source.value, (*place, "args", "slots"))
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


def _proxy_warnings(source: Source) -> Iterator[Problem]:
    if source.value.get("proxy_location") != "Disabled":
        message = "should be Disabled: Headrace has listeners of its own and Serve's stay idle"
        yield source.problem(("proxy_location",), message)
