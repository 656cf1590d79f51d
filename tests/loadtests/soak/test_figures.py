from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from gateway import keeper
from loadtests.report import MIB
from loadtests.soak.figures import Figures, figures_table, keepers, role_of


def test_a_role_is_told_by_the_title_of_its_process() -> None:
    assert role_of(psutil.Process(os.getpid())) == "others"


def test_a_keeper_is_found_by_its_state_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "input()", keeper.__file__],
        stdin=subprocess.PIPE,
        env={**os.environ, "HEADRACE_HOME": str(tmp_path)},
    ) as process:
        assert [each.pid for each in keepers(tmp_path)] == [process.pid]
        assert not list(keepers(tmp_path / "other"))
        process.kill()


def test_the_table_has_what_was_there_before_and_what_is_there_after() -> None:
    before = [Figures("slot", 2, 100 * MIB, 40, 20, 8.0), Figures("keeper", 1, MIB, 9, 1)]
    after = [Figures("slot", 3, 150 * MIB, 60, 30, 12.0)]
    assert figures_table(before, after).rows == [
        ["slot", "2 → 3", "100 → 150", "40 → 60", "20 → 30", "8 → 12"],
        ["keeper", "1 → -", "1 → -", "9 → -", "1 → -", "- → -"],
    ]
