import os
import subprocess
from pathlib import Path

import pytest
from artifact import RECORD, SUMS, damage, is_current, publish, seal

INPUTS = {"builder.py": "ab", "package==1/file": "cd"}


def _sealed(folder: Path) -> Path:
    (folder / "variables").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "variables" / "data").write_bytes(b"weights")
    seal(folder, INPUTS)
    return folder


def test_sums_are_what_sha256sum_checks(tmp_path: Path) -> None:
    folder = _sealed(tmp_path / "1")
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", SUMS], cwd=folder, capture_output=True, text=True
    )
    assert checked.returncode == 0
    names = [line.partition(":")[0] for line in checked.stdout.splitlines()]
    assert names == [RECORD, "model.onnx", "variables/data"]


def test_damage_when_nothing_changed_is_none(tmp_path: Path) -> None:
    assert damage(_sealed(tmp_path / "1")) is None


def test_damage_names_a_changed_file(tmp_path: Path) -> None:
    folder = _sealed(tmp_path / "1")
    (folder / "variables" / "data").write_bytes(b"weightz")
    assert damage(folder) == "variables/data was changed after the build"


def test_damage_names_a_missing_file(tmp_path: Path) -> None:
    folder = _sealed(tmp_path / "1")
    (folder / "model.onnx").unlink()
    assert damage(folder) == "model.onnx is missing"


def test_damage_names_a_foreign_file(tmp_path: Path) -> None:
    folder = _sealed(tmp_path / "1")
    (folder / "other.onnx").write_bytes(b"")
    assert damage(folder) == "other.onnx does not belong there"


def test_damage_when_never_sealed(tmp_path: Path) -> None:
    assert damage(tmp_path) == "SHA256SUMS is missing"


@pytest.mark.parametrize("inputs", [{}, {"builder.py": "ab"}, {**INPUTS, "builder.py": "ff"}])
def test_is_current_when_inputs_differ(tmp_path: Path, inputs: dict[str, str]) -> None:
    folder = _sealed(tmp_path / "1")
    assert is_current(folder, INPUTS)
    assert not is_current(folder, inputs)


def test_is_current_when_the_record_is_not_json(tmp_path: Path) -> None:
    folder = _sealed(tmp_path / "1")
    (folder / RECORD).write_text("{")
    assert not is_current(folder, INPUTS)


def test_publish_replaces_the_whole_folder(tmp_path: Path) -> None:
    folder = _sealed(tmp_path / "repository" / "model" / "1")
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    (work / "new").write_bytes(b"")
    publish(work, folder)
    assert os.listdir(folder) == ["new"]
    assert folder.stat().st_mode & 0o777 == 0o755
    assert os.listdir(tmp_path) == ["repository"]
