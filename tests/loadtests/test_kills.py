from __future__ import annotations

from loadtests.kills import Asked, Disturbance, Outcome, table

KILL = Disturbance("gateway", 10.0, 12.0)


def outcome(*asked: Asked, kind: str = "gateway") -> Outcome:
    return Outcome.of(kind, [Disturbance(kind, 10.0, 12.0)], asked)


def test_only_what_was_under_way_counts() -> None:
    before, after = Asked(1.0, 9.0, 9.9, "refused"), Asked(12.1, 12.1, 12.2, "status 503")
    found = outcome(before, Asked(9.9, 9.9, 10.1), Asked(11.9, 11.9, 12.3), after)
    assert (found.requests, found.refused, found.lost, found.cut) == (2, 0, 0, 0)


def test_only_connections_from_before_a_gateways_death_may_break() -> None:
    old, new = Asked(9.0, 9.9, 10.1, "broken"), Asked(10.1, 10.1, 10.2, "broken")
    found = outcome(
        old, new, Asked(10.1, 10.1, 10.1, "refused"), Asked(9.0, 9.9, 10.1, "no answer")
    )
    assert (found.refused, found.lost, found.cut) == (1, 2, 1)
    assert [check.met for check in found.checks()] == [False, False]
    assert outcome(old, kind="slot").lost == 1, "a slot has no connections of clients"


def test_the_worst_wait_is_that_of_an_answered_request() -> None:
    found = outcome(Asked(10.5, 10.5, 11.5), Asked(10.5, 10.5, 11.9, "broken"))
    assert (found.worst_wait_s, found.slowest_return_s) == (1.0, 2.0)
    assert table([found]).rows[0][-2:] == ["1.00", "2.0"]
