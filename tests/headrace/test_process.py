"""How threads are scheduled, as the kernel tells it."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import threading
from collections.abc import Callable

import pytest

from headrace.process import NICE, SLICE_NS, be_nice, be_prompt

GET_ATTRIBUTES = {"x86_64": 315, "aarch64": 275}
SINCE = (6, 12)


def scheduled(*steps: Callable[[], None]) -> tuple[int, int]:
    """Niceness and slice of a thread that a thread starts after these steps."""
    found: list[tuple[int, int]] = []

    def look() -> None:
        attributes = ctypes.create_string_buffer(56)
        call = GET_ATTRIBUTES[platform.machine()]
        assert ctypes.CDLL(None).syscall(call, 0, attributes, 56, 0) == 0
        fields = struct.unpack("=IIQiIQQQII", attributes.raw)
        found.append((fields[3], fields[5]))

    def run() -> None:
        for step in steps:
            step()
        child = threading.Thread(target=look)
        child.start()
        child.join()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def version() -> tuple[int, ...]:
    return tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])


@pytest.mark.skipif(
    platform.machine() not in GET_ATTRIBUTES or version() < SINCE,
    reason="needs slices of a thread's own",
)
def test_a_prompt_thread_has_short_slices_and_a_nice_one_the_usual_ones() -> None:
    nice, usual_ns = scheduled()
    assert nice == os.getpriority(os.PRIO_PROCESS, 0) and usual_ns > SLICE_NS
    assert scheduled(be_prompt) == (nice, SLICE_NS)
    assert scheduled(be_prompt, be_nice) == (NICE, usual_ns)
