"""What a model runtime is; `onnx_runtime` and `tensorflow_runtime` are the two we have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol

from headrace.spec import ModelSpec, Tensor


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """A slot's share of the machine and the model's own limits.

    `device` is `cpu` or `cuda`; `cores` is the share of processor cores (threads of one run);
    `max_rows` becomes `ModelSpec.max_rows` when the model's rows can be batched.
    """

    cores: float = 1.0
    device: str = "cpu"
    max_rows: int = 32


class Runtime(Protocol):
    """A loaded model version. `run` is called by one thread at a time; it blocks, frees the GIL."""

    @property
    def single_threaded(self) -> bool:
        """Whether a run works in the thread that calls it alone, and waits for nothing else."""
        ...

    @property
    def spec(self) -> ModelSpec:
        """Names, dtypes and shapes."""
        ...

    def run(
        self,
        signature: str,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        more: bool = False,
    ) -> dict[str, Tensor]:
        """Compute the named outputs; raises `InvalidArgument` for what the model refuses.

        With `more` the next run is as large and comes at once: memory may be kept for it.
        """
        ...

    def close(self) -> None:
        """Free the model's memory; nothing may run afterwards."""
        ...


_LONGEST = 2000
"""Characters that are looked at; what is shown is much shorter."""
_SOURCE = re.compile(r"[\w./\-]*\w\.(?:cc|cpp|cu|h|hpp|py):\d+:?\s*")
# A scheme, or a slash that does not follow a word, as it does in `and/or` and in names of nodes.
_FOLDERS = re.compile(
    r"""(?:\b[A-Za-z][\w+.\-]*://|(?<![\w.)\]}*\-])~?/(?=[\w./\-]))(?:[^\s'"`()\[\]<>,;]*/)?"""
)


def said_by(error: Exception) -> str:
    """What an error says, with the last name alone of the file that an `OSError` is about."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {PurePath(str(error.filename)).name!r}"
    return str(error)


def without_places(text: str, folder: Path | None = None) -> str:
    """The text in one line, with files by their last names and without positions in a source.

    Files below `folder` are named as they lie in it.
    """
    if folder is not None:
        text = text.replace(f"{folder}/", "").replace(str(folder), folder.name)
    line = " ".join(text.split())[:_LONGEST]
    return _FOLDERS.sub("", _SOURCE.sub("", line)).strip()
