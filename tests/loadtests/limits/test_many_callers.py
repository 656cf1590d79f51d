from __future__ import annotations

import math
from dataclasses import replace

import pytest

from loadtests.clients import Course
from loadtests.limits.many_callers import Crowd, Known, Slice, slices
from loadtests.report import MIB


@pytest.fixture
def crowd() -> Crowd:
    """A thousand callers of 1 KiB, the last 10 % slower, the known one 30 % slower after them."""

    def known(per_second: int) -> Slice:
        return Slice("known", per_second, 1.0, 0)

    return Crowd(
        callers=1000,
        strangers=(Slice("1 to 100", 100, 1.0, 0), Slice("101 to 200", 90, 1.0, 0)),
        # The last of them met a slow minute on both sides.
        after=((known(70), known(100)), (known(99), known(100)), (known(7), known(10))),
        quiet=((known(95), known(100)),),
        moments=(
            Known("before", 100 * MIB, 1),
            Known("after", 100 * MIB + 1024 * 1000, 1001),
            Known("when all could be forgotten", 100 * MIB, 1),
        ),
    )


def test_memory_is_told_by_caller_and_speed_against_the_first(crowd: Crowd) -> None:
    assert (crowd.remembered, crowd.bytes_per_caller) == (1000, 1024)
    memory, rates = crowd.tables()
    assert memory.rows[0] == ["before", "100.0", "1"]
    assert rates.rows[1] == ["later", "95", "100"]
    strangers, after, quiet, failed = crowd.checks()
    assert [check.measured for check in (strangers, after, quiet, failed)] == [
        *("0.1", "0.3", "0.05"),
        "0",
    ]
    assert [check.met for check in crowd.checks()] == [True, False, True, True]
    forgotten = replace(crowd, moments=(crowd.moments[0],) * 2)
    assert math.isnan(forgotten.bytes_per_caller)


def test_the_goal_is_missed_by_failures(crowd: Crowd) -> None:
    strangers = (*crowd.strangers, Slice("strangers", 100, 1.0, 1))
    checks = replace(crowd, after=crowd.quiet, strangers=strangers).checks()
    assert [check.met for check in checks] == [True, True, True, False]


def test_slices_follow_the_order_of_answers_and_the_rest_joins_the_last() -> None:
    ended_s = [number / 10 for number in range(1, 8)]
    sent_s = [0.0, *ended_s[:-1]]
    course = Course(iter(()), b"", sent_s, ended_s, [False] * 6 + [True])
    first, second = slices("strangers", course, 3)
    assert (first.name, first.requests, first.failures) == ("strangers 1 to 3", 3, 0)
    assert (second.name, second.requests, second.failures) == ("strangers 4 to 7", 4, 1)
    assert first.per_second == pytest.approx(10)
    assert second.per_second == pytest.approx(10)


def test_nothing_sent_is_one_empty_slice() -> None:
    [nothing] = slices("strangers", Course(iter(()), b""), 10)
    assert nothing.requests == 0 and math.isnan(nothing.per_second)
