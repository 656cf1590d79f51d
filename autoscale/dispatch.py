"""Orders on their way to slots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import structlog

from autoscale.decision import ModelDecision
from autoscale.failures import Failures
from autoscale.fleet import Fleet, key_of
from autoscale.lookout import Lookout
from autoscale.orders import HELD, LoadOrder, UnloadOrder
from headrace.errors import HeadraceError
from headrace.snapshot import ModelVersion, Placement, State

PATIENCE_S = 0.1
"""A slot that has not answered an order by then does not keep the others waiting."""

log = structlog.get_logger()


class Dispatcher:
    """Gives slots their orders, one at a time for each placement.

    `late` is called when a slot has answered that was slow to, `again` where an order was not
    taken.
    """

    def __init__(
        self,
        fleet: Fleet,
        lookout: Lookout,
        failures: Failures,
        late: Callable[[], None],
        again: Callable[[], None],
    ) -> None:
        self._fleet, self._lookout, self._failures = fleet, lookout, failures
        self._late, self._again = late, again
        self._under_way: dict[tuple[str, ModelVersion], LoadOrder | UnloadOrder] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def give(
        self, moves: Sequence[LoadOrder | UnloadOrder], models: Mapping[str, ModelDecision]
    ) -> None:
        """Returns once the slots have answered, or are slow to.

        A placement whose last order is not answered yet gets no other one.
        """
        loop = asyncio.get_running_loop()
        free = [move for move in moves if _place(move) not in self._under_way]
        self._under_way |= {_place(move): move for move in free}
        tasks = [loop.create_task(self._give(move, models)) for move in free]
        if not tasks:
            return
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        _, slow = await asyncio.wait(tasks, timeout=PATIENCE_S)
        for task in slow:
            task.add_done_callback(lambda task: self._late())

    def as_ordered(self, placements: Sequence[Placement]) -> list[Placement]:
        """What slots hold, were all orders answered: none of them is to be given twice."""
        if not self._under_way:
            return list(placements)
        held = {(p.slot_id, key_of(p)) for p in placements if p.state in HELD}
        leaving = {
            place for place, move in self._under_way.items() if isinstance(move, UnloadOrder)
        }
        coming = [
            Placement(slot_id, key.model, key.version, State.PENDING, revision=key.revision)
            for slot_id, key in self._under_way
            if (slot_id, key) not in held and (slot_id, key) not in leaving
        ]
        return [
            replace(p, state=State.DRAINING)
            if p.state in HELD and (p.slot_id, key_of(p)) in leaving
            else p
            for p in placements
        ] + coming

    async def _give(
        self, move: LoadOrder | UnloadOrder, models: Mapping[str, ModelDecision]
    ) -> None:
        slot_id, key = place = _place(move)
        try:
            if isinstance(move, UnloadOrder):
                await self._fleet.unload(slot_id, key)
            else:
                await self._load(slot_id, key, models[move.model])
        except HeadraceError as error:
            log.warning("move_failed", move=str(move), reason=error.message)
            self._again()
        except Exception:  # one order must not end the others
            log.exception("move_failed", move=str(move))
            self._again()
        finally:
            del self._under_way[place]

    async def _load(self, slot_id: str, key: ModelVersion, decided: ModelDecision) -> None:
        entry = decided.entry
        self._lookout.loading(key, entry.stamps[key.version], again=key in self._failures)
        config = entry.config
        order = {"runtime": config.runtime, "batching": config.batching.model_dump()}
        await self._fleet.load(slot_id, key, order)


def _place(move: LoadOrder | UnloadOrder) -> tuple[str, ModelVersion]:
    return move.slot_id, ModelVersion(move.model, move.version, move.revision)
