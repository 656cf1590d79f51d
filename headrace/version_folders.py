"""Which folders of a model are versions: those whose names are numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable

_VERSION = re.compile(r"0*(?:0|[1-9][0-9]{0,17})")
"""Zeros in front count for nothing: TensorFlow Serving's own examples have them."""


def is_version(name: str) -> bool:
    """Whether a folder of that name is a version."""
    return _VERSION.fullmatch(name) is not None


def version_folders(names: Iterable[str]) -> dict[int, str]:
    """The names of version folders by their numbers, ascending.

    Of two that mean the same number the shorter one counts: it has fewer zeros in front.
    """
    found: dict[int, str] = {}
    for name in sorted(filter(is_version, names), key=len):
        found.setdefault(int(name), name)
    return dict(sorted(found.items()))
