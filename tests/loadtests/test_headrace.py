from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.headrace import Running, copy_version


def test_a_peer_has_no_admin_listener() -> None:
    with pytest.raises(ValueError, match="no admin listener"):
        _ = Running("http://127.0.0.1:1").admin


def test_a_new_version_is_a_whole_copy_and_leaves_nothing_hidden(tmp_path: Path) -> None:
    old = tmp_path / "tagger" / "1"
    old.mkdir(parents=True)
    (old / "model.onnx").write_bytes(b"weights")
    copy_version(tmp_path, "tagger", 1, 2)
    assert (tmp_path / "tagger" / "2" / "model.onnx").read_bytes() == b"weights"
    assert sorted(path.name for path in (tmp_path / "tagger").iterdir()) == ["1", "2"]
