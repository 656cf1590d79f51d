"""The model store: `<store>/<model>/<version>/…` at a local path or any fsspec URI."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import structlog
from fsspec.implementations.local import LocalFileSystem

from headrace.errors import HeadraceError, ModelLoadError
from headrace.runtimes import (
    MODEL_FILES,
    RUNTIMES,
    RuntimeName,
    is_version_folder,
    version_folders,
)
from replicas.listing import (
    ListedFile,
    VersionFiles,
    describe,
    list_beside,
    list_local,
    list_remote,
    listed_file,
    lists_flat,
    may_say_more,
    sums_names,
)
from replicas.runtime import said_by, without_places
from replicas.verification import SUMS, Verifier, files_below

log = structlog.get_logger()

_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@|[?#]\S*")
_REASON_CHARS = 200
_UNUSED_S = 86_400.0
"""Age at which an unused version that has left the store leaves the cache."""


class StoreAway(ModelLoadError):
    """Raised when the store itself cannot be read, whatever the model."""


class Interrupted(ModelLoadError):
    """Raised when a download came out incomplete; the next one may succeed."""


class Repository:
    """Finds, fetches and verifies versions; blocking, so call it in a thread.

    All errors are `ModelLoadError`s of one sentence, without the store's address: callers may see
    them. A local store is used in place; from a remote one a version is downloaded into
    `cache_dir`, whole or not at all.
    """

    def __init__(self, uri: str, cache_dir: Path) -> None:
        self._shown = _CREDENTIALS.sub("", uri)
        self._cache = cache_dir / hashlib.sha256(uri.encode()).hexdigest()[:16]
        self._verifier = Verifier()
        self._sums: dict[str, tuple[ListedFile, frozenset[str]]] = {}
        with self._store_errors():
            self._fs, root = fsspec.core.url_to_fs(uri)
        self._root = root.rstrip("/")

    @property
    def _local(self) -> Path | None:
        """The store's folder, None of a remote one; resolved each time, since links may change."""
        is_local = isinstance(self._fs, LocalFileSystem)
        return Path(self._root).resolve() if is_local else None

    @property
    def hashed_bytes(self) -> int:
        """Bytes read to verify files; unchanged files are not read again."""
        return self._verifier.hashed_bytes

    def models(self) -> list[str]:
        """Names of the models that have a version, sorted."""
        with self._store_errors():
            self._fs.invalidate_cache()
            self._require_store()
            names = [name for name in self._folders(self._root) if _MODEL.fullmatch(name)]
        names = sorted(name for name in names if not self._leaves(name))
        # In an object store a folder is there only with something in it.
        return names if lists_flat(self._fs) else [name for name in names if self.versions(name)]

    def is_empty(self) -> bool:
        """Whether the store exists without any folder, as a volume that is not mounted."""
        with self._store_errors():
            self._fs.invalidate_cache()
            self._require_store()
            return not self._folders(self._root)

    def versions(self, model: str) -> list[int]:
        """Versions of `model` in ascending order; empty if the store has no such model."""
        return sorted(self._version_folders(model))

    def passed_over(self, model: str) -> dict[str, str]:
        """Entries of a model's folder that are no version, with the reason, by name."""
        self._check_name(model)
        with self._store_errors():
            folder = f"{self._root}/{model}"
            try:
                folders = self._folders(folder)
                entries = self._fs.ls(folder, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        versions = version_folders(folders)
        others = {}
        for name in folders:
            if not is_version_folder(name):
                others[name] = "its name is not a number"
            elif versions[int(name)] != name:
                others[name] = f"{versions[int(name)]} is the same version"
        for name in {PurePosixPath(entry).name for entry in entries} - set(folders):
            # Triton's configuration and files of labels are for all versions.
            if name != "config.pbtxt" and not name.endswith(".txt"):
                others[name] = "it is not in a version folder"
        return {name: why for name, why in sorted(others.items()) if not name.startswith(".")}

    def _version_folders(self, model: str) -> dict[int, str]:
        """Names of the version folders by number."""
        self._check_name(model)
        with self._store_errors():
            self._fs.invalidate_cache()
            try:
                names = self._folders(f"{self._root}/{model}")
            except (FileNotFoundError, NotADirectoryError):
                self._require_store()
                return {}
        return version_folders(names)

    def inspect(self, model: str) -> dict[int, VersionFiles]:
        """All version folders of a model by their listing; empty if the store has no such model.

        Cheap enough for every few seconds: only a SHA256SUMS that has changed is read.
        """
        self._check_name(model)
        with self._store_errors():
            found = self._inspect_remote(model) if self._local is None else self._inspect(model)
        for source in list(self._sums):
            folder, _, name = source.rpartition("/")
            if folder == f"{self._root}/{model}" and int(name) not in found:
                del self._sums[source]
        return found

    def _inspect(self, model: str) -> dict[int, VersionFiles]:
        found = {}
        folders = self._version_folders(model)
        beside, beside_s = list_beside(Path(self._root, model)) if folders else ({}, 0.0)
        for version, name in folders.items():
            source = f"{self._root}/{model}/{name}"
            try:
                files, changed_s = list_local(Path(source))
            except (FileNotFoundError, NotADirectoryError):
                continue  # it vanished meanwhile
            except OSError as error:
                problem = f"it cannot be read: {error.strerror}"
                found[version] = VersionFiles("", None, problem, None)
                continue
            found[version] = self._describe(source, files, beside, max(changed_s, beside_s))
        return found

    def _inspect_remote(self, model: str) -> dict[int, VersionFiles]:
        self._fs.invalidate_cache()
        try:
            infos, folders = list_remote(self._fs, f"{self._root}/{model}")
        except (FileNotFoundError, NotADirectoryError):
            self._require_store()
            return {}
        trees: dict[str, dict[str, ListedFile]] = {name: {} for name in folders}
        beside: dict[str, ListedFile] = {}
        for path, info in infos.items():
            folder, _, name = path.partition("/")
            if name:
                trees[folder][name] = listed_file(info)
            elif may_say_more(folder, (row := listed_file(info)).size):
                beside[folder] = row
        return {
            version: self._describe(f"{self._root}/{model}/{name}", trees[name], beside, None)
            for version, name in version_folders(trees).items()
        }

    def _describe(
        self,
        source: str,
        files: dict[str, ListedFile],
        beside: Mapping[str, ListedFile],
        changed_s: float | None,
    ) -> VersionFiles:
        sums = files.get(SUMS)
        if sums is None:
            return describe(files, (), changed_s, beside)
        row, listed = self._sums.get(source, (None, frozenset()))
        if row != sums or not sums.identity:
            try:
                listed = sums_names(self._fs.cat_file(f"{source}/{SUMS}"))
            except FileNotFoundError:
                del files[SUMS]  # it vanished meanwhile
                return describe(files, listed, changed_s, beside)
            self._sums[source] = (sums, listed)
        return describe(files, listed, changed_s, beside)

    def fetch(self, model: str, version: int) -> Path:
        """A local folder with the version's files, checked against its SHA256SUMS if it has one.

        While a remote store is away this is the last copy that was fetched.
        """
        where = f"model {model} version {version}"
        try:
            known = self._version_folders(model)
            if version not in known:
                listing = ", ".join(map(str, known)) or "none"
                raise ModelLoadError(f"{where} is not in the store (versions there: {listing})")
            if (local := self._local) is not None:
                with self._store_errors():
                    return self._check_local(local / model / known[version], local, where)
            source = f"{self._root}/{model}/{known[version]}"
            with self._store_errors():
                files = self._files(source, where)
                contents = self._contents(source, files)
        except StoreAway as error:
            copy = self._copy(model, version, where)
            if copy is None:
                raise
            log.warning("taken_from_cache", source=where, reason=str(error))
            return copy
        with self._store_errors():
            # The folder's name changes with its contents: nothing that a slot reads is replaced.
            target = self._cache / model / f"{version}-{contents}"
            self._download(target, source, files, contents, where)
            self._sweep(target, known)
            return target

    def beside(self, model: str, name: str, most_bytes: int) -> bytes | None:
        """A file beside the model's version folders, None if there is none.

        While a remote store is away this is the content that was read last.
        """
        self._check_name(model)
        where = f"model {model}: {name}"
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ModelLoadError(f"{where} is outside of the model's folder")
        if (local := self._local) is not None:
            with self._store_errors():
                return self._read_local(local / model / name, local, most_bytes, where)
        copy = self._cache / ".beside" / model / name
        content: bytes | None = None
        try:
            with self._store_errors(), suppress(FileNotFoundError):
                self._fs.invalidate_cache()
                content = self._fs.cat_file(f"{self._root}/{model}/{name}", 0, most_bytes + 1)
        except StoreAway:
            if not copy.parent.is_dir():  # nothing is known of this model
                raise
            return copy.read_bytes() if copy.is_file() else None
        if content is not None:
            _check_size(content, most_bytes, where)
        copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if content is None:
            copy.unlink(missing_ok=True)
        else:
            with tempfile.NamedTemporaryFile(dir=copy.parent, delete=False) as partial:
                partial.write(content)
            os.replace(partial.name, copy)
        return content

    def _read_local(self, path: Path, local: Path, most_bytes: int, where: str) -> bytes | None:
        if not path.is_file():
            return None
        if not path.resolve().is_relative_to(local):
            raise ModelLoadError(f"{where} is a link that leaves {self._shown}")
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
        _check_size(content, most_bytes, where)
        return content

    def _check_local(self, folder: Path, local: Path, where: str) -> Path:
        for path in (folder, *(folder / name for name in files_below(folder, where))):
            if not path.resolve().is_relative_to(local):
                raise ModelLoadError(
                    f"{where}: {path.name} is a link that leaves the store; "
                    "put the file itself there"
                )
        self._verifier.verify(folder, where)
        return folder

    def _copy(self, model: str, version: int, where: str) -> Path | None:
        """The version's copy in the cache that was used last; None if that is damaged."""
        # A local store is never copied, so there is nothing to find.
        copies = (self._cache / model).glob(f"{version}-*")
        newest = max(copies, key=lambda folder: folder.stat().st_mtime, default=None)
        if newest is None:
            return None
        try:
            self._verifier.verify(newest, where)
        except ModelLoadError as error:
            log.warning("cache_not_usable", reason=str(error))
            return None
        os.utime(newest)
        return newest

    def _download(
        self,
        target: Path,
        source: str,
        files: Mapping[str, Mapping[str, Any]],
        contents: str,
        where: str,
    ) -> None:
        if target.is_dir():
            try:
                os.utime(target)
                self._verifier.verify(target, where)
                return
            except ModelLoadError as error:
                log.warning("cache_damaged", reason=str(error))
                shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as scratch:
            partial = Path(scratch) / "files"
            for name, info in files.items():
                file, size = partial / name, info.get("size")
                file.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{source}/{name}", str(file))
                got = file.stat().st_size
                if size is not None and got != size:
                    raise Interrupted(
                        f"{where}: {file.name} arrived with {got} of {size} bytes from the store"
                    )
            if self._contents(source, self._files(source, where)) != contents:
                raise Interrupted(f"{where} changed while it was downloaded")
            self._verifier.verify(partial, where)
            try:
                partial.rename(target)
            except OSError as error:
                # Another slot of this node was faster; the same name means the same contents.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                self._verifier.verify(target, where)

    def _sweep(self, target: Path, known: Iterable[int]) -> None:
        """Remove broken downloads, older contents of this version, and versions that have left
        the store.

        Loaded models are not affected: their files are open, or read already.
        """
        version = target.name.partition("-")[0]
        stored = {str(number) for number in known} - {version}
        oldest_s = time.time() - _UNUSED_S
        for folder in target.parent.iterdir():
            used = folder == target or folder.name.partition("-")[0] in stored
            try:
                if not used and folder.stat().st_mtime < oldest_s:
                    shutil.rmtree(folder)
            except OSError as error:
                # Another slot of this node may sweep too.
                log.info("stays_in_cache", folder=folder.name, reason=str(error))

    def _files(self, source: str, where: str) -> dict[str, dict[str, Any]]:
        """The store's facts of each file below `source`, by relative path."""
        self._fs.invalidate_cache()
        found, _ = list_remote(self._fs, source)
        for name in found:
            if ".." in PurePosixPath(name).parts:
                raise ModelLoadError(f"{where}: {name} points out of the version folder")
        if not found:
            raise ModelLoadError(f"{where} is empty in the store")
        return found

    def _contents(self, source: str, files: dict[str, dict[str, Any]]) -> str:
        if SUMS in files:
            known: bytes = self._fs.cat_file(f"{source}/{SUMS}")
        else:
            rows = [(name, *listed_file(info)) for name, info in sorted(files.items())]
            known = repr(rows).encode()
        return hashlib.sha256(known).hexdigest()[:16]

    def _folders(self, path: str) -> list[str]:
        if self._local is not None:
            # fsspec calls a link to a folder a link; here it counts as a folder, and is checked.
            return [each.name for each in Path(path).iterdir() if each.is_dir()]
        entries = self._fs.ls(path, detail=True)
        return [PurePosixPath(each["name"]).name for each in entries if each["type"] == "directory"]

    def _require_store(self) -> None:
        if not self._fs.isdir(self._root):
            raise StoreAway(
                "the model store does not exist or is not a folder; check 'store' in the config"
            )

    def _check_name(self, model: str) -> None:
        if not _MODEL.fullmatch(model):
            raise ModelLoadError(
                f"model name {model!r} is not allowed; use letters, digits, '_', '-' and '.'"
            )
        if self._leaves(model):
            raise ModelLoadError(f"model {model} is a link that leaves the store")

    def _leaves(self, model: str) -> bool:
        local = self._local
        return local is not None and not (local / model).resolve().is_relative_to(local)

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        """Errors of the store as `StoreAway`: backends raise whatever their client library has."""
        try:
            yield
        except HeadraceError:
            raise
        except Exception as error:
            # Without traceback and chain: both can show an address with its key.
            text = _CREDENTIALS.sub("", " ".join(str(error).split()))[:_REASON_CHARS]
            kind = type(error).__name__
            log.warning("store_away", store=self._shown, kind=kind, reason=text)
            said = without_places(_CREDENTIALS.sub("", said_by(error)))[:_REASON_CHARS]
            raise StoreAway(
                "the model store cannot be read; check its address, credentials and client library "
                f"({kind}: {said})"
            ) from None


def _check_size(content: bytes, most_bytes: int, where: str) -> None:
    if len(content) > most_bytes:
        raise ModelLoadError(f"{where} is larger than {most_bytes} bytes")


def detect_runtime(path: Path) -> RuntimeName:
    """The runtime of a version folder, by its files; raises `ModelLoadError` unless it is one."""
    found = [name for name, kind in RUNTIMES.items() if (path / kind.file).is_file()]
    if len(found) != 1:
        files = [RUNTIMES[name].file for name in found]
        raise ModelLoadError(
            f"{path.parent.name}/{path.name} must hold one of {MODEL_FILES}; "
            f"it holds {' and '.join(files) or 'none'}"
        )
    return found[0]
