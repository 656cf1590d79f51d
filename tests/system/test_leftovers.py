"""A system that was killed leaves nothing for ever, and one that was stopped nothing at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from headrace.link.shared_memory import FOLDER, THRESHOLD_BYTES
from headrace.node import SHARED_PREFIX
from loadtests.processes import free_ports
from tests.system.running import Running, affine_store, config, running, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

ROWS = THRESHOLD_BYTES // 16 + 1000


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of the test's own, with a name short enough for sockets."""
    with tempfile.TemporaryDirectory(
        prefix="left-", dir="/tmp", ignore_cleanup_errors=True
    ) as name:
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


def test_what_a_killed_system_left_goes_at_the_next_start(tmp_path: Path, temporary: Path) -> None:
    models = {"affine": {"replicas": {"min": 1}, "batching": {"max_rows": 4096}}}
    document = config(affine_store(tmp_path), free_ports(3), slots=1, models=models)
    user, before = temporary / f"headrace-{os.getuid()}", shared()
    with running(tmp_path, document) as first:
        send_large_body(first)
        (node,) = folders(user)
        bodies = shared() - before
        first.remember()
        supervisor = psutil.Process(first.process.pid)
        for process in (supervisor, *first.tree):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert not first.survivors()
    assert node.exists() and list(node.glob("slot-*/link.sock")) and bodies <= shared()
    with running(tmp_path, document) as second:
        wait_for(lambda: node not in folders(user) and not bodies & shared(), "swept")
        send_large_body(second)
        assert len(folders(user)) == 1
        own = shared() - before
    wait_for(lambda: not folders(user) and not own & shared(), "nothing is left")


def shared() -> set[str]:
    return {path.name for path in FOLDER.glob(f"{SHARED_PREFIX}*")}


def folders(user: Path) -> list[Path]:
    return list(user.iterdir()) if user.exists() else []


def send_large_body(system: Running) -> None:
    """Have a request answered that travels through shared memory, as its answer does."""
    rows = np.ones((ROWS, 4), np.float32)
    entry = {"name": "x", "shape": [ROWS, 4], "datatype": "FP32", "data": rows.ravel().tolist()}
    url = f"{system.url}/v2/models/affine/infer"
    answer = httpx.post(url, json={"inputs": [entry]}, timeout=60)
    assert answer.status_code == 200, answer.text[:300]
