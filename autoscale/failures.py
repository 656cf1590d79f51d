"""Model versions that could not be loaded: why, and when to try again; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from autoscale.ledger import Key

FIRST_BACKOFF_S = 2.0
LONGEST_BACKOFF_S = 60.0


@dataclass(slots=True)
class _Failure:
    reason: str
    count: int
    retry_at_s: float


class Failures:
    """Times are on the clock of the `now_s` that is given."""

    def __init__(self) -> None:
        self._failures: dict[Key, _Failure] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._failures

    def add(self, key: Key, reason: str, now_s: float) -> None:
        """It failed once more."""
        count = self._failures[key].count + 1 if key in self._failures else 1
        self._failures[key] = _Failure(reason, count, now_s + backoff_s(count))

    def forget(self, keys: Iterable[Key]) -> None:
        """They are ready, or there is reason to try them again at once."""
        for key in list(keys):
            self._failures.pop(key, None)

    def forget_model(self, model: str, version: int | None = None) -> None:
        """Try a model's versions again at once, or that one."""
        self.forget(
            [key for key in self._failures if key.model == model and version in (None, key.version)]
        )

    def reason(self, key: Key) -> str:
        """Why its last try failed; "" if it has not."""
        return self._failures[key].reason if key in self._failures else ""

    def due(self, key: Key, now_s: float) -> bool:
        """Whether it may be tried again by now."""
        return key not in self._failures or self._failures[key].retry_at_s <= now_s

    def retry_at(self) -> dict[Key, float]:
        """When each may be tried again."""
        return {key: failure.retry_at_s for key, failure in self._failures.items()}


def backoff_s(failures: int) -> float:
    """Seconds to wait after the n-th failure in a row: 2, doubling up to 60; 0 without one."""
    if failures <= 0:
        return 0.0
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 10))
