from __future__ import annotations

import math

import pytest

from loadtests.limits.tiers import Got, got_table, who_got_what
from loadtests.users.steps import STATUS, Sample, retry_after_s, status_of

SAMPLES = (
    *(Sample(0.0, 10.0, "premium") for _ in range(8)),
    Sample(1.0, 30.0, "premium", "status 503"),
    Sample(2.0, 12.0, "premium retry"),
    *(Sample(0.0, 1.0, "anonymous", "CatchResponseError('status 429')") for _ in range(3)),
    Sample(2.0, 20.0, "anonymous retry"),
    Sample(2.0, 1.0, "anonymous retry", "status 429"),
    Sample(2.0, 1.0, "anonymous", "expected one number from 60 to 160"),
)


@pytest.fixture
def found() -> list[Got]:
    return who_got_what(SAMPLES, seconds=2.0)


def test_each_tier_is_counted_by_what_it_was_answered(found: list[Got]) -> None:
    anonymous, premium = found
    assert (anonymous.tier, premium.tier) == ("anonymous", "premium")
    assert anonymous.statuses == {0: 1, 200: 1, 429: 4}
    assert premium.statuses == {200: 9, 503: 1}
    assert (anonymous.requests, anonymous.failures) == (6, 1)
    assert (premium.per_second, premium.p50_ms, premium.p99_ms) == (4.5, 10.0, 12.0)


def test_retries_tell_whether_the_promise_was_kept(found: list[Got]) -> None:
    assert [(got.retries, got.retried) for got in found] == [(2, 1), (1, 1)]


def test_a_tier_that_got_nothing_has_no_latency() -> None:
    [got] = who_got_what([Sample(0.0, 1.0, "standard", "status 429")], 1.0)
    assert math.isnan(got.p99_ms)
    assert got.statuses == {429: 1}


def test_the_table_says_who_got_what(found: list[Got]) -> None:
    row = got_table(found).rows[1]
    assert row == ["premium", "10", "9", "0", "1", "0", "4.5", "10.0", "12.0", "1 of 1"]


@pytest.mark.parametrize(
    ("status", "headers", "wait_s"),
    [
        (429, {"Retry-After": "2"}, 2.0),
        (503, {"Retry-After": "1"}, 1.0),
        (429, {}, None),
        (429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        (200, {"Retry-After": "2"}, None),
        (0, None, None),
    ],
)
def test_only_a_refusal_with_seconds_is_asked_again(
    status: int, headers: dict[str, str] | None, wait_s: float | None
) -> None:
    assert retry_after_s(status, headers) == wait_s


def test_a_status_survives_the_way_through_the_samples() -> None:
    assert status_of("") == 200
    assert status_of(f"{STATUS}429: too many") == 429
    assert status_of(str(ValueError(f"{STATUS}503"))) == 503
    assert (status_of("ConnectionRefusedError()"), status_of("status of nothing")) == (0, 0)
