"""Writes every decision of the pool with what it rests on, so that it can be replayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from autoscale.fair_share import Account, fair_shares
from autoscale.leases import Lease, LeaseBook, LeaseEvent, LeaseState
from autoscale.ledger import Hold, Key, Load, Plan, Room, Unload, Want, plan
from autoscale.scaling import replay_step
from autoscale.sharing import Division
from gateway.snapshot import Placement, SlotView, State

SCALE, SHARE, LEND, PLACE, RESIZE = "scale", "share", "lend", "place", "resize"


class Writer(Protocol):
    """Where decisions go: see `autoscale.journal.Journal`."""

    def write(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        decision: Mapping[str, Any],
        why: str,
        at_s: float,
    ) -> None:
        """Keep one decision."""


class DecisionLog:
    """See the module. Only what changes is written; without a writer nothing is."""

    def __init__(self, writer: Writer | None) -> None:
        self._writer = writer
        self._granted: dict[str, dict[str, int]] = {}

    def scaled(
        self, changes: Sequence[tuple[Mapping[str, Any], Mapping[str, Any], str]], now_s: float
    ) -> None:
        """Wishes of models have changed."""
        for inputs, decision, why in changes:
            if self._writer is not None:
                self._writer.write(SCALE, inputs, decision, why, now_s)

    def shared(self, division: Division, weights: Mapping[str, float], now_s: float) -> None:
        """Slots were divided."""
        for slot_class, shares in division.shares.items():
            granted = dict(shares.granted)
            if self._writer is None or self._granted.get(slot_class) == granted:
                continue
            self._granted[slot_class] = granted
            inputs = {
                "slot_class": slot_class,
                "accounts": [asdict(account) for account in division.accounts[slot_class]],
                "capacity": shares.capacity,
                "weights": dict(weights),
            }
            lacking = {name: count for name, count in shares.unmet.items() if count}
            why = shares.warning() or (f"unmet: {lacking}" if lacking else "all that is wished")
            self._writer.write(SHARE, inputs, {"granted": granted}, why, now_s)

    def placed(
        self,
        wants: Sequence[Want],
        holds: Mapping[Key, Hold],
        slots: Sequence[SlotView],
        placements: Sequence[Placement],
        room: Room,
        retry_at: Mapping[Key, float],
        made: Plan,
        now_s: float,
    ) -> None:
        """Orders were given to slots."""
        if self._writer is None or not made.moves:
            return
        inputs = {
            "wants": [asdict(want) for want in wants],
            "holds": [[list(key), hold.name] for key, hold in holds.items()],
            "slots": [[s.slot_id, s.slot_class, s.draining] for s in slots],
            "placements": [
                [p.slot_id, p.model, p.version, p.state, p.revision] for p in placements
            ],
            "room": asdict(room),
            "retry_at": [[list(key), at_s] for key, at_s in retry_at.items()],
            "now_s": now_s,
        }
        why = "; ".join(sorted({f"{key.model} {text}" for key, text in made.waiting.items()}))
        self._writer.write(PLACE, inputs, _moves(made), why or "as wished", now_s)

    def lent(self, inputs: Mapping[str, Any], events: Sequence[LeaseEvent], now_s: float) -> None:
        """Leases were granted, given notice or taken back."""
        if self._writer is not None:
            why = "; ".join(f"{event.holder}: {event.why}" for event in events)
            self._writer.write(LEND, inputs, events_document(events), why, now_s)

    def resized(self, targets: Mapping[str, int], division: Division, now_s: float) -> None:
        """Ray Serve is asked for another number of slots. Follows from the decisions before."""
        if self._writer is not None:
            inputs = {"needed": dict(division.needed), "capacity": dict(division.capacity)}
            self._writer.write(RESIZE, inputs, {"targets": dict(targets)}, "", now_s)


def _moves(made: Plan) -> dict[str, Any]:
    return {
        "moves": [
            ["load" if isinstance(move, Load) else "unload", *_key(move)] for move in made.moves
        ]
    }


def _key(move: Load | Unload) -> tuple[str, str, int, int]:
    return (move.slot_id, move.model, move.version, move.revision)


# -- replay -----------------------------------------------------------------------------------


def replay_share(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The grants that the recorded accounts lead to."""
    accounts = [Account(**account) for account in inputs["accounts"]]
    return {"granted": dict(fair_shares(accounts, inputs["capacity"], inputs["weights"]).granted)}


def replay_place(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The orders that the recorded wants and placements lead to."""
    room = dict(inputs["room"])
    room["used_s"] = {
        name: -math.inf if at_s is None else at_s for name, at_s in room["used_s"].items()
    }
    made = plan(
        [Want(**want) for want in inputs["wants"]],
        [SlotView(s, c, "", "", "", draining=gone) for s, c, gone in inputs["slots"]],
        [
            Placement(slot_id, model, version, State(state), revision=revision)
            for slot_id, model, version, state, revision in inputs["placements"]
        ],
        Room(**room),
        inputs["now_s"],
        {Key(*key): math.inf if at_s is None else at_s for key, at_s in inputs["retry_at"]},
        {Key(*key): Hold[name] for key, name in inputs["holds"]},
    )
    return _moves(made)


def replay_leases(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The events that the recorded leases lead to."""
    leases = [
        Lease(
            **{
                **each,
                "state": LeaseState(each["state"]),
                "due_s": math.inf if each["due_s"] is None else each["due_s"],
            }
        )
        for each in inputs["leases"]
    ]
    book = LeaseBook(
        inputs["most"],
        inputs["ttl_s"],
        max_preemptions=inputs["max_preemptions"],
        leases=leases,
    )
    return events_document(book.reconcile(inputs["free"], inputs["now_s"], inputs["owed"]))


def events_document(events: Sequence[LeaseEvent]) -> dict[str, Any]:
    """Events of leases as they are kept."""
    return {"events": [[event.lease_id, str(event.state)] for event in events]}


REPLAYED: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    SCALE: replay_step,
    SHARE: replay_share,
    LEND: replay_leases,
    PLACE: replay_place,
}
"""By kind of entry, what decides anew; a `resize` follows from the clock and is only told."""
