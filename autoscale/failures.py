"""Model versions that could not be loaded: why, when to try again, and in slots of which class.

Pure. Most failures may pass, so they are tried again after ever longer waits. Files that were
refused are tried once more, in another slot where there is one, and what took more memory than its
slot may have once in the largest slot; after that only a change of files or config, or an
operator's order, brings another try.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.config.args import SlotClass
from headrace.snapshot import Evidence, FailureKind, ModelVersion, State
from replicas.last_words import EXIT_CODE, Words

FIRST_BACKOFF_S = 2.0
LONGEST_BACKOFF_S = 60.0
TRIES = 2
"""So often are files tried that are refused: a slot, or its copy of them, may be at fault too."""

_LASTING = (FailureKind.BROKEN, FailureKind.MEMORY)


@dataclass(frozen=True, slots=True)
class _Failure:
    """`lasting` counts the failures of a kind that waiting does not heal."""

    reason: str
    count: int
    lasting: int
    at_s: float
    retry_at_s: float
    evidence: Evidence


class Failures:
    """Times are on the clock of the `now_s` that is given; `slots` are the classes there are."""

    def __init__(self, slots: Mapping[str, SlotClass] | None = None) -> None:
        self._slots = slots or {}
        self._failures: dict[ModelVersion, _Failure] = {}
        self._too_small: dict[tuple[str, int], frozenset[str]] = {}

    def __contains__(self, key: ModelVersion) -> bool:
        return key in self._failures

    def add(
        self, key: ModelVersion, reason: str, now_s: float, evidence: Evidence | None = None
    ) -> None:
        """It failed once more."""
        found = evidence or Evidence()
        before = self._failures.get(key)
        count = before.count + 1 if before else 1
        lasting = (before.lasting if before else 0) + (found.kind in _LASTING)
        hopeless = not found.proven and self._hopeless(key, found, lasting)
        if found.kind is FailureKind.MEMORY and not found.proven:
            version = (key.model, key.version)
            self._too_small[version] = self._classes_of(version) | {found.slot_class}
        retry_at_s = math.inf if hopeless else now_s + backoff_s(count)
        self._failures[key] = _Failure(reason, count, lasting, now_s, retry_at_s, found)

    def _hopeless(self, key: ModelVersion, found: Evidence, lasting: int) -> bool:
        if found.kind is FailureKind.MEMORY and found.alone:
            larger = largest_above(found.slot_class, self._slots)
            return larger is None or larger in self._classes_of((key.model, key.version))
        return found.kind in _LASTING and lasting >= TRIES

    def _classes_of(self, version: tuple[str, int]) -> frozenset[str]:
        return self._too_small.get(version, frozenset())

    def class_for(self, model: str, version: int, slot_class: str) -> str:
        """The class that should hold a version whose model belongs into `slot_class`.

        A larger one once it has run out of memory there; not that either, once it failed in both.
        """
        too_small = self._classes_of((model, version))
        if slot_class not in too_small:
            return slot_class
        larger = largest_above(slot_class, self._slots)
        return slot_class if larger is None or larger in too_small else larger

    def too_small(self) -> dict[tuple[str, int], frozenset[str]]:
        """By (model, version), the classes whose memory was not enough; for `restore`."""
        return dict(self._too_small)

    def restore(self, too_small: Mapping[tuple[str, int], frozenset[str]]) -> None:
        """Take over what an earlier pool has learned."""
        self._too_small = {**too_small, **self._too_small}

    def forget(self, keys: Iterable[ModelVersion]) -> None:
        """They are ready: a class that was too small stays so."""
        for key in list(keys):
            self._failures.pop(key, None)

    def renew(self, keys: Iterable[ModelVersion]) -> None:
        """There is reason to try those that failed again at once, as if for the first time."""
        for key in list(keys):
            if self._failures.pop(key, None) is not None:
                self._too_small.pop((key.model, key.version), None)

    def forget_model(self, model: str, version: int | None = None) -> None:
        """Try a model's versions again at once, or that one."""
        self.renew(
            [key for key in self._failures if key.model == model and version in (None, key.version)]
        )

    def reason(self, key: ModelVersion) -> str:
        """Why its last try failed; "" if it has not."""
        return self._failures[key].reason if key in self._failures else ""

    def due(self, key: ModelVersion, now_s: float) -> bool:
        """Whether it may be tried again by now."""
        return key not in self._failures or self._failures[key].retry_at_s <= now_s

    def retry_at(self) -> dict[ModelVersion, float]:
        """When each may be tried again; infinite: not until something changes."""
        return {key: failure.retry_at_s for key, failure in self._failures.items()}

    def documents(self, now_s: float) -> list[dict[str, Any]]:
        """All that is known, as the admin API tells it.

        `retry_in_s` is None where nothing but a change brings another try, else `next_class` is
        the slot class of that.
        """
        return [self._document(key, failure, now_s) for key, failure in self._failures.items()]

    def _document(self, key: ModelVersion, failure: _Failure, now_s: float) -> dict[str, Any]:
        found, final = failure.evidence, math.isinf(failure.retry_at_s)
        return {
            "model": key.model,
            "version": key.version,
            "reason": failure.reason,
            "kind": found.kind,
            "count": failure.count,
            "ago_s": round(now_s - failure.at_s, 1),
            "retry_in_s": None if final else round(max(0.0, failure.retry_at_s - now_s), 1),
            "slot_class": found.slot_class,
            "next_class": None if final else self.class_for(*key[:2], found.slot_class),
            "exit_code": found.exit_code,
            "memory_bytes": found.memory_bytes,
            "limit_bytes": found.limit_bytes,
            "lines": list(found.lines),
        }


def largest_above(slot_class: str, slots: Mapping[str, SlotClass]) -> str | None:
    """The class with most memory that can hold what `slot_class` can, None if none has more.

    There is only one more try, so it is made where it has the best chance. A class without a limit
    has most. A class that is turned off, or whose slots have a GPU where these have none or the
    other way round, does not count.
    """
    current = slots.get(slot_class)
    if current is None or current.memory is None:
        return None
    larger = [
        (each.memory or math.inf, name)
        for name, each in slots.items()
        if each.max > 0
        and (each.memory or math.inf) > current.memory
        and set(current.preload) <= set(each.preload)
        and (each.gpus > 0) == (current.gpus > 0)
    ]
    return max(larger)[1] if larger else None


def backoff_s(failures: int) -> float:
    """Seconds to wait after the n-th failure in a row: 2, doubling up to 60; 0 without one."""
    if failures <= 0:
        return 0.0
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 10))


NEAR = 0.9
"""Memory is sampled: the last sample of a slot that ran out of it is somewhat below the limit."""


def autopsy(slot_class: str, state: State, held: int, words: Words | None) -> tuple[str, Evidence]:
    """One sentence, and what it rests on. `held` counts what the slot held, this one included.

    Without `words` (the slot was on another node, or never wrote any) nothing is known.
    """
    begin = f"the slot died while it was {state.lower()}"
    if words is None:
        return begin, Evidence(FailureKind.DIED, slot_class, alone=held <= 1)
    memory, limit = words.memory_bytes, words.limit_bytes
    kind, text = FailureKind.DIED, begin
    if words.exit_code == EXIT_CODE:
        kind = FailureKind.MEMORY
        text = f"the slot was ended while it was {state.lower()}: it took {_of(memory, limit)}"
    elif limit and memory >= NEAR * limit:
        kind, text = FailureKind.MEMORY, f"{begin}: it took {_of(memory, limit)}"
    alone = max(held, words.held) <= 1
    return text, Evidence(
        kind, slot_class, words.exit_code, memory, limit, alone=alone, lines=words.lines
    )


def _of(memory_bytes: int, limit_bytes: int) -> str:
    return f"{memory_bytes / 2**20:.0f} MB of memory, its limit is {limit_bytes / 2**20:.0f} MB"
