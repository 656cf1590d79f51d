from __future__ import annotations

import math
from dataclasses import replace

import pytest

from loadtests.clients import Course
from loadtests.limits.many_callers import MIB, Crowd, Known, Pair, Slice, slices


@pytest.fixture
def crowd() -> Crowd:
    """A thousand callers of 1 KiB, the last 10 % slower, the known one 30 % slower after them."""

    def known(per_second: int) -> Slice:
        return Slice("known", per_second, 1.0, 5.0, 0)

    return Crowd(
        callers=1000,
        strangers=(Slice("1 to 100", 100, 1.0, 5.0, 0), Slice("101 to 200", 90, 1.0, 6.0, 0)),
        # The last of them met a slow minute on both sides.
        after=(Pair(known(70), known(100)), Pair(known(99), known(100)), Pair(known(7), known(10))),
        quiet=(Pair(known(95), known(100)),),
        moments=(
            Known("before", 100 * MIB, 1),
            Known("after", 100 * MIB + 1024 * 1000, 1001),
            Known("when all could be forgotten", 100 * MIB, 1),
        ),
    )


def test_memory_is_told_by_caller_and_speed_against_the_first(crowd: Crowd) -> None:
    assert (crowd.callers_remembered, crowd.bytes_per_caller) == (1000, 1024)
    assert crowd.slower == pytest.approx(0.1)
    assert crowd.control_slower == pytest.approx(0.3)
    assert crowd.quiet_slower == pytest.approx(0.05)
    lines = crowd.sentences()
    assert lines[0] == "before: 100.0 MiB resident, 1 callers remembered."
    assert lines[3] == "1,024 bytes for each of 1,000 callers."
    assert lines[-1].endswith("missed.")


def test_the_goal_is_met_without_slow_down_and_without_failures(crowd: Crowd) -> None:
    even = replace(crowd, after=crowd.quiet)
    assert even.sentences()[-1].endswith("met.")
    failed = replace(even, strangers=(*crowd.strangers, Slice("strangers", 100, 1.0, 5.0, 1)))
    assert failed.sentences()[-1].startswith("1 requests failed")
    assert failed.sentences()[-1].endswith("missed.")


def test_slices_are_in_the_order_of_time(crowd: Crowd) -> None:
    rates = [100, 90, 70, 100, 99, 100, 7, 10, 95, 100]
    assert [each.per_second for each in crowd.slices] == rates
    forgotten = replace(crowd, moments=(crowd.moments[0],) * 2)
    assert math.isnan(forgotten.bytes_per_caller)


def test_slices_follow_the_order_of_answers_and_the_rest_joins_the_last() -> None:
    ended_s = [number / 10 for number in range(1, 8)]
    sent_s = [0.0, *ended_s[:-1]]
    course = Course(iter(()), b"", sent_s, ended_s, [False] * 6 + [True])
    first, second = slices("strangers", course, 3)
    assert (first.name, first.requests, first.failures) == ("strangers 1 to 3", 3, 0)
    assert (second.name, second.requests, second.failures) == ("strangers 4 to 7", 4, 1)
    assert first.per_second == pytest.approx(10)
    assert second.per_second == pytest.approx(10)
    assert second.p99_ms == pytest.approx(100)


def test_nothing_sent_is_one_empty_slice() -> None:
    [nothing] = slices("strangers", Course(iter(()), b""), 10)
    assert nothing.requests == 0 and math.isnan(nothing.per_second)
