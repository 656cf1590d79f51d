"""Triton's statistics body."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.config.args import ModelConfig
from headrace.protocols.metadata import PAIRS, blank, statistics_document
from headrace.snapshot import ModelView, Snapshot, State, VersionView

SNAPSHOT = Snapshot(
    models={
        "b": ModelView(
            "b",
            ModelConfig(),
            (
                VersionView(1, State.READY, served=False),
                VersionView(9, State.READY),
                VersionView(10, State.READY),
            ),
        ),
        "a": ModelView("a", ModelConfig(), (VersionView(1, State.LOADING),)),
    }
)


def counted(model: str, version: int, requests: int) -> dict[str, Any]:
    document = blank()
    document["inference_count"] = requests
    document["inference_stats"]["success"] = {"count": requests, "ns": 7}
    return {"model": model, "version": version, **document}


def names(body: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["name"], each["version"]) for each in body["model_stats"]]


def test_every_served_version_has_an_entry_in_order() -> None:
    body = statistics_document([], SNAPSHOT)
    assert names(body) == [("a", "1"), ("b", "9"), ("b", "10")]
    for entry in body["model_stats"]:
        assert entry.keys() == {"name", "version", *blank()}
        assert entry["inference_stats"] == {name: {"count": 0, "ns": 0} for name in PAIRS}
        assert entry["batch_stats"] == []


def test_versions_that_are_no_longer_served_keep_their_counts() -> None:
    body = statistics_document([counted("b", 1, 5), counted("old", 3, 2)], SNAPSHOT)
    assert names(body) == [("a", "1"), ("b", "1"), ("b", "9"), ("b", "10"), ("old", "3")]
    assert [each["inference_count"] for each in body["model_stats"]] == [0, 5, 0, 0, 2]
    assert "model" not in body["model_stats"][1]


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("b", None, [("b", "9"), ("b", "10")]),
        ("b", 10, [("b", "10")]),
        ("b", 3, []),
        ("nobody", None, []),
    ],
)
def test_entries_can_be_asked_for_by_name_and_version(
    name: str, version: int | None, expected: list[tuple[str, str]]
) -> None:
    assert names(statistics_document([], SNAPSHOT, name, version)) == expected


def test_a_pair_that_the_totals_lack_is_zero() -> None:
    totals = [{"model": "a", "version": 1, "inference_stats": {"success": {"count": 1, "ns": 2}}}]
    (entry,) = statistics_document(totals, SNAPSHOT, "a")["model_stats"]
    assert set(entry["inference_stats"]) == set(PAIRS)
    assert entry["inference_stats"]["success"] == {"count": 1, "ns": 2}
