from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.snapshot import ModelVersion, State
from replicas.last_words import (
    EXIT_CODE,
    REFRESH_S,
    LastWords,
    MemoryWatch,
    Words,
    path_of,
    take,
)

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


HELD = (ModelVersion("m", 1), State.LOADING)

ALLOCATE = """
import signal, sys, time
from pathlib import Path
from headrace.logs import configure
from headrace.snapshot import ModelVersion, State
from replicas.last_words import LastWords
from replicas.last_words import MemoryWatch
from headrace.process import resident_bytes

configure("info", "slot")
limit = resident_bytes() + 60 * 2**20
words = LastWords(Path(sys.argv[1]), limit)
words.note([(ModelVersion("m", 1), State.LOADING)], resident_bytes())
MemoryWatch(limit, words).start()
taken = []
for _ in range(200):
    taken.append(bytearray(b"x") * (4 * 2**20))
    time.sleep(0.01)
signal.pause()
"""


def test_a_process_that_takes_too_much_ends_and_says_so(tmp_path: Path) -> None:
    socket = tmp_path / "a.sock"
    ended = subprocess.run(
        [sys.executable, "-c", ALLOCATE, str(socket)], capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == EXIT_CODE, ended.stderr
    told = take(socket)
    assert told is not None and told.loading == dict([HELD])
    assert told.exit_code == EXIT_CODE
    assert told.limit_bytes < told.memory_bytes < told.limit_bytes + 200 * 2**20
    assert "out_of_memory" in told.lines[-1]


def watch(
    folder: Path, limit_bytes: int | None, memory: list[int]
) -> tuple[MemoryWatch, list[int]]:
    ended: list[int] = []
    words = LastWords(folder / "a.sock", limit_bytes, lambda: [])
    words.note([HELD], 0)
    taken = iter(memory)
    looking = MemoryWatch(limit_bytes, words, resident_bytes=lambda: next(taken), end=ended.append)
    return looking, ended


def test_what_there_is_to_say_is_said_before_the_end(tmp_path: Path) -> None:
    order: list[str] = []

    def lines() -> list[str]:
        order.append("words")
        return []

    looking = MemoryWatch(
        100,
        LastWords(tmp_path / "a.sock", 100, lines),
        farewell=lambda: order.append("farewell"),
        resident_bytes=lambda: 101,
        end=lambda _: order.append("end"),
    )
    looking.look(1.0)
    assert order == ["farewell", "words", "end"]


def test_as_much_as_the_limit_is_allowed(tmp_path: Path) -> None:
    looking, ended = watch(tmp_path, 100, [100, 101])
    looking.look(10.0)
    assert ended == []
    looking.look(10.1)
    assert ended == [EXIT_CODE]


def test_memory_is_told_now_and_then_while_something_loads(tmp_path: Path) -> None:
    looking, ended = watch(tmp_path, None, [5, 6, 7])
    for now_s in (10.0, 10.1, 10.1 + REFRESH_S):
        looking.look(now_s)
    told = take(tmp_path / "a.sock")
    assert told is not None and (told.memory_bytes, told.exit_code, ended) == (7, None, [])
