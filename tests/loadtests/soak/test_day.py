from __future__ import annotations

from loadtests.kills import Asked
from loadtests.soak.day import Day, event_table, told
from loadtests.soak.events import Event
from loadtests.soak.load import Failure

KILL = Event("gateway", 110.0, 112.0, worst_wait_s=0.5)
KEY = Event("key", 120.0, 121.0, problem="NotWhole: the end of the old key")
CUT = Failure("gRPC", Asked(109.0, 109.9, 110.1, "broken"))
REFUSED = Failure("TFS JSON", Asked(109.0, 120.5, 120.6, "status 401: no such key"))
DAY = Day(100.0, [KILL, KEY], [CUT, REFUSED], {"gRPC": 9, "TFS JSON": 9}, [], [], [])


def test_what_was_cut_has_not_failed() -> None:
    assert DAY.failed == [REFUSED]
    assert DAY.problems == ["key: NotWhole: the end of the old key"]


def test_a_failure_is_told_with_its_event() -> None:
    assert list(DAY.sentences()) == [
        "at 20.5 s: TFS JSON: status 401: no such key (sent +0.5 s from the begin of: key)"
    ]


def test_each_kind_of_event_says_what_it_did() -> None:
    assert event_table(DAY).rows == [
        ["gateway", "1", "0", "1", "0.50", "2.0", "0"],
        ["key", "1", "1", "0", "0.00", "1.0", "1"],
    ]
    assert told(KILL, 100.0, DAY.failures).startswith("  10.0 s gateway: 0 failed, 1 cut")
