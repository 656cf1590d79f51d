from __future__ import annotations

from typing import Any

import orjson

from autoscale.catalog import CatalogEntry
from autoscale.decision_log import RECENT, DecisionLog, Made
from autoscale.leases import LeaseBook
from autoscale.policy import DesiredSlots
from autoscale.pool_view import PoolFacts, gauges, render_pool
from autoscale.sharing import ModelPlaces, divide
from autoscale.slot_book import LoadOrder, Plan, Room, UnloadOrder
from headrace.config.args import ModelConfig, PoolConfig, SlotClass
from headrace.metrics import POOL_PLACES, POOL_SLOTS, POOL_UTILISATION, Recorder
from headrace.snapshot import ModelVersion, Placement, SlotView, State

CLASSES = {"cpu": SlotClass(min=1, warm=1, max=6)}
LEASE = {
    "id": "a1",
    "holder": "train",
    "state": "GRANTED",
    "slots": 2,
    "slot_class": "cpu",
    "granted": True,
    "grace_s": 5.0,
    "due_in_s": None,
    "preemptions": 0,
}


def config(least: int, most: int, **more: Any) -> ModelConfig:
    return ModelConfig.model_validate({"replicas": {"min": least, "max": most}, **more})


def slot(number: int) -> SlotView:
    return SlotView(f"cpu-{number}", "cpu", "node", "", "", draining=number == 4)


def facts() -> PoolFacts:
    """Four slots, one leaving; `busy` holds two of four wanted, `idle` lingers, `none` sleeps."""
    desired = {
        "busy": DesiredSlots(4, why="4.00 requests in flight, 1 for each slot"),
        "idle": DesiredSlots(1, lingering=True, why="called lately"),
        "none": DesiredSlots(0),
        "new": DesiredSlots(1, why="called lately"),
    }
    configs = {
        "busy": config(1, 5, share={"weight": 2.0}),
        "idle": config(0, 2),
        "none": config(0, 1),
        "new": config(0, 1, share={"group": "lab"}),
    }
    entries = [CatalogEntry(name, each, "cpu") for name, each in configs.items()]
    held = {"busy": 2, "idle": 1}
    needs = [ModelPlaces(n, c, "cpu", desired[n], held=held.get(n, 0)) for n, c in configs.items()]
    book = LeaseBook({"cpu": 2})
    book.request("lease", "train", 2, "cpu", 5.0, 0, 1.0, 0.0)
    book.reconcile({"cpu": 2}, 0.0)
    division = divide(needs, PoolConfig(models=configs), CLASSES, {"cpu": 6}, book, {"new": 7.25})
    return PoolFacts(
        classes=CLASSES,
        slots=[slot(number) for number in range(1, 5)],
        placements=[
            Placement("cpu-1", "busy", 1, State.READY),
            Placement("cpu-2", "busy", 1, State.LOADING),
            Placement("cpu-4", "idle", 1, State.READY),
        ],
        entries=entries,
        desired=desired,
        division=division,
        targets={"cpu": 4},
        waiting={ModelVersion("new", 3): "needs 1 slot of class cpu, 0 free"},
        leased={"cpu": 2},
        leases=[LEASE],
        decisions=[Made(0.5, "place", "load busy/1 in cpu-2", "as configured")],
    )


def accounts(view: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in view["accounts"]}


def test_a_class_tells_what_is_there_and_how_full_it_is() -> None:
    (cpu,) = render_pool(facts())["classes"]
    assert (cpu["min"], cpu["warm"], cpu["max"], cpu["capacity"]) == (1, 1, 6, 6)
    assert (cpu["live"], cpu["target"], cpu["held"], cpu["free"]) == (3, 4, 2, 1)
    assert cpu["leased"] == 2 and cpu["utilisation"] == 0.8  # two held and two leased of five


def test_accounts_tell_what_they_want_have_and_why() -> None:
    found = accounts(render_pool(facts()))
    busy, leases = found["busy"], found["leases"]
    assert (busy["wanted"], busy["held"], busy["state"]) == (4, 2, "waiting")
    assert busy["granted"] == busy["guaranteed"] + busy["own"] + busy["borrowed"] == 3
    assert busy["weight"] == 2.0 and busy["why"].startswith("4.00 requests in flight")
    assert (leases["kind"], leases["held"], leases["why"]) == ("leases", 2, "1 GRANTED")
    assert leases["group"] == "leases" and leases["state"] == "served"
    new = found["new"]
    assert (new["state"], new["hungry_s"]) == ("hungry", 7.2)
    assert new["waiting"] == "version 3 needs 1 slot of class cpu, 0 free"


def test_models_that_take_no_part_in_the_sharing_are_told_of_too() -> None:
    found = accounts(render_pool(facts()))
    assert (found["idle"]["state"], found["idle"]["granted"]) == ("lingering", 1)
    assert (found["none"]["state"], found["none"]["held"]) == ("asleep", 0)


def test_borrowers_and_lenders_name_each_other() -> None:
    view = render_pool(facts())
    busy = accounts(view)["busy"]
    borrowed = {loan["lender"]: loan["slots"] for loan in busy["borrows_from"]}
    groups = {each["group"]: each["lends"] for each in view["groups"] if each["lends"]}
    members = {name: each["lends"] for name, each in accounts(view).items() if each["lends"]}
    assert borrowed == {**members, **groups}
    assert members.keys() == {"none"} and groups.keys() == {"leases"}


def test_before_the_first_decision_all_is_empty() -> None:
    view = render_pool(PoolFacts(CLASSES))
    assert view["classes"][0]["utilisation"] == 0 and view["accounts"] == []
    assert orjson.loads(orjson.dumps(view)) == view


def test_gauges_follow_the_view() -> None:
    view = render_pool(facts())
    recorder = Recorder("pool")
    recorder.pool(*gauges(view))
    seen = recorder.snapshot()
    assert seen.select(POOL_SLOTS, slot_class="cpu", kind="leased") == [(2,)]
    assert seen.select(POOL_PLACES, account="busy", kind="wanted") == [(4,)]
    assert seen.select(POOL_UTILISATION, slot_class="cpu") == [(0.8,)]
    recorder.pool({}, {}, {})
    assert recorder.snapshot().select(POOL_PLACES) == []


def test_the_latest_decisions_are_kept_in_words() -> None:
    log = DecisionLog(None, clock=lambda: 1000.0)
    log.scaled([({"model": "m"}, {"slots": 1, "lingering": False}, "2.00 in flight")], 0.0)
    moves: list[LoadOrder | UnloadOrder] = [
        UnloadOrder("cpu-1", "old", 2),
        LoadOrder("cpu-1", "m", 1),
    ]
    log.placed([], {}, [], [], Room(), {}, Plan(moves), 0.0)
    first, second = log.recent()
    assert first == Made(1000.0, "place", "unload old/2 in cpu-1; load m/1 in cpu-1", first.why)
    assert first.why == "m: 2.00 in flight" and second.what == "m wants 1 slot"
    log.placed([], {}, [], [], Room(), {}, Plan([]), 0.0)
    assert len(log.recent()) == 2
    for version in range(RECENT):
        for _ in range(2):  # until the slot has done it
            waiting = {
                ModelVersion("m", 1): "needs 1 slot",
                ModelVersion("other", 1): "needs 2 slots",
            }
            plan = Plan([LoadOrder("cpu-2", "m", version), *moves * 5], waiting)
            log.placed([], {}, [], [], Room(), {}, plan, 0.0)
    assert len(log.recent()) == RECENT and log.recent()[0].what.endswith("; 7 more")
    assert log.recent()[0].why == "m: 2.00 in flight; m needs 1 slot"


def test_shares_are_told_when_they_change() -> None:
    log = DecisionLog(None, clock=lambda: 0.0)
    division = facts().division
    log.shared(division, {}, 0.0)
    log.shared(division, {}, 1.0)
    (made,) = log.recent()
    assert made.what == "cpu: busy 0 → 3; leases 0 → 2; new 0 → 1" and "'busy': 1" in made.why
