from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import threading
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import PayloadTooLarge, Unavailable
from sharding.spool import BATCH_BYTES, Spool, create_private, sweep
from tests.house import until


def digest(content: bytes) -> str:
    return blake2b(content, digest_size=32).hexdigest()


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_small_upload_stays_in_memory(tmp_path: Path) -> None:
    async with Spool(100, 50, tmp_path) as spool:
        await spool.write(b"abc")
        await spool.write(memoryview(b"defg"))
        assert await spool.finish() == digest(b"abcdefg")
        assert await spool.read(0, 100) == b"abcdefg"
        assert await spool.read(2, 3) == b"cde"
        assert not files(tmp_path)


async def test_large_upload_goes_to_a_private_file_that_close_removes(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    content = os.urandom(3 * BATCH_BYTES + 17)
    async with Spool(len(content), BATCH_BYTES, folder) as spool:
        for offset in range(0, len(content), 70_000):
            await spool.write(content[offset : offset + 70_000])
        assert await spool.finish() == digest(content)
        path = await spool.path()
        assert path.read_bytes() == content
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await spool.read(BATCH_BYTES - 5, 10) == content[BATCH_BYTES - 5 : BATCH_BYTES + 5]
        assert await spool.read(len(content) - 3, 100) == content[-3:]
    assert not files(folder)


async def test_path_puts_a_small_upload_into_a_file(tmp_path: Path) -> None:
    async with Spool(100, 50, tmp_path) as spool:
        await spool.write(b"abc")
        assert (await spool.path()).read_bytes() == b"abc"
        await spool.write(b"def")
        assert await spool.finish() == digest(b"abcdef")
        assert (await spool.path()).read_bytes() == b"abcdef"


async def test_too_long_upload_names_the_limit_and_empties_the_spool(tmp_path: Path) -> None:
    async with Spool(10, 2, tmp_path) as spool:
        await spool.write(b"123456")
        await spool.path()
        with pytest.raises(PayloadTooLarge, match="10 bytes"):
            await spool.write(b"78901")
        assert not files(tmp_path)


async def test_expect_refuses_by_the_declared_length(tmp_path: Path) -> None:
    async with Spool(10, 2, tmp_path) as spool:
        await spool.expect(10)
        with pytest.raises(PayloadTooLarge):
            await spool.expect(11)


async def test_cancelled_write_leaves_nothing(tmp_path: Path) -> None:
    async with Spool(10 * BATCH_BYTES, 0, tmp_path) as spool:
        task = asyncio.ensure_future(spool.write(bytes(4 * BATCH_BYTES)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not files(tmp_path)


@given(pieces=st.lists(st.binary(max_size=40)), memory_bytes=st.integers(0, 200))
@settings(max_examples=30, deadline=None)
def test_what_comes_out_is_what_went_in(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], memory_bytes: int
) -> None:
    async def round_trip() -> None:
        whole, folder = b"".join(pieces), tmp_path_factory.mktemp("spool")
        async with Spool(10_000, memory_bytes, folder) as spool:
            for piece in pieces:
                await spool.write(piece)
            assert await spool.finish() == digest(whole)
            assert await spool.read(0, 10_000) == whole
            assert spool.size_bytes == len(whole)
            assert bool(files(folder)) == (len(whole) > memory_bytes)

    asyncio.run(round_trip())


def test_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    """The limit on file sizes stands for a full disk: writing fails half-way, as it does there."""
    code = f"""
import asyncio, resource, signal
from pathlib import Path
from headrace.errors import Unavailable
from sharding.spool import Spool

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))

async def upload():
    async with Spool(10_000_000, 0, Path({str(tmp_path)!r})) as spool:
        try:
            for _ in range(9):
                await spool.write(bytes(1_000_000))
        except Unavailable as error:
            assert not list(Path({str(tmp_path)!r}).iterdir())
            return f"{{error.reason}}: {{error}}"

print(asyncio.run(upload()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.startswith("spool_full: there is no room left"), result.stderr
    assert Unavailable.http_status == 503


def test_sweep_removes_only_what_dead_processes_left(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from sharding.spool import create_private\n"
        "create_private(Path(sys.argv[1])); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    living, descriptor = create_private(tmp_path)
    other = tmp_path / "not-ours"
    other.touch()
    try:
        assert sweep(tmp_path) == 1
        assert sorted(tmp_path.iterdir()) == sorted([living, other])
    finally:
        os.close(descriptor)


async def test_whoever_is_cancelled_twice_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, began = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> None:
        began.set()
        go.wait(5)

    async def upload() -> None:
        async with Spool(10 * BATCH_BYTES, 0, tmp_path) as spool:
            await spool.write(bytes(BATCH_BYTES))

    monkeypatch.setattr("sharding.spool.write_all", slow)
    task = asyncio.create_task(upload())
    await asyncio.to_thread(began.wait, 5)
    for _ in range(2):
        task.cancel()
        await asyncio.wait([task], timeout=0.02)
    go.set()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    await until(lambda: not files(tmp_path))
