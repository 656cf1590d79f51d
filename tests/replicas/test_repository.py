"""The model store: what it lists, what it refuses and what it hands out only when verified."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from headrace.errors import ModelLoadError
from replicas.repository import Repository, StoreAway, detect_runtime

Files = dict[str, bytes]
TAGGER: Files = {"model.onnx": b"weights", "labels.txt": b"cat\ndog\n", "variables/data": b"more"}


def sums(files: Files) -> bytes:
    return b"".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()
        for name, content in files.items()
    )


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def signed(files: Files) -> Files:
    return {**files, "SHA256SUMS": sums(files)}


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    store = fsspec.filesystem("memory")
    yield store
    if store.exists("/models"):
        store.rm("/models", recursive=True)


def upload(store: fsspec.AbstractFileSystem, folder: str, files: Files) -> None:
    for name, content in files.items():
        store.pipe_file(f"{folder}/{name}", content)


def local(tmp_path: Path) -> Repository:
    return Repository(str(tmp_path / "store"), tmp_path / "cache")


def test_local_store_lists_models_and_versions_in_order(tmp_path: Path) -> None:
    for folder in (
        "tagger/10",
        "tagger/9",
        "tagger/010",
        "tagger/old",
        "digits/1",
        "empty",
        ".git/1",
    ):
        (tmp_path / "store" / folder).mkdir(parents=True)
    (tmp_path / "store" / "tagger" / "7").write_bytes(b"a file is no version")
    (tmp_path / "store" / "README").write_bytes(b"a file is no model")
    repository = local(tmp_path)
    assert repository.models() == ["digits", "tagger"]
    assert repository.versions("tagger") == [9, 10]
    assert repository.versions("empty") == []
    assert repository.versions("absent") == []


def test_zeros_in_front_of_a_version_count_for_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "store" / "tagger" / "00000123", signed(TAGGER))
    write(tmp_path / "store" / "zero" / "000", TAGGER)
    repository = local(tmp_path)
    assert repository.models() == ["tagger", "zero"]
    assert (repository.versions("tagger"), repository.versions("zero")) == ([123], [0])
    assert repository.fetch("tagger", 123) == folder
    assert list(repository.inspect("tagger")) == [123]
    with pytest.raises(ModelLoadError, match=r"version 12 is not in .*: 123\)$"):
        repository.fetch("tagger", 12)


def test_of_two_folders_for_one_version_that_with_fewer_zeros_counts(tmp_path: Path) -> None:
    store = tmp_path / "store" / "tagger"
    write(store / "0012", {"model.onnx": b"old"})
    plain = write(store / "12", {"model.onnx": b"new"})
    write(store / "012", {"model.onnx": b"older"})
    repository = local(tmp_path)
    assert repository.versions("tagger") == [12] and repository.fetch("tagger", 12) == plain
    assert repository.passed_over("tagger") == {
        "0012": "12 is the same version",
        "012": "12 is the same version",
    }
    assert repository.passed_over("absent") == {}


def test_local_version_is_used_in_place(tmp_path: Path) -> None:
    folder = write(tmp_path / "store" / "tagger" / "1", signed(TAGGER))
    assert local(tmp_path).fetch("tagger", 1) == folder
    assert Repository(f"file://{tmp_path}/store/", tmp_path).fetch("tagger", 1) == folder
    assert not (tmp_path / "cache").exists()


def test_version_without_sums_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = write(tmp_path / "store" / "tagger" / "1", TAGGER)
    assert local(tmp_path).fetch("tagger", 1) == folder


def test_missing_version_is_named_with_those_that_exist(tmp_path: Path) -> None:
    write(tmp_path / "store" / "tagger" / "1", TAGGER)
    write(tmp_path / "store" / "tagger" / "2", TAGGER)
    with pytest.raises(ModelLoadError, match=r"^model tagger version 3 is not in .*: 1, 2\)$"):
        local(tmp_path).fetch("tagger", 3)
    with pytest.raises(ModelLoadError, match=r"model absent version 1 is not in .*: none\)$"):
        local(tmp_path).fetch("absent", 1)


def test_missing_store_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    repository = local(tmp_path)
    with pytest.raises(ModelLoadError, match="store does not exist or is not a folder"):
        repository.models()
    with pytest.raises(ModelLoadError, match="does not exist"):
        repository.versions("tagger")


@pytest.mark.parametrize("name", ["..", "../secret", "a/b", "/etc", "", ".", ".hidden", "a\nb"])
def test_names_that_leave_the_store_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "secret" / "1", TAGGER)
    write(tmp_path / "store" / "tagger" / "1", TAGGER)
    for call in (local(tmp_path).versions, lambda name: local(tmp_path).fetch(name, 1)):
        with pytest.raises(ModelLoadError, match="is not allowed"):
            call(name)


def test_links_that_leave_the_store_are_refused(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret" / "1", TAGGER)
    store = tmp_path / "store"
    write(store / "tagger" / "2", TAGGER)
    (store / "leak").symlink_to(secret.parent)
    (store / "tagger" / "1").symlink_to(secret)
    write(store / "file" / "1", {}).mkdir(parents=True)
    (store / "file" / "1" / "model.onnx").symlink_to(secret / "model.onnx")
    repository = local(tmp_path)
    assert repository.models() == ["file", "tagger"]
    with pytest.raises(ModelLoadError, match="model leak is a link that leaves"):
        repository.fetch("leak", 1)
    with pytest.raises(ModelLoadError, match="model tagger version 1: 1 is a link that leaves"):
        repository.fetch("tagger", 1)
    with pytest.raises(ModelLoadError, match=r"model\.onnx is a link that leaves"):
        repository.fetch("file", 1)


def test_links_inside_the_store_are_followed(tmp_path: Path) -> None:
    real = write(tmp_path / "revisions" / "a", {})
    write(real / "tagger" / "1", signed(TAGGER))
    (real / "latest").symlink_to(real / "tagger")
    (tmp_path / "store").symlink_to(real)
    repository = local(tmp_path)
    assert repository.models() == ["latest", "tagger"]
    assert (repository.fetch("latest", 1) / "model.onnx").read_bytes() == b"weights"


def test_link_to_a_folder_is_refused_since_it_would_not_be_verified(tmp_path: Path) -> None:
    folder = write(tmp_path / "store" / "tagger" / "1", signed(TAGGER))
    (folder / "more").symlink_to(folder / "variables")
    with pytest.raises(ModelLoadError, match="more is a link to a folder"):
        local(tmp_path).fetch("tagger", 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.onnx": b"weighty"}, r"model\.onnx does not match SHA256SUMS"),
        ({"variables/data": b"less"}, "variables/data does not match"),
        ({"extra.bin": b"x"}, r"extra\.bin is not listed in SHA256SUMS"),
        ({"SHA256SUMS": sums({**TAGGER, "gone.bin": b""})}, r"gone\.bin is missing"),
        ({"SHA256SUMS": sums({"model.onnx": b"weights"})}, r"labels\.txt is not listed"),
        ({"SHA256SUMS": b""}, "is not listed"),
        ({"SHA256SUMS": b"1234  model.onnx\n"}, "SHA256SUMS line 1 must be"),
        ({"SHA256SUMS": sums({"../other": b""})}, "line 1 must be"),
        ({"SHA256SUMS": sums({"/etc/passwd": b""})}, "line 1 must be"),
        ({"SHA256SUMS": b"\xff"}, "not UTF-8"),
    ],
)
def test_folder_that_differs_from_its_sums_is_refused(
    tmp_path: Path, changes: Files, said: str
) -> None:
    write(tmp_path / "store" / "tagger" / "1", {**signed(TAGGER), **changes})
    with pytest.raises(ModelLoadError, match=rf"^model tagger version 1: .*{said}"):
        local(tmp_path).fetch("tagger", 1)


def test_sums_of_every_flavour_of_sha256sum_are_read(tmp_path: Path) -> None:
    listing = sums(TAGGER).decode().upper().replace("  ", " *./")
    for name in TAGGER:
        listing = listing.replace(name.upper(), name)
    write(tmp_path / "store" / "tagger" / "1", {**TAGGER, "SHA256SUMS": listing.encode()})
    assert local(tmp_path).fetch("tagger", 1).name == "1"


def test_reload_hashes_only_what_changed(tmp_path: Path) -> None:
    folder = write(tmp_path / "store" / "tagger" / "1", signed(TAGGER))
    repository = local(tmp_path)
    repository.fetch("tagger", 1)
    hashed = repository.hashed_bytes
    repository.fetch("tagger", 1)
    assert hashed == repository.hashed_bytes == sum(map(len, TAGGER.values()))
    before = (folder / "model.onnx").stat()
    (folder / "model.onnx").write_bytes(b"changed")
    os.utime(folder / "model.onnx", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelLoadError, match=r"model\.onnx does not match"):
        repository.fetch("tagger", 1)


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


def test_inspect_tells_every_version_by_its_listing(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write(store / "tagger" / "1", signed(TAGGER))
    write(store / "tagger" / "2", {"saved_model.pb": b""})
    write(store / "tagger" / "3", {"notes.txt": b""})
    (store / "tagger" / "4").mkdir()
    write(store / "tagger" / "draft", TAGGER)
    found = local(tmp_path).inspect("tagger")
    assert {version: files.runtime for version, files in found.items()} == {
        **{1: "onnx", 2: "tensorflow"},
        **{3: None, 4: None},
    }
    assert (found[1].problem, found[2].problem) == ("", "")
    assert "holds neither" in found[3].problem
    assert found[4].problem == "it is empty"
    assert local(tmp_path).inspect("absent") == {}


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


def test_inspect_reads_no_model_file_and_sums_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "store" / "tagger" / "1", signed(TAGGER))
    repository = local(tmp_path)
    before = repository.inspect("tagger")
    os.utime(folder / "SHA256SUMS", ns=(0, (folder / "SHA256SUMS").stat().st_mtime_ns))
    changed = repository.inspect("tagger")
    read_ns = (folder / "SHA256SUMS").stat().st_atime_ns
    assert changed[1].stamp != before[1].stamp and read_ns > 0
    os.utime(folder / "model.onnx", ns=(0, 0))
    os.utime(folder / "labels.txt", ns=(0, 0))
    repository.inspect("tagger")
    assert repository.inspect("tagger")[1].problem == ""
    assert (folder / "model.onnx").stat().st_atime_ns == 0
    assert (folder / "SHA256SUMS").stat().st_atime_ns == read_ns
    assert repository.hashed_bytes == 0


def test_inspect_sees_every_change_of_a_local_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "store" / "tagger" / "1", TAGGER)
    repository = local(tmp_path)
    before = (folder / "model.onnx").stat()

    def rewrite() -> None:
        (folder / "model.onnx").write_bytes(b"WEIGHTS")
        os.utime(folder / "model.onnx", ns=(before.st_atime_ns, before.st_mtime_ns))

    changes = [
        lambda: write(folder, {"extra": b""}),
        lambda: (folder / "extra").rename(folder / "variables" / "extra"),
        lambda: (folder / "variables" / "extra").unlink(),
        rewrite,
    ]
    stamps = [repository.inspect("tagger")[1]]
    for change in changes:
        change()
        stamps.append(repository.inspect("tagger")[1])
    # A file that is gone leaves the stamp of before; when it went is told by its folder.
    assert stamps[0].stamp == stamps[3].stamp
    assert len({files.stamp for files in stamps}) == 4
    times = [files.changed_s for files in stamps if files.changed_s is not None]
    assert times == sorted(times) and len(times) == 5


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


def test_a_store_without_any_folder_is_empty(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert local(tmp_path).is_empty()
    (tmp_path / "store" / "tagger").mkdir()
    assert not local(tmp_path).is_empty()


def test_a_link_to_the_store_may_lead_elsewhere_later(tmp_path: Path) -> None:
    write(tmp_path / "old" / "tagger" / "1", TAGGER)
    write(tmp_path / "new" / "tagger" / "2", TAGGER)
    link = tmp_path / "store"
    link.symlink_to("old")
    repository = local(tmp_path)
    assert repository.fetch("tagger", 1) == tmp_path / "old" / "tagger" / "1"
    link.unlink()
    link.symlink_to("new")
    assert list(repository.inspect("tagger")) == [2]
    assert repository.fetch("tagger", 2) == tmp_path / "new" / "tagger" / "2"


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


def test_detect_runtime_goes_by_the_files(tmp_path: Path) -> None:
    onnx = write(tmp_path / "tagger" / "1", {"model.onnx": b""})
    saved = write(tmp_path / "tagger" / "2", {"saved_model.pb": b""})
    both = write(tmp_path / "tagger" / "3", {"model.onnx": b"", "saved_model.pb": b""})
    assert (detect_runtime(onnx), detect_runtime(saved)) == ("onnx", "tensorflow")
    with pytest.raises(ModelLoadError, match=r"tagger/3 must hold model\.onnx .*; it holds both"):
        detect_runtime(both)
    with pytest.raises(ModelLoadError, match=r"saved_model\.pb \(TensorFlow\); it holds neither"):
        detect_runtime(tmp_path)
