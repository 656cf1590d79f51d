"""Header lines as one value for each name."""

from __future__ import annotations

from collections.abc import Sequence


def combined(lines: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name; lines of the same name become one list, in their order (RFC 9110, 5.3).

    So nothing that a proxy added is lost, and two different credentials are no credential.
    """
    found = dict(lines)
    if len(found) == len(lines):
        return found
    found.clear()
    for name, value in lines:
        found[name] = found[name] + b", " + value if name in found else value
    return found
