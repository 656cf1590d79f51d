"""Sums over slots that only grow, whatever dies."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autoscale.statistics import GONE_KEPT, StatisticsBook
from headrace.protocols.metadata import blank
from replicas.statistics import ModelStatistics


def report(requests: int, model: str = "m", version: int = 1, rows: int = 2) -> dict[str, Any]:
    """What a slot says that has answered so many requests of `rows` rows, each of a second."""
    statistics = ModelStatistics(clock=lambda: float(requests))
    for _ in range(requests):
        run = statistics.ran(rows, 0.125, 0.5)
        statistics.succeeded(run, 1, rows, 1.0, 0.25, 0.125, 0.5, 0.125)
    return {"model": model, "version": version, **statistics.document()}


def counts(book: StatisticsBook) -> dict[tuple[str, int], int]:
    return {
        (each["model"], each["version"]): each["inference_stats"]["success"]["count"]
        for each in book.totals()
    }


def test_totals_add_up_slots() -> None:
    book = StatisticsBook()
    book.take("a", [report(3), report(1, "other", 7)])
    book.take("b", [report(2, rows=2), report(0, version=2)])
    first, second, third = book.totals()
    assert first == report(5) | {"last_inference": 3000}
    assert second == {"model": "m", "version": 2, **blank()}
    assert third == report(1, "other", 7)


def test_batch_sizes_are_added_one_by_one() -> None:
    book = StatisticsBook()
    book.take("a", [report(1, rows=2)])
    book.take("b", [report(2, rows=8)])
    (total,) = book.totals()
    assert [each["batch_size"] for each in total["batch_stats"]] == [2, 8]
    assert [each["compute_infer"]["count"] for each in total["batch_stats"]] == [1, 2]
    assert total["inference_count"] == 18


def test_a_report_replaces_the_slots_last_one() -> None:
    book = StatisticsBook()
    book.take("a", [report(3)])
    book.take("a", [report(4)])
    assert counts(book) == {("m", 1): 4}


def test_what_a_lost_slot_had_counted_stays() -> None:
    book = StatisticsBook()
    book.take("a", [report(3)])
    book.take("b", [report(2)])
    before = book.totals()
    book.lost("a")
    book.lost("unknown")
    assert book.totals() == before
    assert book.retired()["m/1"]["inference_stats"]["success"]["count"] == 3


def test_a_slot_that_comes_back_is_not_counted_twice() -> None:
    book = StatisticsBook()
    book.take("a", [report(3)])
    book.lost("a")
    book.take("a", [report(5)])
    assert counts(book) == {("m", 1): 5}
    book.lost("a")
    assert counts(book) == {("m", 1): 5}


def test_only_the_newest_lost_slots_are_remembered_by_name() -> None:
    book = StatisticsBook()
    for number in range(GONE_KEPT + 5):
        book.take(str(number), [report(1)])
        book.lost(str(number))
    assert counts(book) == {("m", 1): GONE_KEPT + 5}
    assert len(book._gone) == GONE_KEPT


def test_a_version_that_a_slot_forgot_stays_counted() -> None:
    book = StatisticsBook()
    book.take("a", [report(3), report(1, version=2)])
    book.take("a", [report(1, version=2)])
    assert counts(book) == {("m", 1): 3, ("m", 2): 1}
    book.take("a", [report(1), report(1, version=2)])
    assert counts(book) == {("m", 1): 4, ("m", 2): 1}


def test_a_version_that_a_slot_counts_anew_is_added() -> None:
    book = StatisticsBook()
    book.take("a", [report(3)])
    book.take("a", [report(1)])
    assert counts(book) == {("m", 1): 4}


def test_the_next_pool_goes_on_where_the_last_one_was() -> None:
    first, second = StatisticsBook(), StatisticsBook()
    first.take("a", [report(3, model="team/m")])
    first.take("b", [report(2, model="team/m")])
    first.lost("a")
    memory = json.loads(json.dumps(first.retired()))
    second.take("b", [report(2, model="team/m")])
    second.restore(memory)
    second.restore(memory)
    assert second.totals() == first.totals()
    assert second.retired() == first.retired()


def test_an_older_memory_lowers_nothing() -> None:
    book, old = StatisticsBook(), StatisticsBook()
    old.take("a", [report(1)])
    old.lost("a")
    memory = old.retired()
    old.take("b", [report(4)])
    old.lost("b")
    book.restore(old.retired())
    book.restore(memory)
    assert counts(book) == {("m", 1): 5}


STEPS = st.lists(st.tuples(st.sampled_from(["work", "lose", "restart"]), st.sampled_from("abc")))


@given(STEPS)
def test_totals_never_fall(steps: list[tuple[str, str]]) -> None:
    book = StatisticsBook()
    working: dict[str, int] = {}
    lives: Counter[str] = Counter()
    before = 0
    for what, slot in steps:
        if what == "work":
            working[slot] = working.get(slot, 0) + 1
            book.take(f"{slot}-{lives[slot]}", [report(working[slot])])
        elif what == "lose":
            book.lost(f"{slot}-{lives[slot]}")
            working.pop(slot, None)
            lives[slot] += 1
        else:
            old, book = book, StatisticsBook()
            for name, requests in working.items():
                book.take(f"{name}-{lives[name]}", [report(requests)])
            book.restore(old.retired())
        after = sum(counts(book).values())
        assert after == before + (what == "work")
        before = after
