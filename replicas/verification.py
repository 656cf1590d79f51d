"""Whether a version folder is exactly what its SHA256SUMS says."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from headrace.errors import ModelLoadError

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")

_Stamp = tuple[int, int, int]


class Verifier:
    """Checks folders and remembers digests, so that a reload hashes only what changed.

    A digest is remembered by device and inode, and forgotten when size or times change; so it
    also outlives the rename of a downloaded folder.
    """

    def __init__(self) -> None:
        self._digests: dict[tuple[int, int], tuple[_Stamp, str]] = {}
        self.hashed_bytes = 0

    def verify(self, folder: Path, where: str) -> None:
        """Raise `ModelLoadError` unless every file is listed and as listed.

        A folder without SHA256SUMS passes. `where` begins the sentence of the error.
        """
        if not (folder / SUMS).is_file():
            return
        listed = read_sums(folder / SUMS, where)
        present = set(files_below(folder, where)) - {SUMS}
        for name in sorted(listed.keys() - present):
            raise ModelLoadError(f"{where}: {name} is missing, but {SUMS} lists it")
        for name in sorted(present - listed.keys()):
            raise ModelLoadError(f"{where}: {name} is not listed in {SUMS}; list or remove it")
        for name, digest in listed.items():
            if self._digest(folder / name) != digest:
                raise ModelLoadError(
                    f"{where}: {name} does not match {SUMS}; restore the file or build it again"
                )

    def _digest(self, path: Path) -> str:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            key = (stat.st_dev, stat.st_ino)
            known = self._digests.get(key)
            if known is not None and known[0] == stamp:
                return known[1]
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.hashed_bytes += stat.st_size
        self._digests[key] = (stamp, digest)
        return digest


def read_sums(path: Path, where: str) -> dict[str, str]:
    """Relative path → lower-case hex digest of a file in the format of `sha256sum`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{where}: {SUMS} is not UTF-8 text") from error
    listed = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        name = PurePosixPath(match[2]) if match else None
        if match is None or name is None or name.is_absolute() or ".." in name.parts:
            raise ModelLoadError(
                f"{where}: {SUMS} line {number} must be a SHA-256 digest, two spaces and a path "
                "inside the folder"
            )
        listed[str(name)] = match[1].lower()
    return listed


def files_below(folder: Path, where: str) -> Iterator[str]:
    """Relative paths of all files; a link to a folder is refused, since nobody walks into it."""
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        for name in folders:
            if (here / name).is_symlink():
                raise ModelLoadError(
                    f"{where}: {name} is a link to a folder; put the files themselves there"
                )
        for name in files:
            yield (here / name).relative_to(folder).as_posix()
