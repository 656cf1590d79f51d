"""Jobs and their results in SQLite: they survive a restart, and several stages may share them.

One statement claims a job, so no two stages run it. Its owner beats every second; without beats
another takes it over. Times are Unix seconds and come as arguments. Methods block and may be called
from any thread.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
import threading
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson

from headrace.config.sharding import ProcessOptions
from headrace.errors import NotFound, TooManyRequests, Unavailable
from sharding.spool import disk_error
from sharding.upload import MediaJob, Upload

DEAD_S = 10.0
"""Time without a beat after which an owner counts as dead."""
TRIES = 3
"""Stages that may end while they run a job; after the last one it has failed."""
LISTED = 200
BUSY_S = 10.0
ORPHAN_S = 3600.0
_PREFIX = "upload-"
ENDED = ("done", "failed", "cancelled")

_SHORT = "id, state, job, done, parts, created_s, started_s, ended_s, beat_s"
"""Columns without the results, which are large."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    caller TEXT NOT NULL,
    state TEXT NOT NULL,
    job BLOB NOT NULL,
    created_s REAL NOT NULL,
    started_s REAL,
    ended_s REAL,
    owner TEXT NOT NULL DEFAULT '',
    beat_s REAL NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0,
    done INTEGER NOT NULL DEFAULT 0,
    parts INTEGER NOT NULL DEFAULT 0,
    partial BLOB,
    result BLOB,
    status INTEGER,
    error TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
CREATE INDEX IF NOT EXISTS jobs_by_caller ON jobs (caller, number);
"""


class JobStore:
    """The store in the SQLite file `path`; the uploads of its jobs lie in the same folder."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(
            path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        path.chmod(0o600)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def add(self, job: MediaJob, caller: str, max_waiting: int, now_s: float) -> str:
        """Queue a job and move its upload here; its id.

        Raises `TooManyRequests` if the caller has `max_waiting` jobs that have not ended, and
        `Unavailable` if there is no room for the upload.
        """
        job_id = secrets.token_urlsafe(24)
        waiting = self._one(
            "SELECT count(*) AS n FROM jobs WHERE caller = ? AND state IN ('queued', 'running')",
            caller,
        )["n"]
        if waiting >= max_waiting:
            raise TooManyRequests(
                f"there are {waiting} jobs that have not ended (`media.jobs.max_waiting`)",
                retry_after_s=10.0,
                reason="jobs",
            )
        path = self._upload(job_id)
        try:
            _move(Path(job.upload.path), path)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise disk_error(error) from error
        kept = replace(job, upload=replace(job.upload, path=str(path)))
        try:
            self._change(
                "INSERT INTO jobs (id, caller, state, job, created_s) "
                "VALUES (?, ?, 'queued', ?, ?)",
                *(job_id, caller, encode_job(kept), now_s),
            )
        except sqlite3.OperationalError as error:
            path.unlink(missing_ok=True)
            raise Unavailable(f"the job cannot be written down: {error}") from error
        return job_id

    def document(self, job_id: str, caller: str | None, now_s: float) -> dict[str, Any]:
        """A job's document; raises `NotFound`. A `caller` of None sees every job.

        A job of a caller without a name belongs to everybody who knows its id.
        """
        return _document(self._find(job_id, caller), now_s, whole=True)

    def documents(self, caller: str | None, now_s: float) -> list[dict[str, Any]]:
        """The newest jobs of a caller, without results; none for a caller without a name."""
        if caller == "":
            return []
        where, values = ("", ()) if caller is None else ("WHERE caller = ?", (caller,))
        rows = self._all(
            f"SELECT {_SHORT} FROM jobs {where} ORDER BY number DESC LIMIT {LISTED}", *values
        )
        return [_document(row, now_s, whole=False) for row in rows]

    def cancel(self, job_id: str, caller: str | None, now_s: float) -> dict[str, Any]:
        """Cancel a job; one that has ended stays as it is. Raises `NotFound`."""
        self._find(job_id, caller)
        if self._change(
            "UPDATE jobs SET state = 'cancelled', ended_s = ? "
            "WHERE id = ? AND state IN ('queued', 'running')",
            *(now_s, job_id),
        ):
            self._upload(job_id).unlink(missing_ok=True)
        return self.document(job_id, caller, now_s)

    def claim(self, owner: str, now_s: float) -> tuple[str, MediaJob] | None:
        """Claim the job that has waited longest for this owner; None if none waits."""
        row = self._one(
            "UPDATE jobs SET state = 'running', owner = ?, beat_s = ?, started_s = ?, "
            "tries = tries + 1, done = 0, parts = 0, partial = NULL WHERE number = "
            "(SELECT number FROM jobs WHERE state = 'queued' ORDER BY number LIMIT 1) "
            "AND state = 'queued' RETURNING id, job",
            *(owner, now_s, now_s),
        )
        return None if row is None else (row["id"], decode_job(row["job"]))

    def beat(self, job_id: str, owner: str, now_s: float) -> bool:
        """Record that the owner still runs the job; False if it is not the owner's any more."""
        return self._update(job_id, owner, "beat_s = ?", now_s)

    def progress(
        self, job_id: str, owner: str, done: int, parts: int, partial: Any, now_s: float
    ) -> bool:
        """Record progress and what was found so far; False if it is not the owner's any more."""
        values = (now_s, done, parts, orjson.dumps(partial))
        return self._update(job_id, owner, "beat_s = ?, done = ?, parts = ?, partial = ?", *values)

    def finish(self, job_id: str, owner: str, result: Any, now_s: float) -> bool:
        """Record the result; False if the job is not the owner's any more."""
        return self._end(
            job_id,
            owner,
            "state = 'done', ended_s = ?, result = ?, partial = NULL, done = parts",
            *(now_s, orjson.dumps(result)),
        )

    def fail(self, job_id: str, owner: str, status: int, error: str, now_s: float) -> bool:
        """Record a failure; False if the job is not the owner's any more."""
        return self._end(
            job_id,
            owner,
            "state = 'failed', ended_s = ?, status = ?, error = ?",
            *(now_s, status, error),
        )

    def give_back(self, owner: str) -> None:
        """Queue the owner's jobs again at once, without counting a try: it ends in good order."""
        self._change(
            "UPDATE jobs SET state = 'queued', owner = '', tries = tries - 1 "
            "WHERE owner = ? AND state = 'running'",
            owner,
        )

    def take_over(self, now_s: float) -> int:
        """Queue the jobs of dead owners again; how many. Jobs without their upload fail."""
        count = 0
        for row in self._all(
            "SELECT * FROM jobs WHERE state = 'running' AND beat_s < ?", now_s - DEAD_S
        ):
            reason = ""
            if not self._upload(row["id"]).exists():
                reason = "the stage ended while it ran, and its upload is gone"
            elif row["tries"] >= TRIES:
                reason = f"{TRIES} stages ended while it ran"
            if reason:
                self.fail(row["id"], row["owner"], 500, reason, now_s)
            else:
                count += self._change(
                    "UPDATE jobs SET state = 'queued', owner = '' "
                    "WHERE id = ? AND state = 'running' AND owner = ? AND beat_s = ?",
                    *(row["id"], row["owner"], row["beat_s"]),
                )
        return count

    def sweep(self, keep_s: float, now_s: float) -> int:
        """Delete jobs that ended over `keep_s` ago, and uploads of no job; the number of jobs."""
        count = self._change("DELETE FROM jobs WHERE ended_s < ?", now_s - keep_s)
        states = {row["id"]: row["state"] for row in self._all("SELECT id, state FROM jobs")}
        for path in self.folder.glob(f"{_PREFIX}*"):
            if states.get(path.name.removeprefix(_PREFIX), "done") not in ENDED:
                continue
            with suppress(OSError):
                # A job that is being added has its file before its row.
                if path.stat().st_ctime < now_s - ORPHAN_S:
                    path.unlink()
        return count

    def _find(self, job_id: str, caller: str | None) -> sqlite3.Row:
        row = self._one("SELECT * FROM jobs WHERE id = ?", job_id)
        if row is None or (caller is not None and row["caller"] not in ("", caller)):
            raise NotFound("there is no job with this id, or it was made by another caller")
        found: sqlite3.Row = row
        return found

    def _update(self, job_id: str, owner: str, what: str, *values: Any) -> bool:
        statement = f"UPDATE jobs SET {what} WHERE id = ? AND owner = ? AND state = 'running'"
        return self._change(statement, *values, job_id, owner) > 0

    def _end(self, job_id: str, owner: str, what: str, *values: Any) -> bool:
        changed = self._update(job_id, owner, what, *values)
        if changed:
            self._upload(job_id).unlink(missing_ok=True)
        return changed

    def _upload(self, job_id: str) -> Path:
        return self.folder / f"{_PREFIX}{job_id}"

    def _one(self, statement: str, *values: Any) -> Any:
        with self._lock:
            return self._database.execute(statement, values).fetchone()

    def _all(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()

    def _change(self, statement: str, *values: Any) -> int:
        with self._lock:
            return self._database.execute(statement, values).rowcount


def encode_job(job: MediaJob) -> bytes:
    """A job as JSON, since reading a pickle could run code."""
    plain = asdict(replace(job, options=ProcessOptions()))
    plain["options"] = job.options.model_dump(mode="json")
    return orjson.dumps(plain)


def decode_job(text: bytes) -> MediaJob:
    plain = orjson.loads(text)
    upload, options = Upload(**plain.pop("upload")), plain.pop("options")
    return MediaJob(**plain, upload=upload, options=ProcessOptions.model_validate(options))


def _document(row: sqlite3.Row, now_s: float, *, whole: bool) -> dict[str, Any]:
    job = decode_job(row["job"])
    state, done, parts = row["state"], row["done"], row["parts"]
    document: dict[str, Any] = {
        "id": row["id"],
        "state": state,
        "model": job.model,
        "version": job.version,
        "created": row["created_s"],
        "started": row["started_s"],
        "ended": row["ended_s"],
        "progress": {"done": done, "parts": parts},
        "eta_s": None,
    }
    if state == "running" and done and row["started_s"] is not None:
        spent_s = row["beat_s"] - row["started_s"]
        # The time since the last part was done belongs to the next one.
        left_s = spent_s / done * (parts - done) - (now_s - row["beat_s"])
        document["eta_s"] = round(max(0.0, left_s), 1)
    if not whole:
        return document
    if row["partial"] is not None:
        document["partial"] = orjson.loads(row["partial"])
    if state == "done":
        document["result"] = orjson.loads(row["result"])
    if state == "failed":
        document["error"] = {"status": row["status"], "error": row["error"]}
    return document


def _move(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
    except OSError:
        # The folder is on another disk.
        with source.open("rb") as incoming:
            descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as outgoing:
                shutil.copyfileobj(incoming, outgoing, 1024 * 1024)
        source.unlink(missing_ok=True)
