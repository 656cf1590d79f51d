"""Where operators get, list, revoke and rotate API keys; part of the pool."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import structlog

from gateway.access.caller import KeyRecord
from gateway.access.key_file import KeyFile
from gateway.access.keys import KeyStore, key_pepper, new_key
from gateway.config import Budgets
from gateway.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from gateway.secrets import headrace_home

log = structlog.get_logger()


class KeyDesk:
    """See the module. `tiers` are the names that keys may have; `records` what is known now."""

    def __init__(
        self, store: KeyStore, pepper: bytes, now_s: Callable[[], float] = time.time
    ) -> None:
        self._store, self._pepper, self._now_s = store, pepper, now_s
        self.tiers: frozenset[str] = frozenset()
        self.records: Mapping[str, KeyRecord] = {}
        self._number: int | None = None
        self._away = False

    @classmethod
    def open(cls, config: Budgets, secret: bytes) -> Self:
        """The desk of this configuration; raises `ConfigError`."""
        store: KeyStore
        if config.store == "pool":
            path = Path(config.keys) if config.keys else headrace_home() / "keys.jsonl"
            store = KeyFile(path)
        else:
            from gateway.access.key_redis import KeyRedis  # redis is an extra

            store = KeyRedis(config)
        return cls(store, key_pepper(secret))

    async def refresh(self) -> bool:
        """Read the keys if they may have changed; whether they did. Raises `Unavailable`."""
        try:
            number = await self._store.number()
            if number == self._number:
                return False
            records = await self._store.load()
        except Unavailable as error:
            if not self._away:
                log.warning("key_store_away", reason=error.message)
            self._away = True
            raise
        if self._away:
            log.info("key_store_back")
        self._away, self._number = False, number
        changed, self.records = records != self.records, records
        return changed

    async def list(self) -> Sequence[Mapping[str, Any]]:
        """The public facts of all keys, oldest first."""
        ordered = sorted(self.records.values(), key=lambda record: record.created_s)
        return [self._facts(record) for record in ordered]

    async def create(
        self,
        name: str,
        tier: str,
        models: Sequence[str] | None = None,
        expires_in_s: float | None = None,
    ) -> Mapping[str, Any]:
        """A new key; its text, `key`, is in this answer and nowhere else."""
        if tier not in self.tiers:
            known = ", ".join(sorted(self.tiers)) or "none: `tiers` is off"
            raise InvalidArgument(f"there is no tier {tier!r}; known: {known}")
        if expires_in_s is not None and not expires_in_s > 0:
            raise InvalidArgument("a key should expire later than now")
        if any(each.name == name and self._holds(each) for each in self.records.values()):
            raise FailedPrecondition(f"there is a key named {name!r} already; rotate or revoke it")
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
        """End a key, named by id or name, now."""
        record = self._find(key)
        revoked = replace(record, revoked_s=self._now_s())
        await self._put(revoked)
        return self._facts(revoked)

    async def rotate(self, key: str, grace_s: float = 0.0) -> Mapping[str, Any]:
        """A new key in place of one that ends after `grace_s` seconds."""
        old = self._find(key)
        now_s = self._now_s()
        text, record = new_key(
            self._pepper,
            name=old.name,
            tier=old.tier,
            now_s=now_s,
            models=old.models,
            expires_s=old.expires_s,
        )
        await self._put(record)
        await self._put(replace(old, revoked_s=now_s + max(0.0, grace_s)))
        return {"key": text, **self._facts(record), "replaces": old.id}

    async def _put(self, record: KeyRecord) -> None:
        await self._store.put(record)
        self.records = {**self.records, record.id: record}
        log.info("key_changed", id=record.id, name=record.name, state=self._state(record))

    def _find(self, key: str) -> KeyRecord:
        found = [
            record
            for record in self.records.values()
            if key in (record.id, record.name) and self._holds(record)
        ]
        if not found:
            raise NotFound(f"there is no valid key with the id or name {key[:128]!r}")
        if len(found) > 1:
            ids = ", ".join(record.id for record in found)
            raise FailedPrecondition(f"several keys are named {key!r}; give an id: {ids}")
        return found[0]

    def _holds(self, record: KeyRecord) -> bool:
        return self._state(record) == "valid"

    def _state(self, record: KeyRecord) -> str:
        now_s = self._now_s()
        if record.revoked_s is not None:
            return "revoked" if record.revoked_s <= now_s else "ending"
        if record.expires_s is not None and record.expires_s <= now_s:
            return "expired"
        return "valid"

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
