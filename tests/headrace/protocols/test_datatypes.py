"""Names of dtypes."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.errors import InvalidArgument
from headrace.protocols.datatypes import (
    config_name,
    datatype_name,
    dtype_of,
    supported_name,
    tensorflow_name,
)
from headrace.spec import BFLOAT16, BYTES


@pytest.mark.parametrize(
    ("dtype", "names"),
    [
        (np.dtype(np.bool_), ("BOOL", "DT_BOOL", "TYPE_BOOL")),
        (np.dtype(np.uint8), ("UINT8", "DT_UINT8", "TYPE_UINT8")),
        (np.dtype(np.float16), ("FP16", "DT_HALF", "TYPE_FP16")),
        (np.dtype(np.float64), ("FP64", "DT_DOUBLE", "TYPE_FP64")),
        (BFLOAT16, ("BF16", "DT_BFLOAT16", "TYPE_BF16")),
        (BYTES, ("BYTES", "DT_STRING", "TYPE_STRING")),
    ],
)
def test_names(dtype: np.dtype[np.generic], names: tuple[str, str, str]) -> None:
    assert (datatype_name(dtype), tensorflow_name(dtype), config_name(dtype)) == names
    assert dtype_of(names[0]) == dtype


def test_unknown_names_are_refused() -> None:
    for name in ("float32", None, 5, ["FP32"]):
        with pytest.raises(InvalidArgument, match="unknown datatype"):
            dtype_of(name)
    with pytest.raises(InvalidArgument, match="complex64"):
        supported_name(np.dtype(np.complex64))
