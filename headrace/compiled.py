"""Machine code for the hottest modules, which mypyc compiles from the same source.

`headrace/_compiled/` holds extension modules and, in `sources.json`, the SHA-256 of each source.
They are imported only where every source still is what they were compiled from, so a checkout runs
what was edited last. Compiled classes know each other's layout: it is all of them or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
FOLDER = "headrace/_compiled"
SOURCES = "sources.json"
SUFFIX = f".{sys.implementation.cache_tag}.so"
SWITCH = "HEADRACE_COMPILED"
"""Environment variable that with the value 0 leaves the compiled modules alone."""

status = "interpreted"
"""`compiled`, or `interpreted` and why."""


class Finder:
    """Finds the extension modules of a folder by the names of the modules that they stand for."""

    def __init__(self, folder: Path) -> None:
        self._files = {
            file.name.removesuffix(SUFFIX): str(file) for file in folder.glob("*" + SUFFIX)
        }

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if (file := self._files.get(name)) is None:
            return None
        return spec_from_file_location(name, file, loader=ExtensionFileLoader(name, file))


def digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


def why_not(root: Path) -> str | None:
    """Why the compiled modules cannot be imported, or None. Reads some 30 files."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    if not (root / FOLDER / SOURCES).exists():
        return "not compiled"
    if not any((root / FOLDER).glob("*" + SUFFIX)):
        return "compiled for another Python"
    for source, expected in json.loads((root / FOLDER / SOURCES).read_bytes()).items():
        if digest(root / source) != expected:
            return f"{source} was edited since it was compiled"
    return None


def install() -> None:
    """Have the compiled modules imported; to be called before any of them is."""
    global status
    reason = why_not(ROOT)
    if reason is not None:
        status = f"interpreted: {reason}"
        return
    sys.meta_path.insert(0, Finder(ROOT / FOLDER))
    status = "compiled"
