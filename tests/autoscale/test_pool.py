from __future__ import annotations

from pathlib import Path

from autoscale.pool import next_epoch, subject


def test_epochs_rise_even_when_the_clock_was_set_back(tmp_path: Path) -> None:
    file = tmp_path / "pool.epoch"
    assert next_epoch(file, 1000) == (1000, True)
    assert next_epoch(file, 5000) == (5000, False)
    assert next_epoch(file, 10) == (5001, False)
    file.write_text("not a number")
    assert next_epoch(file, 7) == (7, True)


def test_the_log_names_a_model_as_a_model_and_a_key_as_a_key() -> None:
    assert subject("load", {"name": "digits", "config": None}) == {"model": "digits"}
    assert subject("create_key", {"name": "alice", "tier": "free"}) == {"key": "alice"}
    text = {"key": "hr_a-whole-key-by-mistake"}
    assert subject("revoke_key", text) == subject("rotate_key", text) == {"key": ""}
