"""The interface of runtimes, `onnx_runtime` and `tensorflow_runtime`, and their error texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol

from headrace.spec import ModelSpec, Tensor


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """What a slot has of the machine, and the model's own limits.

    `device` is `cpu` or `cuda`; `cores` are its processor cores (threads of one run);
    `max_rows` becomes `ModelSpec.max_rows` when the model's rows can be batched.
    """

    cores: float = 1.0
    device: str = "cpu"
    max_rows: int = 32


class Runtime(Protocol):
    """A loaded model version. One thread at a time calls `run`, which blocks and frees the GIL."""

    @property
    def single_threaded(self) -> bool:
        """Whether a run uses only the thread that calls it."""

    @property
    def spec(self) -> ModelSpec:
        """Names, dtypes and shapes."""

    def run(
        self,
        signature: str,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        more: bool = False,
    ) -> dict[str, Tensor]:
        """Compute the named outputs; raises `InvalidArgument` for inputs that the model refuses.

        With `more` a run of the same size follows at once: its memory may be kept.
        """

    def close(self) -> None:
        """Free the model's memory; nothing may run afterwards."""


_LONGEST = 2000
"""Characters of a text that are searched; shown texts are much shorter."""
_SOURCE = re.compile(r"[\w./\-]*\w\.(?:cc|cpp|cu|h|hpp|py):\d+:?\s*")
# A scheme, or a slash that does not follow a word, as it does in `and/or` and in names of nodes.
_FOLDERS = re.compile(
    r"""(?:\b[A-Za-z][\w+.\-]*://|(?<![\w.)\]}*\-])~?/(?=[\w./\-]))(?:[^\s'"`()\[\]<>,;]*/)?"""
)


def said_by(error: Exception) -> str:
    """An error's text; of an `OSError`'s file only the last name."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {PurePath(str(error.filename)).name!r}"
    return str(error)


def without_places(text: str, folder: Path | None = None) -> str:
    """The text in one line: of files the last name, and no positions in a source.

    Files below `folder` are named as they lie in it.
    """
    if folder is not None:
        text = text.replace(f"{folder}/", "").replace(str(folder), folder.name)
    line = " ".join(text.split())[:_LONGEST]
    return _FOLDERS.sub("", _SOURCE.sub("", line)).strip()
