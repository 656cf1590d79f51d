from __future__ import annotations

import asyncio

import pytest

from autoscale.decision_log import REPLAYED, DecisionLog
from autoscale.lending import Lending
from autoscale.sharing import Division
from headrace.config.args import SlotClass
from headrace.config.scaling import Leases
from headrace.errors import InvalidArgument, NotFound
from headrace.metrics import PREEMPTIONS, Recorder
from tests.autoscale.test_waking import Kept


class Desk:
    """Lending with a clock set by hand; `kept` is its journal."""

    def __init__(self, **settings: float) -> None:
        self.kept, self.changes = Kept(), 0
        self.recorder = Recorder("pool")
        self.lending = Lending(
            {"cpu": SlotClass(min=1, max=5)},
            self.recorder,
            DecisionLog(self.kept.add),
            self._changed,
        )
        self.lending.configure(Leases.model_validate(settings))
        self.now_s = asyncio.get_running_loop().time()

    def _changed(self) -> None:
        self.changes += 1

    def settle(self, for_leases: int, after_s: float = 0.0) -> None:
        self.now_s += after_s
        division = Division(for_leases={"cpu": for_leases}, capacity={"cpu": 5})
        self.lending.settle(division, self.now_s)

    def states(self) -> dict[str, str]:
        return {each["holder"]: each["state"] for each in self.lending.documents()}


async def test_a_lease_is_granted_told_and_taken_back_after_its_grace() -> None:
    desk = Desk(grace_s=3.0, ttl_s=1000)
    lease = await desk.lending.request("train", 2, "cpu", None)
    assert (lease["state"], lease["granted"]) == ("WAITING", False)
    watching = asyncio.create_task(desk.lending.watch(lease["id"], "WAITING"))
    await asyncio.sleep(0)
    desk.settle(4)
    told = await asyncio.wait_for(watching, 1)
    assert told["state"] == "GRANTED"
    desk.settle(0)
    assert desk.states() == {"train": "NOTICED"}
    assert desk.lending.document(lease["id"])["due_in_s"] == pytest.approx(3.0, abs=0.5)
    assert desk.lending.book.held() == {"cpu": 2}
    desk.settle(0, after_s=2.9)
    assert desk.states() == {"train": "NOTICED"}
    desk.settle(0, after_s=0.2)
    assert desk.states() == {"train": "WAITING"}
    assert desk.lending.book.held().get("cpu", 0) == 0
    assert desk.recorder.snapshot().select(PREEMPTIONS, holder="train") == [(1,)]
    desk.settle(2, after_s=1.0)
    assert desk.states() == {"train": "GRANTED"}
    for kind, inputs, decision in desk.kept.entries:
        assert REPLAYED[kind](inputs) == decision
    desk.lending.release(lease["id"])
    assert desk.states() == {}
    with pytest.raises(NotFound):
        await desk.lending.watch(lease["id"], "GRANTED")


async def test_what_can_never_be_granted_is_refused_with_the_sum() -> None:
    desk = Desk()
    with pytest.raises(InvalidArgument, match="at most 4"):
        await desk.lending.request("train", 5, "cpu", None)
    with pytest.raises(InvalidArgument, match="no slot class gpu"):
        await desk.lending.request("train", 1, "gpu", None)
    with pytest.raises(InvalidArgument, match="at least 1"):
        await desk.lending.request("train", 0, "cpu", None)
    with pytest.raises(NotFound):
        desk.lending.release("nobody")
    assert desk.lending.documents() == []


async def test_a_silent_holder_loses_its_lease_and_a_gang_is_all_or_nothing() -> None:
    desk = Desk(ttl_s=5)
    await desk.lending.request("gone", 1, "cpu", None)
    await desk.lending.request("big", 4, "cpu", None)
    desk.settle(4)
    assert desk.states() == {"gone": "GRANTED", "big": "WAITING"}
    big = next(each for each in desk.lending.documents() if each["holder"] == "big")
    desk.lending.book.renew(big["id"], desk.now_s + 5)
    desk.settle(4, after_s=6)
    desk.settle(4)
    assert desk.states() == {"big": "GRANTED"}


async def test_the_next_pool_goes_on_with_what_was_lent() -> None:
    first, second = Desk(), Desk()
    lease = await first.lending.request("train", 2, "cpu", 7.0)
    first.settle(4)
    second.lending.restore(first.lending.book.leases())
    second.lending.restore(first.lending.book.leases())
    assert second.states() == {"train": "GRANTED"}
    assert (await second.lending.watch(lease["id"], "WAITING"))["grace_s"] == 7.0
