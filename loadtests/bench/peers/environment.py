"""A virtual environment for a peer, made once under `peers/cache/` with pinned versions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.processes import Failed

CACHE = Path(__file__).resolve().parent / "cache"
STAMP = "complete"
NAMES = ("python3", "python3.11")
ASK_S = 10.0
DESCRIBE = "import sys; print(*sys.version_info[:3], sys.prefix == sys.base_prefix)"

Version = tuple[int, int, int]


class PeerNotInstalled(Failed):
    """Raised when the peer's packages cannot be installed."""


def peer_python(
    name: str, requirements: Sequence[str], base: Path | None = None, cache: Path = CACHE
) -> Path:
    """The interpreter of the peer's environment, which is made if its pins are not there yet.

    `base` is the interpreter to make it with: ours, unless told otherwise.
    """
    folder = cache / name
    python = folder / "bin" / "python"
    wanted = "\n".join(requirements)
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    _run([str(base or sys.executable), "-m", "venv", "--clear", str(folder)], name)
    _run([str(python), "-m", "pip", "install", "--quiet", *requirements], name)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def find_interpreter(name: str, oldest: Version, newest: Version, path: str | None = None) -> Path:
    """A Python of these versions on PATH that is no virtual environment, for the peer `name`."""
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
            case [major, minor, micro, "True"]:
                if oldest <= (int(major), int(minor), int(micro)) <= newest:
                    return file
                found.append(f"{major}.{minor}.{micro}")
    first, last = (".".join(map(str, version)) for version in (oldest, newest))
    raise PeerNotInstalled(
        f"{name} needs Python {first} to {last}, and PATH has "
        f"{', '.join(dict.fromkeys(found)) or 'none'}: install one, or leave {name} out "
        "with --protocol http"
    )


def _run(command: Sequence[str], name: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        last = (said.splitlines() or ["no message"])[-1]
        raise PeerNotInstalled(f"the environment of {name} cannot be made: {last}")
