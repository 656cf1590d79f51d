"""Callers at the pool: API keys and their operations, tiers, and budgets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import structlog

from autoscale.budget_ledger import BudgetLedger
from autoscale.key_store import KeyFile
from headrace.access import Access, Claim, Grant, KeyRecord
from headrace.config.args import Budgets, PoolConfig
from headrace.errors import (
    ConfigError,
    FailedPrecondition,
    HeadraceError,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from headrace.keys import KeyStore, key_pepper, new_key
from headrace.secrets import headrace_home

log = structlog.get_logger()


class KeyDesk:
    """Operations on API keys: create, list, revoke, rotate.

    `tiers` are the names that keys may have, `records` the keys as last read. Operations run one
    after the other, each on a fresh reading of the store, which other clusters may have changed.
    """

    def __init__(
        self, store: KeyStore, pepper: bytes, now_s: Callable[[], float] = time.time
    ) -> None:
        self._store, self._pepper, self._now_s = store, pepper, now_s
        self.tiers: frozenset[str] = frozenset()
        self.records: Mapping[str, KeyRecord] = {}
        self._one = asyncio.Lock()
        self._number: int | None = None
        self._untold = False
        self._away = False

    @classmethod
    def open(cls, config: Budgets, secret: bytes) -> Self:
        """The desk of this configuration; raises `ConfigError`."""
        store: KeyStore
        if config.store == "pool":
            given = config.keys
            store = KeyFile(Path(given).expanduser() if given else headrace_home() / "keys.jsonl")
        else:
            from autoscale.redis_stores import KeyRedis  # redis is an extra

            store = KeyRedis(config)
        return cls(store, key_pepper(secret))

    async def refresh(self) -> bool:
        """Read the keys; True if any has changed since the last call.

        Raises `Unavailable`, and `ConfigError` for a store that cannot be understood.
        """
        async with self._current():
            changed, self._untold = self._untold, False
        return changed

    async def close(self) -> None:
        await self._store.close()

    async def list(self) -> Sequence[Mapping[str, Any]]:
        """All keys without their secrets, oldest first; raises `Unavailable` if never read."""
        if self._number is None:
            async with self._current():
                pass
        ordered = sorted(self.records.values(), key=lambda record: record.created_s)
        return [self._facts(record) for record in ordered]

    async def create(
        self,
        name: str,
        tier: str,
        models: Sequence[str] | None = None,
        expires_in_s: float | None = None,
    ) -> Mapping[str, Any]:
        """A new key; its text, `key`, is in this answer alone and stored nowhere."""
        self._check_tier(tier)
        if expires_in_s is not None and not expires_in_s > 0:
            raise InvalidArgument("a key should expire later than now")
        async with self._current():
            if any(each.name == name for each in self._in_state("valid")):
                raise FailedPrecondition(
                    f"there is a key named {name!r} already; rotate or revoke it"
                )
            now_s = self._now_s()
            text, record = new_key(
                self._pepper,
                name=name,
                tier=tier,
                now_s=now_s,
                models=tuple(models) if models is not None else None,
                expires_s=now_s + expires_in_s if expires_in_s is not None else None,
            )
            await self._put(record)
        return {"key": text, **self._facts(record)}

    async def revoke(self, key: str) -> Mapping[str, Any]:
        """End a key now, given by id or name; also one that would end later."""
        async with self._current():
            revoked = replace(self._find(key, "valid", "ending"), revoked_s=self._now_s())
            await self._put(revoked)
        return self._facts(revoked)

    async def rotate(self, key: str, grace_s: float = 0.0) -> Mapping[str, Any]:
        """A new key in place of one that ends after `grace_s` seconds."""
        async with self._current():
            old = self._find(key, "valid")
            self._check_tier(old.tier)
            now_s = self._now_s()
            text, record = new_key(
                self._pepper,
                name=old.name,
                tier=old.tier,
                now_s=now_s,
                models=old.models,
                expires_s=old.expires_s,
            )
            await self._put(record, replace(old, revoked_s=now_s + max(0.0, grace_s)))
        return {"key": text, **self._facts(record), "replaces": old.id}

    @asynccontextmanager
    async def _current(self) -> AsyncIterator[None]:
        """Exclusive use of the desk, with `records` as they are in the store."""
        async with self._one:
            try:
                number = await self._store.number()
                if number != self._number:
                    records = await self._store.load()
                    self._untold = self._untold or records != self.records
                    self._number, self.records = number, records
            except (Unavailable, ConfigError) as error:
                if not self._away:
                    log.warning("key_store_away", reason=error.message)
                self._away = True
                raise
            if self._away:
                log.info("key_store_back")
            self._away = False
            yield

    async def _put(self, *records: KeyRecord) -> None:
        await self._store.put(*records)
        self.records = {**self.records, **{record.id: record for record in records}}
        for record in records:
            log.info("key_changed", id=record.id, name=record.name, state=self._state(record))

    def _check_tier(self, tier: str) -> None:
        if tier not in self.tiers:
            known = ", ".join(sorted(self.tiers)) or "none: `tiers` is off"
            raise InvalidArgument(f"there is no tier {tier!r}; known: {known}")

    def _find(self, key: str, *states: str) -> KeyRecord:
        """Key in one of these states with this id, or the only one with this name."""
        usable = self._in_state(*states)
        found = [record for record in usable if record.id == key]
        found = found or [record for record in usable if record.name == key]
        if not found:
            raise NotFound(f"there is no valid key with the id or name {key[:128]!r}")
        if len(found) > 1:
            ids = ", ".join(record.id for record in found)
            raise FailedPrecondition(f"several keys are named {key!r}; give an id: {ids}")
        return found[0]

    def _in_state(self, *states: str) -> Sequence[KeyRecord]:
        return [record for record in self.records.values() if self._state(record) in states]

    def _state(self, record: KeyRecord) -> str:
        now_s = self._now_s()
        if record.revoked_s is not None and record.revoked_s <= now_s:
            return "revoked"
        if record.expires_s is not None and record.expires_s <= now_s:
            return "expired"
        return "valid" if record.revoked_s is None else "ending"

    def _facts(self, record: KeyRecord) -> dict[str, Any]:
        return {
            "id": record.id,
            "name": record.name,
            "tier": record.tier,
            "models": list(record.models) if record.models is not None else None,
            "created_s": record.created_s,
            "expires_s": record.expires_s,
            "revoked_s": record.revoked_s,
            "state": self._state(record),
        }


REFRESH_S = 0.3
"""Period of reading keys that other clusters may change."""
DAY_S = 86_400


class CallerBook:
    """Keys, tiers and budgets of callers. `publish` gives a changed `Access` to all gateways."""

    def __init__(
        self, desk: KeyDesk, max_callers: int, publish: Callable[[Access], Awaitable[None]]
    ) -> None:
        self._desk, self._publish = desk, publish
        self._ledger = BudgetLedger(max_callers)
        self._config = PoolConfig()
        self._loaded = False

    async def configure(self, config: PoolConfig) -> None:
        """Take the tiers and settings of the config."""
        self._config = config
        self._desk.tiers = frozenset(config.tiers or ())
        if not self._loaded:
            with suppress(Unavailable):  # the keys follow when the store is back
                await self._desk.refresh()
                self._loaded = True
        await self._tell()

    async def _tell(self) -> None:
        await self._publish(
            Access(tiers=self._config.tiers, auth=self._config.auth, keys=dict(self._desk.records))
        )

    def exchange(self, gateway_id: str, claims: Sequence[Claim]) -> tuple[list[Grant], int]:
        """Grants for a gateway's claims, in order, and the number of gateways."""
        day = int(time.time() // DAY_S)
        return self._ledger.exchange(gateway_id, claims, time.monotonic(), day)

    def telling(
        self, change: Callable[..., Awaitable[Mapping[str, Any]]]
    ) -> Callable[..., Awaitable[Mapping[str, Any]]]:
        """The same change of keys, published to the gateways before it returns."""

        async def changed(**arguments: Any) -> Mapping[str, Any]:
            facts = await change(**arguments)
            await self._tell()
            return facts

        return changed

    async def run(self) -> None:
        """Follow keys that others change, until cancelled."""
        try:
            while True:
                await asyncio.sleep(REFRESH_S)
                with suppress(HeadraceError):  # logged by the desk; the keys read last stay valid
                    if await self._desk.refresh():
                        self._loaded = True
                        await self._tell()
        finally:
            await self._desk.close()
