"""Inference statistics summed over all slots, by model version; they only grow.

A slot counts from zero when its process starts. The counts of slots that died are kept here, and by
the gateways for the next pool; counts after a slot's last report are lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from headrace.protocols.metadata import BATCH_PAIRS, PAIRS, SCALARS

GONE_KEPT = 64
"""Lost slots whose counts can be taken back, as only the link may have broken."""

Version = tuple[str, int]
ModelCounts = Mapping[str, Any]
Counts = dict[tuple[str | int, ...], int]
"""Numbers of a document by their path in it, so that documents can be added."""

LAST = ("last_inference",)


class StatisticsBook:
    """Counts of live and lost slots; those of `_gone` slots are part of `_retired`."""

    def __init__(self) -> None:
        self._slots: dict[str, dict[Version, ModelCounts]] = {}
        self._gone: dict[str, dict[Version, ModelCounts]] = {}
        self._retired: dict[Version, Counts] = {}

    def take(self, slot_id: str, statistics: Iterable[ModelCounts]) -> None:
        """Replace a slot's last report; it may have forgotten versions since."""
        old = self._slots.get(slot_id, {})
        if slot_id in self._gone:
            old = self._gone.pop(slot_id)
            for version, document in old.items():
                _subtract(self._retired[version], document)
        new = {(each["model"], each["version"]): each for each in statistics}
        for version, document in old.items():
            if version not in new or _restarted(document, new[version]):
                self._retire(version, document)
        self._slots[slot_id] = new

    def lost(self, slot_id: str) -> None:
        """Keep the counts of a slot that is gone."""
        documents = self._slots.pop(slot_id, None)
        if documents is None:
            return
        for version, document in documents.items():
            self._retire(version, document)
        self._gone[slot_id] = documents
        while len(self._gone) > GONE_KEPT:
            del self._gone[next(iter(self._gone))]

    def retired(self) -> dict[str, Any]:
        """Counts of lost slots for the next pool: documents by `model/version`."""
        return {
            f"{model}/{version}": _document(counts)
            for (model, version), counts in sorted(self._retired.items())
        }

    def restore(self, retired: Mapping[str, ModelCounts]) -> None:
        """Take over `retired` of an earlier pool; repeating it changes nothing."""
        for key, document in retired.items():
            model, _, version = key.rpartition("/")
            mine = self._retired.setdefault((model, int(version)), {})
            for path, number in _numbers(document):
                mine[path] = max(mine.get(path, 0), number)

    def totals(self) -> list[dict[str, Any]]:
        """One document with `model` and `version` for each that was ever reported."""
        sums = {version: dict(counts) for version, counts in self._retired.items()}
        for documents in self._slots.values():
            for version, document in documents.items():
                _add(sums.setdefault(version, {}), document)
        return [
            {"model": model, "version": version, **_document(counts)}
            for (model, version), counts in sorted(sums.items())
        ]

    def _retire(self, version: Version, document: ModelCounts) -> None:
        _add(self._retired.setdefault(version, {}), document)


def _restarted(old: ModelCounts, new: ModelCounts) -> bool:
    """Whether the slot has begun to count a version anew."""
    before, after = dict(_numbers(old)), dict(_numbers(new))
    return any(after.get(path, 0) < number for path, number in before.items() if path != LAST)


def _add(counts: Counts, document: ModelCounts) -> None:
    for path, number in _numbers(document):
        before = counts.get(path, 0)
        counts[path] = max(before, number) if path == LAST else before + number


def _subtract(counts: Counts, document: ModelCounts) -> None:
    for path, number in _numbers(document):
        if path != LAST:
            counts[path] -= number


def _numbers(document: ModelCounts) -> Iterator[tuple[tuple[str | int, ...], int]]:
    for scalar in SCALARS:
        yield (scalar,), document[scalar]
    for name, pair in document["inference_stats"].items():
        yield (name, "count"), pair["count"]
        yield (name, "ns"), pair["ns"]
    for batch in document["batch_stats"]:
        for name in BATCH_PAIRS:
            yield (batch["batch_size"], name, "count"), batch[name]["count"]
            yield (batch["batch_size"], name, "ns"), batch[name]["ns"]


def _document(counts: Counts) -> dict[str, Any]:
    sizes = sorted({path[0] for path, number in counts.items() if len(path) == 3 and number})
    return {
        **{scalar: counts.get((scalar,), 0) for scalar in SCALARS},
        "inference_stats": {name: _pair(counts, name) for name in PAIRS},
        "batch_stats": [
            {"batch_size": rows} | {name: _pair(counts, rows, name) for name in BATCH_PAIRS}
            for rows in sizes
        ],
    }


def _pair(counts: Counts, *path: str | int) -> dict[str, int]:
    return {key: counts.get((*path, key), 0) for key in ("count", "ns")}
