from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from loadtests.bench.peers.environment import (
    PEERS,
    PeerNotInstalled,
    Requirements,
    find_interpreter,
    peer_python,
)
from loadtests.bench.servers import HEADRACE, SERVERS

OLD = SpecifierSet(">=3.11,<=3.11.2")
PEER = '''# /// script
# requires-python = "<=3.11.2"
# dependencies = ["mosec==0.9.8", "numpy"]
# ///
"""A peer."""
'''


def python(folder: Path, says: str, name: str = "python3") -> Path:
    """A command that tells a version as an interpreter would."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\necho {says}\n")
    file.chmod(0o755)
    return file


def test_a_peer_names_its_packages_and_gets_our_version_of_the_others(tmp_path: Path) -> None:
    file = tmp_path / "peer.py"
    file.write_text(PEER)
    wanted = Requirements.of(file)
    assert wanted.packages == ("mosec==0.9.8", f"numpy=={version('numpy')}")
    assert "3.11.2" in wanted.python and "3.11.3" not in wanted.python


def test_a_peer_without_packages_runs_in_our_environment(tmp_path: Path) -> None:
    file = tmp_path / "peer.py"
    file.write_text('"""A peer."""\n')
    assert peer_python("peer", file, tmp_path / "cache") == Path(sys.executable)
    assert not (tmp_path / "cache").exists()


def test_every_server_has_a_file_whose_packages_are_pinned() -> None:
    for kind in {server.kind for server in SERVERS} - {HEADRACE}:
        packages = Requirements.of(PEERS / f"{kind}.py").packages
        assert all("==" in each or "<" in each for each in packages), kind
        ours = [each for each in packages if each.startswith("onnxruntime")]
        assert not packages or ours == [f"onnxruntime=={version('onnxruntime')}"], kind


def test_the_first_interpreter_of_a_right_version_is_taken(tmp_path: Path) -> None:
    python(tmp_path / "new", "3.12.1 True")
    python(tmp_path / "environment", "3.11.2 False")
    right = python(tmp_path / "right", "3.11.2 True", "python3.11")
    path = os.pathsep.join(str(tmp_path / name) for name in ("new", "environment", "", "right"))
    assert find_interpreter("peer", OLD, path) == right


def test_without_one_the_versions_found_are_told(tmp_path: Path) -> None:
    python(tmp_path / "new", "3.11.3 True")
    python(tmp_path / "broken", "'no interpreter'")
    path = os.pathsep.join(str(tmp_path / name) for name in ("new", "broken", "absent"))
    with pytest.raises(PeerNotInstalled, match=r"peer needs Python <=3\.11\.2,>=3\.11.*3\.11\.3"):
        find_interpreter("peer", OLD, path)
