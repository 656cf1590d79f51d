"""Checks of a version folder: its SHA256SUMS, and the external data of an ONNX model."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from headrace.errors import InvalidArgument, ModelLoadError, quoted
from headrace.protocols.wire import delimited_fields

SUMS = "SHA256SUMS"
SUMS_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
"""A line of `sha256sum`: digest and path."""

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
        match = SUMS_LINE.fullmatch(line)
        name = PurePosixPath(match[2]) if match else None
        if match is None or name is None or name.is_absolute() or ".." in name.parts:
            raise ModelLoadError(
                f"{where}: {SUMS} line {number} must be a SHA-256 digest, two spaces and a path "
                "inside the folder"
            )
        listed[str(name)] = match[1].lower()
    return listed


def files_below(folder: Path, where: str) -> Iterator[str]:
    """Relative paths of all files; a link to a folder is refused, since it is not walked."""
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        for name in folders:
            if (here / name).is_symlink():
                raise ModelLoadError(
                    f"{where}: {name} is a link to a folder; put the files themselves there"
                )
        for name in files:
            yield (here / name).relative_to(folder).as_posix()


CONTAINERS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
"""Fields on the way from ModelProto to every TensorProto, by message and field number (onnx.proto).

The file is read without `onnx`, which is no dependency of a server. ONNX Runtime's own check of
locations comes after they are read, and differs by release.
"""
_ENTRY = "StringStringEntryProto"
_KEY, _VALUE = 1, 2


def check_external_data(model_file: Path, where: str) -> None:
    """Refuse external data that is not a regular file inside the folder of `model_file`.

    `where` begins the sentence of the `ModelLoadError`. Links are followed before the comparison.
    """
    folder = model_file.parent.resolve()
    try:
        locations = external_locations(model_file)
    except InvalidArgument as error:
        raise ModelLoadError(
            f"{where}: {model_file.name} is truncated or not an ONNX model ({error})"
        ) from error
    for location in sorted(locations):
        shown = quoted(location)
        if "\0" in location:
            raise ModelLoadError(f"{where}: external data {shown} has a NUL byte in its name")
        target = (folder / location).resolve()
        # ONNX Runtime reads a location that begins with */ as an address in memory.
        if location.startswith("*/") or not target.is_relative_to(folder):
            raise ModelLoadError(
                f"{where}: external data {shown} points out of the version folder; "
                f"it must lie beside {model_file.name}"
            )
        if not os.path.isfile(target):  # a name that is too long is an error to Path
            raise ModelLoadError(f"{where}: external data {shown} is missing")


def external_locations(model_file: Path) -> set[str]:
    """The `location` of every external tensor in an ONNX file; empty for an empty file."""
    if model_file.stat().st_size == 0:
        return set()
    with (
        model_file.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        # The key stands in the file as these bytes, so nearly all models need no walk.
        pending = [("ModelProto", 0, len(data))] if data.find(b"location") >= 0 else []
        found: set[bytes] = set()
        while pending:
            message, start, end = pending.pop()
            fields = delimited_fields(data, start, end)
            if message == _ENTRY:
                # A field that is given twice counts with its last value.
                entry = {number: data[first:last] for number, first, last in fields}
                if entry.get(_KEY) == b"location":
                    found.add(entry.get(_VALUE, b""))
            else:
                inner = CONTAINERS[message]
                pending += [(inner[at], first, last) for at, first, last in fields if at in inner]
    try:
        return {location.decode() for location in found}
    except UnicodeDecodeError as error:
        raise InvalidArgument("a location is not UTF-8") from error
