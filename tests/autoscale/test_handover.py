"""A slot that stops goes on with what nobody else serves yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx
import pytest

from autoscale.ledger import handed_over
from autoscale.slot_book import DesiredVersion, Hold, UnloadOrder
from headrace.config.args import ModelConfig
from headrace.config.scaling import Replicas
from headrace.snapshot import ModelVersion, Placement, SlotView, State
from replicas import service
from replicas.service import SlotService
from tests.autoscale.plant import Plant
from tests.autoscale.waking import open_waking
from tests.house import House, client, until

ALWAYS = ModelConfig(runtime="onnx", replicas=Replicas(min=1, max=1))
BODY = {"instances": [[1.0, 2.0, 3.0, 4.0]]}
PREDICT = "/v1/models/m:predict"
STOPPING = SlotView("old", "cpu", "node", "", "", draining=True)
OTHER = SlotView("new", "cpu", "node", "", "")
HERE = Placement("old", "m", 1, State.READY)
WANT = DesiredVersion("m", 1, 1, "cpu")
LET_GO = [UnloadOrder("old", "m", 1)]


def there(state: State, revision: int = 0) -> Placement:
    return Placement("new", "m", 1, state, revision=revision)


@pytest.mark.parametrize(
    ("elsewhere", "orders"),
    [
        ([], []),
        ([there(State.LOADING)], []),
        ([there(State.DRAINING)], []),
        ([there(State.READY, revision=1)], []),
        ([Placement("new", "m", 2, State.READY)], []),
        ([there(State.READY)], LET_GO),
    ],
)
def test_what_is_wanted_stays_until_another_slot_serves_it(
    elsewhere: Sequence[Placement], orders: Sequence[UnloadOrder]
) -> None:
    assert handed_over([WANT], [STOPPING, OTHER], [HERE, *elsewhere], {}) == orders


def test_a_second_slot_that_stops_is_nobody_to_hand_over_to() -> None:
    both = [STOPPING, SlotView("new", "cpu", "node", "", "", draining=True)]
    assert handed_over([WANT], both, [HERE, there(State.READY)], {}) == []


@pytest.mark.parametrize(
    "wanted",
    [
        [],
        [DesiredVersion("m", 1, 0, "cpu")],
        [DesiredVersion("m", 1, 1, "cpu", granted=0)],
        [DesiredVersion("m", 1, 1, "cpu", firm=False)],
        [DesiredVersion("m", 2, 1, "cpu")],
    ],
)
def test_what_nobody_needs_goes_at_once(wanted: Sequence[DesiredVersion]) -> None:
    assert handed_over(wanted, [STOPPING, OTHER], [HERE], {}) == LET_GO


def test_where_all_slots_stop_nothing_is_unloaded() -> None:
    assert handed_over([], [STOPPING], [HERE], {}) == []


def test_a_version_that_serves_until_the_next_one_can_stays() -> None:
    next_one = [DesiredVersion("m", 2, 1, "cpu")]
    both = [STOPPING, OTHER]
    assert handed_over(next_one, both, [HERE], {ModelVersion("m", 1): Hold.KEEP}) == []
    assert handed_over(next_one, both, [HERE], {ModelVersion("m", 1): Hold.YIELD}) == LET_GO


def test_slots_that_stay_keep_what_they_have() -> None:
    assert handed_over([], [OTHER], [there(State.READY)], {}) == []


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots that leave wait less for those who have nobody else to ask."""
    monkeypatch.setattr(service, "LINGER_S", 0.1)


async def stop(slot: SlotService, hand_over_s: float = 10.0) -> float:
    """Stop the slot as Serve does; the seconds that it took."""
    start_s = time.monotonic()
    await slot.drain(hand_over_s)
    await slot.close()
    return time.monotonic() - start_s


async def ask_until(
    http: httpx.AsyncClient, done: asyncio.Future[float], took_s: list[float]
) -> None:
    """One request after the other; what each took is added to the list."""
    while not done.done():
        start_s = time.monotonic()
        answer = await http.post(PREDICT, json=BODY)
        took_s.append(time.monotonic() - start_s)
        assert answer.status_code == 200, answer.text


async def test_no_request_waits_for_the_new_place(tmp_path: Path, brief: None) -> None:
    async with (
        open_waking(tmp_path, "a", models={"m": ALWAYS}) as (plant, house, _),
        client(house) as http,
    ):
        await plant.serves(1)
        stopped = asyncio.create_task(stop(plant.slots.pop("a")))
        took_s: list[float] = []
        asked = asyncio.create_task(ask_until(http, stopped, took_s))
        await until(lambda: len(took_s) > 20 or asked.done())
        assert not stopped.done()
        await plant.add_slot("b")
        assert await stopped < 5
        await asked
        assert (await http.post(PREDICT, json=BODY)).status_code == 200
    assert max(took_s) < 0.5


async def test_it_waits_for_another_place_only_so_long(tmp_path: Path, brief: None) -> None:
    async with open_waking(tmp_path, "a", models={"m": ALWAYS}) as (plant, house, _):
        await plant.serves(1)
        async with client(house) as http:
            stopped = asyncio.create_task(stop(plant.slots.pop("a"), hand_over_s=0.6))
            asked = asyncio.create_task(http.post(PREDICT, json=BODY))
            assert (await asked).status_code == 200
            stop_s = await stopped
            late = asyncio.create_task(http.post(PREDICT, json=BODY))
            await until(house.plane.router.without_slot)
            assert not late.done()
            await plant.add_slot("b")
            assert (await late).status_code == 200
    assert 0.6 <= stop_s < 2


async def without_pool(plant: Plant) -> None:
    await plant.stop_controller()


async def without_model(plant: Plant) -> None:
    await plant.configure({"n": ALWAYS})


@pytest.mark.parametrize("change", [without_pool, without_model])
async def test_it_waits_for_nobody(
    tmp_path: Path, brief: None, change: Callable[[Plant], Awaitable[None]]
) -> None:
    models = {"m": ALWAYS, "n": ALWAYS}
    async with open_waking(tmp_path, "a", "b", models=models) as (plant, _, _):
        plant.write(1, "n")
        await plant.serves(1)
        await plant.serves(1, "n")
        stopped = asyncio.create_task(stop(plant.slots.pop("a")))
        await until(lambda: any(view.draining for view in plant.controller.fleet.views()))
        await plant.round()
        assert not stopped.done()
        await change(plant)
        assert await stopped < 3


async def test_a_gateway_that_comes_late_hears_that_the_slot_leaves(
    tmp_path: Path, brief: None
) -> None:
    async with open_waking(tmp_path, "a", models={"m": ALWAYS}) as (plant, _, _):
        await plant.serves(1)
        stopped = asyncio.create_task(stop(plant.slots.pop("a"), hand_over_s=1.5))
        await until(lambda: plant.controller.fleet.views()[0].draining)
        late = House(plant.store, tmp_path)
        await late.start()
        late.publish(plant.controller.snapshot)
        await until(lambda: [lane.draining for lane in late.plane.router._lanes.values()] == [True])
        async with client(late) as http:
            assert (await http.post(PREDICT, json=BODY)).status_code == 200
        await late.stop()
        await stopped
