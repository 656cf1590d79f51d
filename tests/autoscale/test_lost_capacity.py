"""Slots that die and are not replaced: who keeps what, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from autoscale import sharing
from autoscale.catalog import CatalogEntry
from autoscale.decision import Observation
from autoscale.rounds import Economy
from autoscale.sharing import START_S
from headrace.config.args import ModelConfig, PoolConfig, SlotClass
from headrace.config.scaling import Replicas, Share
from headrace.snapshot import SlotView
from tests.autoscale.waking import open_waking
from tests.house import client, until

BODY = {"instances": [[1.0, 2.0, 3.0, 4.0]]}


def fixed(priority: int) -> ModelConfig:
    share = Share(priority=priority)
    return ModelConfig(runtime="onnx", replicas=Replicas(min=2, max=2), share=share)


async def test_shares_shrink_in_the_order_of_priority_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "START_S", 0.3)
    models = {"m": fixed(0), "n": fixed(10)}
    async with open_waking(tmp_path, "a", "b", "c", "d", models=models, max_slots=4) as (
        plant,
        house,
        _,
    ):
        plant.write(1, "n")

        def holders(model: str) -> list[str]:
            placements = plant.controller.snapshot.placements
            return sorted(p.slot_id for p in placements if (p.model, p.state) == (model, "READY"))

        await until(lambda: len(holders("m")) == len(holders("n")) == 2)
        with capture_logs() as told:
            for slot in holders("n"):
                await plant.slots.pop(slot).close()
            await until(lambda: len(holders("n")) == 2 and not holders("m"))
            async with client(house) as http:
                answer = await http.post("/v1/models/n:predict", json=BODY)
            assert answer.status_code == 200
            view = plant.model("m")
            assert view is not None
            waiting = view.version(1)
            assert waiting is not None and waiting.state == "PENDING"
            assert "needs 2 slots of class cpu, 0 free" in waiting.reason
            for slot in ("e", "f"):
                await plant.add_slot(slot)
            await until(lambda: len(holders("m")) == len(holders("n")) == 2)
    said = [line for line in told if line["event"] in ("slots_missing", "slots_back")]
    # They come back one by one.
    assert [line.get("missing") for line in said] == [2, 1, None]
    assert said[-1]["event"] == "slots_back"
    assert (said[0]["slot_class"], said[0]["missing"], said[0]["capacity"]) == ("cpu", 2, 2)
    assert said[0]["unmet"] == {"m": 2} and "guarantees" in str(said[0]["why"])


def test_slots_that_do_not_come_are_still_asked_for() -> None:
    economy = Economy({"cpu": SlotClass(min=0, max=4)})
    entries = [CatalogEntry(n, fixed(p), "cpu", (1,)) for n, p in (("m", 0), ("n", 10))]
    versions = {"m": 1, "n": 1}
    grants = {}
    for second in range(200):
        here = 4 if second < 10 else 2
        slots = [SlotView(str(number), "cpu", "node", "", "") for number in range(here)]
        found = Observation(PoolConfig(), entries, slots, [])
        division = economy.settle(found, versions, {"m", "n"}, second)
        grants[second] = division.grants
        assert economy.targets.targets == {"cpu": 4}
        assert economy.targets.lost == ({"cpu": 2} if second >= 10 + START_S else {})
    assert grants[9 + int(START_S)] == {"m": 2, "n": 2}
    assert all(grants[second] == {"m": 0, "n": 2} for second in range(10 + int(START_S), 200))


def test_a_slot_that_has_just_come_is_room_for_what_waited_for_it() -> None:
    economy = Economy({"cpu": SlotClass(min=0, max=4)})
    config = fixed(0).model_copy(update={"replicas": Replicas(min=1, max=1)})
    entries = [CatalogEntry("m", config, "cpu", (1,))]
    slot = SlotView("a", "cpu", "node", "", "")

    def settle(slots: list[SlotView], second: int, crowded: int) -> dict[str, int]:
        found = Observation(PoolConfig(), entries, slots, [])
        economy.settle(found, {"m": 1}, {"m"}, second, crowded={"cpu": crowded})
        return dict(economy.targets.targets)

    for second, (slots, crowded) in enumerate([([], 0), ([], 1), ([slot], 1), ([slot], 0)]):
        assert settle(slots, second, crowded) == {"cpu": 1}
    settle([slot], 4, 1)
    assert settle([slot], 5, 1) == {"cpu": 2}, "it was there, and had no room"
