from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InternalError
from headrace.protocols.tensors import InferenceRequest
from headrace.spec import Signature
from replicas.batcher import PRESENCE_S, Batch, Batcher, Pending, batch_key, own_outputs

SIGNATURE = Signature("serving_default", (), ())


def request(rows: int | None, width: int = 2, first: float = 0.0) -> InferenceRequest:
    """Every row is filled with its own number, counted from `first`."""
    count = 1 if rows is None else rows
    values = np.repeat(np.arange(first, first + count, dtype=np.float32), width)
    return InferenceRequest(SIGNATURE, {"x": values.reshape(count, width)}, rows)


def pending(
    rows: int | None = 1,
    *,
    width: int = 2,
    first: float = 0.0,
    at_s: float = 0.0,
    deadline_s: float = math.inf,
    alone: bool = False,
    priority: int = 0,
) -> Pending:
    own = request(rows, width, first)
    key = None if alone else batch_key(own)
    return Pending(own, key, 1 if rows is None else rows, deadline_s, at_s, priority)


def sharing(*rows: int, first: float = 0.0) -> list[Pending]:
    """Requests whose rows follow each other in the tensors of one."""
    shared = request(sum(rows), first=first)
    key, found, at = batch_key(shared), [], 0
    for count in rows:
        found.append(Pending(shared, key, count, math.inf, 0.0, first=at))
        at += count
    return found


def taken(batcher: Batcher[Pending], now_s: float = 0.0) -> Batch[Pending]:
    batch = batcher.take(now_s).batch
    assert batch is not None
    return batch


def run(batch: Batch[Pending]) -> list[tuple[Pending, Mapping[str, np.ndarray]]]:
    finished = batch.deliver({"y": batch.inputs()["x"][:, 0] * 10})
    return [(each[0], own_outputs(each)) for each in finished]


def ranges(batch: Batch[Pending]) -> list[tuple[int, int]]:
    return [(start, stop) for _, start, stop in batch.parts]


def add_all(batcher: Batcher[Pending], pendings: Sequence[Pending]) -> None:
    for entry in pendings:
        batcher.add(entry)


def held(batcher: Batcher[Pending]) -> tuple[int, int]:
    """Requests that wait, and their rows that have not started."""
    queues = batcher.queues.values()
    return sum(len(queue.waiting) for queue in queues), sum(queue.rows for queue in queues)


def test_rows_are_counted_not_requests() -> None:
    batcher = Batcher[Pending](4, 0.0)
    add_all(batcher, [pending(2, first=0), pending(2, first=2), pending(1, first=4)])
    assert held(batcher) == (3, 5)
    batch = taken(batcher)
    assert (len(batch.parts), batch.rows) == (2, 4)
    assert held(batcher) == (1, 1)
    assert [answer["y"].tolist() for _, answer in run(batch)] == [[0, 10], [20, 30]]


def test_a_request_that_does_not_fit_waits_whole_for_the_next_batch() -> None:
    batcher = Batcher[Pending](4, 0.0)
    add_all(batcher, [pending(3), pending(2), pending(1)])
    assert ranges(taken(batcher)) == [(0, 3)]
    assert ranges(taken(batcher)) == [(0, 2), (0, 1)]


def test_different_shapes_dtypes_and_outputs_never_share() -> None:
    plain = request(1)
    wider = request(1, width=3)
    double = InferenceRequest(SIGNATURE, {"x": plain.inputs["x"].astype(np.float64)}, 1)
    chosen = InferenceRequest(SIGNATURE, plain.inputs, 1, outputs=("y",))
    other = InferenceRequest(Signature("other", (), ()), plain.inputs, 1)
    keys = {batch_key(entry) for entry in (plain, wider, double, chosen, other)}
    assert len(keys) == 5
    assert batch_key(plain) == batch_key(request(7))


def test_key_does_not_depend_on_the_order_of_inputs() -> None:
    a, b = np.zeros((1, 2)), np.zeros((1, 3))
    one = InferenceRequest(SIGNATURE, {"a": a, "b": b}, 1)
    two = InferenceRequest(SIGNATURE, {"b": b, "a": a}, 1)
    assert batch_key(one) == batch_key(two)


def test_requests_without_common_rows_and_those_alone_run_by_themselves() -> None:
    batcher = Batcher[Pending](8, 1.0)
    entries = [pending(None), pending(None), pending(2, alone=True), pending(0)]
    add_all(batcher, entries)
    ran = [taken(batcher).pendings for _ in entries]
    assert ran == [[entry] for entry in entries]
    assert batcher.take(0.0).batch is None


def test_a_lone_whole_request_is_not_copied() -> None:
    batcher = Batcher[Pending](8, 0.0)
    entry = pending(3)
    batcher.add(entry)
    batch = taken(batcher)
    assert batch.inputs() is entry.request.inputs
    output = np.ones((5, 5))
    [finished] = batch.deliver({"y": output})
    assert finished[0] is entry
    assert own_outputs(finished)["y"] is output


def test_answers_of_whole_requests_are_views() -> None:
    batcher = Batcher[Pending](8, 0.0)
    add_all(batcher, [pending(), pending()])
    output = np.ones((2, 3))
    answers = taken(batcher).deliver({"y": output})
    assert all(np.shares_memory(own_outputs(answer)["y"], output) for answer in answers)


def test_requests_that_share_tensors_are_copied_only_where_others_lie_between() -> None:
    batcher = Batcher[Pending](16, 0.0)
    one, two, _ = sharing(1, 2, 4)
    batcher.add(one, two)
    inputs = taken(batcher).inputs()
    assert np.shares_memory(inputs["x"], one.request.inputs["x"])
    assert inputs["x"][:, 0].tolist() == [0, 1, 2]
    every = sharing(1, 2, 4)
    batcher.add(*every)
    assert taken(batcher).inputs() is every[0].request.inputs
    one, two, three, four = sharing(1, 2, 1, 3)
    [other] = sharing(2, first=50)
    add_all(batcher, [four, other, one, three, two])
    batch = taken(batcher)
    assert batch.inputs()["x"][:, 0].tolist() == [4, 5, 6, 50, 51, 0, 3, 1, 2]
    answers = {id(entry): answer["y"].tolist() for entry, answer in run(batch)}
    assert answers[id(two)] == [10, 20] and answers[id(four)] == [40, 50, 60]


def test_a_failed_request_runs_again_from_its_first_row() -> None:
    batcher = Batcher[Pending](2, 0.0)
    first, cut = sharing(1, 3)
    batcher.add(cut)
    batcher.add(first)
    assert run(taken(batcher)) == []
    assert taken(batcher).fail() == [cut, first]
    for entry in (cut, first):
        entry.run_alone()
        batcher.add(entry)
    found = []
    while held(batcher)[0]:
        batch = taken(batcher)
        assert len(batch.parts) == 1
        found += [(entry, answer["y"].tolist()) for entry, answer in run(batch)]
    assert found == [(cut, [10, 20, 30]), (first, [0])]


def test_a_request_larger_than_max_rows_is_cut_and_joined() -> None:
    batcher = Batcher[Pending](4, 0.0)
    large, small = pending(9, first=0), pending(2, first=100)
    add_all(batcher, [large, small])
    assert run(taken(batcher)) == []
    assert held(batcher)[0] == 2
    assert run(taken(batcher)) == []
    tail = taken(batcher)
    assert ranges(tail) == [(8, 9), (0, 2)]
    answers = {id(entry): answer["y"].tolist() for entry, answer in run(tail)}
    assert answers == {id(large): [10.0 * row for row in range(9)], id(small): [1000, 1010]}


def test_parts_delivered_out_of_order_are_joined_in_place() -> None:
    batcher = Batcher[Pending](2, 0.0)
    batcher.add(pending(4))
    first, second = taken(batcher), taken(batcher)
    assert run(second) == []
    assert run(first)[0][1]["y"].tolist() == [0, 10, 20, 30]


def test_max_rows_zero_runs_every_request_alone_and_whole() -> None:
    batcher = Batcher[Pending](0, 1.0)
    add_all(batcher, [pending(100), pending(1)])
    assert [taken(batcher).rows, taken(batcher).rows] == [100, 1]


def test_waits_for_more_rows_until_the_oldest_has_waited() -> None:
    batcher = Batcher[Pending](4, 0.5)
    batcher.add(pending(1, at_s=10.0))
    batcher.add(pending(1, at_s=10.3))
    assert batcher.next_s(10.3) == 10.5
    assert batcher.take(10.4).batch is None
    assert taken(batcher, 10.5).rows == 2
    assert batcher.next_s(10.5) is None


def test_does_not_wait_once_max_rows_are_there() -> None:
    batcher = Batcher[Pending](4, 0.5)
    add_all(batcher, [pending(2, at_s=1.0), pending(2, at_s=1.0), pending(1, at_s=1.0)])
    assert batcher.next_s(1.0) == 1.0
    assert taken(batcher, 1.0).rows == 4
    assert batcher.next_s(1.0) == 1.5


def test_waits_at_most_half_of_the_time_to_any_deadline() -> None:
    batcher = Batcher[Pending](4, 0.5)
    batcher.add(pending(1, at_s=1.0))
    batcher.add(pending(1, at_s=1.1, deadline_s=1.3))
    assert batcher.next_s(1.1) == pytest.approx(1.2)
    assert taken(batcher, 1.21).rows == 2


def test_what_was_left_waits_for_its_own_time() -> None:
    batcher = Batcher[Pending](2, 0.5)
    add_all(batcher, [pending(2, at_s=1.0, deadline_s=1.2), pending(1, at_s=1.1)])
    taken(batcher, 1.1)
    assert batcher.next_s(1.1) == pytest.approx(1.6)


def test_keys_take_turns_by_their_oldest_request() -> None:
    batcher = Batcher[Pending](2, 0.0)
    add_all(
        batcher,
        [
            pending(2, at_s=1.0),
            pending(1, width=3, at_s=2.0),
            pending(2, at_s=3.0),
            pending(None, at_s=2.5),
        ],
    )
    arrived = [taken(batcher, 9.0).pendings[0].arrived_s for _ in range(4)]
    assert arrived == [1.0, 2.0, 2.5, 3.0]


def test_late_requests_are_handed_back_and_do_not_run() -> None:
    batcher = Batcher[Pending](4, 0.0)
    late, other_late, timely = pending(deadline_s=5.0), pending(None, deadline_s=4.0), pending()
    add_all(batcher, [late, other_late, timely])
    result = batcher.take(5.0)
    assert result.batch is not None
    assert result.batch.pendings == [timely]
    assert result.late + batcher.take(5.0).late == [late, other_late]
    assert held(batcher) == (0, 0)


def test_a_cut_request_that_gets_late_is_answered_once() -> None:
    batcher = Batcher[Pending](2, 0.0)
    entry = pending(4, deadline_s=5.0)
    batcher.add(entry)
    first = taken(batcher, 1.0)
    assert batcher.take(5.0).late == [entry]
    assert run(first) == []
    assert first.fail() == []
    assert held(batcher) == (0, 0)


def test_cancel_drops_what_has_not_started() -> None:
    batcher = Batcher[Pending](2, 0.0)
    cut, waiting = pending(3), pending(1)
    add_all(batcher, [cut, waiting])
    running = taken(batcher)
    assert batcher.cancel(waiting)
    assert batcher.cancel(cut)
    assert not batcher.cancel(cut)
    assert run(running) == []
    assert held(batcher) == (0, 0) and batcher.next_s(0.0) is None


def test_cancel_says_false_when_all_rows_have_started() -> None:
    batcher = Batcher[Pending](2, 0.0)
    entry = pending(2)
    batcher.add(entry)
    batch = taken(batcher)
    assert not batcher.cancel(entry)
    assert [finished for finished, _ in run(batch)] == [entry]


def test_an_output_without_the_rows_is_refused_by_name() -> None:
    batcher = Batcher[Pending](4, 0.0)
    add_all(batcher, [pending(), pending()])
    batch = taken(batcher)
    with pytest.raises(InternalError, match=r"output 'mean' has shape \[\] for a batch of 2 rows"):
        batch.deliver({"y": np.ones((2, 1)), "mean": np.float32(1.0) * np.ones(())})
    assert len(batch.fail()) == 2


def test_a_failed_batch_ends_its_requests_and_drops_their_rest() -> None:
    batcher = Batcher[Pending](4, 0.0)
    cut, other = pending(6), pending(1)
    add_all(batcher, [cut, other])
    assert taken(batcher).fail() == [cut]
    assert taken(batcher).pendings == [other]


def test_a_delivered_request_does_not_fail_afterwards() -> None:
    batcher = Batcher[Pending](4, 0.0)
    batcher.add(pending())
    batch = taken(batcher)
    run(batch)
    assert batch.fail() == []


@pytest.mark.parametrize(("max_rows", "max_wait_s"), [(-1, 0.0), (1, -0.1), (1, math.inf)])
def test_negative_limits_are_refused(max_rows: int, max_wait_s: float) -> None:
    with pytest.raises(ValueError, match="must be 0 or more"):
        Batcher(max_rows, max_wait_s)


REQUESTS = st.tuples(
    st.integers(0, 9) | st.none(),  # rows
    st.integers(1, 2),  # width, which sets the key
    st.sampled_from([math.inf, math.inf, math.inf, 0.5, 2.0]),  # seconds to the deadline
    st.booleans() | st.just(False),  # alone
)
SHARING = st.lists(st.integers(1, 4), min_size=2, max_size=5)  # rows of each
STEPS = st.lists(REQUESTS | SHARING | st.just("take") | st.just("cancel"), max_size=40)


@given(st.integers(0, 6), st.sampled_from([0.0, 1.0]), STEPS)
def test_every_row_is_answered_once_and_in_place(
    max_rows: int, max_wait_s: float, steps: list[object]
) -> None:
    batcher = Batcher[Pending](max_rows, max_wait_s)
    added: list[Pending] = []
    ended: list[Pending] = []

    def step(now_s: float) -> bool:
        result = batcher.take(now_s)
        assert all(entry.deadline_s <= now_s for entry in result.late)
        ended.extend(result.late)
        if result.batch is None:
            return bool(result.late)
        check_batch(result.batch, max_rows, now_s)
        for entry, answer in run(result.batch):
            whole = entry.request.inputs["x"][:, 0]
            mine = whole[entry.first : entry.first + entry.rows]
            assert answer["y"].tolist() == (mine * 10).tolist()
            ended.append(entry)
        return True

    for number, what in enumerate(steps):
        now_s = number / 4
        if what == "take":
            step(now_s)
        elif what == "cancel":
            if added and batcher.cancel(added[number % len(added)]):
                ended.append(added[number % len(added)])
        elif isinstance(what, list):
            entries = sharing(*what, first=100.0 * len(added))
            for entry in entries:
                entry.arrived_s = now_s
            batcher.add(*entries)
            added += entries
        else:
            assert isinstance(what, tuple)
            rows, width, left_s, alone = what
            entry = pending(
                rows,
                width=width,
                first=100.0 * len(added),
                at_s=now_s,
                deadline_s=now_s + left_s,
                alone=alone,
            )
            batcher.add(entry)
            added.append(entry)
        assert held(batcher)[1] >= 0
        assert held(batcher)[0] == len(added) - len(ended)
    while step(1e6):
        pass
    assert sorted(map(id, ended)) == sorted(map(id, added))
    assert held(batcher) == (0, 0) and batcher.next_s(1e6) is None


def check_batch(batch: Batch[Pending], max_rows: int, now_s: float) -> None:
    whole_alone = len(batch.parts) == 1 and (
        max_rows == 0 or batch.pendings[0].request.rows is None
    )
    assert whole_alone or batch.rows <= max_rows
    assert len(batch.parts) == 1 or len({entry.key for entry in batch.pendings}) == 1
    assert len(batch.parts) == 1 or not any(entry.key is None for entry in batch.pendings)
    assert not any(entry.deadline_s <= now_s for entry in batch.pendings)
    arrivals = [entry.arrived_s for entry in batch.pendings]
    assert arrivals == sorted(arrivals)


def test_the_rest_of_a_cut_request_does_not_wait_where_no_wait_pays() -> None:
    batcher = Batcher[Pending](2, None)
    batcher.add(pending(5, at_s=1.0, deadline_s=61.0), pending(1, at_s=1.0, deadline_s=61.0))
    assert [taken(batcher, 1.0).rows for _ in range(3)] == [2, 2, 2]
    batcher.add(pending(5, at_s=2.0, deadline_s=62.0))
    assert taken(batcher, 2.0).rows == 2
    batcher.configure(4, None)
    assert taken(batcher, 2.0).rows == 3


def test_changed_limits_hold_from_the_next_batch_on() -> None:
    batcher = Batcher[Pending](max_rows=2, max_wait_s=0)
    for _ in range(6):
        batcher.add(pending(rows=1))
    first = batcher.take(0.0).batch
    batcher.configure(4, 0)
    second = batcher.take(0.0).batch
    assert first is not None and second is not None and (first.rows, second.rows) == (2, 4)
    with pytest.raises(ValueError, match="from or to 0"):
        batcher.configure(0, 0)


def test_the_higher_priority_goes_first_and_ends_what_it_passes_later() -> None:
    batcher = Batcher[Pending](2, 0.0)
    low = pending(5, first=0)
    batcher.add(low)
    first = taken(batcher)
    assert (first.pendings, first.rows) == ([low], 2)
    high = pending(1, first=50, priority=20)
    batcher.add(high)
    assert taken(batcher).pendings == [high]
    answers = run(first)
    while held(batcher)[1]:
        answers += run(taken(batcher))
    assert [each for each, _ in answers] == [low]
    assert answers[0][1]["y"].tolist() == [0, 10, 20, 30, 40]


def test_lower_priorities_run_row_by_row_while_a_higher_one_is_expected() -> None:
    batcher = Batcher[Pending](8, 0.0)
    batcher.add(pending(1, priority=20))
    assert taken(batcher).rows == 1
    add_all(batcher, [pending(3, first=0), pending(2, first=3)])
    assert [taken(batcher, 1.0).rows for _ in range(2)] == [1, 1]
    assert taken(batcher, PRESENCE_S + 1).rows == 3


def test_rows_of_lower_priorities_do_not_make_a_run_longer_for_a_higher_one() -> None:
    batcher = Batcher[Pending](8, 0.0)
    low, high = pending(1), [pending(1, priority=20), pending(1, priority=20)]
    add_all(batcher, [low, *high])
    assert taken(batcher).pendings == high
    assert taken(batcher).pendings == [low]
