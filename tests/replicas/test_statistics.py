"""What one slot process counts of a model version."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocols.metadata import blank
from replicas.statistics import EXACT_ROWS, ModelStatistics


def test_nothing_counted_is_all_zeros() -> None:
    assert ModelStatistics().document() == blank()


def test_seconds_become_nanoseconds_and_milliseconds_of_the_epoch() -> None:
    statistics = ModelStatistics(clock=lambda: 1_700_000_000.1239)
    run = statistics.ran(3, input_s=0.5, infer_s=0.25)
    statistics.succeeded(run, 1, 2, 2.0, 1.0, 0.5, 0.25, 0.125)
    statistics.succeeded(run, 1, 1, 1.0, 0.5, 0.0, 0.25, 0.125)
    statistics.failed(4.0)
    document = statistics.document()
    assert document["last_inference"] == 1_700_000_000_123
    assert (document["inference_count"], document["execution_count"]) == (3, 1)
    assert document["inference_stats"] == {
        "success": {"count": 2, "ns": 3_000_000_000},
        "fail": {"count": 1, "ns": 4_000_000_000},
        "queue": {"count": 2, "ns": 1_500_000_000},
        "compute_input": {"count": 2, "ns": 500_000_000},
        "compute_infer": {"count": 2, "ns": 500_000_000},
        "compute_output": {"count": 2, "ns": 250_000_000},
        "cache_hit": {"count": 0, "ns": 0},
        "cache_miss": {"count": 0, "ns": 0},
    }
    assert document["batch_stats"] == [
        {
            "batch_size": 3,
            "compute_input": {"count": 1, "ns": 500_000_000},
            "compute_infer": {"count": 1, "ns": 250_000_000},
            "compute_output": {"count": 1, "ns": 250_000_000},
        }
    ]
    assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize(
    ("rows", "counted"), [(0, 0), (1, 1), (128, 128), (129, 256), (256, 256), (100_000, 131_072)]
)
def test_large_batch_sizes_share_an_entry(rows: int, counted: int) -> None:
    statistics = ModelStatistics()
    statistics.ran(rows, 0.0, 0.0)
    assert [each["batch_size"] for each in statistics.document()["batch_stats"]] == [counted]


@given(st.lists(st.integers(0, 2**40)))
def test_the_number_of_batch_sizes_is_bounded(sizes: list[int]) -> None:
    statistics = ModelStatistics()
    for rows in sizes:
        statistics.ran(rows, 0.0, 0.0)
    document = statistics.document()
    assert len(document["batch_stats"]) <= EXACT_ROWS + 1 + 40
    assert document["execution_count"] == len(sizes)
