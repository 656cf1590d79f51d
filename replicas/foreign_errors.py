"""What a foreign library said when it failed, fit for callers: it shows no place of a file."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

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
