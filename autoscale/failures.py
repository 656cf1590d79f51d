"""Failed loads: reason, time of the next try, and slot class for it; pure.

Most failures may pass, so the load is tried again after ever longer waits. Files that were refused
are tried once more, in another slot if there is one; a version that took too much memory is tried
once more in the largest slot. After that only changed files or config, or an operator's load,
cause another try.
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
"""Tries for files that are refused: the slot, or its copy of them, may be at fault."""

_LASTING = (FailureKind.BROKEN, FailureKind.MEMORY)


@dataclass(frozen=True, slots=True)
class _Failure:
    """Last failure of a version; `lasting` counts failures that waiting cannot heal."""

    reason: str
    count: int
    lasting: int
    at_s: float
    retry_at_s: float
    evidence: Evidence


class Failures:
    """Failures by model version; `slots` are the slot classes."""

    def __init__(self, slots: Mapping[str, SlotClass] | None = None) -> None:
        self._slots = slots or {}
        self._failures: dict[ModelVersion, _Failure] = {}
        self._too_small: dict[tuple[str, int], frozenset[str]] = {}

    def __contains__(self, key: ModelVersion) -> bool:
        return key in self._failures

    def add(
        self, key: ModelVersion, reason: str, now_s: float, evidence: Evidence | None = None
    ) -> None:
        """Note one more failure of a version, and when it may be tried again."""
        found = evidence or Evidence()
        before = self._failures.get(key)
        count = before.count + 1 if before else 1
        lasting = (before.lasting if before else 0) + (found.kind in _LASTING)
        hopeless = found.kind in _LASTING and lasting >= TRIES
        if found.kind is FailureKind.MEMORY and not found.proven:
            version = (key.model, key.version)
            too_small = self._classes_of(version)
            if found.alone:
                larger = largest_above(found.slot_class, self._slots)
                hopeless = larger is None or larger in too_small
            self._too_small[version] = too_small | {found.slot_class}
        retry = found.proven or not hopeless
        retry_at_s = now_s + backoff_s(count) if retry else math.inf
        self._failures[key] = _Failure(reason, count, lasting, now_s, retry_at_s, found)

    def _classes_of(self, version: tuple[str, int]) -> frozenset[str]:
        return self._too_small.get(version, frozenset())

    def class_for(self, model: str, version: int, slot_class: str) -> str:
        """Class for a version whose model belongs in `slot_class`.

        A larger class if the version ran out of memory there, unless it did in the larger one too.
        """
        too_small = self._classes_of((model, version))
        if slot_class not in too_small:
            return slot_class
        larger = largest_above(slot_class, self._slots)
        return slot_class if larger is None or larger in too_small else larger

    def too_small(self) -> dict[tuple[str, int], frozenset[str]]:
        """By (model, version), the classes with too little memory; for `restore`."""
        return dict(self._too_small)

    def restore(self, too_small: Mapping[tuple[str, int], frozenset[str]]) -> None:
        """Take over `too_small` of an earlier pool."""
        self._too_small = {**too_small, **self._too_small}

    def forget(self, keys: Iterable[ModelVersion]) -> None:
        """Drop the failures of versions that are ready; classes that were too small stay so."""
        for key in list(keys):
            self._failures.pop(key, None)

    def renew(self, keys: Iterable[ModelVersion]) -> None:
        """Try these again at once, as if for the first time."""
        for key in list(keys):
            if self._failures.pop(key, None) is not None:
                self._too_small.pop((key.model, key.version), None)

    def forget_model(self, model: str, version: int | None = None) -> None:
        """Try all versions of a model, or one, again at once."""
        self.renew(
            [key for key in self._failures if key.model == model and version in (None, key.version)]
        )

    def reason(self, key: ModelVersion) -> str:
        """Reason of the last failure, "" without one."""
        return self._failures[key].reason if key in self._failures else ""

    def due(self, key: ModelVersion, now_s: float) -> bool:
        """Whether it may be tried now."""
        return key not in self._failures or self._failures[key].retry_at_s <= now_s

    def retry_at(self) -> dict[ModelVersion, float]:
        """Time of each version's next try; infinite: not until something changes."""
        return {key: failure.retry_at_s for key, failure in self._failures.items()}

    def documents(self, now_s: float) -> list[dict[str, Any]]:
        """All failures as JSON for the admin API.

        `retry_in_s` is None if only a change brings another try; otherwise that is made in a slot
        of `next_class`.
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
    """Class with most memory that can hold what `slot_class` can; None if none has more.

    The largest one, since only one more try is made. A class without a limit has most. Classes that
    are turned off or differ in having a GPU do not count.
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
    """Seconds to wait after this many failures in a row: 2, doubling up to 60; 0 without any."""
    if failures <= 0:
        return 0.0
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 10))


NEAR = 0.9
"""Fraction of the memory limit that counts as out of memory: the last sample precedes the peak."""


def autopsy(slot_class: str, state: State, held: int, words: Words | None) -> tuple[str, Evidence]:
    """Sentence and evidence about a slot that died holding `held` placements.

    Without `words` (the slot was on another node, or wrote none) the cause is unknown.
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
