"""What is known of a model version that could not be loaded."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FailureKind(StrEnum):
    """What went wrong; it decides whether another try is worth a slot."""

    BROKEN = "broken"
    """A runtime or a check refused the files: the same files will be refused again."""
    MEMORY = "memory"
    """The slot had no memory left for it."""
    DIED = "died"
    """The slot's process ended while it was loading."""
    OTHER = "other"
    """Anything else, such as a store that was away: it may pass."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found where a load failed; 0 bytes and no exit code mean: not known.

    `alone` says that the slot held nothing else, `proven` that another slot holds the same files,
    READY. `lines` are the last lines of the slot's log.
    """

    kind: FailureKind = FailureKind.OTHER
    slot_class: str = ""
    exit_code: int | None = None
    memory_bytes: int = 0
    limit_bytes: int = 0
    alone: bool = True
    proven: bool = False
    lines: tuple[str, ...] = ()
