"""A real redis-server for tests, in memory alone, which can be killed and started again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtests.redis_server import RedisServer, installed, running_redis


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """A running server while the block lasts; skips the test where Redis is not installed."""
    if not installed():
        pytest.skip("redis-server is not installed")
    with running_redis(folder, *options) as server:
        yield server
