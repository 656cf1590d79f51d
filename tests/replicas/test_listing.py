"""What a listing says of a version folder, in flat stores and in those of folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from replicas.listing import (
    ListedFile,
    describe,
    list_local,
    list_remote,
    listed_file,
    lists_flat,
    sums_names,
)

ROW = ListedFile(1, "a")


@pytest.mark.parametrize(
    ("files", "listed", "said"),
    [
        ({"model.onnx"}, set(), ""),
        ({"saved_model.pb", "variables/data"}, set(), ""),
        ({"model.onnx", "saved_model.pb"}, set(), ""),
        ({"model.onnx", "SHA256SUMS"}, {"model.onnx"}, ""),
        (set(), set(), "it is empty"),
        ({"more/model.onnx"}, set(), "holds none"),
        ({"SHA256SUMS"}, {"model.onnx"}, "model.onnx is missing, but SHA256SUMS lists it"),
        ({"model.onnx", "SHA256SUMS"}, {"b", "a/c", "model.onnx"}, "a/c is missing"),
    ],
)
def test_describe_says_what_is_missing(files: set[str], listed: set[str], said: str) -> None:
    problem = describe(dict.fromkeys(files, ROW), listed).problem
    assert said in problem and bool(said) == bool(problem)


def test_describe_stamps_names_sizes_and_identities() -> None:
    listings = [
        {"model.onnx": ROW, "b": ROW},
        {"model.onnx": ROW, "c": ROW},
        {"model.onnx": ROW, "b": ListedFile(2, "a")},
        {"model.onnx": ROW, "b": ListedFile(1, "b")},
        {"model.onnx": ROW},
    ]
    assert len({describe(files, ()).stamp for files in listings}) == 5
    swapped = dict(reversed(listings[0].items()))
    assert describe(swapped, ()) == describe(listings[0], ())


def test_describe_tells_the_runtime_only_where_there_is_one() -> None:
    both = dict.fromkeys(("model.onnx", "saved_model.pb"), ROW)
    assert describe({"model.onnx": ROW}, ()).runtime == "onnx"
    assert describe({"saved_model.pb": ROW}, ()).runtime == "tensorflow"
    assert describe(both, ()).runtime is None


def test_sums_names_are_plain_paths_and_other_lines_are_left_out() -> None:
    digest = "0" * 64
    text = f"{digest}  a\r\n{digest} *./b/c\n{digest.upper()}  d e\n\nnonsense\n12  f\n".encode()
    assert sums_names(text + b"\xff\xff") == {"a", "b/c", "d e"}


def test_list_local_is_as_new_as_its_newest_part(tmp_path: Path) -> None:
    folder = tmp_path / "1"
    (folder / "more").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights")
    (folder / "more" / "data").write_bytes(b"")
    files, changed_s = list_local(folder)
    assert {name: row.size for name, row in files.items()} == {"model.onnx": 7, "more/data": 0}
    os.utime(folder / "more" / "data", ns=(0, 0))
    again, later_s = list_local(folder)
    assert later_s == (folder / "more" / "data").stat().st_ctime >= changed_s
    assert again["model.onnx"] == files["model.onnx"]
    assert again["more/data"] != files["more/data"]


def test_list_local_of_a_link_changes_with_the_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    _, before_s = list_local(tmp_path / "real")
    (tmp_path / "1").symlink_to("real")
    _, changed_s = list_local(tmp_path / "1")
    assert changed_s == (tmp_path / "1").lstat().st_ctime >= before_s


def test_list_local_leaves_out_links_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").symlink_to("nothing")
    assert list_local(tmp_path)[0] == {}
    with pytest.raises(FileNotFoundError):
        list_local(tmp_path / "absent")


class Folders(MemoryFileSystem):  # type: ignore[misc]
    """Lists folder by folder, as file servers do; `broken` ones cannot be listed."""

    cachable = False
    find = AbstractFileSystem.find

    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, Any] = {}
        self.pseudo_dirs = [""]
        self.broken: dict[str, OSError] = {}

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        if path in self.broken:
            raise self.broken[path]
        return super().ls(path, detail, **options)


def filled() -> Folders:
    store = Folders()
    for name in ("1/model.onnx", "1/variables/data", "2/saved_model.pb", "7"):
        store.pipe_file(f"/models/m/{name}", b"x")
    store.makedirs("/models/m/3/empty")
    return store


def test_list_remote_knows_empty_folders_where_the_store_does() -> None:
    files, folders = list_remote(filled(), "/models/m")
    assert sorted(files) == ["1/model.onnx", "1/variables/data", "2/saved_model.pb", "7"]
    assert folders == {"1", "2", "3"}


def test_list_remote_raises_for_a_folder_that_cannot_be_listed() -> None:
    store = filled()
    store.broken["/models/m/1/variables"] = ConnectionResetError("went away")
    with pytest.raises(ConnectionResetError):
        list_remote(store, "/models/m")


def test_list_remote_leaves_out_what_vanishes_meanwhile() -> None:
    store = filled()
    store.broken["/models/m/1"] = FileNotFoundError()
    files, _ = list_remote(store, "/models/m")
    assert sorted(files) == ["2/saved_model.pb", "7"]
    with pytest.raises(FileNotFoundError):
        list_remote(store, "/models/absent")


class Marked(MemoryFileSystem):  # type: ignore[misc]
    """Lists the empty objects that some clients make for folders."""

    cachable = False

    def find(self, path: str, *_: Any, **__: Any) -> Any:
        names = ["m/", "m/1/", "m/1/model.onnx"]
        return {name: {"name": name, "size": 0, "type": "file"} for name in names}


def test_list_remote_takes_markers_of_folders_for_folders() -> None:
    files, folders = list_remote(Marked(), "m")
    assert (list(files), folders) == (["1/model.onnx"], {"1"})


def test_only_stores_with_a_listing_of_their_own_are_flat(tmp_path: Path) -> None:
    assert lists_flat(MemoryFileSystem())
    assert not lists_flat(Folders())
    assert not lists_flat(LocalFileSystem())
    assert not lists_flat(DirFileSystem(str(tmp_path), LocalFileSystem()))


@pytest.mark.parametrize(
    ("info", "row"),
    [
        ({"size": 3, "ETag": '"e"', "LastModified": "t"}, ListedFile(3, '"e"')),
        ({"size": 3, "etag": "", "mtime": 12.5}, ListedFile(3, "12.5")),
        ({"size": None}, ListedFile(None, "")),
        ({}, ListedFile(None, "")),
    ],
)
def test_row_takes_the_best_identity(info: dict[str, Any], row: ListedFile) -> None:
    assert listed_file(info) == row
