"""The router: credits, choice, deadlines, and what happens when slots die."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.config.scaling import Routing
from headrace.errors import DeadlineExceeded, HeadraceError, NotFound, Unavailable
from headrace.link.frames import Flag, Reply
from headrace.link.queue import PRESENCE_S, Answer, QueueKey, Request
from headrace.link.router import DEPTH_S, MAX_MOVES, RETRY_RESERVE, Route, Router

ANY: QueueKey = ("m", 1)
LEAST = Routing()


@dataclass
class Wire:
    """A slot's link that remembers what was cancelled."""

    cancelled: list[int] = field(default_factory=list)

    def cancel(self, request: Request) -> None:
        self.cancelled.append(request.id)


@dataclass
class House:
    """A router with slots, and the answers that its requests got."""

    router: Router = field(default_factory=lambda: Router(random.Random(1), max_waiting=1000))
    answers: dict[int, list[Answer]] = field(default_factory=dict)
    wires: dict[str, Wire] = field(default_factory=dict)
    number: int = 0

    def slots(self, *names: str, credit: int = 4, routing: Routing = LEAST) -> None:
        self.router.set_routes({ANY: (routing, [(name, 1) for name in names])})
        for name in names:
            self.up(name, credit)

    def up(self, name: str, credit: int = 4) -> None:
        self.wires[name] = Wire()
        self.router.lane_up(name, self.wires[name].cancel)
        self.router.credit(name, 1, credit)

    def ask(
        self,
        *,
        deadline_s: float = 100.0,
        key: QueueKey = ANY,
        hash_key: bytes = b"",
        priority: int = 0,
        at_s: float = 0.0,
        follows_default: bool = False,
        caller: str = "",
    ) -> Request:
        self.number += 1
        request = Request(
            self.number,
            0,
            key=key,
            deadline_s=deadline_s,
            arrived_s=at_s,
            done=self.done,
            hash_key=hash_key,
            priority=priority,
            follows_default=follows_default,
            caller=caller,
        )
        self.router.submit(request)
        return request

    def done(self, request: Request, answer: Answer) -> None:
        self.answers.setdefault(request.id, []).append(answer)

    def answer(self, slot: str, number: int, *, elsewhere: bool = False, depth: int = 0) -> None:
        flags = Flag.ELSEWHERE if elsewhere else 0
        self.router.reply(slot, Reply(number, 0, 200, flags, 0, None, 0, 0, 0, 0, depth, b""))

    def assign(self, now_s: float = 0.0) -> dict[str, list[int]]:
        return {s: [r.id for r in sent] for s, sent in self.router.assign(now_s).items()}

    def error(self, number: int) -> HeadraceError:
        (answer,) = self.answers[number]
        assert isinstance(answer, HeadraceError)
        return answer


def test_requests_beyond_the_credit_wait_in_the_gateway() -> None:
    house = House()
    house.slots("a", credit=2)
    for _ in range(5):
        house.ask()
    assert house.assign() == {"a": [1, 2]}
    assert house.router.waiting() == {"m": 3} and house.router.demand("a") == {1: 5}
    house.answer("a", 1)
    assert house.assign() == {"a": [3]}


def test_demand_is_told_where_it_changed_and_nowhere_else() -> None:
    house = House()
    models: dict[QueueKey, str] = {("m", 1): "ab", ("n", 1): "c"}
    house.router.set_routes({k: (LEAST, [(s, 1) for s in slots]) for k, slots in models.items()})
    for name in "abc":
        house.up(name, credit=1)
    assert house.router.changed_demand() == {"a": {1: 0}, "b": {1: 0}, "c": {1: 0}}
    assert house.router.changed_demand() == {}
    for _ in range(3):
        house.ask()
    house.assign()
    assert house.router.changed_demand() == {"a": {1: 2}, "b": {1: 2}}
    house.answer("a", next(iter(house.router._lanes["a"].in_flight)))
    house.assign()
    assert house.router.changed_demand() == {"a": {1: 1}, "b": {1: 1}}
    house.router.lane_down("c", 0.0)
    house.up("c")
    assert house.router.changed_demand() == {"c": {1: 0}}


def lines(work: Callable[[], object]) -> int:
    """Lines of the product that some work runs."""
    count = 0

    def note(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("waits", [False, True])
def test_work_does_not_grow_with_models_and_slots_that_are_idle(waits: bool) -> None:
    def steps(models: int, slots: int) -> int:
        """Lines that a turn and a tick run."""
        house = House()
        places: dict[QueueKey, Route] = {
            ("m", n): (LEAST, [(f"s{n % slots}", n)]) for n in range(models)
        }
        house.router.set_routes(places)
        for n in range(slots):
            house.router.lane_up(f"s{n}", Wire().cancel)
        house.router.credit("s0", 0, 1)
        house.router.changed_demand()
        for _ in range(3 if waits else 0):
            house.ask(key=("m", 0))

        def work() -> None:
            house.router.assign(0.0)
            house.router.expire(0.0)
            house.router.changed_demand()
            house.router.load()
            house.router.without_slot()

        return lines(work)

    # All models of the first slot are in its demand.
    assert steps(1000, 1000) == steps(10, 10)


def test_deadlines_are_not_looked_at_before_the_earliest_of_them() -> None:
    def steps(requests: int) -> int:
        house = House()
        house.slots("a", credit=requests // 2)
        for number in range(requests):
            house.ask(deadline_s=5.0 + number)
        house.assign()
        assert house.router.expire(5.0) == 1
        return lines(lambda: house.router.expire(5.9))

    assert steps(400) == steps(4)


def test_whose_requests_turn_out_dear_gets_fewer_turns() -> None:
    house = House()
    house.slots("a", credit=1)
    asked = {}
    for _ in range(60):
        for caller in ("dear", "cheap"):
            request = house.ask(caller=caller)
            asked[request.id] = request
    answered: list[str] = []
    while len(answered) < 40:
        ((number,),) = house.assign().values()
        house.answer("a", number)
        answered.append(asked[number].caller)
        if asked[number].caller == "dear":
            house.router.charge(asked[number], 3.0)
    # Each dear one takes four turns, and so does not come before four cheap ones.
    assert 7 <= answered.count("dear") <= 9


def test_the_slot_with_fewer_in_flight_is_chosen() -> None:
    house = House()
    house.slots("a", "b", credit=100)
    for _ in range(60):
        house.ask()
        house.assign()
    assert house.router.in_flight() == {"m": 60}
    assert house.router.demand("a") == {1: 30}


def test_a_slot_that_other_gateways_fill_is_avoided() -> None:
    house = House()
    house.slots("a", "b", credit=100)
    house.ask()
    (first,) = house.assign()
    other = {"a": "b", "b": "a"}[first]
    house.answer(first, 1, depth=50)
    house.ask()
    assert house.assign() == {other: [2]}


def test_what_a_slot_said_of_its_load_is_forgotten_when_it_is_old() -> None:
    house = House()
    house.slots("a", "b", credit=100)
    house.ask()
    (first,) = house.assign()
    house.answer(first, 1, depth=50)
    for _ in range(40):
        house.ask()
        house.router.assign(2 * DEPTH_S)
    assert house.router.demand("a") == {1: 20} and house.router.demand("b") == {1: 20}


def test_round_robin_takes_turns() -> None:
    house = House()
    house.slots("a", "b", "c", credit=100, routing=Routing(policy="round-robin"))
    sent: list[str] = []
    for _ in range(6):
        house.ask()
        sent += house.assign()
    assert sorted(sent[:3]) == ["a", "b", "c"] and sent[:3] == sent[3:]


def test_equal_hash_keys_go_to_the_same_slot() -> None:
    house = House()
    house.slots("a", "b", "c", credit=1000, routing=Routing(policy="hash", header="X-User"))
    homes: dict[bytes, set[str]] = {}
    for n in range(90):
        key = b"user %d" % (n % 9)
        house.ask(hash_key=key)
        homes.setdefault(key, set()).update(house.assign())
    assert all(len(home) == 1 for home in homes.values())
    assert len(set.union(*homes.values())) > 1


def test_unknown_models_and_full_queues_are_refused() -> None:
    house = House(Router(random.Random(1), max_waiting=2))
    house.slots("a", credit=0)
    with pytest.raises(NotFound):
        house.ask(key=("other", None))
    house.ask()
    house.ask()
    with pytest.raises(Unavailable, match="2 requests wait") as refused:
        house.ask()
    assert refused.value.retry_after_s == 1.0


def test_deadlines_end_waiting_and_running_requests() -> None:
    house = House()
    house.slots("a", credit=1)
    house.ask(deadline_s=5.0)
    house.ask(deadline_s=6.0)
    house.assign()
    assert house.router.expire(4.9) == 0
    assert house.router.expire(6.0) == 2
    assert isinstance(house.error(1), DeadlineExceeded)
    assert isinstance(house.error(2), DeadlineExceeded)
    assert house.wires["a"].cancelled == [1]
    house.answer("a", 1)
    assert len(house.answers[1]) == 1 and len(house.router) == 0


def test_a_deadline_that_passes_before_any_slot_is_there_tells_what_the_model_lacks() -> None:
    house = House()
    house.slots()
    house.router.set_routes({ANY: (LEAST, [])}, lacking={ANY: "needs 1 slot of class cpu, 0 free"})
    house.ask(deadline_s=5.0)
    assert house.router.expire(5.0) == 1
    name = ANY[0]
    assert house.error(1).message == (
        f"the deadline passed while model {name!r} waited: needs 1 slot of class cpu, 0 free"
    )


def test_what_names_the_version_waits_in_the_same_queue_as_what_does_not() -> None:
    """A flood that names it would get around the priorities otherwise."""
    house = House()
    house.router.set_routes({ANY: (LEAST, [("a", 1)])}, {"m": 1})
    house.up("a", credit=64)
    house.ask(priority=20, follows_default=True)
    house.assign()
    house.answer("a", 1)
    for _ in range(100):
        house.ask(at_s=0.1)
    assert len(house.assign(0.1)["a"]) == 2
    house.ask(priority=20, at_s=0.2, follows_default=True)
    assert house.assign(0.2) == {"a": [102]}


def test_what_named_no_version_follows_the_default_and_the_rest_is_refused() -> None:
    house = House()
    house.router.set_routes({("m", 1): (LEAST, [])}, {"m": 1})
    house.ask(follows_default=True)
    house.ask()
    house.up("a")
    house.router.set_routes({("m", 2): (LEAST, [("a", 1)])}, {"m": 2})
    assert house.assign() == {"a": [1]}
    assert isinstance(house.error(2), NotFound)


def test_what_named_no_version_follows_a_default_that_moves_beside_the_old_one() -> None:
    house = House()
    one, two = ("m", 1), ("m", 2)
    house.router.set_routes({one: (LEAST, []), two: (LEAST, [])}, {"m": 1})
    followers = [house.ask(key=one, follows_default=True) for _ in range(2)]
    house.ask(key=one)
    house.up("a")
    house.router.set_routes({one: (LEAST, []), two: (LEAST, [("a", 1)])}, {"m": 2})
    assert house.assign() == {"a": [1, 2]}
    assert {request.version for request in followers} == {2} and not house.answers
    house.router.set_routes({one: (LEAST, [("b", 1)]), two: (LEAST, [("a", 1)])}, {"m": 2})
    house.up("b")
    assert house.assign() == {"b": [3]} and house.router.waiting() == {"m": 0}


def test_what_named_no_version_waits_while_a_model_has_none() -> None:
    house = House()
    house.router.set_routes({("m", 1): (LEAST, [])}, {"m": 1})
    house.ask(follows_default=True)
    house.router.set_routes({("m", None): (LEAST, [])}, {"m": None})
    assert house.assign() == {} and not house.answers
    house.up("a")
    house.router.set_routes({("m", 3): (LEAST, [("a", 1)])}, {"m": 3})
    assert house.assign() == {"a": [1]}


def test_a_retry_of_what_named_no_version_follows_the_default() -> None:
    house = House()
    house.router.set_routes({("m", 1): (LEAST, [("a", 1)])}, {"m": 1})
    house.up("a")
    house.ask(follows_default=True)
    house.assign()
    house.router.set_routes({("m", 2): (LEAST, [("b", 1)])}, {"m": 2})
    house.up("b")
    house.router.lane_down("a", 0.0)
    assert house.assign() == {"b": [1]}


def test_a_cancelled_request_frees_its_place_and_hears_nothing() -> None:
    house = House()
    house.slots("a", credit=1)
    first, second, _ = house.ask(), house.ask(), house.ask()
    house.assign()
    house.router.cancel(first)
    house.router.cancel(second)
    assert house.wires["a"].cancelled == [1]
    assert house.assign() == {"a": [3]} and not house.answers


def test_requests_of_a_dead_slot_run_alone_on_another() -> None:
    house = House()
    house.slots("a", credit=3)
    for _ in range(3):
        house.ask()
    house.assign()
    house.router.set_routes({ANY: (LEAST, [("b", 1)])})
    house.up("b", credit=8)
    house.router.lane_down("a", 1.0)
    house.ask()
    assert house.assign() == {"b": [1]}
    assert house.assign() == {}
    house.answer("b", 1)
    assert house.assign() == {"b": [2]}
    house.answer("b", 2)
    assert house.assign() == {"b": [3]}
    house.answer("b", 3)
    assert house.assign() == {"b": [4]}
    assert house.router.retries == {"m": 3}


def test_a_request_that_killed_two_slots_is_refused_and_its_neighbours_are_answered() -> None:
    house = House()
    house.slots("a", "b", "c", credit=8, routing=Routing(policy="round-robin"))
    for name in ("b", "c"):
        house.router.credit(name, 1, 0)
    for _ in range(3):
        house.ask()
    house.assign()
    house.router.lane_down("a", 1.0)
    house.router.credit("b", 1, 8)
    house.router.credit("c", 1, 8)
    (killer,) = (slot for slot, ids in house.assign().items() if 1 in ids)
    house.router.lane_down(killer, 2.0)
    assert "2 slots died" in house.error(1).message
    survivor = {"b": "c", "c": "b"}[killer]
    for number in (2, 3):
        if number not in house.answers:
            house.assign()
            house.answer(survivor, number)
    assert all(isinstance(house.answers[n][0], Reply) for n in (2, 3))


def test_retries_stop_at_their_budget() -> None:
    house = House()
    house.slots("a", credit=1000)
    for _ in range(int(RETRY_RESERVE) + 40):
        house.ask()
    house.assign()
    house.router.lane_down("a", 1.0)
    refused = [n for n, (answer,) in house.answers.items() if isinstance(answer, Unavailable)]
    assert len(refused) == 40 and house.router.retries == {"m": RETRY_RESERVE}


def test_a_request_that_no_slot_takes_is_given_up() -> None:
    house = House()
    house.slots("a", credit=1)
    house.ask()
    for _ in range(MAX_MOVES + 1):
        assert house.assign() == {"a": [1]}
        house.answer("a", 1, elsewhere=True)
    assert "no slot is ready" in house.error(1).message


def test_a_draining_slot_gets_nothing_more() -> None:
    house = House()
    house.slots("a", "b")
    house.router.lane_draining("a")
    for _ in range(3):
        house.ask()
    assert house.assign() == {"b": [1, 2, 3]}


def test_credit_that_comes_before_the_route_counts() -> None:
    house = House()
    house.slots("a")
    house.router.credit("a", 2, 4)
    house.router.set_routes({ANY: (LEAST, [("a", 1)])})
    house.router.set_routes({ANY: (LEAST, [("a", 2)])})
    house.ask()
    assert house.assign() == {"a": [1]} and house.router.demand("a") == {2: 1}


def test_requests_wait_for_a_removed_model_no_longer() -> None:
    house = House()
    house.slots("a", credit=0)
    house.ask()
    house.router.set_routes({})
    assert "removed" in house.error(1).message


def test_while_a_higher_priority_is_expected_the_lower_keep_the_slot_nearly_free() -> None:
    house = House()
    house.slots("a", credit=8)
    house.ask(priority=20)
    assert house.assign() == {"a": [1]}
    house.answer("a", 1)
    for _ in range(6):
        house.ask()
    assert house.assign() == {"a": [2, 3]}
    house.ask(priority=20)
    assert house.assign() == {"a": [8]}
    house.answer("a", 2)
    assert house.assign() == {}
    assert house.assign(PRESENCE_S + 1) == {"a": [4, 5, 6, 7]}


def test_what_was_sent_back_does_not_keep_a_higher_priority_waiting() -> None:
    house = House()
    house.slots("a", credit=3)
    for _ in range(3):
        house.ask()
    assert house.assign() == {"a": [1, 2, 3]}
    house.answer("a", 3, elsewhere=True)
    house.ask(priority=20)
    assert house.assign() == {"a": [4]}


def test_what_cannot_be_in_time_is_refused_at_once() -> None:
    house = House()
    house.slots("a", credit=1)
    house.ask()
    house.assign()
    reply = Reply(1, 0, 200, 0, 0, None, 2.0, 0, 0, 0, 0, b"")  # two seconds in the slot
    house.router.reply("a", reply)
    for _ in range(4):
        house.ask()
    house.assign()
    with pytest.raises(Unavailable, match="3 requests wait") as refusal:
        house.ask(deadline_s=7.0)
    assert refusal.value.reason == "deadline"
    assert refusal.value.retry_after_s == pytest.approx(6.0)
    assert not house.ask(deadline_s=9.0).finished
    assert not house.ask(deadline_s=3.0, priority=20).finished  # it goes before them


class Storm(RuleBasedStateMachine):
    """Slots come, die and drain at will: each request is answered at most once, credits hold."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House()
        self.house.router.set_routes({ANY: (LEAST, [(name, 1) for name in "abc"])})
        self.open: set[int] = set()
        self.sent: dict[str, set[int]] = {}
        self.credits: dict[str, int] = {}

    @rule(name=st.sampled_from("abc"), credit=st.integers(0, 3))
    def comes(self, name: str, credit: int) -> None:
        if name not in self.sent:
            self.house.up(name, credit)
            self.sent[name], self.credits[name] = set(), credit

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def dies(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.sent)))
        self.house.router.lane_down(name, 0.0)
        del self.sent[name]

    @rule()
    def asks(self) -> None:
        self.open.add(self.house.ask().id)

    @rule()
    def assigns(self) -> None:
        for name, numbers in self.house.assign().items():
            assert not self.sent[name] & set(numbers)
            self.sent[name] |= set(numbers)

    @precondition(lambda self: any(self.sent.values()))
    @rule(data=st.data(), elsewhere=st.booleans())
    def answers(self, data: st.DataObject, elsewhere: bool) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, ids in self.sent.items() if ids)))
        number = data.draw(st.sampled_from(sorted(self.sent[name])))
        self.sent[name].remove(number)
        self.house.answer(name, number, elsewhere=elsewhere)

    @invariant()
    def nothing_is_lost_or_answered_twice(self) -> None:
        assert all(len(answers) == 1 for answers in self.house.answers.values())
        assert len(self.house.router) + len(self.house.answers) == len(self.open)

    @invariant()
    def credits_hold(self) -> None:
        assert all(len(ids) <= self.credits[name] for name, ids in self.sent.items())


TestStorm = Storm.TestCase
TestStorm.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
