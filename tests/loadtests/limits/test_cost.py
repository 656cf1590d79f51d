from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from redis import Redis

from loadtests.bench.generators import Result
from loadtests.limits.cost import (
    MANY,
    OFF,
    ONE,
    POOL,
    REDIS,
    Turn,
    cost_table,
    costs,
    redis_server,
)
from loadtests.processes import process_cpu_s


def turn(setting: str, number: int, rate: float, p50_ms: float, errors: int = 0) -> list[Turn]:
    """Both measurements of a round: the rate at 64 connections, the median at 1."""
    many = Result(MANY, round(rate), rate, 9.0, 9.0, errors)
    one = Result(ONE, 100, 100.0, p50_ms, 9.0, 0)
    return [Turn(setting, number, many, cpu_s=0.1), Turn(setting, number, one, cpu_s=0.1)]


TURNS = [
    *turn(OFF, 0, 1000, 0.40),
    *turn(POOL, 0, 950, 0.42),
    *turn(OFF, 1, 500, 0.80),  # a slow minute, which both sides meet
    *turn(POOL, 1, 465, 0.83),
    *turn(OFF, 2, 1000, 0.40),
    *turn(POOL, 2, 880, 0.47),
]


def test_settings_are_compared_within_a_round() -> None:
    off, pool = costs(TURNS)
    assert (off.setting, off.share, off.added_ms) == (OFF, 1.0, 0.0)
    assert pool.share == pytest.approx(0.93)
    assert pool.added_ms == pytest.approx(0.03)
    assert (pool.per_second, pool.p50_ms) == (880, 0.47)
    assert all(check.met for check in pool.checks())


def test_the_gateways_processor_time_is_told_by_request() -> None:
    assert [cost.cpu_us for cost in costs(TURNS)] == pytest.approx([100.0, 0.1e6 / 880])
    before_s = process_cpu_s(os.getpid())
    while process_cpu_s(os.getpid()) == before_s:
        sum(range(10_000))
    assert process_cpu_s(os.getpid()) < before_s + 5


def test_goals_are_missed_by_rate_by_latency_and_by_errors() -> None:
    base = turn(OFF, 0, 1000, 0.40)
    missed = [
        [check.met for check in costs([*base, *turn(POOL, 0, *figures)])[1].checks()]
        for figures in ((890, 0.40), (990, 0.46), (990, 0.40, 1))
    ]
    assert missed == [[False, True, True], [True, False, True], [True, True, False]]
    assert all(check.met for check in costs([*base, *turn(REDIS, 0, 890, 0.40)])[1].checks())


def test_nothing_is_compared_with_a_round_that_was_not_measured() -> None:
    alone = costs(turn(POOL, 0, 900, 0.4))[0]
    assert math.isnan(alone.share)
    assert not alone.checks()[0].met


def test_the_table_has_a_row_for_each_setting() -> None:
    assert cost_table(costs(TURNS)).rows[1][0] == POOL


def test_redis_answers_while_the_block_lasts(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url, Redis.from_url(url) as client:
        assert client.ping()
