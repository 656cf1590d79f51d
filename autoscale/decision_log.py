"""Decisions of the pool: with their inputs, for replay, and the latest ones in words."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from autoscale.fair_share import SlotAccount, fair_shares
from autoscale.leases import Lease, LeaseBook, LeaseEvent, LeaseState
from autoscale.ledger import plan
from autoscale.scaling import replay_step
from autoscale.sharing import Division
from autoscale.slot_book import DesiredVersion, Hold, LoadOrder, Plan, Room, UnloadOrder
from headrace.snapshot import ModelVersion, Placement, SlotView, State

SCALE, SHARE, LEND, PLACE, RESIZE = "scale", "share", "lend", "place", "resize"
RECENT = 30
SHOWN = 4
"""Items of a decision that are shown in words; the rest is counted."""

_USUAL = asdict(SlotAccount(""))


class Made(NamedTuple):
    """A decision in words; `at_s` is wall-clock time."""

    at_s: float
    kind: str
    what: str
    why: str


Keep = Callable[[str, Mapping[str, Any], Mapping[str, Any], str, float], None]
"""Keeps a decision: its kind, inputs, outcome, reason and time, as `DecisionFile.add`."""


class DecisionLog:
    """The decisions of one pool; a decision that changes nothing is not kept."""

    def __init__(self, keep: Keep | None, clock: Callable[[], float] = time.time) -> None:
        self._keep, self._clock = keep, clock
        self._granted: dict[str, dict[str, int]] = {}
        self._wished: dict[str, str] = {}
        self._recent: deque[Made] = deque(maxlen=RECENT)

    def recent(self) -> list[Made]:
        """The latest decisions, newest first."""
        return list(reversed(self._recent))

    def scaled(
        self, changes: Sequence[tuple[Mapping[str, Any], Mapping[str, Any], str]], now_s: float
    ) -> None:
        """Note changed numbers of desired slots."""
        for inputs, decision, why in changes:
            model = inputs["model"]
            self._wished[model] = why
            part = "while nobody needs it" if decision["lingering"] else ""
            what = f"{model} wants {_counted(decision['slots'], 'slot')} {part}".rstrip()
            self._note(SCALE, what, why)
            if self._keep is not None:
                self._keep(SCALE, inputs, decision, why, now_s)

    def shared(self, division: Division, weights: Mapping[str, float], now_s: float) -> None:
        for slot_class, shares in division.shares.items():
            granted = dict(shares.granted)
            before = self._granted.get(slot_class)
            if before == granted:
                continue
            self._granted[slot_class] = granted
            lacking = {name: count for name, count in shares.unmet.items() if count}
            why = shares.warning() or (f"unmet: {lacking}" if lacking else "all that is wished")
            what = _changed(before or {}, granted)
            if what:
                self._note(SHARE, f"{slot_class}: {what}", why)
            if self._keep is None:
                continue
            inputs = {
                "slot_class": slot_class,
                "accounts": [_account(each) for each in division.accounts[slot_class]],
                "capacity": shares.capacity,
                "weights": dict(weights),
            }
            self._keep(SHARE, inputs, {"granted": granted}, why, now_s)

    def placed(
        self,
        wants: Sequence[DesiredVersion],
        holds: Mapping[ModelVersion, Hold],
        slots: Sequence[SlotView],
        placements: Sequence[Placement],
        room: Room,
        retry_at: Mapping[ModelVersion, float],
        made: Plan,
        now_s: float,
    ) -> None:
        if not made.moves:
            return
        why = "; ".join(sorted({f"{key.model} {text}" for key, text in made.waiting.items()}))
        self._note(PLACE, _listed([_told(move) for move in made.moves]), self._why(made))
        if self._keep is None:
            return
        inputs = {
            "wants": [asdict(want) for want in wants],
            "holds": [[list(key), hold.name] for key, hold in holds.items()],
            "slots": [[s.slot_id, s.slot_class, s.draining] for s in slots],
            "placements": [
                [p.slot_id, p.model, p.version, p.state, p.revision] for p in placements
            ],
            "room": _room(room, {w.model for w in wants} | {p.model for p in placements}),
            "retry_at": [[list(key), at_s] for key, at_s in retry_at.items()],
            "now_s": now_s,
        }
        self._keep(PLACE, inputs, _moves(made), why or "as wished", now_s)

    def lent(self, inputs: Mapping[str, Any], events: Sequence[LeaseEvent], now_s: float) -> None:
        """Note leases that were granted, given notice or taken back."""
        self.told(events)
        if self._keep is not None:
            why = "; ".join(f"{event.lease.holder}: {event.why}" for event in events)
            self._keep(LEND, inputs, events_document(events), why, now_s)

    def told(self, events: Sequence[LeaseEvent]) -> None:
        """Note changes of leases in words, those that holders asked for too."""
        for event in events:
            lease = event.lease
            size = _counted(lease.slots, "slot")
            what = f"{lease.holder} ({size} of {lease.slot_class}) is {lease.state}"
            self._note(LEND, what, event.why)

    def resized(self, targets: Mapping[str, int], division: Division, now_s: float) -> None:
        """Note the number of slots that Ray Serve is asked for, by class."""
        what = ", ".join(f"{count} of {name}" for name, count in targets.items())
        needed = ", ".join(f"{count} of {name}" for name, count in division.needed.items())
        self._note(RESIZE, f"slots: {what}", f"models need {needed}" if needed else "")
        if self._keep is not None:
            inputs = {"needed": dict(division.needed), "capacity": dict(division.capacity)}
            self._keep(RESIZE, inputs, {"targets": dict(targets)}, "", now_s)

    def _note(self, kind: str, what: str, why: str) -> None:
        before = next((made for made in reversed(self._recent) if made.kind == kind), None)
        # Orders are repeated until slots have taken them: noted once.
        if kind != PLACE or before is None or before.what != what:
            self._recent.append(Made(self._clock(), kind, what, why))

    def _why(self, made: Plan) -> str:
        """The desired slots behind the moves, and the reasons why these models wait."""
        models = dict.fromkeys(move.model for move in made.moves)
        reasons = [f"{name}: {self._wished[name]}" for name in models if name in self._wished]
        reasons += [
            f"{key.model} {text}" for key, text in made.waiting.items() if key.model in models
        ]
        return _listed(list(dict.fromkeys(reasons))) or "as configured"


def _account(account: SlotAccount) -> dict[str, Any]:
    """Fields that differ from the defaults: of many models most sleep."""
    fields = ((name, usual, getattr(account, name)) for name, usual in _USUAL.items())
    return {name: value for name, usual, value in fields if value != usual}


def _room(room: Room, models: set[str]) -> dict[str, Any]:
    """The part of the room that concerns these models."""
    return {
        "max_models": room.max_models,
        "sizes": {name: size for name, size in room.sizes.items() if name in models},
        "spare": room.spare,
        "used_s": {name: at_s for name, at_s in room.used_s.items() if name in models},
        "full": sorted(room.full),
    }


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _listed(texts: Sequence[str]) -> str:
    """The first few, and the number of the others."""
    more = [f"{len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    return "; ".join([*texts[:SHOWN], *more])


def _changed(before: Mapping[str, int], granted: Mapping[str, int]) -> str:
    """`name 1 → 3` for each whose number changed."""
    names = sorted(before.keys() | granted.keys())
    pairs = [(name, before.get(name, 0), granted.get(name, 0)) for name in names]
    return _listed([f"{name} {old} → {new}" for name, old, new in pairs if old != new])


def _told(move: LoadOrder | UnloadOrder) -> str:
    verb = "load" if isinstance(move, LoadOrder) else "unload"
    return f"{verb} {move.model}/{move.version} in {move.slot_id}"


def _moves(made: Plan) -> dict[str, Any]:
    return {
        "moves": [
            ["load" if isinstance(move, LoadOrder) else "unload", move.slot_id, *move.key]
            for move in made.moves
        ]
    }


def replay_share(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The grants that the recorded accounts lead to."""
    accounts = [SlotAccount(**account) for account in inputs["accounts"]]
    return {"granted": dict(fair_shares(accounts, inputs["capacity"], inputs["weights"]).granted)}


def replay_place(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The orders that the recorded wants and placements lead to."""
    room = dict(inputs["room"])
    room["used_s"] = {
        name: -math.inf if at_s is None else at_s for name, at_s in room["used_s"].items()
    }
    made = plan(
        [DesiredVersion(**want) for want in inputs["wants"]],
        [SlotView(s, c, "", "", "", draining=gone) for s, c, gone in inputs["slots"]],
        [
            Placement(slot_id, model, version, State(state), revision=revision)
            for slot_id, model, version, state, revision in inputs["placements"]
        ],
        Room(**room),
        inputs["now_s"],
        {
            ModelVersion(*key): math.inf if at_s is None else at_s
            for key, at_s in inputs["retry_at"]
        },
        {ModelVersion(*key): Hold[name] for key, name in inputs["holds"]},
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
    """Events of leases in the form of a log entry."""
    return {"events": [[event.lease.lease_id, str(event.lease.state)] for event in events]}


REPLAYED: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    SCALE: replay_step,
    SHARE: replay_share,
    LEND: replay_leases,
    PLACE: replay_place,
}
"""Replays by kind of entry; a `resize` depends on the clock and is not replayed."""
