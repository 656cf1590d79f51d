from __future__ import annotations

import pytest

from loadtests.headrace import Admin, BadAnswer, Running, metric_sum
from loadtests.processes import free_ports

METRICS = """\
# HELP headrace_callers Callers whose budgets are remembered.
# TYPE headrace_callers gauge
headrace_callers 12.0
headrace_callers_more{tier="a"} 100
headrace_refusals_total{tier="a",reason="rate"} 3
headrace_refusals_total{tier="b",reason="queue"} 4.0
"""


def test_a_metric_is_summed_over_its_labels_and_mixed_with_no_other() -> None:
    assert metric_sum(METRICS, "headrace_callers") == 12
    assert metric_sum(METRICS, "headrace_refusals_total") == 7
    assert metric_sum(METRICS, "headrace_nothing") == 0


def test_nobody_at_home_is_one_sentence() -> None:
    [port] = free_ports(1)
    with pytest.raises(BadAnswer, match="ConnectError"):
        Admin(f"http://127.0.0.1:{port}", "token").pids("gateways")


def test_a_peer_has_no_admin_listener() -> None:
    with pytest.raises(ValueError, match="no admin listener"):
        _ = Running("http://127.0.0.1:1").admin
