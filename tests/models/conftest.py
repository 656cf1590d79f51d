"""The build scripts import one another by their plain names, as they do when run by path."""

import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parents[2] / "models"
sys.path.insert(0, str(MODELS))


@pytest.fixture
def pictures() -> Path:
    """The folder with the real pictures."""
    return _built(MODELS / "cache" / "pictures")


@pytest.fixture
def repository() -> Path:
    """The folder with the built models."""
    return _built(MODELS / "repository")


def _built(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.fail(f"{folder.name} is not built: run `python models/build.py` first.")
    return folder
