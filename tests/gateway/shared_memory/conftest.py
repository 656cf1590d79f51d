from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.shared_memory.region_house import Memory


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory()
    yield made
    for key in made.keys:
        (Path("/dev/shm") / key[1:]).unlink(missing_ok=True)
