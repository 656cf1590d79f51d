"""A virtual environment for a peer, made once under `peers/cache/` with pinned versions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(__file__).resolve().parent / "cache"
STAMP = "complete"


class PeerNotInstalled(Exception):
    """Raised when the peer's packages cannot be installed."""


def peer_python(name: str, requirements: Sequence[str], cache: Path = CACHE) -> Path:
    """The interpreter of the peer's environment, which is made if its pins are not there yet."""
    folder = cache / name
    python = folder / "bin" / "python"
    wanted = "\n".join(requirements)
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(folder)], name)
    _run([str(python), "-m", "pip", "install", "--quiet", *requirements], name)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _run(command: Sequence[str], name: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PeerNotInstalled(f"the environment of {name} cannot be made: {last}")
