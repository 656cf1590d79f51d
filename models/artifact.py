"""A built folder: its files, their sums, and what it was built from.

`SHA256SUMS` (the format of `sha256sum`, relative paths) covers every other file of the folder;
whoever loads a model version checks it first. `build.json` names the inputs of the build.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

SUMS = "SHA256SUMS"
RECORD = "build.json"


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents(folder: Path) -> list[str]:
    """Relative paths of all files in `folder` except the sums, sorted."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(name for path in files if (name := path.relative_to(folder).as_posix()) != SUMS)


def seal(folder: Path, inputs: Mapping[str, str]) -> None:
    """Write the record of `inputs` and then the sums of everything in `folder`."""
    record = json.dumps({"inputs": dict(sorted(inputs.items()))}, indent=1)
    (folder / RECORD).write_text(record + "\n", encoding="utf-8")
    lines = (f"{sha256_of(folder / name)}  {name}\n" for name in contents(folder))
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder (one phrase), or None where every file is as sealed."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return f"{SUMS} is missing"
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = contents(folder)
    for name in sorted(expected.keys() ^ set(found)):
        return f"{name} is missing" if name in expected else f"{name} does not belong there"
    for name in found:
        if sha256_of(folder / name) != expected[name]:
            return f"{name} was changed after the build"
    return None


def is_current(folder: Path, inputs: Mapping[str, str]) -> bool:
    """Whether `folder` was built from exactly these inputs and is undamaged."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    if not isinstance(record, dict) or record.get("inputs") != dict(inputs):
        return False
    return damage(folder) is None


def publish(work: Path, folder: Path) -> None:
    """Put the sealed folder `work` in the place of `folder`; a reader sees the old or the new one.

    `work` must be on the same file system. What stood there before is removed last.
    """
    work.chmod(0o755)
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = work.with_name(work.name + ".old")
    if folder.exists():
        os.rename(folder, old)
    os.rename(work, folder)
    shutil.rmtree(old, ignore_errors=True)
