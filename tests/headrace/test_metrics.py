from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.metrics import (
    BATCH_ROWS,
    FAMILIES,
    IN_FLIGHT,
    LINK_LOST,
    MAX_SERIES,
    OTHER,
    QUEUE_LENGTH,
    REQUEST_PHASES,
    REQUEST_SECONDS,
    REQUESTS,
    RETRIES,
    SECONDS_BOUNDS,
    SLOT_STATES,
    STAGE_SECONDS,
    Recorder,
    Series,
    quantile,
)


def test_a_request_is_counted_and_timed_by_phase() -> None:
    recorder = Recorder("gateway")
    phases = (0.0001, 0.0002, 0.0, 0.002, 0.0)
    recorder.request(("digits", 2, "rest", 200, "free", 0.003, phases))
    recorder.request(("digits", 2, "rest", 503, "free", 0.003, None))
    samples = recorder.snapshot().samples
    assert samples[REQUESTS.name] == {
        ("digits", 2, "rest", 200, "free"): (1,),
        ("digits", 2, "rest", 503, "free"): (1,),
    }
    numbers = samples[REQUEST_SECONDS.name]["digits", 2, "rest"]
    assert numbers[SECONDS_BOUNDS.index(0.005)] == 2
    assert (sum(numbers[:-1]), numbers[-1]) == (2, 0.006)
    by_phase = samples[STAGE_SECONDS.name]
    assert set(by_phase) == {("digits", 2, stage) for stage in REQUEST_PHASES}
    assert by_phase["digits", 2, "compute"][SECONDS_BOUNDS.index(0.002)] == 1
    assert by_phase["digits", 2, "link"][-1] == 0.0002


def test_answers_are_counted_together_and_none_is_lost_between_threads() -> None:
    recorder = Recorder("gateway")
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            recorder.snapshot()

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(20_000):
        recorder.request(("m", number % 3, "rest", 200, "free", 0.001, (0.0,) * 5))
    stop.set()
    for thread in threads:
        thread.join()
    samples = recorder.snapshot().samples
    assert sum(count for (count,) in samples[REQUESTS.name].values()) == 20_000
    assert sum(sum(each[:-1]) for each in samples[STAGE_SECONDS.name].values()) == 100_000


def test_a_value_on_an_edge_counts_below_it_and_a_huge_one_above_all() -> None:
    series = Series(BATCH_ROWS)
    series.observe(("m", 1), 32)
    series.observe(("m", 1), 1e9)
    counts = series.values()["m", 1][:-1]
    assert counts[BATCH_ROWS.bounds.index(32.0)] == 1
    assert counts[-1] == 1
    assert len(counts) == len(BATCH_ROWS.bounds) + 1


def test_a_snapshot_does_not_change() -> None:
    recorder = Recorder("gateway")
    recorder.retry("m")
    before = recorder.snapshot()
    recorder.retry("m")
    assert before.samples[RETRIES.name] == {("m",): (1,)}
    assert recorder.snapshot().samples[RETRIES.name] == {("m",): (2,)}


def test_gauges_are_replaced_and_forget_models_that_left() -> None:
    recorder = Recorder("gateway")
    recorder.gauges({"m": 3, "gone": 1}, {"gone": 4})
    recorder.gauges({"m": 1}, {"m": 2})
    samples = recorder.snapshot().samples
    assert samples[IN_FLIGHT.name] == {("m",): (1,)}
    assert samples[QUEUE_LENGTH.name] == {("m",): (2,)}


def test_slot_states_are_replaced_as_a_whole() -> None:
    recorder = Recorder("pool")
    recorder.slot_states({("m", 1, "LOADING"): 1})
    recorder.slot_states({("m", 1, "READY"): 1})
    assert recorder.snapshot().samples[SLOT_STATES.name] == {("m", 1, "READY"): (1,)}


def test_every_recording_ends_in_its_family() -> None:
    recorder = Recorder("slot")
    recorder.request(("m", 1, "rest", 200, "free", 0.1, (0.0,) * 5))
    recorder.batch("m", 1, 7)
    recorder.gauges({"m": 1}, {"m": 2})
    recorder.retry("m")
    recorder.cancellation("m")
    recorder.link_lost()
    recorder.model_load("m", 1, 0.5)
    recorder.slot_states({("m", 1, "READY"): 1})
    recorder.resident_bytes(1)
    recorder.tasks(1)
    recorder.refusal("anonymous", "rate")
    recorder.budgets(callers=1, store_up=True, held_bytes=1, audit_dropped=1)
    recorder.cold_start("m", 0.2)
    recorder.pool({("cpu", "live"): 3}, {("m", "held"): 1}, {"cpu": 0.5})
    recorder.preemption("train")
    samples = recorder.snapshot().samples
    assert [name for name in FAMILIES if not samples[name]] == []
    assert samples[LINK_LOST.name] == {(): (1,)}


def test_label_sets_are_bounded() -> None:
    series = Series(RETRIES)
    for number in range(MAX_SERIES + 5):
        series.add((f"m{number}",))
    values = series.values()
    assert len(values) == MAX_SERIES + 1
    assert values[OTHER,] == (5,)


def test_wrong_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="headrace_retries_total takes labels"):
        Series(RETRIES).add(("m", 1))


def test_quantiles_of_a_model_join_its_versions_and_protocols() -> None:
    recorder = Recorder("gateway")
    for _ in range(99):
        recorder.request(("m", 1, "rest", 200, "free", 0.0015, None))
    recorder.request(("m", 2, "grpc", 200, "free", 4.0, None))
    recorder.request(("other", 1, "rest", 200, "free", 50.0, None))
    statistics = recorder.snapshot()
    assert statistics.quantile("m", 0.5) == pytest.approx(0.0015, rel=0.02)
    assert 2.0 < (statistics.quantile("m", 0.999) or 0) <= 5.0
    assert statistics.quantile("nobody", 0.5) is None


def test_quantile_above_the_last_bound_is_that_bound() -> None:
    assert quantile((1.0, 2.0), [0, 0, 4], 0.5) == 2.0


@given(st.lists(st.floats(1e-5, 59), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_quantile_lies_in_the_bucket_of_the_exact_one(values: list[float], q: float) -> None:
    series = Series(REQUEST_SECONDS)
    for value in values:
        series.observe(("m", 1, "rest"), value)
    estimate = quantile(SECONDS_BOUNDS, series.values()["m", 1, "rest"][:-1], q)
    assert estimate is not None
    rank = max(1, next(n for n in range(len(values) + 1) if n >= q * len(values)))
    exact = sorted(values)[rank - 1]
    upper = next(bound for bound in SECONDS_BOUNDS if bound >= exact)
    lower = max((bound for bound in SECONDS_BOUNDS if bound < exact), default=0.0)
    assert lower - 1e-9 <= estimate <= upper + 1e-9
