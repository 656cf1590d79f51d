"""Statistics of model versions as Triton's extension gives them; all counts only grow.

A *document* is one version's entry without its name: `last_inference` (ms since the epoch),
`inference_count` (rows), `execution_count` (runs), `inference_stats` and `batch_stats`. Each stat
is a pair `{count, ns}` of integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from headrace.snapshot import Snapshot

PAIRS = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)
"""What is counted per request; perf_analyzer reads each unchecked, so none may be missing."""
BATCH_PAIRS = ("compute_input", "compute_infer", "compute_output")
"""What is counted per run, by the rows of the run."""
SCALARS = ("last_inference", "inference_count", "execution_count")


def blank() -> dict[str, Any]:
    """The document of a version that has had no request."""
    return {
        **dict.fromkeys(SCALARS, 0),
        "inference_stats": {name: {"count": 0, "ns": 0} for name in PAIRS},
        "batch_stats": [],
    }


def statistics_document(
    totals: Iterable[Mapping[str, Any]],
    snapshot: Snapshot,
    name: str | None = None,
    version: int | None = None,
) -> dict[str, Any]:
    """The answer to a request for statistics, of all models or of one, ordered by name and version.

    `totals` are documents with `model` and `version`. Served versions without traffic have zeros;
    versions that are no longer served keep what they have counted.
    """
    entries: dict[tuple[str, int], Mapping[str, Any]] = {
        (model.name, view.version): {}
        for model in snapshot.models.values()
        for view in model.versions
        if view.served
    }
    entries |= {(each["model"], each["version"]): each for each in totals}
    return {
        "model_stats": [
            _entry(*key, entries[key])
            for key in sorted(entries)
            if name in (None, key[0]) and version in (None, key[1])
        ]
    }


def _entry(name: str, version: int, counted: Mapping[str, Any]) -> dict[str, Any]:
    empty = blank()
    stats = empty["inference_stats"] | counted.get("inference_stats", {})
    return {
        "name": name,
        "version": str(version),
        **{scalar: counted.get(scalar, 0) for scalar in SCALARS},
        "inference_stats": stats,
        "batch_stats": counted.get("batch_stats", []),
    }
