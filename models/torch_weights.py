"""Reads the older (not zipped) checkpoint format of PyTorch without PyTorch.

Such a file is a row of pickles (magic number, protocol, system, state dict, storage keys) followed
by each storage as a 64-bit count and raw little-endian numbers. The unpickler here resolves four
names and nothing else, so a file cannot run code.
"""

import pickle
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from sources import BuildError

Array = NDArray[Any]
_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "LongStorage": "<i8"}


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor of the checkpoint: a strided window on a storage."""

    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(
    storage: str, offset: int, shape: Sequence[int], strides: Sequence[int], *_: object
) -> _View:
    return _View(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.dtypes: dict[str, str] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a checkpoint")

    def persistent_load(self, pid: Any) -> str:
        kind, dtype, key = pid[:3]
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown persistent object {kind!r}")
        self.dtypes[key] = dtype
        return str(key)


def read_checkpoint(path: Path) -> dict[str, Array]:
    """All tensors of the state dict in `path`, by name.

    Raises:
        BuildError: the file is not such a checkpoint.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise BuildError(
            f"{path.name} is not a readable PyTorch checkpoint ({error}): "
            "delete models/cache, then run the build again."
        ) from error


def _read(file: BinaryIO) -> dict[str, Array]:
    if _Unpickler(file).load() != _MAGIC:
        raise ValueError("wrong magic number")
    for _ in ("protocol version", "system information"):
        _Unpickler(file).load()
    tensors = _Unpickler(file)
    views: dict[str, _View] = tensors.load()
    storages: dict[str, Array] = {}
    for key in _Unpickler(file).load():
        dtype = np.dtype(tensors.dtypes[key])
        count = int.from_bytes(file.read(8), "little")
        storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
    return {name: _tensor(storages[view.storage], view) for name, view in views.items()}


def _tensor(storage: Array, view: _View) -> Array:
    size = storage.itemsize
    needed = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
    if needed >= storage.size:
        raise ValueError("a tensor reaches beyond its storage")
    strides = [stride * size for stride in view.strides]
    return np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, strides).copy()
