"""A YAML file as its value plus the line of every key and item, so that errors can point there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from headrace.errors import ConfigError

KeyPath = tuple[str | int, ...]

MAX_INDEXED = 100_000
"""Cap on the keys whose lines are kept: aliases can make a short file unfold without end."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake in a config file: where, what was found and what is allowed."""

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class ConfigFileError(ConfigError):
    """Raised when a config file is wrong; `problems` holds every mistake, in the file's order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True, slots=True)
class YamlSource:
    """A parsed file. `lines` counts from 1; `duplicates` are keys that a mapping has twice."""

    file: str
    value: Any
    lines: Mapping[KeyPath, int]
    duplicates: tuple[Problem, ...] = ()

    def line(self, path: KeyPath) -> int:
        """The line of this path, or of the nearest enclosing one that exists."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def problem(self, path: KeyPath, message: str) -> Problem:
        return Problem(self.file, self.line(path), format_path(path), message)


def format_path(path: KeyPath) -> str:
    """`applications[0].args.listen` for `("applications", 0, "args", "listen")`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_source(file: str | Path) -> YamlSource:
    """Parse a file; raises `ConfigFileError` when it cannot be read or is not YAML."""
    name = str(file)
    text = _read_text(name)
    loader = yaml.SafeLoader("")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise ConfigFileError([Problem(name, 1, "", "the file is empty")])
        index = _Index(name)
        index.add(node, ())
        return YamlSource(
            name, loader.construct_document(node), index.lines, tuple(index.duplicates)
        )
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = mark.line + 1 if mark else 0
        raise ConfigFileError([Problem(name, line, "", f"not valid YAML: {what}")]) from None
    except RecursionError:
        raise ConfigFileError([Problem(name, 0, "", "the file nests too deeply")]) from None
    except ValueError as error:  # a date such as 2026-99-99
        raise ConfigFileError([Problem(name, 0, "", f"not valid YAML: {error}")]) from None
    finally:
        loader.dispose()


def _read_text(name: str) -> str:
    line = 0
    try:
        return Path(name).read_bytes().decode()
    except FileNotFoundError:
        message = "no such file"
    except IsADirectoryError:
        message = "is a folder, not a file"
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8 text: found the byte 0x{error.object[error.start]:02x}"
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
    raise ConfigFileError([Problem(name, line, "", message)])


class _Index:
    """Walks composed nodes, which still know their place in the text."""

    def __init__(self, file: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.duplicates: list[Problem] = []
        self._file = file
        self._above: list[yaml.Node] = []

    def add(self, node: yaml.Node, path: KeyPath) -> None:
        """Note the lines of this node and all below it."""
        if any(node is above for above in self._above):
            message = "an alias refers to what contains it"
            raise ConfigFileError(
                [Problem(self._file, node.start_mark.line + 1, format_path(path), message)]
            )
        self.lines.setdefault(path, node.start_mark.line + 1)
        if len(self.lines) > MAX_INDEXED:
            return
        self._above.append(node)
        if isinstance(node, yaml.ScalarNode):
            self._check_text(node, path)
        elif isinstance(node, yaml.MappingNode):
            self._add_mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self.add(item, (*path, number))
        self._above.pop()

    def _check_text(self, node: yaml.ScalarNode, path: KeyPath) -> None:
        """Refuse escapes such as `"\\ud83d"`, which no UTF-8 text can hold."""
        try:
            node.value.encode()
        except UnicodeEncodeError as error:
            message = f"holds {error.object[error.start]!a}, which is no character"
            line = node.start_mark.line + 1
            raise ConfigFileError([Problem(self._file, line, format_path(path), message)]) from None

    def _add_mapping(self, node: yaml.MappingNode, path: KeyPath) -> None:
        seen: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            self._check_text(key, path)
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                self.add(value, (*path, key.value))
                continue
            entry = (*path, key.value)
            first = seen.setdefault((key.tag, key.value), line)
            if first != line:
                message = f"this key stands twice, first on line {first}"
                self.duplicates.append(Problem(self._file, line, format_path(entry), message))
            self.lines[entry] = line
            self.add(value, entry)
