"""Headrace with an elastic pool, for the pool's benchmark, and what is asked of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtests.exchange import Message
from loadtests.headrace import Running, headrace
from loadtests.pool.log import PoolLog, read_log

COLD_HEADER = "X-Headrace-Cold-Start-Ms"
ANSWER_S = 70.0
POLL_S = 0.05
ASLEEP_S = 120.0


class NeverAsleep(Exception):
    """Raised when a model or its slots did not go in time."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: when it was due and when it left (epoch seconds), and what came of it.

    `cold_s` is what the gateway said it waited for its model, 0 for a warm one.
    """

    model: str
    due_s: float
    latency_s: float
    cold_s: float = 0.0
    error: str = ""


async def ask(client: httpx.AsyncClient, model: str, message: Message, due_s: float) -> Asked:
    """Send one request; its latency counts from when it was due."""
    error, cold_s = "", 0.0
    try:
        answer = await client.post(message.path, content=message.body, headers=message.headers)
        cold_s = float(answer.headers.get(COLD_HEADER, 0)) / 1000
        if answer.status_code != 200:
            error = f"status {answer.status_code}: {answer.text[:120]}"
    except httpx.TransportError as failed:
        error = f"{type(failed).__name__}: {failed}"
    return Asked(model, due_s, time.time() - due_s, cold_s, error)


def open_client(url: str) -> httpx.AsyncClient:
    """A client without limits of its own."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, limits=limits, timeout=ANSWER_S)


@dataclass(frozen=True, slots=True)
class Site:
    """A running system; `folder` is where its Ray leaves the logs of all processes."""

    server: Running
    folder: Path

    def status(self) -> dict[str, Any]:
        """What its admin listener says."""
        assert self.server.token_file is not None
        token = self.server.token_file.read_text(encoding="utf-8").strip()
        answer = httpx.get(
            f"{self.server.admin}/admin/v1/status",
            headers={"Authorization": f"Bearer {token}"},
            timeout=ANSWER_S,
        )
        answer.raise_for_status()
        document: dict[str, Any] = answer.json()
        return document

    async def asleep(self, model: str, *, slots: int | None = None) -> None:
        """Wait until a model sleeps, and no more than so many slots are left.

        Raises `NeverAsleep`.
        """
        limit_s = time.monotonic() + ASLEEP_S
        while True:
            status = await asyncio.to_thread(self.status)
            holders = [slot for slot in status["slots"] if slot["models"]]
            states = {
                version["state"]
                for each in status["models"]
                for version in each["versions"]
                if each["name"] == model
            }
            few = slots is None or len(status["slots"]) <= slots
            if states == {"SLEEPING"} and not holders and few:
                return
            if time.monotonic() > limit_s:
                raise NeverAsleep(f"{model} is {sorted(states)}, {len(status['slots'])} slots")
            await asyncio.sleep(POLL_S)

    def log(self) -> PoolLog:
        """What was logged so far."""
        sessions = [each for each in self.folder.glob("session_2*") if each.is_dir()]
        return read_log(max(sessions, key=lambda each: each.stat().st_mtime))


@contextmanager
def elastic(
    folder: Path, store: Path, models: Mapping[str, Any], slots: Mapping[str, Any]
) -> Iterator[Site]:
    """Run Headrace while the block lasts, with its own folder for Ray; raises `NotStarted`."""
    before = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = str(folder)
    try:
        with headrace(folder, store, models, 1, more={"slots": dict(slots)}) as server:
            yield Site(server, _ray_folder(folder))
    finally:
        if before is None:
            del os.environ["RAY_TMPDIR"]
        else:
            os.environ["RAY_TMPDIR"] = before


def _ray_folder(folder: Path) -> Path:
    return folder / "ray" if (folder / "ray").is_dir() else folder
