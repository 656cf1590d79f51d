"""One prediction on its way through the gateway. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace.errors import HeadraceError
from headrace.link.frames import Body, Reply

QueueKey = tuple[str, int | str | None]
"""Model and version (None: it has none yet); at the shard stage, version and slot as text."""
Answer = Reply | HeadraceError


@dataclass(slots=True, eq=False)
class Seat:
    """A placement seen from here; `credit` is how many of our requests it may hold."""

    slot_id: str
    placement_id: int
    credit: int = 0
    used: int = 0


@dataclass(slots=True, eq=False)
class Request:
    """One prediction on its way. `deadline_s` is on the monotonic clock; `done` is called once.

    `hash_key` is what hash routing keys on; `caller`, `priority` and `cost` order the queue.
    One that named no version `follows_default`: it waits for what the model's default version is.
    A `cold` one came while no slot held its model.
    `deaths`, `moves`, `seat`, `queued` and `sent_s` are the router's own notes.
    """

    id: int
    key: QueueKey
    call: int
    body: Body
    length: int
    deadline_s: float
    arrived_s: float
    done: Callable[[Request, Answer], None]
    json_length: int | None = None
    encodings: int = 0
    meta: bytes = b""
    hash_key: bytes = b""
    caller: str = ""
    priority: int = 0
    cost: float = 1.0
    follows_default: bool = False
    cold: bool = False
    deaths: int = 0
    moves: int = 0
    seat: Seat | None = None
    queued: bool = False
    sent_s: float = 0.0
    finished: bool = False

    @property
    def version(self) -> int:
        """The number of the model version that answers; 0 where there is none yet."""
        return self.key[1] if isinstance(self.key[1], int) else 0

    @property
    def alone(self) -> bool:
        """Whether it must be the only request in flight on its slot."""
        return self.deaths > 0
