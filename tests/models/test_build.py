import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.conftest import MODELS


def test_build_imports_nothing_heavy() -> None:
    heavy = ("tensorflow", "onnx", "onnxruntime", "numpy", "pandas", "sklearn", "PIL")
    code = f"import sys, build; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=MODELS, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_build_when_all_is_built_does_nothing(repository: Path) -> None:
    sums = repository / "tagger" / "1" / "SHA256SUMS"
    before = sums.stat().st_ino
    done = subprocess.run(
        [sys.executable, MODELS / "build.py", "tagger", "price"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "2 of 2 up to date" in done.stdout
    assert sums.stat().st_ino == before


@pytest.mark.parametrize("name", ["tager", "build.py"])
def test_build_when_the_name_is_unknown(name: str) -> None:
    done = subprocess.run(
        [sys.executable, MODELS / "build.py", name], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "tagger_tf" in done.stderr
