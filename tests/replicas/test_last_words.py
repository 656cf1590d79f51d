from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.snapshot import ModelVersion, State
from replicas.last_words import STALE_S, LastWords, Words, path_of, sweep, take

LOADING = (ModelVersion("m", 3, 1), State.LOADING)
READY = (ModelVersion("other", 1), State.READY)


def words_at(folder: Path, limit_bytes: int | None = 1000) -> LastWords:
    return LastWords(folder / "a.sock", limit_bytes, lambda: ["one", "two"])


def test_what_was_loading_is_told_with_its_memory_and_lines(tmp_path: Path) -> None:
    words = words_at(tmp_path)
    words.note([LOADING, READY], 700)
    words.refresh(800)
    assert stat.S_IMODE(path_of(tmp_path / "a.sock").stat().st_mode) == 0o600
    told = take(tmp_path / "a.sock")
    assert told == Words(os.getpid(), dict([LOADING]), 2, 800, 1000, None, ("one", "two"))
    assert take(tmp_path / "a.sock") is None


def test_a_deliberate_end_is_the_last_word(tmp_path: Path) -> None:
    words = words_at(tmp_path)
    words.note([LOADING], 700)
    words.finish(137, 1200)
    words.note([], 0)
    words.refresh(5)
    told = take(tmp_path / "a.sock")
    assert told is not None and (told.exit_code, told.memory_bytes) == (137, 1200)
    assert told.loading == dict([LOADING])


def test_a_slot_that_leaves_in_good_order_leaves_nothing(tmp_path: Path) -> None:
    words = words_at(tmp_path)
    words.note([READY], 1)
    words.remove()
    words.note([], 1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_not_stop_the_slot(tmp_path: Path) -> None:
    words = words_at(tmp_path / "absent")
    words.note([LOADING], 1)
    assert words.loading == dict([LOADING]) and take(tmp_path / "absent" / "a.sock") is None


@given(text=st.one_of(st.binary(max_size=50), st.sampled_from([b"{}", b"[]", b'{"pid": []}'])))
def test_anything_else_is_not_taken_for_words(text: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        Words.parse(text)


def test_only_old_words_of_gone_processes_are_swept(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    words_at(tmp_path).note([], 1)
    text = path_of(tmp_path / "a.sock").read_text()
    (tmp_path / "gone.last").write_text(text.replace(str(os.getpid()), str(gone.pid)))
    (tmp_path / "pool.epoch").write_text("1")
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    sweep(tmp_path, time.time() + STALE_S + 60)
    assert {path.name for path in tmp_path.iterdir()} == {"a.last", "pool.epoch"}
