from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from headrace import compiled

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with one module that was compiled."""
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    folder = tmp_path / compiled.FOLDER
    folder.mkdir(parents=True)
    source = tmp_path / "headrace" / "hot.py"
    source.write_text("fast = True\n")
    (folder / f"headrace.hot{compiled.SUFFIX}").touch()
    digests = {"headrace/hot.py": compiled.digest(source)}
    (folder / compiled.SOURCES).write_text(json.dumps(digests))
    return tmp_path


def test_what_was_compiled_from_these_sources_is_taken(root: Path) -> None:
    assert compiled.why_not(root) is None
    spec = compiled.Finder(root / compiled.FOLDER).find_spec("headrace.hot")
    assert spec is not None and spec.origin is not None and spec.origin.endswith(compiled.SUFFIX)
    assert compiled.Finder(root / compiled.FOLDER).find_spec("headrace.cold") is None


def test_an_edited_source_is_what_runs(root: Path) -> None:
    (root / "headrace" / "hot.py").write_text("fast = False\n")
    assert compiled.why_not(root) == "headrace/hot.py was edited since it was compiled"


def test_without_compiled_modules_the_source_runs(root: Path) -> None:
    shutil.rmtree(root / compiled.FOLDER)
    assert compiled.why_not(root) == "not compiled"


def test_modules_for_another_python_are_left_alone(root: Path) -> None:
    (root / compiled.FOLDER / f"headrace.hot{compiled.SUFFIX}").rename(
        root / compiled.FOLDER / "headrace.hot.cpython-399.so"
    )
    assert compiled.why_not(root) == "compiled for another Python"


def test_a_variable_turns_it_off(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.SWITCH, "0")
    assert compiled.why_not(root) == "HEADRACE_COMPILED=0"


@pytest.mark.parametrize("first", ["gateway.http.lane", "replicas.engine", "headrace.link.frames"])
def test_whatever_is_imported_first_runs_as_the_status_says(first: str) -> None:
    code = f"import {first}, headrace.compiled as c; print(c.status, {first}.__file__, sep='|')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    status, file = done.stdout.strip().split("|")
    assert (status == "compiled") == (compiled.FOLDER in file) == file.endswith(".so")
    assert status == compiled.status


def test_mypy_looks_for_what_mypyc_would_leave_out_of_each_compiled_module() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    (names,) = (each["module"] for each in tool["mypy"]["overrides"] if "warn_unreachable" in each)
    modules = tool["headrace"]["compiled"]["modules"]
    assert [each for each in modules if not any(fnmatch(each, name) for name in names)] == []
