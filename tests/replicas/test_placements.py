from __future__ import annotations

import pytest

from headrace.errors import HeadraceError, InternalError, ModelLoadError
from replicas.placements import refuses_files
from replicas.repository import Interrupted, StoreAway


def not_installed() -> ModelLoadError:
    try:
        raise ModelLoadError("the runtime is not installed here") from ImportError("onnxruntime")
    except ModelLoadError as error:
        return error


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (ModelLoadError("model.onnx is truncated"), True),
        (ModelLoadError("model.onnx does not match SHA256SUMS"), True),
        (ModelLoadError("Failed to allocate memory for requested buffer"), False),
        (ModelLoadError("CUDA failure 2: out of memory"), False),
        (StoreAway("the store cannot be read"), False),
        (Interrupted("it changed while it was downloaded"), False),
        (InternalError("the warm-up failed"), False),
        (not_installed(), False),
    ],
)
def test_only_the_files_own_faults_count_against_them(error: HeadraceError, refused: bool) -> None:
    assert refuses_files(error) is refused
