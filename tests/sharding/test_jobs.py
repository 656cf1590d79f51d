"""Jobs in SQLite: what is told of them, who may see them, restarts, take-overs and their end."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from headrace.config.sharding import ProcessOptions
from headrace.errors import HeadraceError, NotFound, TooManyRequests, Unavailable, UnsupportedMedia
from sharding import job_store, jobs
from sharding.job_store import DEAD_S, TRIES, JobStore, decode_job, encode_job
from sharding.jobs import MAX_PARTIAL, JobRunner
from sharding.spool import sweep
from sharding.upload import MediaJob, Tell, Upload

MINE = "key:mine"
PLAN = {"event": "plan", "parts": 4}


def upload(tmp_path: Path, name: str = "upload", content: bytes = b"picture") -> MediaJob:
    path = tmp_path / name
    path.write_bytes(content)
    options = ProcessOptions(threshold=0.5, classes=("face", 3), scales=(1.0, 0.5))
    return MediaJob("faces", Upload(str(path), len(content), "d1", "image/png"), 2, options)


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs" / "jobs.sqlite")


def files(store: JobStore) -> list[str]:
    return [path.name for path in store.folder.glob("upload-*")]


def part(number: int, boxes: int = 1) -> dict[str, Any]:
    return {"event": "part", "done": number, "parts": 4, "boxes": [{"score": 0.5}] * boxes}


@asynccontextmanager
async def working(
    store: JobStore, process: Any, max_running: int = 1, **more: Any
) -> AsyncIterator[JobRunner]:
    runner = JobRunner(store, process, max_running, **more)
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def wait(runner: JobRunner, job_id: str, is_so: Callable[[Any], object]) -> dict[str, Any]:
    while True:
        document = await runner.job(job_id, None)
        if is_so(document):
            return document


async def ended(runner: JobRunner, job_id: str) -> dict[str, Any]:
    return await wait(runner, job_id, lambda each: each["state"] in job_store.ENDED)


async def answer(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
    """What a stage does, in short: it reads the upload and tells its length."""
    await tell(PLAN)
    await tell(part(1))
    content = await asyncio.to_thread(Path(job.upload.path).read_bytes)
    return {"boxes": [], "length": len(content)}


def test_a_job_is_the_same_after_a_round_trip(tmp_path: Path) -> None:
    job = upload(tmp_path)
    assert decode_job(encode_job(job)) == job


def test_the_folder_is_this_users_alone_and_the_upload_moves_there(
    store: JobStore, tmp_path: Path
) -> None:
    job = upload(tmp_path)
    job_id = store.add(job, MINE, 10, 1.0)
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert not Path(job.upload.path).exists() and files(store) == [f"upload-{job_id}"]
    assert len(job_id) >= 32


def test_an_upload_on_another_disk_is_copied(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "another device")

    monkeypatch.setattr(os, "rename", refuse)
    job = upload(tmp_path, content=b"x" * 3_000_000)
    job_id = store.add(job, MINE, 10, 1.0)
    copied = store.folder / f"upload-{job_id}"
    assert copied.read_bytes() == b"x" * 3_000_000
    assert stat.S_IMODE(copied.stat().st_mode) == 0o600
    assert not Path(job.upload.path).exists()


def test_an_upload_that_is_gone_makes_no_job(store: JobStore, tmp_path: Path) -> None:
    job = upload(tmp_path)
    Path(job.upload.path).unlink()
    with pytest.raises(HeadraceError):
        store.add(job, MINE, 10, 1.0)
    assert store.documents(None, 2.0) == [] and files(store) == []


def test_jobs_are_claimed_once_and_in_order(store: JobStore, tmp_path: Path) -> None:
    ids = [store.add(upload(tmp_path), MINE, 10, float(n)) for n in range(3)]
    other = JobStore(store.folder / "jobs.sqlite")
    claimed = [each.claim("me", 5.0) for each in (store, other, store, other)]
    assert [each[0] for each in claimed if each] == ids and claimed[3] is None


def test_processes_claim_different_jobs(store: JobStore, tmp_path: Path) -> None:
    ids = {store.add(upload(tmp_path), MINE, 100, 1.0) for _ in range(20)}
    code = (
        "import sys; from pathlib import Path; from sharding.job_store import JobStore\n"
        "store = JobStore(Path(sys.argv[1]))\n"
        "while (job := store.claim(sys.argv[2], 1.0)): sys.stdout.write(job[0] + '\\n')\n"
    )
    path = str(store.folder / "jobs.sqlite")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, path, name], stdout=subprocess.PIPE, text=True
        )
        for name in ("a", "b")
    ]
    claimed = [line for each in workers for line in each.communicate()[0].split()]
    assert sorted(claimed) == sorted(ids)


def test_the_document_tells_how_far_it_is(store: JobStore, tmp_path: Path) -> None:
    job_id = store.add(upload(tmp_path), MINE, 10, 1.0)
    waiting = store.document(job_id, MINE, 2.0)
    assert waiting["state"] == "queued" and waiting["eta_s"] is None and waiting["created"] == 1.0
    store.claim("me", 10.0)
    store.progress(job_id, "me", 2, 8, {"boxes": [1]}, 14.0)
    running = store.document(job_id, MINE, 15.0)
    assert running["progress"] == {"done": 2, "parts": 8}
    assert running["eta_s"] == 11.0  # 2 s a part, 6 parts, 1 s of which is over
    assert running["partial"] == {"boxes": [1]} and "result" not in running
    store.finish(job_id, "me", {"boxes": [2]}, 20.0)
    done = store.document(job_id, MINE, 21.0)
    assert done["state"] == "done" and done["result"] == {"boxes": [2]} and done["eta_s"] is None
    assert "partial" not in done and files(store) == []


@pytest.mark.parametrize(
    ("owner", "caller", "seen"),
    [
        (MINE, MINE, True),
        (MINE, "key:other", False),
        (MINE, "", False),
        (MINE, None, True),
        ("", "", True),
        ("", "key:other", True),
    ],
)
def test_a_job_is_seen_by_who_made_it(
    store: JobStore, tmp_path: Path, owner: str, caller: str | None, seen: bool
) -> None:
    job_id = store.add(upload(tmp_path), owner, 10, 1.0)
    if seen:
        assert store.document(job_id, caller, 2.0)["id"] == job_id
        return
    for ask in (store.document, store.cancel):
        with pytest.raises(NotFound, match="another caller"):
            ask(job_id, caller, 2.0)
    assert store.document(job_id, None, 2.0)["state"] == "queued"


def test_lists_are_the_callers_own(store: JobStore, tmp_path: Path) -> None:
    mine = [store.add(upload(tmp_path), MINE, 10, float(n)) for n in range(2)]
    store.add(upload(tmp_path), "", 10, 3.0)
    assert [each["id"] for each in store.documents(MINE, 4.0)] == mine[::-1]
    assert store.documents("", 4.0) == [] and len(store.documents(None, 4.0)) == 3


def test_too_many_jobs_of_a_caller_are_refused(store: JobStore, tmp_path: Path) -> None:
    store.add(upload(tmp_path), MINE, 1, 1.0)
    job = upload(tmp_path)
    with pytest.raises(TooManyRequests, match="max_waiting"):
        store.add(job, MINE, 1, 2.0)
    assert Path(job.upload.path).exists()
    assert store.add(job, "key:other", 1, 3.0)


def test_cancelling_takes_the_job_from_its_owner(store: JobStore, tmp_path: Path) -> None:
    job_id = store.add(upload(tmp_path), MINE, 10, 1.0)
    store.claim("me", 2.0)
    assert store.cancel(job_id, MINE, 3.0)["state"] == "cancelled" and files(store) == []
    assert not store.beat(job_id, "me", 4.0)
    assert not store.finish(job_id, "me", {}, 5.0)
    assert store.cancel(job_id, MINE, 6.0)["ended"] == 3.0


def test_a_dead_owners_job_is_taken_over(store: JobStore, tmp_path: Path) -> None:
    job_id = store.add(upload(tmp_path), MINE, 10, 1.0)
    store.claim("dead", 2.0)
    assert store.take_over(2.0 + DEAD_S) == 0
    assert store.take_over(2.1 + DEAD_S) == 1
    claimed = store.claim("me", 20.0)
    assert claimed is not None and claimed[0] == job_id
    assert not store.progress(job_id, "dead", 1, 1, {}, 21.0)
    assert not store.fail(job_id, "dead", 500, "late", 22.0)
    assert files(store) == [f"upload-{job_id}"]
    assert store.finish(job_id, "me", {}, 23.0)


def test_a_job_without_its_upload_is_not_taken_over(store: JobStore, tmp_path: Path) -> None:
    job_id = store.add(upload(tmp_path), MINE, 10, 1.0)
    store.claim("dead", 2.0)
    (store.folder / f"upload-{job_id}").unlink()
    assert store.take_over(100.0) == 0
    failed = store.document(job_id, MINE, 101.0)
    assert failed["state"] == "failed" and "upload is gone" in failed["error"]["error"]


def test_a_job_that_ends_its_stages_is_given_up(store: JobStore, tmp_path: Path) -> None:
    job_id = store.add(upload(tmp_path), MINE, 10, 0.0)
    for n in range(1, TRIES + 1):
        assert store.claim(f"stage-{n}", n * 100.0) is not None
        store.take_over((n + 1) * 100.0)
    failed = store.document(job_id, MINE, 1e4)
    assert failed["state"] == "failed" and f"{TRIES} stages" in failed["error"]["error"]
    assert files(store) == []


def test_an_owner_that_ends_in_good_order_gives_back(store: JobStore, tmp_path: Path) -> None:
    store.add(upload(tmp_path), MINE, 10, 0.0)
    for n in range(TRIES + 1):
        assert store.claim("me", float(n)) is not None
        store.give_back("me")
    assert store.claim("other", 10.0) is not None


def test_what_ended_is_kept_for_a_time(store: JobStore, tmp_path: Path) -> None:
    old, kept = (store.add(upload(tmp_path), MINE, 10, 0.0) for _ in range(2))
    for job_id, end_s in ((old, 100.0), (kept, 200.0)):
        store.claim("me", 50.0)
        store.finish(job_id, "me", {}, end_s)
    assert store.sweep(100.0, 250.0) == 1
    assert [each["id"] for each in store.documents(None, 250.0)] == [kept]


def test_uploads_of_no_job_are_swept(store: JobStore, tmp_path: Path) -> None:
    job_id = store.add(upload(tmp_path), MINE, 10, 0.0)
    (store.folder / "upload-stray").write_bytes(b"left by a stage that was killed")
    now_s = os.stat(store.folder / "upload-stray").st_ctime
    store.sweep(1e12, now_s)
    assert len(files(store)) == 2
    store.sweep(1e12, now_s + 2 * job_store.ORPHAN_S)
    assert files(store) == [f"upload-{job_id}"]


def test_everything_survives_a_restart(store: JobStore, tmp_path: Path) -> None:
    done, waiting = (store.add(upload(tmp_path), MINE, 10, 0.0) for _ in range(2))
    store.claim("me", 1.0)
    store.finish(done, "me", {"boxes": [7]}, 2.0)
    store.close()
    again = JobStore(store.folder / "jobs.sqlite")
    assert again.document(done, MINE, 3.0)["result"] == {"boxes": [7]}
    claimed = again.claim("me", 4.0)
    assert claimed is not None and claimed[0] == waiting
    assert Path(claimed[1].upload.path).read_bytes() == b"picture"


def test_a_full_disk_is_said(store: JobStore, tmp_path: Path) -> None:
    store._database.execute("PRAGMA max_page_count=1")
    job = upload(tmp_path, name="x" * 200)
    with pytest.raises(Unavailable, match="full"):
        for _ in range(200):
            store.add(job, MINE, 1000, 0.0)
            job = upload(tmp_path, name="x" * 200)
    assert len(files(store)) == len(store.documents(None, 1.0))


async def test_jobs_are_worked_on_in_order(store: JobStore, tmp_path: Path) -> None:
    async with working(store, answer) as runner:
        ids = [await runner.submit(upload(tmp_path, content=b"x" * n), MINE) for n in (3, 5)]
        documents = [await ended(runner, each) for each in ids]
    assert [each["result"]["length"] for each in documents] == [3, 5]
    assert documents[0]["ended"] <= documents[1]["started"]
    assert files(store) == []


async def test_no_more_run_than_are_allowed(store: JobStore, tmp_path: Path) -> None:
    running: list[str] = []
    most = 0
    gate = asyncio.Event()

    async def process(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        nonlocal most
        running.append(job.upload.path)
        most = max(most, len(running))
        await gate.wait()
        running.remove(job.upload.path)
        return {}

    async with working(store, process, 2) as runner:
        ids = [await runner.submit(upload(tmp_path), MINE) for _ in range(5)]
        while len(running) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        gate.set()
        for each in ids:
            await ended(runner, each)
    assert most == 2


async def test_what_is_found_is_told_on_the_way(store: JobStore, tmp_path: Path) -> None:
    gate = asyncio.Event()
    now = iter(range(1000, 10**6))

    async def process(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        await tell(PLAN)
        await tell(part(1, boxes=2))
        await tell(part(2, boxes=MAX_PARTIAL))
        await gate.wait()
        return {}

    async with working(store, process, now_s=lambda: float(next(now))) as runner:
        job_id = await runner.submit(upload(tmp_path), MINE)
        seen = await wait(runner, job_id, lambda each: each["progress"]["done"] == 2)
        gate.set()
        await ended(runner, job_id)
    assert seen["progress"]["parts"] == 4
    assert len(seen["partial"]["boxes"]) == MAX_PARTIAL and seen["partial"]["cut"]


async def test_a_plan_that_comes_again_begins_anew(store: JobStore, tmp_path: Path) -> None:
    gate = asyncio.Event()
    now = iter(range(1000, 10**6))

    async def process(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        for event in (PLAN, part(1), part(2), PLAN, part(1, boxes=3)):
            await tell(event)
        await gate.wait()
        return {}

    def anew(document: Mapping[str, Any]) -> bool:
        found = (document.get("partial") or {}).get("boxes", ())
        return (document["progress"]["done"], len(found)) == (1, 3)

    async with working(store, process, now_s=lambda: float(next(now))) as runner:
        job_id = await runner.submit(upload(tmp_path), MINE)
        await wait(runner, job_id, anew)
        gate.set()
        assert (await ended(runner, job_id))["state"] == "done"


async def test_a_job_waits_until_its_model_can_be_served(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "RETRY_S", 0.0)
    tries = []

    async def process(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        tries.append(job)
        if len(tries) < 3:
            raise Unavailable("nothing is known of the pool yet")
        await tell(PLAN)
        return {"boxes": []}

    async with working(store, process) as runner:
        first = await ended(runner, await runner.submit(upload(tmp_path), MINE))
    assert (first["state"], len(tries)) == ("done", 3)


async def test_a_job_that_has_begun_or_waited_for_long_does_not_wait(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    async def process(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        tries.append(job)
        if len(tries) == 1:
            await tell(PLAN)
        raise Unavailable("two slots died of it")

    async with working(store, process) as runner:
        begun = await ended(runner, await runner.submit(upload(tmp_path), MINE))
        monkeypatch.setattr(jobs, "PATIENCE_S", 0.0)
        late = await ended(runner, await runner.submit(upload(tmp_path), MINE))
    assert [each["error"]["status"] for each in (begun, late)] == [503, 503]
    assert len(tries) == 2


async def test_a_failure_is_kept_with_its_status(store: JobStore, tmp_path: Path) -> None:
    async def process(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        await tell(PLAN)
        raise UnsupportedMedia("the codec is unknown") if job.version == 2 else RuntimeError("bug")

    async with working(store, process) as runner:
        told = await ended(runner, await runner.submit(upload(tmp_path), MINE))
        hidden = MediaJob("faces", upload(tmp_path).upload)
        bug = await ended(runner, await runner.submit(hidden, MINE))
    assert told["error"] == {"status": 415, "error": "the codec is unknown"}
    assert bug["error"] == {"status": 500, "error": "internal error"}


async def test_cancelling_stops_the_work(store: JobStore, tmp_path: Path) -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    async def process(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        try:
            started.set()
            await tell(PLAN)
            await asyncio.Event().wait()
            return {}
        finally:
            stopped.set()

    async with working(store, process) as runner:
        job_id = await runner.submit(upload(tmp_path), MINE)
        await started.wait()
        assert (await runner.cancel(job_id, MINE))["state"] == "cancelled"
        await stopped.wait()
        assert (await runner.job(job_id, MINE))["state"] == "cancelled"
        assert files(store) == []


async def test_another_process_stops_the_work_by_the_store(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharding.jobs.BEAT_S", 0.01)
    started, stopped = asyncio.Event(), asyncio.Event()

    async def process(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        try:
            await tell(PLAN)
            started.set()
            await asyncio.Event().wait()
            return {}
        finally:
            stopped.set()

    async with working(store, process) as runner:
        job_id = await runner.submit(upload(tmp_path), MINE)
        await started.wait()
        other = JobStore(store.folder / "jobs.sqlite")
        other.cancel(job_id, MINE, 1.0)
        await stopped.wait()
        assert (await runner.job(job_id, MINE))["state"] == "cancelled"


async def test_a_runner_that_ends_leaves_its_job_to_the_next(
    store: JobStore, tmp_path: Path
) -> None:
    started = asyncio.Event()

    async def hang(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        await tell(PLAN)
        started.set()
        await asyncio.Event().wait()
        return {}

    async with working(store, hang) as first:
        job_id = await first.submit(upload(tmp_path, content=b"12345"), MINE)
        await started.wait()
    async with working(store, answer) as second:
        document = await ended(second, job_id)
    assert document["result"]["length"] == 5


@pytest.mark.parametrize("same_disk", [True, False])
async def test_a_running_jobs_upload_has_a_name_in_the_spool(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_disk: bool
) -> None:
    spool, seen = tmp_path / "spool", []

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another device")

    async def process(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        seen.append(Path(job.upload.path))
        assert sweep(spool) == 0  # it is in use
        return await answer(job, tell)

    if not same_disk:
        monkeypatch.setattr(os, "link", refuse)
    async with working(store, process, spool=spool) as runner:
        job_id = await runner.submit(upload(tmp_path, content=b"12345"), MINE)
        assert (await ended(runner, job_id))["result"]["length"] == 5
        assert seen[0].parent == spool and list(spool.iterdir()) == []


async def test_a_runner_that_was_killed_is_followed_by_another(
    store: JobStore, tmp_path: Path
) -> None:
    job_id = store.add(upload(tmp_path), MINE, 10, 0.0)
    store.claim("killed", 0.0)  # its last words were at 0 s, and now it is 1000 s
    async with working(store, answer, now_s=lambda: 1000.0) as runner:
        assert (await ended(runner, job_id))["state"] == "done"
