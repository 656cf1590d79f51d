"""Order, fairness and bookkeeping of the queue before a model."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.link.queue import FairQueue, Request


def request(
    caller: str = "a", priority: int = 0, cost: float = 1.0, deadline_s: float = 60.0
) -> Request:
    return Request(
        0,
        0,
        key=("m", 1),
        deadline_s=deadline_s,
        arrived_s=0.0,
        done=lambda *_: None,
        caller=caller,
        priority=priority,
        cost=cost,
    )


def filled(*jobs: Request) -> FairQueue:
    queue: FairQueue = FairQueue()
    for job in jobs:
        queue.push(job)
    return queue


def pop(queue: FairQueue) -> Request:
    request = queue.head()
    assert request is not None
    queue.remove_head(request)
    return request


def drain(queue: FairQueue) -> list[Request]:
    return [pop(queue) for _ in range(len(queue))]


def test_nothing_has_the_turn_where_nothing_waits() -> None:
    assert FairQueue().head() is None


def test_the_higher_priority_goes_first() -> None:
    low, high, middle = request(priority=0), request("b", priority=20), request("c", priority=10)
    assert drain(filled(low, high, middle)) == [high, middle, low]


def test_one_caller_keeps_its_order() -> None:
    jobs = [request() for _ in range(5)]
    assert drain(filled(*jobs)) == jobs


def test_the_earliest_deadline_of_a_caller_goes_first() -> None:
    late, soon = request(deadline_s=9.0), request(deadline_s=1.0)
    assert drain(filled(late, soon)) == [soon, late]


def test_callers_take_turns_when_one_sends_much() -> None:
    flood, other = [request("flood") for _ in range(50)], [request("other") for _ in range(3)]
    order = [job.caller for job in drain(filled(*flood, *other))]
    assert order[:6].count("other") == 3


def test_dear_requests_take_fewer_turns() -> None:
    dear = [request("dear", cost=4.0) for _ in range(20)]
    cheap = [request("cheap") for _ in range(80)]
    first = Counter(job.caller for job in drain(filled(*dear, *cheap))[:50])
    assert first["cheap"] == pytest.approx(4 * first["dear"], abs=4)


def test_a_settled_cost_is_paid_with_later_turns() -> None:
    queue = filled(*[request("a") for _ in range(20)], *[request("b") for _ in range(20)])
    pop(queue)
    queue.charge("a", 0, 10.0)
    assert [pop(queue).caller for _ in range(10)].count("a") <= 1


def test_a_debt_outlives_the_flow() -> None:
    queue = filled(request("a"))
    pop(queue)
    queue.charge("a", 0, 5.0)
    for _ in range(8):
        queue.push(request("a"))
        queue.push(request("b"))
    assert [pop(queue).caller for _ in range(5)].count("a") == 0


def test_what_is_returned_goes_before_all_of_its_priority() -> None:
    equal, higher, again, first = request(), request("b", priority=20), request(), request()
    queue = filled(equal, higher)
    queue.return_to_front(again)
    queue.return_to_front(first)
    assert queue.ahead(0) == 4 and queue.ahead(20) == 1
    assert drain(queue) == [higher, first, again, equal]


def test_a_finished_request_is_passed_over() -> None:
    gone, stays, back = request(), request(), request("b")
    queue = filled(gone, stays)
    queue.return_to_front(back)
    for job in (gone, back):
        job.finished = True
        queue.discard(job)
    assert len(queue) == 1
    assert list(queue) == [stays]
    assert pop(queue) is stays
    assert queue.head() is None


def test_ahead_counts_equal_and_higher_priorities() -> None:
    queue = filled(request(priority=0), request(priority=10), request(priority=20))
    assert (queue.ahead(0), queue.ahead(10), queue.ahead(11)) == (3, 2, 1)


jobs = st.builds(
    request,
    caller=st.sampled_from("abcd"),
    priority=st.integers(0, 2),
    cost=st.sampled_from([0.5, 1.0, 3.0, 25.0]),
    deadline_s=st.floats(0, 100),
)


@given(st.lists(st.one_of(jobs, st.sampled_from(["pop", "cancel", "back", "return"])), max_size=60))
def test_nothing_is_lost_and_priorities_hold(steps: list[Request | str]) -> None:
    queue: FairQueue = FairQueue()
    waiting: list[Request] = []
    for step in steps:
        if isinstance(step, Request):
            queue.push(step)
            waiting.append(step)
        elif waiting and step == "cancel":
            gone = waiting.pop(len(waiting) // 2)
            gone.finished = True
            queue.discard(gone)
        elif waiting:
            assert (head := queue.head()) is not None
            taken = pop(queue)
            assert taken is head
            if step == "back":
                queue.return_to_front(taken)
                assert pop(queue) is taken
            assert taken.priority == max(job.priority for job in waiting)
            if step == "return":
                queue.return_to_front(taken)
            else:
                waiting.remove(taken)
        assert len(queue) == len(waiting)
        assert set(map(id, queue)) == set(map(id, waiting))


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6))
def test_no_caller_starves(counts: list[int]) -> None:
    jobs = [request(str(caller)) for caller, count in enumerate(counts) for _ in range(count)]
    order = [job.caller for job in drain(filled(*jobs))]
    for caller, count in enumerate(counts):
        # The n-th of a caller comes after at most n of each other one.
        last = len(order) - 1 - order[::-1].index(str(caller))
        assert last < sum(min(count + 1, other) for other in counts)
