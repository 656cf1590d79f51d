"""Version folders as their listings show them, without a look into the files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from types import MappingProxyType
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.dirfs import DirFileSystem

from headrace.runtimes import MODEL_FILES, RUNTIMES, RuntimeName
from replicas.verification import SUMS, SUMS_LINE

MAX_BESIDE_BYTES = 4 << 20
"""Cap on a file beside the version folders: a million labels of ImageNet's length."""

# Keys under which stores tell the identity of a file's contents, best first.
_IDENTITY = (
    *("ETag", "etag", "content_md5", "md5Hash", "generation", "mtime", "LastModified"),
    *("last_modified", "modified", "created"),
)


class ListedFile(NamedTuple):
    """A file of a listing; `identity` changes with its contents, "" where the store has none."""

    size: int | None
    identity: str


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """A version folder by its listing.

    `stamp` changes with any file. `changed_s` is the wall-clock time of the newest change, None
    where the store does not tell it. `problem` says why the folder is incomplete ("" if complete).
    `runtime` is None unless the files tell exactly one.
    """

    stamp: str
    changed_s: float | None
    problem: str
    runtime: RuntimeName | None


def describe(
    files: Mapping[str, ListedFile],
    listed: Collection[str],
    changed_s: float | None = None,
    beside: Mapping[str, ListedFile] = MappingProxyType({}),
) -> VersionFiles:
    """A version by its files, by path in the folder, and the paths `listed` in its SHA256SUMS.

    Files `beside` the version folders belong to each version.
    """
    missing = sorted(set(listed) - files.keys())
    runtimes = [name for name, kind in RUNTIMES.items() if kind.file in files]
    problem = ""
    if not files:
        problem = "it is empty"
    elif missing:
        problem = f"{missing[0]} is missing, but {SUMS} lists it"
    elif not runtimes:
        problem = f"it must hold one of {MODEL_FILES}, and holds none"
    rows = [*files.items(), *((f"../{name}", row) for name, row in beside.items())]
    stamp = hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()[:16]
    return VersionFiles(stamp, changed_s, problem, runtimes[0] if len(runtimes) == 1 else None)


def sums_names(text: bytes) -> frozenset[str]:
    """The paths that a SHA256SUMS lists; broken lines are left out, a load refuses them."""
    matches = map(SUMS_LINE.fullmatch, text.decode(errors="replace").splitlines())
    return frozenset(str(PurePosixPath(match[2])) for match in matches if match)


def list_local(folder: Path) -> tuple[dict[str, ListedFile], float]:
    """The files below a local folder, and when it changed last; `FileNotFoundError` if it is gone.

    Files that vanish meanwhile, and links to nothing, are left out.
    """
    # A folder that is a link to another one changes with the link too.
    changed_s = max(folder.lstat().st_ctime, folder.stat().st_ctime)
    files = {}
    for parent, folders, names in os.walk(folder, onerror=_raise_unless_gone):
        for name in (*folders, *names):
            path = Path(parent, name)
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            changed_s = max(changed_s, stat.st_ctime)
            if name not in folders:
                files[path.relative_to(folder).as_posix()] = _local_row(stat)
    return files, changed_s


def may_say_more(name: str, size: int | None) -> bool:
    """Whether versions may depend on a file beside them: any name may be a labels file."""
    notes = name.startswith(".") or name.lower().endswith(".md")
    return not notes and (size is None or size <= MAX_BESIDE_BYTES)


def list_beside(folder: Path) -> tuple[dict[str, ListedFile], float]:
    """Files beside the versions of a local folder, and their newest change (0 without any)."""
    files, changed_s = {}, 0.0
    for path in folder.iterdir():
        try:
            stat = path.stat()
            if S_ISREG(stat.st_mode) and may_say_more(path.name, stat.st_size):
                files[path.name] = _local_row(stat)
                changed_s = max(changed_s, stat.st_ctime)
        except FileNotFoundError:
            continue
    return files, changed_s


def _local_row(stat: os.stat_result) -> ListedFile:
    return ListedFile(stat.st_size, f"{stat.st_ino}:{stat.st_mtime_ns}:{stat.st_ctime_ns}")


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def list_remote(store: AbstractFileSystem, folder: str) -> tuple[dict[str, Any], set[str]]:
    """The store's facts of each file below a folder, by relative path; and its folders.

    The folders are those right below it. Raises what the store raises, `FileNotFoundError` if
    there is no such folder.
    """
    infos = list(store.find(folder, detail=True).values()) if lists_flat(store) else []
    if not infos:
        # Object stores know no empty folders; other stores do, and `find` of most of them takes
        # an error in a subfolder for an empty one.
        infos = _list_by_folder(store, folder)
    files, folders = {}, set()
    for info in infos:
        path = PurePosixPath(info["name"].removeprefix("/")).relative_to(folder.removeprefix("/"))
        if info["type"] == "directory" or info["name"].endswith("/"):
            folders.add(path.parts[0] if path.parts else "")
        elif path.parts:
            files[str(path)] = info
            folders.update(path.parts[:1] if len(path.parts) > 1 else ())
    return files, folders - {""}


def lists_flat(store: AbstractFileSystem) -> bool:
    """Whether a whole tree is one listing, as in object stores."""
    if isinstance(store, DirFileSystem):
        return lists_flat(store.fs)
    kind = type(store)
    if isinstance(store, AsyncFileSystem):
        return kind._find is not AsyncFileSystem._find
    return kind.find is not AbstractFileSystem.find


def _list_by_folder(store: AbstractFileSystem, top: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            infos = store.ls(folder, detail=True)
        except FileNotFoundError:
            if folder == top:
                raise
            continue  # it vanished meanwhile
        # Some stores list a folder's own marker in it.
        infos = [info for info in infos if info["name"].strip("/") != folder.strip("/")]
        waiting += [info["name"] for info in infos if info["type"] == "directory"]
        found += infos
    return found


def listed_file(info: Mapping[str, Any]) -> ListedFile:
    """A file of a remote store's listing."""
    return ListedFile(
        info.get("size"), next((str(info[key]) for key in _IDENTITY if info.get(key)), "")
    )
