"""What happens to the system in a day, by name, and what it did to requests."""

from __future__ import annotations

import asyncio
import random
import shutil
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from loadtests.bench.mlp import NAME
from loadtests.headrace import ADMIN_ANSWER_S, copy_version, wait_for_key
from loadtests.kills import TITLES, UPDATE, Asked, Disturbance, NotWhole, System
from loadtests.redis_server import RedisServer
from loadtests.report import FORESEEN
from loadtests.soak.load import Load, Question
from loadtests.tls import Authority

BRIEF, SPARE = "brief", "spare"
"""A model that soon sleeps, and the class of its slot, of which other work may lease one."""
KEY = "soak"
GRACE_S = 5.0
"""How long a key stays valid beside the one that has replaced it."""
AWAY_S, LEASED_S = 3.0, 3.0
"""How long Redis stays away, once all have noticed, and what other work takes."""
LIMIT_S = 90.0
POLL_S = 0.2
REST_S = (0.5, 4.0)
"""Shortest and longest rest between two events."""
BATCHES = {32: 64, 64: 32}
"""The next `max_rows` after each."""

Status = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event(Disturbance):
    """`problem` says what did not come to its end; `worst_wait_s` is that of answered requests."""

    problem: str = ""
    worst_wait_s: float = 0.0

    def away_s(self, asked: Asked) -> float:
        """Time between the event and the request; 0 if they overlap."""
        return max(self.at_s - asked.ended_s, asked.sent_s - self.over_s, 0.0)


def nearest(asked: Asked, events: Iterable[Event]) -> Event | None:
    return min(events, key=lambda event: event.away_s(asked), default=None)


def was_cut(asked: Asked, events: Iterable[Event]) -> bool:
    """Whether it was under way on a gateway that was killed."""
    return any(event.cut(asked) and event.of([asked]) for event in events)


def timeline(kinds: Sequence[str], chance: random.Random) -> Iterator[tuple[float, str]]:
    """Events without an end, each after so many seconds of rest: all in random order, then anew."""
    while True:
        for kind in chance.sample(kinds, len(kinds)):
            yield chance.uniform(*REST_S), kind


class Events:
    """Makes each kind of event happen; returns when everything is there again."""

    def __init__(
        self,
        system: System,
        load: Load,
        redis: RedisServer,
        authority: Authority,
        store: Path,
        url: str,
        wake: Question,
        chance: random.Random,
    ) -> None:
        self._system, self._load, self._redis = system, load, redis
        self._authority, self._store, self._url = authority, store, url
        self._wake, self._chance = wake, chance
        self._own: dict[str, Callable[[], Awaitable[None]]] = {
            "config": self._change_config,
            "version": self._add_version,
            "sleep": self._sleep_and_wake,
            "lease": self._lease,
            "key": self._rotate_key,
            "certificate": self._renew_certificate,
            "redis": self._part_from_redis,
        }

    @property
    def kinds(self) -> list[str]:
        return [*self._own, *TITLES, UPDATE]

    async def happen(self, kind: str) -> Event:
        at_s, problem = time.monotonic(), ""
        self._load.worst_s = 0.0
        try:
            if kind in self._own:
                await self._own[kind]()
                await self._system.wait_until_whole(kind, set(), 0)
            else:
                at_s = (await self._system.disturb(kind, self._chance)).at_s
        except FORESEEN as error:
            problem = f"{type(error).__name__}: {error}"
        return Event(kind, at_s, time.monotonic(), problem, self._load.worst_s)

    async def _change_config(self) -> None:
        def change(application: dict[str, Any]) -> None:
            [pool] = application["deployments"]
            batching = pool["user_config"]["models"][NAME]["batching"]
            batching["max_rows"] = BATCHES[batching["max_rows"]]

        await asyncio.to_thread(self._system.apply, change)

    async def _add_version(self) -> None:
        """Beside the newest one; what is older than that is removed."""
        *older, newest = sorted(int(folder.name) for folder in (self._store / NAME).iterdir())
        await asyncio.to_thread(copy_version, self._store, NAME, newest, newest + 1)
        await self._until(lambda now: state(now, NAME, newest + 1) == "READY", "a new version")
        for version in older:
            await asyncio.to_thread(shutil.rmtree, self._store / NAME / str(version))

    async def _sleep_and_wake(self) -> None:
        await self._until(lambda now: state(now, BRIEF, 1) == "SLEEPING", "sleep")
        await self._load.ask_once(self._wake)

    async def _lease(self) -> None:
        options = ("--slots", "1", "--class", SPARE, "--grace", "2", "--holder", "soak")
        work = ("sleep", f"{LEASED_S:g}")
        await asyncio.to_thread(self._system.command, "lease", *options, "--", *work)

    async def _rotate_key(self) -> None:
        """The old key is used until all know the new one, and ends some seconds later."""
        old = self._load.key
        answer = await asyncio.to_thread(self._system.admin.rotate_key, KEY, GRACE_S)
        await asyncio.to_thread(wait_for_key, self._url, NAME, answer["key"])
        self._load.key = answer["key"]

        def refused(_: Status) -> bool:
            asked = httpx.get(
                f"{self._url}/v2/models/{NAME}",
                headers={"X-API-Key": old},
                timeout=ADMIN_ANSWER_S,
                verify=False,
            )
            return asked.status_code == 401

        await asyncio.sleep(GRACE_S)
        await self._until(refused, "the end of the old key")

    async def _renew_certificate(self) -> None:
        wanted = ssl.PEM_cert_to_DER_cert(self._authority.renew())
        parts = urlsplit(self._url)
        address = (parts.hostname or "", parts.port or 443)

        def shown(_: Status) -> bool:
            return (
                ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(address, timeout=LIMIT_S))
                == wanted
            )

        await self._until(shown, "the new certificate")

    async def _part_from_redis(self) -> None:
        """It dies and starts with the data that it had, or only does not answer for a while."""
        killed = self._chance.random() < 0.5
        await asyncio.to_thread(self._redis.kill if killed else self._redis.freeze)
        try:
            await self._until(lambda now: stores(now) == {"away"}, "word that Redis is away")
            await asyncio.sleep(AWAY_S)
        finally:
            await asyncio.to_thread(self._redis.start if killed else self._redis.thaw)
        await self._until(lambda now: stores(now) == {"connected"}, "word that Redis is back")

    async def _until(self, true: Callable[[Status], bool], what: str) -> None:
        """Until the status, or what is asked meanwhile, is so; raises `NotWhole`."""

        def is_true() -> bool:
            now = self._system.status()
            return bool(now) and true(now)

        try:
            async with asyncio.timeout(LIMIT_S):
                while not await asyncio.to_thread(is_true):  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise NotWhole(f"{what} has not come within {LIMIT_S:g} s") from None


def state(status: Status, model: str, version: int) -> str:
    """Empty for a version that is not there."""
    found = [
        str(each["state"])
        for own in status["models"]
        for each in own["versions"]
        if own["name"] == model and each["version"] == version
    ]
    return found[0] if found else ""


def stores(status: Status) -> set[str]:
    """What gateways say of the store of budgets."""
    return {str(each["budget_store"]) for each in status["gateways"]}
