"""One prediction on its way through the gateway. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace.errors import HeadraceError
from headrace.link.frames import Item, Reply

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


@dataclass(slots=True, eq=False, kw_only=True)
class Request(Item):
    """One prediction on its way: an item of the link, and what the gateway notes of it.

    `deadline_s` is on the monotonic clock; `done` is called once. `hash_key` is what hash routing
    keys on; `caller`, `priority` and `cost` order the queue. One that `follows_default` named no
    version: it waits for the model's default version. A `cold` one came while no slot held its
    model. The router sets the fields from `deaths` on, and with a seat the item's placement, flags
    and times.
    """

    key: QueueKey
    deadline_s: float
    arrived_s: float
    done: Callable[[Request, Answer], None]
    hash_key: bytes = b""
    caller: str = ""
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
