"""Bodies in shared memory: whole, private, and never left behind."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from headrace import node
from headrace.errors import LinkError
from headrace.link import shared_memory
from headrace.link.frames import SHARED_NAME_BYTES


def test_a_name_fits_into_its_place_in_a_frame() -> None:
    assert len(OTHER) <= SHARED_NAME_BYTES


def test_a_body_is_read_once_and_its_file_is_gone() -> None:
    name = shared_memory.write((b"first ", memoryview(b"second")))
    assert (shared_memory.FOLDER / name).stat().st_mode & 0o777 == 0o600
    assert shared_memory.exists(name)
    assert bytes(shared_memory.take(name, 12)) == b"first second"
    assert not shared_memory.exists(name)
    with pytest.raises(FileNotFoundError):
        shared_memory.take(name, 12)


OTHER = f"{shared_memory.own_folder(os.getpid())}/{'0' * 16}"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "headrace-1-xyz", "", "passwd", OTHER + "/..", "/" + OTHER]
)
def test_foreign_names_are_refused(name: str) -> None:
    with pytest.raises(LinkError, match="not ours"):
        shared_memory.take(name, 1)


def test_a_wrong_length_is_refused_and_the_file_removed() -> None:
    name = shared_memory.write(b"12345")
    with pytest.raises(LinkError, match="has 5 bytes, not 6"):
        shared_memory.take(name, 6)
    assert not (shared_memory.FOLDER / name).exists()


def test_a_link_in_place_of_the_file_is_refused() -> None:
    (shared_memory.FOLDER / OTHER).symlink_to("/etc/hostname")
    with pytest.raises(LinkError, match="cannot be opened"):
        shared_memory.take(OTHER, 1)
    shared_memory.discard(OTHER)


def test_files_of_dead_processes_are_swept_and_those_of_living_ones_kept() -> None:
    code = (
        "import sys; from headrace.link import shared_memory;"
        "sys.stdout.write(shared_memory.write(b'x'))"
    )
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    living = shared_memory.write(b"y")
    assert (shared_memory.FOLDER / dead.stdout).exists()
    assert node.tidy() >= 1
    assert not (shared_memory.FOLDER / dead.stdout).parent.exists()
    assert bytes(shared_memory.take(living, 1)) == b"y"
