"""The model store: what it lists, what it refuses and what it hands out only when verified."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.errors import ModelLoadError
from replicas.repository import Repository, detect_runtime
from tests.replicas.store_files import TAGGER, Files, local, signed, sums, write


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
    assert "holds none" in found[3].problem
    assert found[4].problem == "it is empty"
    assert local(tmp_path).inspect("absent") == {}


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


def test_detect_runtime_goes_by_the_files(tmp_path: Path) -> None:
    onnx = write(tmp_path / "tagger" / "1", {"model.onnx": b""})
    saved = write(tmp_path / "tagger" / "2", {"saved_model.pb": b""})
    both = write(tmp_path / "tagger" / "3", {"model.onnx": b"", "saved_model.pb": b""})
    assert (detect_runtime(onnx), detect_runtime(saved)) == ("onnx", "tensorflow")
    with pytest.raises(ModelLoadError, match=r"tagger/3 .*; it holds model\.onnx and saved"):
        detect_runtime(both)
    with pytest.raises(
        ModelLoadError, match=r"must hold one of model\.onnx, saved_model\.pb; it holds none"
    ):
        detect_runtime(tmp_path)
