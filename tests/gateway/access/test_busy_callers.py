"""The callers that ask most, on a clock of the test."""

from __future__ import annotations

import pytest

from gateway.access.admission import BUSIEST, BUSY_HALF_LIFE_S, BusyCallers
from gateway.access.limits import Limiter
from headrace.access import Caller
from headrace.config.tiers import Tier


class Place:
    """Callers of a tier without limits."""

    def __init__(self) -> None:
        self.limiter = Limiter({"anonymous": Tier()}, 1000, 0.0)
        self.busy = BusyCallers()

    def ask(self, caller: str, times: int, now_s: float) -> None:
        account = self.limiter.account(Caller(caller, "anonymous"), now_s)
        for _ in range(times):
            self.busy.note(account, now_s)


def test_the_busiest_callers_come_first() -> None:
    place = Place()
    for number in range(300):
        place.ask(f"ip:{number}", number % 7 + (50 if number == 123 else 0), 1.0)
    busiest = place.busy.busiest(3, 1.0)
    assert busiest[0]["caller"] == "ip:123"
    assert len(busiest) == 3
    assert busiest[0]["per_s"] > busiest[1]["per_s"] > 0


def test_a_steady_caller_has_its_rate_and_one_that_is_quiet_fades() -> None:
    place = Place()
    for tick in range(3000):
        place.ask("ip:1", 1, tick / 10)
    (one,) = place.busy.busiest(5, 300.0)
    assert one["per_s"] == pytest.approx(10, rel=0.02)
    (later,) = place.busy.busiest(5, 300.0 + BUSY_HALF_LIFE_S)
    assert later["per_s"] == pytest.approx(5, rel=0.02)


def test_only_the_foremost_are_remembered() -> None:
    place = Place()
    for number in range(1000):
        place.ask(f"ip:{number}", 1 + number % 3, 1.0)
    assert len(place.busy.busiest(1000, 1.0)) == BUSIEST
    assert {each["per_s"] for each in place.busy.busiest(1000, 1.0)} == {
        place.busy.busiest(1, 1.0)[0]["per_s"]
    }
