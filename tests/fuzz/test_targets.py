"""Each target for a few seconds, and once more all that was ever found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fuzz.runner import fuzz, replay
from tests.fuzz.table import TARGETS

CORPUS = Path(__file__).with_name("corpus")
SECONDS = float(os.environ.get("HEADRACE_FUZZ_SECONDS", "2"))
"""For each target; set it higher to search longer, or use `make fuzz`."""


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs_break_nothing(name: str) -> None:
    report = fuzz(TARGETS[name], seed=7, seconds=SECONDS, inputs=None)
    assert report.inputs > 20 * SECONDS and report.findings == [], report


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_stays_fixed(name: str) -> None:
    folder = CORPUS / name
    inputs = [path.read_bytes() for path in sorted(folder.iterdir())] if folder.exists() else []
    assert replay(TARGETS[name], inputs).findings == []
