from __future__ import annotations

from autoscale.failures import Failures, backoff_s
from autoscale.ledger import Key


def test_backoff_doubles_up_to_a_minute() -> None:
    assert [backoff_s(n) for n in (0, 1, 2, 3, 5, 6, 5000)] == [0, 2, 4, 8, 32, 60, 60]


def test_each_failure_in_a_row_waits_longer_until_it_is_forgotten() -> None:
    failures, key = Failures(), Key("m", 1)
    failures.add(key, "bad file", 100.0)
    assert failures.retry_at() == {key: 102.0}
    failures.add(key, "worse file", 102.0)
    assert failures.retry_at() == {key: 106.0} and failures.reason(key) == "worse file"
    failures.forget([key, Key("absent", 1)])
    assert key not in failures and failures.reason(key) == ""
    failures.add(key, "bad file", 200.0)
    assert failures.retry_at() == {key: 202.0}


def test_a_model_is_forgotten_with_all_its_versions() -> None:
    failures = Failures()
    for key in (Key("m", 1), Key("m", 2, 1), Key("n", 1)):
        failures.add(key, "bad", 0.0)
    failures.forget_model("m")
    assert list(failures.retry_at()) == [Key("n", 1)]
