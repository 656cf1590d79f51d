"""What dead processes left is removed, what living ones use is not: with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace import node
from headrace.files import LOCK, hold, sweep

HOLD = """
import sys
from pathlib import Path
from headrace.files import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder, killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_folder_goes_with_the_last_process_that_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    with holder(folder), holder(folder) as second:
        (folder / "metrics").mkdir()
        (folder / "metrics" / "file").write_text("content")
        second.kill()
        second.wait()
        assert sweep(tmp_path.glob("*")) == 0
        assert (folder / "metrics" / "file").exists() and folder.stat().st_mode & 0o777 == 0o700
    assert sweep(tmp_path.glob("*")) == 1
    assert not list(tmp_path.iterdir())


def test_a_child_that_has_the_descriptor_holds_it_too(tmp_path: Path) -> None:
    held = hold(tmp_path / "node")
    child = subprocess.Popen(["sleep", "60"], pass_fds=[held])
    os.close(held)
    assert sweep(tmp_path.glob("*")) == 0
    child.kill()
    child.wait()
    assert sweep(tmp_path.glob("*")) == 1


def test_what_was_never_held_and_what_has_just_changed_stays(tmp_path: Path) -> None:
    (tmp_path / "stranger").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "fresh")
    os.close(hold(tmp_path / "fresh"))
    os.close(hold(tmp_path / "old"))
    os.utime(tmp_path / "old", (0, 0))
    assert sweep(tmp_path.glob("*"), unused_s=60.0) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"stranger", "file", "link", "fresh"}


def test_a_sweep_that_was_cut_off_is_ended_by_the_next(tmp_path: Path) -> None:
    rest = tmp_path / "node.swept"
    rest.mkdir()
    (rest / "file").write_text("")
    sweep(tmp_path.glob("*"))
    assert not rest.exists()


def test_who_starts_while_others_sweep_finds_a_folder_of_its_own(tmp_path: Path) -> None:
    folder, end_s = tmp_path / "node", time.monotonic() + 1.0

    def start(number: int) -> int:
        starts = 0
        while time.monotonic() < end_s:
            held = hold(folder)
            mine = folder / f"{number}-{starts}"
            mine.write_text("here")
            assert mine.read_text() == "here" and (folder / LOCK).exists()
            os.close(held)
            time.sleep(0.001)  # or there would seldom be a moment in which nobody holds it
            starts += 1
        return starts

    def clean() -> int:
        swept = 0
        while time.monotonic() < end_s:
            swept += sweep([folder])
        return swept

    with ThreadPoolExecutor(4) as threads:
        starters = [threads.submit(start, number) for number in range(2)]
        sweepers = [threads.submit(clean) for _ in range(2)]
        assert all(starter.result() for starter in starters)
        assert sum(sweeper.result() for sweeper in sweepers)
    sweep(tmp_path.glob("*"))
    sweep(tmp_path.glob("*"))
    assert not list(tmp_path.iterdir())


def test_tidy_knows_all_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "user_folder", lambda: tmp_path / "user")
    monkeypatch.setattr(node, "SHARED_MEMORY", tmp_path / "shm")
    here, gone = tmp_path / "user" / "here", tmp_path / "user" / "gone"
    places = [
        *(gone, gone / "slot-1-a", here / "slot-2-b", here / "slot-3-c"),
        *(tmp_path / "shm" / "headrace-1", tmp_path / "shm" / "other-2"),
    ]
    for folder in ("user", "shm"):
        (tmp_path / folder).mkdir(mode=0o700)
    with holder(here):
        for place in places:
            os.close(hold(place))
        os.utime(here / "slot-2-b", (0, 0))  # of a slot that died long ago, another one just now
        assert node.tidy() == 3
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/**/") if path}
    assert left - {"user", "shm"} == {"user/here", "user/here/slot-3-c", "shm/other-2"}


@pytest.mark.parametrize("open_to_others", [True, False], ids=["open to others", "a link"])
def test_tidy_keeps_out_of_a_folder_that_others_may_have_laid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_to_others: bool
) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    os.close(hold(target / "work"))
    (target / "mine.swept").mkdir()
    user = target
    if open_to_others:
        target.chmod(0o777)
    else:
        user = tmp_path / "user"
        user.symlink_to(target)
    monkeypatch.setattr(node, "user_folder", lambda: user)
    monkeypatch.setattr(node, "SHARED_MEMORY", tmp_path / "shm")
    assert node.tidy() == 0
    assert {path.name for path in target.iterdir()} == {"work", "mine.swept"}
