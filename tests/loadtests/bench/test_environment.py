from __future__ import annotations

import os
from pathlib import Path

import pytest

from loadtests.bench.peers.environment import PeerNotInstalled, find_interpreter

OLDEST, NEWEST = (3, 11, 0), (3, 11, 2)


def python(folder: Path, says: str, name: str = "python3") -> Path:
    """A command that tells a version as an interpreter would."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\necho {says}\n")
    file.chmod(0o755)
    return file


def test_the_first_interpreter_of_a_right_version_is_taken(tmp_path: Path) -> None:
    python(tmp_path / "new", "3 12 1 True")
    python(tmp_path / "environment", "3 11 2 False")
    right = python(tmp_path / "right", "3 11 2 True", "python3.11")
    path = os.pathsep.join(str(tmp_path / name) for name in ("new", "environment", "", "right"))
    assert find_interpreter("peer", OLDEST, NEWEST, path) == right


def test_without_one_the_versions_found_are_told(tmp_path: Path) -> None:
    python(tmp_path / "new", "3 11 3 True")
    python(tmp_path / "broken", "'no interpreter'")
    path = os.pathsep.join(str(tmp_path / name) for name in ("new", "broken", "absent"))
    with pytest.raises(PeerNotInstalled, match=r"peer needs Python 3\.11\.0 to 3\.11\.2.*3\.11\.3"):
        find_interpreter("peer", OLDEST, NEWEST, path)
