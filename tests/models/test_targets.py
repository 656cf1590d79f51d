import json
from dataclasses import replace
from pathlib import Path

import pytest
from catalog import Job, Target
from sources import BuildError
from targets import is_built, make, write_beside

TARGET = Target("toy", "1", ("toy.py",), (), "A toy.")
DEPENDENT = Target("leaf", None, ("toy.py",), (), "Needs a root.", needs=("root",))
ROOT = Target("root", None, ("toy.py",), (), "A root.")


def _base(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text("version = 1\n")
    return tmp_path


def _build(job: Job) -> None:
    job.say("writing the toy")
    (job.folder / "model.onnx").write_bytes(b"toy")
    (job.folder / "metrics.json").write_text(json.dumps({"accuracy": 0.5}))


def _ignore(finished: int, now: str) -> None:
    """A report that nobody reads."""


def test_make_puts_a_sealed_folder_in_place(tmp_path: Path) -> None:
    base = _base(tmp_path)
    said: list[tuple[int, str]] = []
    make(TARGET, base, lambda finished, now: said.append((finished, now)), _build)
    assert (base / "repository/toy/1/model.onnx").read_bytes() == b"toy"
    assert is_built(TARGET, base)
    assert (1, "writing the toy") in said
    assert said[-1] == (3, "done")


def test_is_built_when_the_builder_changed(tmp_path: Path) -> None:
    base = _base(tmp_path)
    make(TARGET, base, _ignore, _build)
    (base / "toy.py").write_text("version = 2\n")
    assert not is_built(TARGET, base)


def test_is_built_when_an_output_was_damaged(tmp_path: Path) -> None:
    base = _base(tmp_path)
    make(TARGET, base, _ignore, _build)
    (base / "repository/toy/1/model.onnx").write_bytes(b"t")
    assert not is_built(TARGET, base)


def test_make_when_the_builder_fails_leaves_the_old_version(tmp_path: Path) -> None:
    base = _base(tmp_path)
    make(TARGET, base, _ignore, _build)

    def fail(job: Job) -> None:
        (job.folder / "model.onnx").write_bytes(b"half")
        raise BuildError("no weights")

    with pytest.raises(BuildError, match="no weights"):
        make(TARGET, base, _ignore, fail)
    assert (base / "repository/toy/1/model.onnx").read_bytes() == b"toy"
    assert list((base / "cache/work").iterdir()) == []


def test_is_built_when_what_it_needs_was_built_anew(tmp_path: Path) -> None:
    base = _base(tmp_path)
    make(ROOT, base, _ignore, _build)
    make(DEPENDENT, base, _ignore, _build)
    assert is_built(DEPENDENT, base)
    (base / "cache" / "root" / "SHA256SUMS").write_text("0  other\n")
    assert not is_built(DEPENDENT, base)


def test_write_beside_states_what_was_measured(tmp_path: Path) -> None:
    base = _base(tmp_path)
    make(TARGET, base, _ignore, _build)
    write_beside([replace(TARGET, config='name: "toy"'), ROOT], base)
    assert "- accuracy: 0.5" in (base / "repository/toy/README.md").read_text()
    assert (base / "repository/toy/config.pbtxt").read_text() == 'name: "toy"'
    assert not (base / "repository/root").exists()
