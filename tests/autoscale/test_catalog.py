"""Which versions the catalog holds for complete, with clocks of the test's own."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscale.catalog import Catalog, CatalogEntry, wanted_versions
from headrace.config.args import Latest, ModelConfig
from headrace.errors import ModelLoadError
from replicas.listing import VersionFiles
from replicas.repository import Repository, StoreAway

CONFIG = ModelConfig()
FILES = {"model.onnx": b"weights", "labels.txt": b"cat\n", "more/data": b"rest"}


class Clock:
    """Wall clock and monotonic clock in one."""

    def __init__(self) -> None:
        self.now_s = 1e9

    def __call__(self) -> float:
        return self.now_s


class Listed(Repository):
    """A store whose listings a test writes; `changed_s` of its files is on the test's clock."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(str(tmp_path), tmp_path)
        self.found: dict[int, VersionFiles] = {}

    def inspect(self, model: str) -> dict[int, VersionFiles]:
        return dict(self.found)

    def is_empty(self) -> bool:
        return False


def sums(files: dict[str, bytes]) -> bytes:
    lines = (f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    return "".join(lines).encode()


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def files_of(stamp: str = "a", changed_s: float | None = None, **more: Any) -> VersionFiles:
    return VersionFiles(stamp, changed_s, more.get("problem", ""), more.get("runtime", "onnx"))


class Shelf:
    """A catalog of one model `m` in a real folder; nothing is quiet until `rest`."""

    def __init__(self, uri: str, tmp_path: Path) -> None:
        self.catalog = Catalog(Repository(uri, tmp_path / "cache"), 0.0)

    def look(self, **config: Any) -> CatalogEntry:
        (entry,) = self.catalog.read({"m": ModelConfig(**config)})
        return entry


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def shelf(store: Path, tmp_path: Path) -> Shelf:
    return Shelf(str(store), tmp_path)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    remote = fsspec.filesystem("memory")
    yield remote
    if remote.exists("/models"):
        remote.rm("/models", recursive=True)


def timed(repository: Repository) -> tuple[Catalog, Clock]:
    clock = Clock()
    return Catalog(repository, 1.0, clock, clock), clock


def one(catalog: Catalog, config: ModelConfig = CONFIG) -> CatalogEntry:
    (entry,) = catalog.read({"m": config})
    return entry


def test_a_version_is_complete_once_it_is_left_alone(tmp_path: Path) -> None:
    repository = Listed(tmp_path)
    catalog, clock = timed(repository)
    repository.found = {1: files_of(changed_s=clock() - 0.9)}
    entry = one(catalog)
    assert (entry.versions, entry.incomplete) == ((), {1: "it is still changing"})
    assert catalog.changing and not entry.known
    clock.now_s += 0.2
    entry = one(catalog)
    assert (entry.versions, entry.stamps, entry.incomplete) == ((1,), {1: "a"}, {})
    assert not catalog.changing and entry.known


def test_what_was_there_long_before_is_complete_at_the_first_look(tmp_path: Path) -> None:
    repository = Listed(tmp_path)
    catalog, clock = timed(repository)
    repository.found = {1: files_of(changed_s=clock() - 60)}
    assert one(catalog).versions == (1,)


def test_without_times_the_same_files_must_be_seen_twice(tmp_path: Path) -> None:
    repository = Listed(tmp_path)
    catalog, clock = timed(repository)
    repository.found = {1: files_of("a")}
    entry = one(catalog)
    assert (entry.versions, entry.reason) == ((), "") and catalog.changing
    clock.now_s += 0.9
    repository.found = {1: files_of("b")}
    assert one(catalog).versions == ()
    clock.now_s += 0.9
    assert one(catalog).versions == ()
    clock.now_s += 0.2
    assert one(catalog).versions == (1,)


def test_old_times_of_files_that_have_just_come_are_not_believed(tmp_path: Path) -> None:
    repository = Listed(tmp_path)
    catalog, clock = timed(repository)
    repository.found = {1: files_of(changed_s=clock() - 60)}
    assert one(catalog).versions == (1,)
    repository.found[2] = files_of(changed_s=clock() - 60)
    assert one(catalog).versions == (1,)
    clock.now_s += 1.1
    assert one(catalog).versions == (1, 2)


def test_times_in_the_future_hold_nothing_up(tmp_path: Path) -> None:
    repository = Listed(tmp_path)
    catalog, clock = timed(repository)
    repository.found = {1: files_of(changed_s=clock() + 3600)}
    assert one(catalog).versions == ()
    clock.now_s += 1.1
    assert one(catalog).versions == (1,)


def test_a_problem_is_told_and_keeps_the_version_out(tmp_path: Path) -> None:
    repository = Listed(tmp_path)
    catalog, clock = timed(repository)
    repository.found = {1: files_of(changed_s=clock() - 60, problem="it is empty")}
    entry = one(catalog)
    assert (entry.versions, entry.incomplete) == ((), {1: "it is empty"})
    nothing = "the store has no complete version folder of model 'm'"
    assert entry.reason == f"{nothing}; passed over: version 1 (it is empty)"
    assert not catalog.changing


def test_the_reason_names_what_is_passed_over(store: Path, shelf: Shelf) -> None:
    write(store / "m", {"v1/model.onnx": b"", "model.onnx": b"", "config.pbtxt": b"", ".x/1": b""})
    start = "the store has no complete version folder of model 'm'; passed over: "
    assert shelf.look().reason == (
        start + "'model.onnx' (it is not in a version folder), 'v1' (its name is not a number)"
    )
    write(store / "m", {f"v{number}/model.onnx": b"" for number in range(2, 9)})
    assert shelf.look().reason.endswith("'v4' (its name is not a number), and 4 more")
    write(store / "m", {"00000123/model.onnx": b"weights"})
    entry = shelf.look()
    assert (entry.versions, entry.reason) == ((123,), "")


def test_what_was_complete_stays_while_its_files_change(tmp_path: Path) -> None:
    repository = Listed(tmp_path)
    catalog, clock = timed(repository)
    repository.found = {1: files_of("a", clock() - 60)}
    one(catalog)
    clock.now_s += 10
    repository.found = {1: files_of("b", clock(), problem="model.onnx is missing", runtime=None)}
    entry = one(catalog)
    assert (entry.versions, entry.stamps, entry.slot_class) == ((1,), {1: "a"}, "cpu")
    clock.now_s += 10
    assert one(catalog).stamps == {1: "a"}
    repository.found = {1: files_of("c", clock())}
    assert one(catalog).stamps == {1: "a"} and catalog.changing
    clock.now_s += 1.1
    assert one(catalog).stamps == {1: "c"}


def test_a_version_that_came_back_must_be_complete_again(tmp_path: Path) -> None:
    repository = Listed(tmp_path)
    catalog, clock = timed(repository)
    both = {1: files_of("a", clock() - 60), 2: files_of("b", clock() - 60)}
    repository.found = both
    assert one(catalog).versions == (1, 2)
    repository.found = {1: both[1]}
    assert one(catalog).versions == (1,)
    repository.found = both
    assert one(catalog).versions == (1,)


def test_a_folder_that_is_copied_file_by_file_is_taken_up_with_its_last_one(
    store: Path, shelf: Shelf
) -> None:
    sealed = {"SHA256SUMS": sums(FILES), **FILES}
    for name, content in sealed.items():
        assert shelf.look().versions == ()
        write(store / "m" / "1", {name: content})
    entry = shelf.look()
    assert (entry.versions, entry.incomplete, entry.slot_class) == ((1,), {}, "cpu")


def test_a_remote_folder_that_is_uploaded_file_by_file_is_taken_up_with_its_last_one(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    catalog, clock = timed(Repository("memory://models", tmp_path))
    memory.pipe_file("/models/other/1/model.onnx", b"")
    for name, content in {"SHA256SUMS": sums(FILES), **FILES}.items():
        clock.now_s += 2
        assert one(catalog).versions == ()
        memory.pipe_file(f"/models/m/1/{name}", content)
    assert one(catalog).versions == ()
    clock.now_s += 1.1
    assert one(catalog).versions == (1,)


def test_a_remote_upload_without_sums_waits_until_nothing_comes(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    catalog, clock = timed(Repository("memory://models", tmp_path))
    for name in ("model.onnx", "labels.txt", "more/a", "more/b"):
        memory.pipe_file(f"/models/m/1/{name}", b"x")
        assert one(catalog).versions == ()
        clock.now_s += 0.9
    clock.now_s += 0.2
    assert one(catalog).versions == (1,)


def test_a_store_that_goes_away_keeps_what_was_known(store: Path, shelf: Shelf) -> None:
    write(store / "m" / "1", FILES)
    before = shelf.look()
    away = store.rename(store.with_name("away"))
    entry = shelf.look(labels={"stable": 1})
    assert (entry.versions, entry.stamps, entry.known) == (before.versions, before.stamps, True)
    assert entry.config.labels == {"stable": 1}
    problem = shelf.catalog.problem
    assert problem.startswith("since 2") and "does not exist" in problem
    assert shelf.catalog.names() == []
    shelf.look()
    assert shelf.catalog.problem == problem
    away.rename(store)
    assert shelf.look().versions == (1,)
    assert (shelf.catalog.problem, shelf.catalog.names()) == ("", ["m"])


def test_an_empty_folder_in_place_of_the_store_keeps_what_was_known(
    store: Path, shelf: Shelf
) -> None:
    write(store / "m" / "1", FILES)
    shelf.look()
    store.rename(store.with_name("away"))
    store.mkdir()
    assert shelf.look().versions == (1,)
    assert "is empty" in shelf.catalog.problem


def test_a_start_without_the_store_says_why_and_claims_nothing(store: Path, shelf: Shelf) -> None:
    store.rmdir()
    entry = shelf.look()
    assert (entry.versions, entry.known) == ((), False)
    assert "does not exist" in entry.reason
    write(store / "m" / "1", FILES)
    entry = shelf.look()
    assert (entry.versions, entry.known, entry.reason) == ((1,), True, "")


def test_a_broken_model_hides_no_other_and_is_no_problem_of_the_store(
    store: Path, shelf: Shelf, tmp_path: Path
) -> None:
    (tmp_path / "secret" / "1").mkdir(parents=True)
    (store / "leak").symlink_to(tmp_path / "secret")
    write(store / "m" / "1", FILES)
    leak, good = shelf.catalog.read({"leak": CONFIG, "m": CONFIG})
    assert "leaves" in leak.reason and leak.versions == ()
    assert (good.versions, good.reason, shelf.catalog.problem) == ((1,), "", "")


def test_versions_that_are_removed_leave(store: Path, shelf: Shelf) -> None:
    for version in ("1", "2"):
        write(store / "m" / version, FILES)
    assert shelf.look().versions == (1, 2)
    shutil.rmtree(store / "m" / "2")
    assert shelf.look().versions == (1,)
    shutil.rmtree(store / "m")
    (store / "other").mkdir()
    assert shelf.look().versions == ()
    assert shelf.catalog.problem == ""


def test_a_model_that_is_not_asked_for_is_forgotten(store: Path, shelf: Shelf) -> None:
    write(store / "m" / "1", FILES)
    shelf.look()
    assert shelf.catalog.read({}) == []
    shutil.rmtree(store / "m")
    (store / "other").mkdir()
    assert shelf.look().versions == ()


def test_what_the_store_has_now_can_be_asked_for_without_taking_it_up(
    store: Path, shelf: Shelf
) -> None:
    write(store / "m" / "1", FILES)
    write(store / "other" / "2", {"labels.txt": b"cat"})
    assert shelf.catalog.find("m", CONFIG) == {1: ""}
    assert "holds none" in shelf.catalog.find("other", CONFIG)[2]
    assert shelf.catalog.find("absent", CONFIG) == {}
    assert not shelf.catalog.changing
    with pytest.raises(ModelLoadError, match="not allowed"):
        shelf.catalog.find("..", CONFIG)


def test_what_is_served_can_be_asked_for_whatever_became_of_its_files(
    store: Path, shelf: Shelf
) -> None:
    write(store / "m" / "1", FILES)
    shelf.look()
    (store / "m" / "1" / "model.onnx").unlink()
    assert shelf.catalog.find("m", CONFIG) == {1: ""}


def test_a_store_that_is_away_or_empty_is_not_one_without_the_model(
    store: Path, shelf: Shelf
) -> None:
    write(store / "m" / "1", FILES)
    shelf.look()
    store.rename(store.with_name("away"))
    with pytest.raises(StoreAway, match="does not exist"):
        shelf.catalog.find("other", CONFIG)
    store.mkdir()
    with pytest.raises(StoreAway, match="is empty"):
        shelf.catalog.find("other", CONFIG)


@pytest.mark.parametrize(
    ("config", "slot_class"),
    [
        ({}, "tensorflow"),
        ({"versions": (1,)}, "cpu"),
        ({"runtime": "onnx"}, "cpu"),
        ({"slot_class": "gpu"}, "gpu"),
        ({"slot_class": "gpu", "runtime": "tensorflow"}, "gpu"),
    ],
)
def test_the_slot_class_is_of_the_newest_version_that_is_wanted(
    store: Path, shelf: Shelf, config: dict[str, Any], slot_class: str
) -> None:
    write(store / "m" / "1", {"model.onnx": b""})
    write(store / "m" / "2", {"saved_model.pb": b""})
    assert shelf.look(**config).slot_class == slot_class


def test_a_folder_for_two_runtimes_needs_the_config_to_name_one(store: Path, shelf: Shelf) -> None:
    write(store / "m" / "1", {"model.onnx": b"", "saved_model.pb": b""})
    assert "names no runtime" in shelf.look().incomplete[1]
    entry = shelf.look(runtime="tensorflow")
    assert (entry.versions, entry.slot_class) == ((1,), "tensorflow")


def test_listed_versions_that_are_not_there_are_named(store: Path, shelf: Shelf) -> None:
    write(store / "m" / "1", FILES)
    entry = shelf.look(versions=(3, 4))
    assert entry.reason == "the store has no complete version 3, 4 of model 'm'"
    assert entry.versions == (1,)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, (9,)),
        ({"versions": Latest(latest=2)}, (5, 9)),
        ({"versions": Latest(latest=9)}, (1, 5, 9)),
        ({"versions": "all"}, (1, 5, 9)),
        ({"versions": (5, 7)}, (5,)),
        ({"labels": {"stable": 1}}, (1, 9)),
        ({"labels": {"stable": 7}}, (9,)),
    ],
)
def test_wanted_versions_follow_policy_and_labels(
    config: dict[str, Any], wanted: tuple[int, ...]
) -> None:
    assert wanted_versions(ModelConfig(**config), (9, 1, 5)) == wanted


def test_rejected_versions_are_wanted_only_by_label() -> None:
    rejected = frozenset({9})
    assert wanted_versions(CONFIG, (1, 5, 9), rejected) == (5,)
    assert wanted_versions(ModelConfig(labels={"canary": 9}), (1, 5, 9), rejected) == (5, 9)
    assert wanted_versions(ModelConfig(versions=(9,)), (1, 5, 9), rejected) == ()


@given(
    found=st.sets(st.integers(0, 9)),
    rejected=st.frozensets(st.integers(0, 9)),
    labelled=st.integers(0, 9),
    latest=st.integers(1, 12),
)
def test_wanted_versions_are_found_and_never_rejected_unless_labelled(
    found: set[int], rejected: frozenset[int], labelled: int, latest: int
) -> None:
    config = ModelConfig(versions=Latest(latest=latest), labels={"stable": labelled})
    wanted = wanted_versions(config, found, rejected)
    assert list(wanted) == sorted(set(wanted)) and set(wanted) <= found
    assert not set(wanted) & rejected - {labelled}
    assert len(set(wanted) - {labelled}) <= latest
