from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscale.leases import (
    HOLDING,
    Lease,
    LeaseBook,
    LeaseEvent,
    LeaseState,
    choose_victims,
    scores,
)

WAITING, GRANTED, NOTICED, PREEMPTED, ENDED = LeaseState


def ask(
    book: LeaseBook,
    lease_id: str,
    slots: int = 1,
    grace_s: float = 5.0,
    priority: int = 0,
    now: float = 0.0,
    slot_class: str = "cpu",
) -> LeaseEvent:
    return book.request(lease_id, "job", slots, slot_class, grace_s, priority, 1.0, now)


def told(events: Sequence[LeaseEvent]) -> list[tuple[str, LeaseState]]:
    return [(event.lease.lease_id, event.lease.state) for event in events]


def state(book: LeaseBook, lease_id: str) -> LeaseState:
    return next(lease.state for lease in book.leases() if lease.lease_id == lease_id)


def silent(most: int = 10, max_preemptions: int = 3) -> LeaseBook:
    """A book whose leases need no heartbeat."""
    return LeaseBook({"cpu": most}, math.inf, max_preemptions=max_preemptions)


def job(name: str, slots: int, grace_s: float, priority: int = 0) -> Lease:
    return Lease(name, "job", slots, "cpu", grace_s, priority, 1.0, 0.0, 1, GRANTED)


def test_a_lease_waits_is_granted_and_ends() -> None:
    book = silent()
    asked = ask(book, "a", 3)
    assert (asked.before, asked.lease.state, asked.refused) == (None, WAITING, False)
    assert book.wanted() == {"cpu": 3} and book.held() == {}
    assert told(book.reconcile({"cpu": 2}, 1)) == []
    assert told(book.reconcile({"cpu": 3}, 2)) == [("a", GRANTED)]
    assert book.held() == {"cpu": 3}
    assert told(book.release("a", 3)) == [("a", ENDED)]
    assert book.leases() == () and book.release("a", 4) == []


@pytest.mark.parametrize(
    ("slots", "slot_class", "grace_s", "why"),
    [
        (11, "cpu", 5.0, "needs 11 slots of class cpu, leases get at most 10"),
        (1, "gpu", 5.0, "there is no slot class gpu, but cpu"),
        (1, "cpu", 301.0, "`grace_s` (301) should be at most 300"),
    ],
)
def test_what_could_never_be_granted_is_refused_at_once(
    slots: int, slot_class: str, grace_s: float, why: str
) -> None:
    book = silent()
    event = ask(book, "a", slots, grace_s, slot_class=slot_class)
    assert event.refused and event.why == why
    assert book.leases() == ()


def test_senseless_requests_raise() -> None:
    book = silent()
    ask(book, "a")
    with pytest.raises(ValueError, match="there is a lease 'a' already"):
        ask(book, "a")
    with pytest.raises(ValueError, match="`slots`"):
        ask(book, "b", 0)
    with pytest.raises(ValueError, match="`grace_s`"):
        ask(book, "b", grace_s=-1)


def test_a_holder_that_is_silent_loses_its_lease() -> None:
    book = LeaseBook({"cpu": 4}, ttl_s=15)
    ask(book, "a")
    ask(book, "b")
    book.reconcile({"cpu": 1}, 1)
    assert book.again_s() == 15
    assert book.renew("a", 10) is not None
    events = book.reconcile({"cpu": 0}, 15)
    assert told(events) == [("b", ENDED)]
    assert events[0].why == "its holder was silent for 15 s"
    assert told(book.reconcile({"cpu": 0}, 25)) == [("a", ENDED)]
    assert book.renew("a", 26) is None


def test_the_queue_goes_by_priority_and_then_by_age() -> None:
    book = silent()
    for name, priority in (("old", 0), ("new", 0), ("high", 1)):
        ask(book, name, 1, priority=priority)
    assert told(book.reconcile({"cpu": 2}, 1)) == [("high", GRANTED), ("old", GRANTED)]


def test_small_gangs_do_not_take_what_a_large_one_waits_for() -> None:
    book = silent()
    ask(book, "first", 2)
    book.reconcile({"cpu": 4}, 1)
    ask(book, "large", 4)
    ask(book, "small", 1)
    assert told(book.reconcile({"cpu": 2}, 2)) == []
    book.release("first", 3)
    assert told(book.reconcile({"cpu": 4}, 3)) == [("large", GRANTED)]


def test_what_is_too_large_now_is_passed_and_gets_its_turn_when_there_is_room() -> None:
    book = silent()
    ask(book, "large", 4)
    for name in ("s1", "s2", "s3"):
        ask(book, name, 1, grace_s=2)
    assert told(book.reconcile({"cpu": 2}, 1)) == [("s1", GRANTED), ("s2", GRANTED)]
    events = book.reconcile({"cpu": 2}, 2)
    assert told(events) == [("s1", NOTICED), ("s2", NOTICED)]
    assert events[0].why == "has 2 s to return 1 slots: lease large was first"
    taken = book.reconcile({"cpu": 2}, 4)
    assert sorted(told(taken)) == sorted(
        (name, state) for name in ("s1", "s2") for state in (PREEMPTED, WAITING)
    )
    assert told(book.reconcile({"cpu": 4}, 5)) == [("large", GRANTED)]
    book.release("large", 6)
    granted = told(book.reconcile({"cpu": 4}, 6))
    assert granted == [("s1", GRANTED), ("s2", GRANTED), ("s3", GRANTED)]


@pytest.mark.parametrize(("order", "expected"), [(1, []), (3, [("passer", NOTICED)])])
def test_a_lease_returns_only_for_those_that_it_passed(
    order: int, expected: list[tuple[str, LeaseState]]
) -> None:
    passer = replace(job("passer", 1, 5), order=order, passed=True)
    first = replace(job("first", 2, 5), order=2, state=WAITING)
    book = LeaseBook({"cpu": 2}, math.inf, leases=[passer, first])
    assert told(book.reconcile({"cpu": 1}, 1)) == expected


def test_a_victim_has_notice_then_grace_and_goes_on_first() -> None:
    book = silent()
    ask(book, "a", 2, grace_s=5)
    ask(book, "b", 2, grace_s=5)
    book.reconcile({"cpu": 2}, 0)
    events = book.reconcile({"cpu": -1}, 10)
    assert told(events) == [("a", NOTICED)] and events[0].lease.due_s == 15 == book.again_s()
    assert events[0].why == "has 5 s to return 2 slots: serving needs 1"
    assert book.reconcile({"cpu": -1}, 14.9) == []
    assert told(book.reconcile({"cpu": -1}, 15)) == [("a", PREEMPTED), ("a", WAITING)]
    assert [lease.lease_id for lease in book.leases()] == ["a", "b"]
    assert book.held() == {}
    assert told(book.reconcile({"cpu": 2}, 20)) == [("a", GRANTED)]


def test_a_notice_is_taken_back_when_the_need_is_over() -> None:
    book = silent()
    ask(book, "a", 2)
    book.reconcile({"cpu": 2}, 0)
    book.reconcile({"cpu": -2}, 1)
    assert told(book.reconcile({"cpu": 0}, 2)) == [("a", GRANTED)]
    assert book.reconcile({"cpu": 0}, 9) == []
    assert book.leases()[0].preemptions == 0


def test_a_lease_is_preempted_so_often_at_most_but_for_a_guarantee() -> None:
    book = silent(max_preemptions=1)
    ask(book, "a", 2, grace_s=0)
    book.reconcile({"cpu": 2}, 0)
    assert told(book.reconcile({"cpu": -2}, 1)) == [("a", NOTICED)]
    assert told(book.reconcile({"cpu": -2}, 1)) == [("a", PREEMPTED), ("a", WAITING)]
    assert told(book.reconcile({"cpu": 2}, 2)) == [("a", GRANTED)]
    assert book.reconcile({"cpu": -2}, 3) == []
    assert told(book.reconcile({"cpu": -2}, 4, {"cpu": 1})) == [("a", NOTICED)]


def test_who_was_preempted_less_often_goes_before_an_exempt_one_for_a_guarantee() -> None:
    often = replace(job("often", 4, 0), preemptions=3)
    book = LeaseBook({"cpu": 9}, math.inf, leases=[often, job("fresh", 2, 300)])
    assert told(book.reconcile({"cpu": -2}, 1, {"cpu": 2})) == [("fresh", NOTICED)]
    assert told(book.reconcile({"cpu": -3}, 1, {"cpu": 3})) == [("often", NOTICED)]


def test_a_lower_priority_goes_first() -> None:
    low, high = job("low", 4, 100, priority=0), job("high", 1, 0, priority=1)
    assert choose_victims([low, high], [low, high], 1) == [low]
    assert choose_victims([low, high], [low, high], 5) == [low, high]


JOBS = st.lists(
    st.tuples(st.integers(1, 8), st.sampled_from((0.0, 1.0, 5.0, 30.0))), min_size=1, max_size=7
).map(lambda jobs: [job(f"j{n}", slots, grace_s) for n, (slots, grace_s) in enumerate(jobs)])


@given(JOBS, st.integers(1, 20), st.sampled_from((0.0, 0.5, 4.0)))
@settings(max_examples=200, deadline=None)
def test_the_choice_is_the_papers(jobs: list[Lease], room: int, weight: float) -> None:
    most = max(each.slots for each in jobs)
    longest = max(each.grace_s for each in jobs)

    def score(each: Lease) -> float:
        return each.slots / most + (weight * each.grace_s / longest if longest else 0.0)

    chosen = choose_victims(jobs, jobs, room, weight)
    enough = [each for each in jobs if each.slots >= room]
    if enough:
        assert len(chosen) == 1 and chosen[0] in enough
        assert score(chosen[0]) == min(score(each) for each in enough)
        assert score(chosen[0]) == pytest.approx(scores(jobs, weight)[chosen[0].lease_id])
    elif sum(each.slots for each in jobs) < room:
        assert sorted(chosen, key=str) == sorted(jobs, key=str)
    else:
        assert sum(each.slots for each in chosen) >= room
        assert all(sum(each.slots for each in chosen) - one.slots < room for one in chosen)
        fewer = combinations(jobs, len(chosen) - 1)
        assert all(sum(each.slots for each in few) < room for few in fewer)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 7), st.integers(0, 1)),
        st.tuples(st.just("end"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("allow"), st.integers(0, 10), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.integers(1, 8), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS, st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_leases_under_any_course_of_events(
    steps: list[tuple[str, int, int]], max_preemptions: int
) -> None:
    book = silent(max_preemptions=max_preemptions)
    allowed, now = 10, 0.0
    noticed: dict[str, LeaseEvent] = {}
    states: dict[str, LeaseState | None] = {}
    for number, (step, amount, more) in enumerate(steps):
        now += 0.5
        free = allowed - book.held().get("cpu", 0)
        events: list[LeaseEvent] = []
        if step == "ask":
            events = [ask(book, f"l{number}", amount, float(amount), more, now)]
        elif step == "end" and book.leases():
            events = book.release(book.leases()[amount % len(book.leases())].lease_id, now)
        elif step == "allow":
            allowed = amount
            free = allowed - book.held().get("cpu", 0)
            events = book.reconcile({"cpu": free}, now)
        else:
            now += amount
            events = book.reconcile({"cpu": free}, now)
        granted = 0
        for event in events:
            assert event.before == states.get(event.lease.lease_id)
            states[event.lease.lease_id] = event.lease.state
            if event.lease.state is GRANTED and event.before is WAITING:
                granted += event.lease.slots
            if event.lease.state is NOTICED:
                noticed[event.lease.lease_id] = event
            if event.lease.state is PREEMPTED:
                notice = noticed[event.lease.lease_id]
                grace_s = float(event.lease.slots)
                assert event.before is NOTICED
                assert event.at_s >= notice.lease.due_s == notice.at_s + grace_s
        assert granted <= max(0, free)
        for lease in book.leases():
            assert lease.state == states[lease.lease_id]
            assert lease.preemptions <= max_preemptions
            assert (lease.due_s < math.inf) == (lease.state is NOTICED)
        held = sum(lease.slots for lease in book.leases() if lease.state in HOLDING)
        assert held == book.held().get("cpu", 0)


@given(STEPS)
@settings(max_examples=100, deadline=None)
def test_every_gang_is_granted_while_others_keep_coming(steps: list[tuple[str, int, int]]) -> None:
    book = silent()
    for number, (step, amount, _) in enumerate(steps):
        if step == "ask":
            ask(book, f"l{number}", amount, 1.0)
        book.reconcile({"cpu": amount - book.held().get("cpu", 0)}, float(number))
    patient = ask(book, "patient", 10, 1.0, now=100)
    for now in range(100, 400):
        ask(book, f"small{now}", 1 + now % 3, 1.0, now=now)
        for lease in book.leases():
            if lease.state in HOLDING and lease.lease_id != "patient" and now % 4 == 0:
                book.release(lease.lease_id, now)
        book.reconcile({"cpu": 10 - book.held().get("cpu", 0)}, now)
        if state(book, "patient") is GRANTED:
            break
    assert patient.lease.state is WAITING and state(book, "patient") is GRANTED


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_a_book_of_anothers_leases_decides_alike(steps: list[tuple[str, int, int]]) -> None:
    book = silent()
    for number, (step, amount, more) in enumerate(steps):
        if step == "ask":
            ask(book, f"l{number}", amount, 1.0, more)
        other = LeaseBook({"cpu": 10}, math.inf, leases=book.leases())
        free = {"cpu": amount - book.held().get("cpu", 0)}
        owed = {"cpu": more}
        assert other.reconcile(free, number, owed) == book.reconcile(free, number, owed)


def test_slots_given_back_after_a_notice_count_as_a_preemption() -> None:
    book = silent()
    ask(book, "a", 2, grace_s=60)
    book.reconcile({"cpu": 2}, 1)
    assert book.give_back("a", 2) == [] and state(book, "a") is GRANTED  # nobody asked for them
    assert told(book.reconcile({"cpu": -1}, 3)) == [("a", NOTICED)]
    ask(book, "b", 1, now=4)
    assert told(book.give_back("a", 5)) == [("a", PREEMPTED), ("a", WAITING)]
    assert book.held() == {} and [lease.lease_id for lease in book.leases()] == ["a", "b"]
    assert book.leases()[0].preemptions == 1 and book.give_back("nobody", 6) == []


def test_only_whole_gangs_can_use_slots() -> None:
    book = silent()
    ask(book, "three", 3)
    assert book.usable("cpu", 2) == 0
    assert book.usable("cpu", 5) == 3
    ask(book, "two", 2)
    assert book.usable("cpu", 4) == 3
    assert book.usable("cpu", 2) == 2
    assert book.usable("cpu", 9) == 5
    assert book.usable("gpu", 9) == 0
