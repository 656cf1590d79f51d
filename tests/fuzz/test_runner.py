"""The fuzzers' own runner: it finds what goes wrong, and equal seeds make equal inputs."""

from __future__ import annotations

import asyncio
import os
import random
import sys

import pytest

from tests.fuzz.__main__ import apart
from tests.fuzz.mutation import Mutator
from tests.fuzz.runner import Target, fuzz, replay
from tests.fuzz.table import TARGETS
from tests.fuzz.valid import body_of, changed_message, fields_of


class Faulty(Target):
    """Goes wrong as its inputs say."""

    name = "faulty"
    hang_s = 0.1
    says = b"fine"

    def __init__(self, source: random.Random) -> None:
        self._left: list[object] = []
        self._buffered = 0

    def make(self) -> bytes:
        return self.says

    async def run(self, data: bytes) -> None:
        if data == b"raise":
            raise KeyError("x")
        if data == b"hang":
            while True:
                pass
        if data == b"task":
            self._left.append(asyncio.create_task(asyncio.sleep(60)))
        elif data == b"descriptor":
            self._left.append(os.open("/dev/null", os.O_RDONLY))
        elif data == b"buffer":
            self._buffered += 1

    async def stop(self) -> None:
        for each in self._left:
            if isinstance(each, int):
                os.close(each)
            elif isinstance(each, asyncio.Task):
                each.cancel()

    def held(self) -> dict[str, int]:
        return {"buffered bytes": self._buffered}


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (b"raise", "KeyError"),
        (b"hang", "Hang: too much work"),
        (b"task", "tasks after 2000 inputs"),
        (b"descriptor", "descriptors after 2000 inputs"),
        (b"buffer", "buffered bytes after 2000 inputs"),
    ],
)
def test_what_goes_wrong_is_found_once(says: bytes, told: str) -> None:
    kind = type("Saying", (Faulty,), {"says": says})
    report = fuzz(kind, seed=1, seconds=60, inputs=3 if says == b"hang" else 2000)
    assert [told in each.text for each in report.findings] == [True]
    assert report.findings[0].data in (says, b"")


def test_a_fine_target_has_no_findings() -> None:
    report = fuzz(Faulty, seed=1, seconds=60, inputs=3000)
    assert (report.inputs, report.findings) == (3000, [])
    assert replay(Faulty, [b"fine", b"raise"]).findings[0].data == b"raise"


@pytest.mark.parametrize("name", TARGETS)
def test_equal_seeds_make_equal_inputs(name: str) -> None:
    one, other, third = (TARGETS[name](random.Random(seed)) for seed in (1, 1, 2))
    made = [[target.make() for _ in range(20)] for target in (one, other, third)]
    assert made[0] == made[1] != made[2]


CRASH = """
import os, sys
from pathlib import Path
from tests.fuzz.runner import fuzz
from tests.fuzz.test_runner import Faulty

class Crash(Faulty):
    says = b"crash"

    async def run(self, data):
        os.abort()

fuzz(Crash, 1, 9, 3, Path(sys.argv[sys.argv.index("--report") + 1]).with_suffix(".input"))
"""


def test_a_crash_of_the_process_is_a_finding() -> None:
    # A decoder in C may end the process: the input that did it is kept.
    [finding] = apart("json", 1, 9.0, 3, (sys.executable, "-c", CRASH)).findings
    assert finding.data == b"crash" and "ended with -6" in finding.text


def test_a_target_runs_in_a_process_of_its_own() -> None:
    report = apart("json", 1, 30.0, 50)
    assert (report.target, report.inputs, report.findings) == ("json", 50, [])


def test_a_message_is_written_as_it_was_read() -> None:
    body = b"\x08\x96\x01\x12\x03abc\x1d\x01\x02\x03\x04\x21" + bytes(8)
    fields = fields_of(body)
    assert fields is not None and len(fields) == 4 and body_of(fields) == body
    assert fields_of(b"\x12\x05abc") is None
    source = random.Random(1)
    assert len({changed_message(source, body) for _ in range(50)}) > 20


def test_inputs_stay_within_their_size() -> None:
    mutator = Mutator(random.Random(1), [b"word 12 word"], [b"word"], most_bytes=100)
    made = [mutator.make() for _ in range(500)]
    assert max(map(len, made)) <= 100 and len(set(made)) > 300
