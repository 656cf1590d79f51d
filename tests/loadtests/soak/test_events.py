from __future__ import annotations

import random
from itertools import islice

from loadtests.kills import Asked
from loadtests.soak.events import Event, nearest, state, stores, timeline, was_cut

KILL, KEY = Event("gateway", 10.0, 12.0), Event("key", 20.0, 21.0)


def test_a_seed_gives_the_same_events_and_each_kind_once_a_round() -> None:
    kinds = ["key", "redis", "slot", "pool"]
    first, again, other = (
        list(islice(timeline(kinds, random.Random(seed)), 12)) for seed in (1, 1, 2)
    )
    assert first == again != other
    rounds = [{kind for _, kind in first[start : start + 4]} for start in (0, 4, 8)]
    assert rounds == [set(kinds)] * 3


def test_a_failure_belongs_to_the_event_that_is_nearest() -> None:
    events = [KILL, KEY]
    assert nearest(Asked(1.0, 11.0, 11.5, "status 503"), events) is KILL
    assert nearest(Asked(1.0, 17.0, 17.5, "status 401"), events) is KEY
    assert nearest(Asked(1.0, 1.0, 2.0, "status 401"), events) is KILL
    assert nearest(Asked(1.0, 1.0, 2.0, "status 401"), []) is None


def test_only_what_was_on_a_killed_gateway_is_cut() -> None:
    broken = Asked(9.0, 9.5, 10.1, "broken")
    assert was_cut(broken, [KEY, KILL])
    assert not was_cut(broken, [Event("slot", 10.0, 12.0), KEY])
    assert not was_cut(Asked(9.0, 15.0, 15.1, "broken"), [KILL]), "nothing was killed then"
    assert not was_cut(Asked(9.0, 9.5, 10.1, "status 503: no slot"), [KILL])


def test_the_status_is_read() -> None:
    versions = [{"version": 1, "state": "STANDBY"}, {"version": 2, "state": "READY"}]
    gateways = [{"budget_store": "away"}, {"budget_store": "connected"}]
    status = {"models": [{"name": "mlp", "versions": versions}], "gateways": gateways}
    assert [state(status, "mlp", version) for version in (1, 2, 3)] == ["STANDBY", "READY", ""]
    assert stores(status) == {"away", "connected"}
