"""A house that takes regions of system shared memory, and objects for them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from gateway.shared_memory.regions import Regions
from headrace.config.args import SharedMemory
from tests.house import House, open_house

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@dataclass
class Memory:
    """Makes shared memory objects and removes them again."""

    keys: list[str] = field(default_factory=list)

    def __call__(self, size: int, content: bytes = b"") -> str:
        """The key of a new object of so many bytes."""
        key = f"/headrace_test_{os.getpid()}_{len(self.keys)}"
        path = Path("/dev/shm") / key[1:]
        path.write_bytes(content.ljust(size, b"\0"))
        self.keys.append(key)
        return key

    def read(self, key: str) -> bytes:
        return (Path("/dev/shm") / key[1:]).read_bytes()


@asynccontextmanager
async def sharing(tmp_path: Path, **more: Any) -> AsyncIterator[House]:
    """A house that takes regions."""
    regions = Regions(SharedMemory(), tmp_path / "regions")
    async with open_house(tmp_path, "a", regions=regions, **more) as house:
        yield house


def tensor(kind: Any, *region: Any) -> Any:
    """An input or output of either protocol that lies in a region: its name, size and offset."""
    kind.set_shared_memory(*region)
    return kind


def module(protocol: str) -> Any:
    return {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]


def x(protocol: str, *region: Any, rows: int = 2) -> Any:
    given = module(protocol).InferInput("x", [rows, 4], "FP32")
    return tensor(given, *region) if region else given


def y(protocol: str, *region: Any) -> Any:
    return tensor(module(protocol).InferRequestedOutput("y"), *region)


async def register(http: Any, name: str, key: Any, byte_size: Any, **more: Any) -> Any:
    body = {"key": key, "byte_size": byte_size, **more}
    return await http.post(f"/v2/systemsharedmemory/region/{name}/register", json=body)
