"""The runtimes, and what tells a model version and its runtime in a store.

A store is `<model>/<version>/…`: a folder whose name is a number is a version, and the name of the
model's file is the runtime's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

RuntimeName = Literal["onnx", "tensorflow"]


@dataclass(frozen=True, slots=True)
class RuntimeKind:
    """A runtime. `extra` is Headrace's extra that installs `library`, by one of the `packages`.

    `file` is the model's file in a version folder, `module` has `load`, `slot_class` is the default
    of its models. `platform` and `backend` are Triton's names.
    """

    file: str
    module: str
    library: str
    packages: tuple[str, ...]
    extra: str
    slot_class: str
    platform: str
    backend: str


RUNTIMES: Mapping[RuntimeName, RuntimeKind] = {
    "onnx": RuntimeKind(
        file="model.onnx",
        module="replicas.onnx_runtime",
        library="onnxruntime",
        packages=("onnxruntime", "onnxruntime-gpu"),
        extra="cpu",
        slot_class="cpu",
        platform="onnxruntime_onnx",
        backend="onnxruntime",
    ),
    "tensorflow": RuntimeKind(
        file="saved_model.pb",
        module="replicas.tensorflow_runtime",
        library="tensorflow",
        packages=("tensorflow", "tensorflow-cpu"),
        extra="tensorflow",
        slot_class="tensorflow",
        platform="tensorflow_savedmodel",
        backend="tensorflow",
    ),
}
ONNX, TENSORFLOW = RUNTIMES["onnx"], RUNTIMES["tensorflow"]
MODEL_FILES = ", ".join(kind.file for kind in RUNTIMES.values())
"""The names of models' files, as messages list them."""

_BY_PLATFORM = {kind.platform: kind for kind in RUNTIMES.values()}
_VERSION = re.compile(r"0*(?:0|[1-9][0-9]{0,17})")
"""Leading zeros are allowed: TensorFlow Serving's own examples have them."""


def runtime_of(platform: str) -> RuntimeKind | None:
    return _BY_PLATFORM.get(platform)


def is_version_folder(name: str) -> bool:
    return _VERSION.fullmatch(name) is not None


def version_folders(names: Iterable[str]) -> dict[int, str]:
    """Names of version folders by their numbers, ascending.

    Of two names of one number the shorter one counts: it has fewer leading zeros.
    """
    found: dict[int, str] = {}
    for name in sorted(filter(is_version_folder, names), key=len):
        found.setdefault(int(name), name)
    return dict(sorted(found.items()))
