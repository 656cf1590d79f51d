"""A virtual environment for a peer, made once under `peers/cache/` from its file's own metadata.

A peer's file begins with inline script metadata (PEP 723): the Python it needs, and its packages.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from loadtests.processes import Failed

PEERS = Path(__file__).resolve().parent
CACHE = PEERS / "cache"
STAMP = "complete"
NAMES = ("python3", "python3.11")
ASK_S = 10.0
DESCRIBE = "import sys; print('%d.%d.%d' % sys.version_info[:3], sys.prefix == sys.base_prefix)"
METADATA = re.compile(r"^# /// script\n(.*?)^# ///$", re.MULTILINE | re.DOTALL)


class PeerNotInstalled(Failed):
    """Raised when the peer's packages cannot be installed."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """The Pythons and the packages of a peer; one without packages runs in our environment."""

    python: SpecifierSet
    packages: tuple[str, ...]

    @classmethod
    def of(cls, file: Path) -> Requirements:
        """Those of a peer's file; a package without a version gets the one that we have."""
        found = METADATA.search(file.read_text(encoding="utf-8"))
        lines = found[1].splitlines() if found else []
        metadata = tomllib.loads("\n".join(line.removeprefix("#") for line in lines))
        named = (Requirement(text) for text in metadata.get("dependencies", ()))
        packages = (
            str(each) if each.specifier else f"{each}=={version(each.name)}" for each in named
        )
        return cls(SpecifierSet(metadata.get("requires-python", "")), tuple(packages))


def peer_python(name: str, file: Path, cache: Path = CACHE) -> Path:
    """The interpreter for a peer's file, in an environment that is made if it is not there yet.

    Raises `PeerNotInstalled`.
    """
    wanted = Requirements.of(file)
    if not wanted.packages:
        return Path(sys.executable)
    folder = cache / name
    python = folder / "bin" / "python"
    stamp = folder / STAMP
    pins = "\n".join(wanted.packages)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == pins:
        return python
    ours = platform.python_version() in wanted.python
    base = sys.executable if ours else str(find_interpreter(name, wanted.python))
    _run([base, "-m", "venv", "--clear", str(folder)], name)
    _run([str(python), "-m", "pip", "install", "--quiet", *wanted.packages], name)
    stamp.write_text(pins, encoding="utf-8")
    return python


def find_interpreter(name: str, wanted: SpecifierSet, path: str | None = None) -> Path:
    """A Python of these versions on PATH that is no virtual environment, for the peer `name`.

    Raises `PeerNotInstalled`.
    """
    found = []
    folders = (os.environ.get("PATH", "") if path is None else path).split(os.pathsep)
    for file in (Path(folder) / name for folder in folders if folder for name in NAMES):
        try:
            command = [str(file), "-I", "-c", DESCRIBE]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=ASK_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        match done.stdout.split():
            case [told, "True"]:
                if told in wanted:
                    return file
                found.append(told)
    raise PeerNotInstalled(
        f"{name} needs Python {wanted}, and PATH has {', '.join(dict.fromkeys(found)) or 'none'}"
    )


def _run(command: Sequence[str], name: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        last = (said.splitlines() or ["no message"])[-1]
        raise PeerNotInstalled(f"the environment of {name} cannot be made: {last}")
