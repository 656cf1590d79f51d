"""Requests of one template, which an engine decodes and answers together."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from headrace.errors import OutOfMemory
from headrace.link.frames import Item, Reply
from headrace.protocols.calls import call_number
from replicas.engine import LEARN_EVERY, TEMPLATES
from tests.replicas.test_engine import PREDICT, WAITED_S, Bench, bench

INFER = call_number("openinference", "infer")
BODIES = (
    *(b'{"instances": [1.5]}', b'{"instances": [1, 2, 3]}', b'{"instances": [-1, 2]}'),
    *(
        b'{"instances": [0]}',
        b'{"instances": [NaN]}',
        b'{"instances": [1e39]}',
        b'{"instances": 1}',
    ),
    *(b'{"instances": [16777217]}', b'{"instances": [1, 2}', b'{"instances": ["a"]}', b"{"),
    *(
        b'{"instances": [[1]]}',
        b'{"instances": []}',
        b'{"inputs": [1, 2]}',
        b'{"inputs": {"x": [4]}}',
    ),
    *(b'{"instances": [1, 2, 3, 4, 5, 6, 7, 8, 9]}', b'{"instances": [4]} ', b'{"outputs": [1]}'),
)


def send(b: Bench, bodies: Sequence[bytes], **more: object) -> list[int]:
    """Send them in one bundle; gives their numbers."""
    items = []
    for body in bodies:
        b.sent += 1
        item = Item(b.sent, len(body), 1, PREDICT, remaining_s=10.0, body=body, waited_s=WAITED_S)
        items.append(replace(item, **more))  # type: ignore[arg-type]
    b.engine.accept(b.gateway, items)
    return [item.id for item in items]


def values(reply: Reply) -> list[float]:
    found: list[float] = json.loads(bytes(reply.body))["predictions"]  # type: ignore[arg-type]
    return found


async def learn(b: Bench) -> None:
    """Have the body learned that all others here are like."""
    send(b, [b'{"instances":[9]}'])
    b.engine.flush()
    await b.gateway.wait_for(1)
    b.gateway.answers.clear()
    [[learned]] = b.engine._learned.values()
    assert learned.template.values.fits(row(1))


def row(*numbers: float) -> bytes:
    return b'{"instances":%b}' % json.dumps(numbers).encode()


async def alone(body: bytes) -> tuple[int, bytes]:
    async with bench() as b:
        send(b, [body])
        b.engine.flush()
        [reply] = await b.gateway.wait_for(1)
    return reply.status, bytes(reply.body)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(12))
async def test_a_mixture_is_answered_as_each_of_its_bodies_alone(seed: int) -> None:
    chosen = random.Random(seed).choices(BODIES, k=40)
    expected = {body: await alone(body) for body in set(chosen)}
    async with bench() as b:
        sent: dict[int, bytes] = {}
        # Whatever is learned on the way, in bundles of all sizes.
        for start in range(0, len(chosen), 1 + seed):
            bundle = chosen[start : start + 1 + seed]
            sent |= dict(zip(send(b, bundle), bundle, strict=True))
            b.engine.flush()
        replies = await b.gateway.wait_for(len(chosen))
        assert b.engine._learned
        stats = b.stats()
    assert {reply.id for reply in replies} == set(sent)
    for reply in replies:
        assert (reply.status, bytes(reply.body)) == expected[sent[reply.id]]  # type: ignore[arg-type]
    counts = [reply.status == 200 for reply in replies]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (sum(counts), 40 - sum(counts))


async def test_the_answers_of_a_batch_carry_their_own_rows_and_times() -> None:
    async with bench() as b:
        await learn(b)
        send(b, [row(1), row(2, 3), row(4)])
        b.engine.flush()
        one, two, three = await b.gateway.wait_for(3)
        document = b.statistics.document()
    assert [values(each) for each in (one, two, three)] == [[2], [4, 6], [8]]
    assert [each.rows for each in (one, two, three)] == [1, 2, 1]
    for each in (one, two, three):
        assert each.slot_s == pytest.approx(each.batch_wait_s + each.compute_s + each.encode_s)
        assert min(each.compute_s, each.encode_s) > 0
    assert [each.depth for each in (one, two, three)] == [2, 1, 0]
    assert document["inference_stats"]["success"]["count"] == 4
    assert document["inference_count"] == 5
    stats = {name: pair["ns"] for name, pair in document["inference_stats"].items()}
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert all(stats[name] > 0 for name in parts)
    assert sum(stats[name] for name in parts) <= stats["success"]


async def test_a_request_of_several_batches_is_joined() -> None:
    async with bench() as b:
        await learn(b)
        send(b, [row(1), row(*range(1, 11)), row(2)])
        b.engine.flush()
        replies = await b.gateway.wait_for(3)
    assert sorted(map(values, replies)) == [[2], [2.0 * n for n in range(1, 11)], [4]]


@pytest.mark.parametrize("bad", [-1.0, 0.0], ids=["refused", "broken"])
async def test_a_failed_neighbour_fails_alone(bad: float) -> None:
    async with bench() as b:
        await learn(b)
        [one, wrong, three] = send(b, [row(1), row(bad), row(3)])
        b.engine.flush()
        replies = {each.id: each for each in await b.gateway.wait_for(3)}
        stats = b.stats()
    assert (values(replies[one]), values(replies[three])) == ([2], [6])
    assert replies[wrong].status == (400 if bad < 0 else 500)
    assert (stats["success"]["count"], stats["fail"]["count"]) == (3, 1)


async def test_who_left_leaves_a_gap_between_the_others() -> None:
    async with bench() as b:
        await learn(b)
        b.runtime.go.clear()
        send(b, [row(8)])
        b.engine.flush()
        [one, two, three, four] = send(b, [row(1), row(2), row(3), row(4)])
        assert b.engine.cancel(b.gateway, two)  # waits
        b.engine.flush()
        b.runtime.go.set()
        await b.gateway.wait_for(1)
        b.runtime.go.clear()
        assert b.engine.cancel(b.gateway, three)  # runs
        b.runtime.go.set()
        replies = await b.gateway.wait_for(3)
        stats = b.stats()
    assert [(each.id, values(each)) for each in replies[1:]] == [(one, [2]), (four, [8])]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (4, 0)


async def test_a_deadline_ends_one_request_of_a_bundle() -> None:
    async with bench() as b:
        await learn(b)
        [late] = send(b, [row(5)], remaining_s=0.0)
        [timely] = send(b, [row(6)])
        b.engine.flush()
        replies = {each.id: each for each in await b.gateway.wait_for(2)}
    assert replies[late].status == 504 and replies[late].encode_s == 0
    assert values(replies[timely]) == [12]


async def test_rows_that_yield_join_no_batch_of_a_higher_priority() -> None:
    async with bench() as b:
        await learn(b)
        b.runtime.go.clear()
        send(b, [row(9)])
        b.engine.flush()
        low = send(b, [row(1), row(2)])
        high = send(b, [row(3), row(4)], priority=20)
        b.runtime.go.set()
        replies = await b.gateway.wait_for(5)
        runs = {
            each["batch_size"]: each["compute_infer"]["count"]
            for each in b.statistics.document()["batch_stats"]
        }
    assert [each.id for each in replies[1:]] == [*high, *low]
    assert runs == {1: 4, 2: 1}, "the higher ones together, the lower ones row by row"


async def test_requests_of_two_protocols_share_a_batch() -> None:
    def v2(number: int) -> bytes:
        return b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[%d]}]}' % number

    async with bench() as b:
        await learn(b)
        b.engine._until_learned = 0
        send(b, [v2(9)], call=INFER)
        b.engine.flush()
        await b.gateway.wait_for(1)
        b.gateway.answers.clear()
        assert len(b.engine._learned) == 2
        send(b, [row(1)])
        send(b, [v2(2)], call=INFER)
        send(b, [row(3)])
        b.engine.flush()
        one, three, two = await b.gateway.wait_for(3)
        document = b.statistics.document()
    assert (values(one), values(three)) == ([2], [6])
    [output] = json.loads(bytes(two.body))["outputs"]  # type: ignore[arg-type]
    assert output == {"name": "y", "datatype": "FP32", "shape": [1], "data": [4]}
    assert document["execution_count"] == 3


async def test_suspects_run_alone() -> None:
    async with bench() as b:
        await learn(b)
        b.runtime.go.clear()
        send(b, [row(9)])
        b.engine.flush()
        send(b, [row(1), row(2)], flags=4)
        send(b, [row(3), row(4)])
        b.runtime.go.set()
        replies = await b.gateway.wait_for(5)
        document = b.statistics.document()
    assert sorted(map(values, replies)) == [[2], [4], [6], [8], [18]]
    assert document["execution_count"] == 5


async def test_a_limit_on_rows_refuses_one_request_of_a_bundle() -> None:
    async with bench() as b:
        await learn(b)
        b.engine.spec = replace(b.engine.spec, row_limit=2)
        [one, long] = send(b, [row(1), row(1, 2, 3)])
        b.engine.flush()
        replies = {each.id: each for each in await b.gateway.wait_for(2)}
    assert values(replies[one]) == [2]
    assert replies[long].status == 400 and b"must be <= 2" in bytes(replies[long].body)  # type: ignore[arg-type]


async def test_out_of_memory_answers_what_runs_and_leaves_what_waits() -> None:
    async with bench() as b:
        await learn(b)
        b.runtime.go.clear()
        running = send(b, [row(1), row(2), row(3), row(4)])
        b.engine.flush()
        waiting = send(b, [row(5), row(6)])
        b.engine.out_of_memory(OutOfMemory("the slot ran out of memory"))
        assert {each.id: each.status for each in b.gateway.answers} == dict.fromkeys(running, 507)
        b.runtime.go.set()
        replies = await b.gateway.wait_for(6)
    assert {each.id: values(each) for each in replies[4:]} == dict(
        zip(waiting, [[10], [12]], strict=True)
    )


async def test_few_templates_are_kept_and_few_bodies_are_learned() -> None:
    async with bench() as b:
        bodies = [b'{%b"instances":[1]}' % (b" " * n) for n in range(3 * LEARN_EVERY)]
        for body in bodies:
            send(b, [body])
        b.engine.flush()
        await b.gateway.wait_for(len(bodies))
        assert sum(map(len, b.engine._learned.values())) == 3
        for number in range(2 * TEMPLATES * LEARN_EVERY):
            send(b, [b'{%b"instances":[1]}' % (b"\t" * (number + 1))])
        b.engine.flush()
        assert sum(map(len, b.engine._learned.values())) == TEMPLATES


async def test_the_protocol_that_has_learned_nothing_for_longest_loses_a_template() -> None:
    v2 = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[9]}]}'
    async with bench() as b:
        await learn(b)
        b.engine._until_learned = 0
        send(b, [v2], call=INFER)
        serving, infer = b.engine._learned
        assert (serving[0] != INFER, infer[0]) == (True, INFER)
        for number in range(TEMPLATES * LEARN_EVERY):
            send(b, [b'{%b"instances":[1]}' % (b" " * (number + 1))])
        assert list(b.engine._learned) == [serving]
