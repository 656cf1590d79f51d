from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson
import pytest

from autoscale.decision_file import QUEUE_BYTES, DecisionFile, Entry, older, read, replay
from autoscale.decision_log import REPLAYED, DecisionLog, replay_place
from autoscale.ledger import plan
from autoscale.slot_book import DesiredVersion, Hold, LoadOrder, Room, UnloadOrder
from headrace.snapshot import ModelVersion, Placement, SlotView, State


@contextmanager
def opened(file: Path, max_bytes: int = 100_000) -> Iterator[DecisionFile]:
    journal = DecisionFile(file, max_bytes)
    try:
        yield journal
    finally:
        journal.close()


def add(journal: DecisionFile, number: int, **inputs: Any) -> None:
    journal.add("sum", {"a": number, **inputs}, {"b": 2 * number}, "because", number / 2)


def numbers(file: Path) -> list[int]:
    return [entry.n for entry in read(file)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "state" / "journal.jsonl"
    with opened(file) as journal:
        add(journal, 1)
        add(journal, 2, key=ModelVersion("m", 1), seen=frozenset({2, 1}), state=State.READY)
        journal.add("odd", MappingProxyType({"at": {3: math.inf}}), {}, "", 9.0)
        assert journal.flush()
        assert journal.counts() == (3, 0)
        first, second, third = read(file)
    assert first == Entry(1, 0.5, "sum", {"a": 1}, {"b": 2}, "because")
    assert second.inputs == {"a": 2, "key": ["m", 1, 0], "seen": [1, 2], "state": State.READY}
    assert third.inputs == {"at": {"3": None}}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "j") as journal, pytest.raises(TypeError):
        add(journal, 1, what=object())


def test_a_full_file_becomes_the_older_one(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    with opened(file, max_bytes=1000) as journal:
        for number in range(1, 101):
            add(journal, number)
        assert journal.flush()
        assert journal.counts() == (100, 0)
    assert file.stat().st_size <= 1000 and older(file).stat().st_size <= 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, older(file).name]
    kept = numbers(file)
    assert kept == list(range(kept[0], 101)) and len(kept) > 10


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    for number in range(3):
        with opened(file) as journal:
            add(journal, number)
    assert numbers(file) == [1, 2, 3]
    file.rename(older(file))
    with opened(file) as journal:
        add(journal, 3)
    assert numbers(file) == [1, 2, 3, 4]


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    with opened(file) as journal:
        for number in range(3):
            add(journal, number)
    os.truncate(file, file.stat().st_size - 7)
    assert numbers(file) == [1, 2]
    with opened(file) as journal:
        add(journal, 9)
    assert [(entry.n, entry.inputs["a"]) for entry in read(file)] == [(1, 0), (2, 1), (3, 9)]


def test_any_other_broken_line_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    with opened(file) as journal:
        add(journal, 1)
    with file.open("ab") as lines:
        lines.write(b'{"n": 2}\n')
    with pytest.raises(ValueError, match=r"journal.jsonl, line 2: no entry"):
        numbers(file)
    with pytest.raises(FileNotFoundError):
        numbers(tmp_path / "none")


def test_an_entry_larger_than_a_file_is_dropped_and_shows_as_a_gap(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    with opened(file, max_bytes=1000) as journal:
        add(journal, 1)
        add(journal, 2, text="x" * 1000)
        add(journal, 3)
        assert journal.flush()
        assert journal.counts() == (2, 1)
    assert numbers(file) == [1, 3]


def test_what_the_thread_cannot_keep_up_with_is_dropped(tmp_path: Path) -> None:
    text = "x" * (QUEUE_BYTES // 4)
    with opened(tmp_path / "j", max_bytes=2 * QUEUE_BYTES) as journal:
        with journal._idle:  # The thread cannot count what it has written.
            for number in range(6):
                add(journal, number, text=text)
        assert journal.flush(20)
        assert journal.counts() == (3, 3)


def test_a_disk_that_fails_drops_entries_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "journal.jsonl"
    write = os.write

    def half(fd: int, data: bytes) -> int:
        if len(data) > 20:
            return write(fd, bytes(data)[:20])
        raise OSError(28, "No space left on device")

    with opened(file) as journal:
        add(journal, 1)
        assert journal.flush()
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", half)
            add(journal, 2)
            assert journal.flush()
        add(journal, 3)
        assert journal.flush()
        assert journal.counts() == (2, 1)
    assert numbers(file) == [1, 3]


def test_replay_tells_where_decisions_differ(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    with opened(file) as journal:
        for number in (1, 2, 3):
            add(journal, number)
        journal.add("sum", {"other": 1}, {"b": 2}, "another release", 4.0)
        journal.add("told", {}, {"b": 1}, "", 5.0)

    def decide(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"b": 5 if inputs["a"] == 2 else 2 * inputs["a"]}

    wrong, unknown = replay(read(file), {"sum": decide})
    assert (wrong.entry.n, wrong.entry.decision, wrong.replayed) == (2, {"b": 4}, {"b": 5})
    assert (unknown.entry.n, unknown.replayed, unknown.error) == (4, None, "KeyError: 'a'")


def test_replay_compares_what_json_makes_of_decisions() -> None:
    recorded = orjson.loads(orjson.dumps({"moves": [["load", "a"]], "at": None}))
    entry = Entry(1, 0.0, "place", {}, recorded, "")
    same = {"moves": (("load", "a"),), "at": math.inf}
    assert replay([entry], {"place": lambda _: same}) == []
    assert len(replay([entry], {"place": lambda _: {"moves": []}})) == 1


def test_orders_for_guarantees_and_turns_in_full_classes_are_replayed(tmp_path: Path) -> None:
    """Each of these facts makes the orders what they are: one that is lost would show."""
    wants = [
        DesiredVersion("sure", 1, 1, "cpu", guaranteed=1),
        DesiredVersion("usual", 1, 1, "cpu", granted=1),
        DesiredVersion("starved", 1, 1, "cpu", turn=True),
    ]
    views = [SlotView(slot_id, "cpu", "node", "", "") for slot_id in "st"]
    held = [Placement("s", "sure", 1, State.READY), Placement("t", "usual", 1, State.READY)]
    sizes, used_s = {"sure": 0.5, "usual": 0.5, "starved": 1.0}, {"sure": 3.0, "usual": -math.inf}
    room = Room({"cpu": 2}, sizes, {"cpu": 0}, used_s, full=frozenset({"cpu"}))
    holds, retry_at = {ModelVersion("gone", 1): Hold.KEEP}, {ModelVersion("gone", 2): math.inf}
    made = plan(wants, views, held, room, 50.0, retry_at, holds)
    assert made.moves == [UnloadOrder("t", "usual", 1), LoadOrder("s", "usual", 1)]
    file = tmp_path / "journal.jsonl"
    with opened(file) as journal:
        DecisionLog(journal.add).placed(wants, holds, views, held, room, retry_at, made, 50.0)
    (entry,) = read(file)
    assert entry.decision == {
        "moves": [["unload", "t", "usual", 1, 0], ["load", "s", "usual", 1, 0]]
    }
    assert replay([entry], REPLAYED) == []

    def otherwise(number: int, **facts: Any) -> dict[str, Any]:
        told = [dict(want) for want in entry.inputs["wants"]]
        told[number] |= facts
        return {**entry.inputs, "wants": told}

    growing = {**entry.inputs, "room": {**entry.inputs["room"], "full": []}}
    for inputs in (growing, otherwise(0, guaranteed=0), otherwise(2, turn=False)):
        assert replay_place(inputs) != entry.decision
