from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.pool.log import Steps, leased_slots, parse_log, read_log


def line(at_s: float, event: str, **more: object) -> bytes:
    """A line as our processes write it."""
    time = datetime.fromtimestamp(at_s, UTC).isoformat()
    return json.dumps({"time": time, "event": event, **more}).encode()


def placement(at_s: float, state: str, model: str = "a") -> bytes:
    return line(at_s, "placement", model=model, version=1, state=state)


READY = placement(10, "READY")


def test_steps_add_up_and_know_when_they_reach_a_number() -> None:
    steps = Steps.of([(1.0, +1), (2.0, +1), (4.0, -1), (5.0, -1)])
    assert [steps.at(at_s) for at_s in (0.5, 1.0, 2.5, 4.5, 9.0)] == [0, 1, 2, 1, 0]
    assert steps.total(0.0, 10.0) == pytest.approx(1 + 2 * 2 + 1)
    assert steps.total(2.5, 4.5) == pytest.approx(1.5 * 2 + 0.5)
    assert steps.most(0.0, 1.5) == 1 and steps.most(4.5, 9.0) == 1
    assert steps.first(0.0, least=2) == 2.0 and steps.first(3.0, most=0) == 5.0
    assert steps.first(3.0, least=2) == 3.0 and math.isnan(steps.first(0.0, least=3))


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(-2, 3)), max_size=20),
    st.floats(0, 100),
)
def test_the_total_of_two_parts_is_that_of_the_whole(
    changes: list[tuple[float, int]], middle_s: float
) -> None:
    steps = Steps.of(changes)
    whole = steps.total(0.0, 100.0)
    assert steps.total(0.0, middle_s) + steps.total(middle_s, 100.0) == pytest.approx(whole)


def test_a_log_tells_what_was_ready_and_how_long_it_loaded() -> None:
    pool = [b"no line of ours", line(10, "slot_joined"), line(11, "slot_joined"), b'{"half": ']
    pool.append(line(30, "slot_lost", slot="big-cpu-7-a1b2c3"))
    first = [placement(12, "LOADING"), placement(12.5, "WARMING"), placement(13, "READY")]
    first += [placement(20, "DRAINING"), placement(20.1, "END")]
    second = [placement(14, "LOADING"), placement(14.25, "READY"), placement(15, "LOADING", "b")]
    second += [placement(15.5, "FAILED", "b")]
    log = parse_log({5: pool, 6: first, 7: second})
    assert log.loads_s == {"a": (1.0, 0.25)}
    assert [log.ready["a"].at(at_s) for at_s in (12.9, 13, 14.25, 20)] == [0, 1, 2, 1]
    assert [log.ready["a"].at(at_s) for at_s in (29.9, 30)] == [1, 0]  # it went with its slot
    assert log.joined_s == (10, 11) and log.slots.at(12) == 2 and log.slots.at(31) == 1


def test_a_model_that_is_loaded_again_counts_again() -> None:
    states = ["LOADING", "READY", "DRAINING", "END", "LOADING", "WARMING", "READY"]
    log = parse_log({7: [placement(number, state) for number, state in enumerate(states)]})
    assert [log.ready["a"].at(at_s) for at_s in range(7)] == [0, 1, 0, 0, 0, 0, 1]
    assert log.loads_s == {"a": (1.0, 2.0)}


def test_a_log_is_read_by_the_process_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    lost = {"worker-1-2-5.err": line(30, "slot_lost", slot="cpu-7-a"), "worker-1-2-7.err": READY}
    for name, content in lost.items():
        (tmp_path / "logs" / name).write_bytes(content)
    log = read_log(tmp_path)
    assert [log.ready["a"].at(at_s) for at_s in (10, 31)] == [1, 0]


def lend(at_s: float, event: str, slots: int) -> bytes:
    inputs = {"leases": [{"lease_id": "l1", "slots": slots}]}
    decision = {"events": [["l1", event]]}
    return json.dumps({"at": at_s, "kind": "lend", "inputs": inputs, "decision": decision}).encode()


def test_a_lease_holds_its_slots_until_they_are_taken_back() -> None:
    journal = [json.dumps({"at": 0.5, "kind": "scale"}).encode(), lend(1, "GRANTED", 2)]
    journal += [lend(2, "NOTICED", 2), lend(3, "PREEMPTED", 2), lend(5, "GRANTED", 2)]
    steps = leased_slots([*journal, lend(6, "ENDED", 2)], 100.0)
    assert [steps.at(100.5 + n) for n in range(7)] == [0, 2, 2, 0, 0, 2, 0]
