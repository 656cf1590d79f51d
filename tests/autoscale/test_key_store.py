"""Keys in a real file: what survives a crash, a full disk and an editor."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from structlog.testing import capture_logs

from autoscale.key_store import SPARE_LINES, KeyFile
from headrace.access import KeyRecord
from headrace.errors import ConfigError, Unavailable
from headrace.keys import KEPT_S, encode_record, new_key


def record(name: str = "alice", **changed: float) -> KeyRecord:
    made = new_key(b"pepper", name=name, tier="premium", now_s=time.time())[1]
    return replace(made, **changed)  # type: ignore[arg-type]


def line(of: KeyRecord) -> bytes:
    return orjson.dumps(encode_record(of)) + b"\n"


@contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """No file may grow beyond this, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_what_was_put_is_there_in_the_next_life(tmp_path: Path) -> None:
    path = tmp_path / "state" / "keys.jsonl"
    alice, bob = record(), record("bob")
    store = KeyFile(path)
    assert await store.load() == {}
    await store.put(alice)
    await store.put(bob, replace(alice, revoked_s=time.time()))
    found = await KeyFile(path).load()
    assert found.keys() == {alice.id, bob.id} and found[alice.id].revoked_s
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().count(b"\n") == 3


async def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    alice, bob = record(), record("bob")
    path.write_bytes(line(alice) + line(bob)[:-20])
    with capture_logs() as logs:
        assert (await KeyFile(path).load()).keys() == {alice.id}
    assert [(each["event"], each["line"]) for each in logs] == [("key_file_cut_off", 2)]
    await KeyFile(path).put(bob)
    assert path.read_bytes() == line(alice) + line(bob)


async def test_a_last_line_that_lacks_only_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    alice, bob = record(), record("bob")
    path.write_bytes(line(alice).rstrip())
    store = KeyFile(path)
    assert (await store.load()).keys() == {alice.id}
    await store.put(bob)
    assert path.read_bytes() == line(alice) + line(bob)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (b"{", "no JSON"),
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", "it should be an object"),
        (b'{"id": "aaaaaaaa"}', "'name' should be a text"),
    ],
)
async def test_a_corrupt_line_is_named_but_not_quoted(
    tmp_path: Path, broken: bytes, words: str
) -> None:
    path = tmp_path / "keys.jsonl"
    path.write_bytes(line(record()) + broken + b"\n" + line(record("bob")))
    with pytest.raises(ConfigError) as caught:
        await KeyFile(path).load()
    assert f"{path}:2: " in caught.value.message and words in caught.value.message


async def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    alice, bob = record(), record("bob")
    store = KeyFile(path)
    await store.put(alice)
    with room_for(len(line(alice)) + 40), pytest.raises(Unavailable, match="File too large"):
        await store.put(bob)
    assert path.read_bytes() == line(alice)
    await store.put(bob)
    assert (await store.load()).keys() == {alice.id, bob.id}


async def test_a_folder_in_the_way_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        await KeyFile(tmp_path).load()
    with pytest.raises(Unavailable, match="Is a directory"):
        await KeyFile(tmp_path).put(record())
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="cannot write the keys"):
        await KeyFile(tmp_path / "file" / "keys.jsonl").put(record())


async def test_keys_that_ended_long_ago_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    gone = record(revoked_s=time.time() - KEPT_S - 1)
    lately = record("bob", revoked_s=time.time() - KEPT_S + 60)
    await KeyFile(path).put(gone, lately)
    assert (await KeyFile(path).load()).keys() == {lately.id}


async def test_a_file_that_has_grown_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    alice = record()
    long = line(alice) * (SPARE_LINES + 1)
    path.write_bytes(long)
    await KeyFile(path).load()
    assert path.read_bytes() == long
    path.write_bytes(long + line(replace(alice, name="al")))
    await KeyFile(path).load()
    assert path.read_bytes() == line(replace(alice, name="al"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["keys.jsonl"]


async def test_no_room_to_write_anew_keeps_the_long_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    alice = record()
    long = line(alice) * (SPARE_LINES + 2)
    path.write_bytes(long)
    with room_for(10), capture_logs() as logs:
        assert (await KeyFile(path).load()).keys() == {alice.id}
    assert [each["event"] for each in logs] == ["key_file_not_rewritten"]
    assert path.read_bytes() == long and os.listdir(tmp_path) == ["keys.jsonl"]


async def test_two_processes_that_share_a_file_see_each_other(tmp_path: Path) -> None:
    here, there = KeyFile(tmp_path / "keys.jsonl"), KeyFile(tmp_path / "keys.jsonl")
    alice = record()
    before = await there.number()
    assert before == await there.number()
    await here.put(alice)
    assert (known := await there.number()) > before
    assert (await there.load()).keys() == {alice.id}
    await here.put(replace(alice, revoked_s=time.time()))
    assert await there.number() > known
    assert (await there.load())[alice.id].revoked_s


async def test_what_is_put_while_another_writes_the_file_anew_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, anew = tmp_path / "keys.jsonl", tmp_path / "anew"
    alice, bob = record(), record("bob")
    path.write_bytes(line(alice) * 2)
    anew.write_bytes(line(alice))
    lock = fcntl.flock

    def lock_late(descriptor: int, operation: int) -> None:
        if anew.exists():
            anew.replace(path)
        lock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", lock_late)
    await KeyFile(path).put(bob)
    assert path.read_bytes() == line(alice) + line(bob)


async def test_a_reading_waits_for_a_writing(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    alice, bob = record(), record("bob")
    path.write_bytes(line(alice))
    with path.open("ab", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(line(bob)[:-20])
        reading = asyncio.create_task(KeyFile(path).load())
        await asyncio.wait([reading], timeout=0.05)
        other.write(line(bob)[-20:])
    # Without the lock the half line would have been cut off.
    assert (await reading).keys() == {alice.id, bob.id}


async def test_a_file_that_was_removed_leaves_no_keys(tmp_path: Path) -> None:
    store = KeyFile(tmp_path / "keys.jsonl")
    await store.put(record())
    known = await store.number()
    (tmp_path / "keys.jsonl").unlink()
    with capture_logs() as logs:
        assert await store.number() > known
    assert [each["event"] for each in logs] == ["key_file_gone"] and await store.load() == {}
