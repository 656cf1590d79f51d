"""Whole writes and locks, on real files."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from headrace.files import append_whole, locked, opened, write_all

APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND
SOME = 5
"""Bytes that a write takes at once."""


def some(descriptor: int, content: bytes) -> int:
    return os.pwrite(descriptor, bytes(content)[:SOME], os.fstat(descriptor).st_size)


def test_writes_that_take_a_part_go_on_until_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "file", os.O_WRONLY | os.O_CREAT) as descriptor:
        monkeypatch.setattr(os, "write", some)
        write_all(descriptor, memoryview(b"longer than one write takes"))
    assert (tmp_path / "file").read_bytes() == b"longer than one write takes"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_lines_that_cannot_be_written_whole_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, content: bytes) -> int:
        if len(content) > SOME:
            return some(descriptor, content)
        raise OSError(28, "No space left on device")

    with opened(tmp_path / "lines", APPEND) as descriptor:
        append_whole(descriptor, b"first\n", sync=True)
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            append_whole(descriptor, b"second\n")
    assert (tmp_path / "lines").read_bytes() == b"first\n"


def test_a_lock_waits_and_follows_a_file_that_was_replaced(tmp_path: Path) -> None:
    path, fresh = tmp_path / "file", tmp_path / "fresh"
    fresh.write_bytes(b"")

    def append() -> None:
        with locked(path, APPEND) as descriptor:
            append_whole(descriptor, b"line\n")

    with locked(path, APPEND):
        other = threading.Thread(target=append)
        other.start()
        other.join(0.1)
        assert other.is_alive()
        fresh.replace(path)
    other.join(5)
    assert path.read_bytes() == b"line\n"
