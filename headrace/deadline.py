"""A point in time by which a request must be answered."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from headrace.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at_s` is on the clock of `time.monotonic()` of this process; infinity means none.

    Across processes only the remaining seconds travel, because monotonic clocks are not shared.
    """

    at_s: float

    @classmethod
    def after(cls, timeout_s: float, now_s: float | None = None) -> Deadline:
        """A deadline `timeout_s` seconds from now."""
        return cls((time.monotonic() if now_s is None else now_s) + timeout_s)

    def passed(self, now_s: float | None = None) -> bool:
        """True once the time is over."""
        return (time.monotonic() if now_s is None else now_s) >= self.at_s


def parse_timeout_s(text: str) -> float:
    """Seconds from a header's text; raises `InvalidArgument` unless it is a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise InvalidArgument(f"time-out must be a positive number of seconds, not {text[:40]!r}")
    return value
