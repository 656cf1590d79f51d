"""A model store elsewhere: its copies, what is refused of them, and when it is away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from headrace.errors import ModelLoadError
from replicas.repository import Repository, StoreAway
from tests.replicas.store_files import TAGGER, Files, local, signed, write


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    store = fsspec.filesystem("memory")
    yield store
    if store.exists("/models"):
        store.rm("/models", recursive=True)


def upload(store: fsspec.AbstractFileSystem, folder: str, files: Files) -> None:
    for name, content in files.items():
        store.pipe_file(f"{folder}/{name}", content)


def test_remote_version_is_downloaded_whole(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    upload(memory, "/models/tagger/1", signed(TAGGER))
    upload(memory, "/models/tagger/12", TAGGER)
    repository = Repository("memory://models", tmp_path / "cache")
    assert repository.models() == ["tagger"]
    assert repository.versions("tagger") == [1, 12]
    for version in (1, 12):
        folder = repository.fetch("tagger", version)
        assert folder.is_relative_to(tmp_path / "cache")
        assert {name: (folder / name).read_bytes() for name in TAGGER} == TAGGER


def test_a_remote_version_with_zeros_in_front_has_one_copy_whatever_their_number(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    upload(memory, "/models/tagger/00000123", signed(TAGGER))
    upload(memory, "/models/tagger/v1", TAGGER)
    repository = Repository("memory://models", tmp_path / "cache")
    found = repository.inspect("tagger")
    assert (repository.versions("tagger"), list(found), found[123].problem) == ([123], [123], "")
    assert repository.passed_over("tagger") == {"v1": "its name is not a number"}
    folder = repository.fetch("tagger", 123)
    assert folder.name.startswith("123-") and (folder / "model.onnx").read_bytes() == b"weights"
    memory.mv("/models/tagger/00000123", "/models/tagger/123", recursive=True)
    assert repository.fetch("tagger", 123) == folder
    assert list(repository.inspect("tagger")) == [123]


def test_remote_version_is_downloaded_once(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    upload(memory, "/models/tagger/1", signed(TAGGER))
    repository = Repository("memory://models", tmp_path)
    first = repository.fetch("tagger", 1)
    inode = (first / "model.onnx").stat().st_ino
    hashed = repository.hashed_bytes
    assert repository.fetch("tagger", 1) == first
    assert ((first / "model.onnx").stat().st_ino, repository.hashed_bytes) == (inode, hashed)
    another = Repository("memory://models", tmp_path)
    assert another.fetch("tagger", 1) == first
    assert (first / "model.onnx").stat().st_ino == inode


@pytest.mark.parametrize("seal", [signed, dict])
def test_changed_remote_version_gets_a_folder_of_its_own(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, seal: type[Files]
) -> None:
    upload(memory, "/models/tagger/1", seal(TAGGER))
    repository = Repository("memory://models", tmp_path)
    first = repository.fetch("tagger", 1)
    upload(memory, "/models/tagger/1", seal({**TAGGER, "model.onnx": b"new one"}))
    second = repository.fetch("tagger", 1)
    assert (first / "model.onnx").read_bytes() == b"weights"
    assert (second / "model.onnx").read_bytes() == b"new one"


def test_damaged_cache_is_downloaded_again(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    upload(memory, "/models/tagger/1", signed(TAGGER))
    repository = Repository("memory://models", tmp_path)
    (repository.fetch("tagger", 1) / "model.onnx").write_bytes(b"broken")
    assert (repository.fetch("tagger", 1) / "model.onnx").read_bytes() == b"weights"


def test_download_that_fails_its_sums_leaves_nothing(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    upload(memory, "/models/tagger/1", {**signed(TAGGER), "model.onnx": b"weighty"})
    with pytest.raises(ModelLoadError, match=r"^model tagger version 1: model\.onnx does not"):
        Repository("memory://models", tmp_path).fetch("tagger", 1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


class TornStore(MemoryFileSystem):  # type: ignore[misc]
    """Breaks off in the middle of a file."""

    protocol = "torn"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("torn://")))

    def get_file(self, rpath: str, lpath: str, *_: object, **__: object) -> None:
        Path(lpath).write_bytes(b"wei")
        raise ConnectionResetError(f"torn://user:secret@host{rpath} went away")


class CountedStore(MemoryFileSystem):  # type: ignore[misc]
    """Notes what is asked of it; its listings are flat, as in object stores."""

    protocol = "counted"
    calls: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("counted://")))

    def find(self, *arguments: Any, **options: Any) -> Any:
        self.calls.append("find")
        return super().find(*arguments, **options)

    def ls(self, *arguments: Any, **options: Any) -> Any:
        self.calls.append("ls")
        return super().ls(*arguments, **options)

    def cat_file(self, *arguments: Any, **options: Any) -> Any:
        self.calls.append("cat_file")
        return super().cat_file(*arguments, **options)


class GrowingStore(MemoryFileSystem):  # type: ignore[misc]
    """Gets another file with the first one that is read."""

    protocol = "growing"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("growing://")))

    def get_file(self, rpath: str, lpath: str, *_: object, **__: object) -> None:
        if not self.exists("/models/tagger/1/late.txt"):
            self.pipe_file("/models/tagger/1/late.txt", b"late")
        super().get_file(rpath, lpath)


class LeavingStore(MemoryFileSystem):  # type: ignore[misc]
    """Answers nothing while it is `away`, and gives no file while it is `torn`."""

    protocol = "leaving"
    away: ClassVar[bool] = False
    torn: ClassVar[bool] = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("leaving://")))

    def ls(self, *arguments: Any, **options: Any) -> Any:
        self._answer()
        return super().ls(*arguments, **options)

    def info(self, *arguments: Any, **options: Any) -> Any:
        self._answer()
        return super().info(*arguments, **options)

    def cat_file(self, *arguments: Any, **options: Any) -> Any:
        self._answer()
        return super().cat_file(*arguments, **options)

    def get_file(self, *arguments: Any, **options: Any) -> Any:
        if self.torn:
            raise ConnectionResetError("the store went away")
        return super().get_file(*arguments, **options)

    def _answer(self) -> None:
        if self.away:
            raise ConnectionRefusedError("the store is away")


@pytest.fixture
def leaving(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> type[LeavingStore]:
    fsspec.register_implementation("leaving", LeavingStore, clobber=True)
    monkeypatch.setattr(LeavingStore, "away", False)
    monkeypatch.setattr(LeavingStore, "torn", False)
    return LeavingStore


@pytest.mark.parametrize("seal", [signed, dict])
def test_while_the_store_is_away_its_cached_copy_is_used(
    tmp_path: Path,
    memory: fsspec.AbstractFileSystem,
    leaving: type[LeavingStore],
    seal: type[Files],
) -> None:
    upload(memory, "/models/tagger/1", seal(TAGGER))
    folder = Repository("leaving://models", tmp_path).fetch("tagger", 1)
    leaving.away = True
    another = Repository("leaving://models", tmp_path)
    assert another.fetch("tagger", 1) == folder
    with pytest.raises(StoreAway, match="the store is away"):
        another.fetch("tagger", 2)
    with pytest.raises(StoreAway):
        another.fetch("digits", 1)


def test_while_the_store_is_away_what_lay_beside_the_versions_is_known(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, leaving: type[LeavingStore]
) -> None:
    upload(memory, "/models/tagger", {"config.pbtxt": b"1", "1/model.onnx": b""})
    repository = Repository("leaving://models", tmp_path)
    assert repository.beside("tagger", "config.pbtxt", 5) == b"1"
    leaving.away = True
    assert repository.beside("tagger", "config.pbtxt", 5) == b"1"
    assert repository.beside("tagger", "labels.txt", 5) is None
    leaving.away = False
    memory.rm_file("/models/tagger/config.pbtxt")
    assert repository.beside("tagger", "config.pbtxt", 5) is None
    leaving.away = True
    assert repository.beside("tagger", "config.pbtxt", 5) is None
    with pytest.raises(StoreAway):
        repository.beside("digits", "config.pbtxt", 5)


def test_while_the_store_is_away_the_copy_that_was_used_last_counts(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, leaving: type[LeavingStore]
) -> None:
    upload(memory, "/models/tagger/1", signed(TAGGER))
    repository = Repository("leaving://models", tmp_path)
    first = repository.fetch("tagger", 1)
    upload(memory, "/models/tagger/1", signed({**TAGGER, "model.onnx": b"new one"}))
    second = repository.fetch("tagger", 1)
    os.utime(first, (1e9, 1e9))
    leaving.away = True
    assert repository.fetch("tagger", 1) == second


def test_a_damaged_copy_is_not_used_while_the_store_is_away(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, leaving: type[LeavingStore]
) -> None:
    upload(memory, "/models/tagger/1", signed(TAGGER))
    repository = Repository("leaving://models", tmp_path)
    folder = repository.fetch("tagger", 1)
    (folder / "model.onnx").write_bytes(b"broken")
    leaving.away = True
    with pytest.raises(StoreAway, match="the store is away"):
        repository.fetch("tagger", 1)
    assert folder.is_dir()


def test_older_files_never_stand_in_for_newer_ones_of_a_store_that_answers(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, leaving: type[LeavingStore]
) -> None:
    upload(memory, "/models/tagger/1", signed(TAGGER))
    repository = Repository("leaving://models", tmp_path)
    repository.fetch("tagger", 1)
    upload(memory, "/models/tagger/1", signed({**TAGGER, "model.onnx": b"new one"}))
    leaving.torn = True
    with pytest.raises(StoreAway, match="went away"):
        repository.fetch("tagger", 1)


def test_download_that_breaks_off_leaves_nothing_and_tells_no_secret(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    fsspec.register_implementation("torn", TornStore, clobber=True)
    upload(memory, "/models/tagger/1", signed(TAGGER))
    with pytest.raises(ModelLoadError, match=r"cannot be read.*ConnectionResetError") as caught:
        Repository("torn://models", tmp_path).fetch("tagger", 1)
    assert "secret" not in caught.value.message
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("uri", ["nonsense://models", "memory://absent?key=secret"])
def test_store_that_cannot_be_read_is_one_sentence(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ModelLoadError, match=r"^the model store ") as caught:
        Repository(uri, tmp_path).models()
    assert "secret" not in caught.value.message
    assert "\n" not in caught.value.message


def test_inspect_sees_what_lies_beside_the_versions(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    write(tmp_path / "store" / "tagger" / "1", TAGGER)
    upload(memory, "/models/tagger/1", TAGGER)
    repositories = (local(tmp_path), Repository("memory://models", tmp_path))
    stamps = [each.inspect("tagger")[1].stamp for each in repositories]
    write(tmp_path / "store" / "tagger", {"README.md": b"says nothing"})
    upload(memory, "/models/tagger", {"README.md": b"says nothing"})
    assert [each.inspect("tagger")[1].stamp for each in repositories] == stamps
    before_s = repositories[0].inspect("tagger")[1].changed_s
    for name in ("config.pbtxt", "names.lab"):
        write(tmp_path / "store" / "tagger", {name: b"max_batch_size: 8"})
        upload(memory, "/models/tagger", {name: b"max_batch_size: 8"})
        before, stamps = stamps, [each.inspect("tagger")[1].stamp for each in repositories]
        assert all(new != old for new, old in zip(stamps, before, strict=True))
    after_s = repositories[0].inspect("tagger")[1].changed_s
    assert before_s is not None and after_s is not None and before_s <= after_s


def test_a_file_beside_the_versions_is_read_and_bounded(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    write(tmp_path / "store" / "tagger", {"config.pbtxt": b"12345"})
    upload(memory, "/models/tagger", {"config.pbtxt": b"12345"})
    (tmp_path / "secret").write_bytes(b"!")
    (tmp_path / "store" / "tagger" / "link.txt").symlink_to(tmp_path / "secret")
    for repository in (local(tmp_path), Repository("memory://models", tmp_path)):
        assert repository.beside("tagger", "config.pbtxt", 5) == b"12345"
        assert repository.beside("tagger", "labels.txt", 5) is None
        with pytest.raises(ModelLoadError, match="larger than 4 bytes"):
            repository.beside("tagger", "config.pbtxt", 4)
        for name in ("../../secret", "/etc/passwd"):
            with pytest.raises(ModelLoadError, match="outside of the model's folder"):
                repository.beside("tagger", name, 5)
    with pytest.raises(ModelLoadError, match="link that leaves"):
        local(tmp_path).beside("tagger", "link.txt", 5)


def test_inspect_of_a_remote_store_is_one_listing(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    fsspec.register_implementation("counted", CountedStore, clobber=True)
    CountedStore.calls.clear()
    for version in (1, 2):
        upload(memory, f"/models/tagger/{version}", signed(TAGGER))
    upload(memory, "/models/tagger/3", {"notes/saved_model.pb": b""})
    memory.makedirs("/models/tagger/old")
    upload(memory, "/models/tagger", {"4": b"a file is no version"})
    repository = Repository("counted://models", tmp_path)
    found = repository.inspect("tagger")
    assert {version: files.problem[:11] for version, files in found.items()} == {
        **{1: "", 2: ""},
        **{3: "it must hol"},
    }
    assert all(files.changed_s is None for files in found.values())
    assert CountedStore.calls == ["find", "cat_file", "cat_file"]
    CountedStore.calls.clear()
    assert repository.inspect("tagger") == found
    assert CountedStore.calls == ["find"]


def test_inspect_tells_what_the_sums_of_a_remote_store_miss(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    repository = Repository("memory://models", tmp_path)
    for name, content in sorted(signed(TAGGER).items()):
        upload(memory, "/models/tagger/1", {name: content})
        problem = repository.inspect("tagger")[1].problem
        assert ("is missing, but SHA256SUMS lists it" in problem) == (name != "variables/data")


def test_inspect_of_a_store_that_is_away_is_no_empty_model(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    repository = Repository("memory://models", tmp_path)
    with pytest.raises(StoreAway, match="does not exist"):
        repository.inspect("tagger")
    upload(memory, "/models/other/1", TAGGER)
    assert repository.inspect("tagger") == {}
    assert not repository.is_empty()


def test_version_that_changes_while_it_is_downloaded_is_refused(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    fsspec.register_implementation("growing", GrowingStore, clobber=True)
    upload(memory, "/models/tagger/1", TAGGER)
    repository = Repository("growing://models", tmp_path)
    with pytest.raises(ModelLoadError, match=r"tagger version 1 changed while it was downloaded"):
        repository.fetch("tagger", 1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert (repository.fetch("tagger", 1) / "late.txt").read_bytes() == b"late"


def test_cache_forgets_what_nobody_used_for_a_day(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    repository = Repository("memory://models", tmp_path)
    for version in (1, 2, 3):
        upload(memory, f"/models/tagger/{version}", TAGGER)
    old = {version: repository.fetch("tagger", version) for version in (1, 2, 3)}
    broken = old[1].parent / ".partial-x"
    broken.mkdir()
    memory.rm("/models/tagger/1", recursive=True)
    memory.rm("/models/tagger/2", recursive=True)
    upload(memory, "/models/tagger/4", TAGGER)
    for folder in (old[1], old[3], broken):
        os.utime(folder, (0, 0))
    new = repository.fetch("tagger", 4)
    # 2 was used today, 3 is still in the store.
    assert sorted(new.parent.iterdir()) == sorted([old[2], old[3], new])


def test_cache_keeps_what_is_fetched_again(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    repository = Repository("memory://models", tmp_path)
    upload(memory, "/models/tagger/1", TAGGER)
    first = repository.fetch("tagger", 1)
    os.utime(first, (0, 0))
    repository.fetch("tagger", 1)
    upload(memory, "/models/tagger/1", {"more.txt": b""})
    second = repository.fetch("tagger", 1)
    assert sorted(first.parent.iterdir()) == sorted([first, second])
