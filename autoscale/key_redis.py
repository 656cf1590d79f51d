"""API keys in a Redis that several clusters share: a hash of records and a number of changes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Set

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from headrace.access import KeyRecord
from headrace.config.args import Budgets
from headrace.errors import ConfigError, Unavailable
from headrace.keys import decode_record, encode_record, kept
from headrace.secrets import resolve

TIMEOUT_S = 1.0

log = structlog.get_logger()


class KeyRedis:
    """A `KeyStore`. Raises `ConfigError` for a URL or a password that cannot be had."""

    def __init__(self, config: Budgets) -> None:
        password = None if config.password is None else resolve(config.password)
        try:
            self._redis = Redis.from_url(
                config.store,
                password=password,
                socket_connect_timeout=TIMEOUT_S,
                socket_timeout=TIMEOUT_S,
            )
        except ValueError:  # without its text, which may quote the URL and so a password
            raise ConfigError("`budgets.store` is not a URL like redis://host:6379/0") from None
        self._records = f"{config.prefix}:{{keys}}:records"
        self._changes = f"{config.prefix}:{{keys}}:number"

    async def load(self) -> Mapping[str, KeyRecord]:
        """See `KeyStore`; a record that cannot be read is left out, and named in the log."""
        try:
            found = await self._redis.hgetall(self._records)
        except (RedisError, OSError) as error:
            raise _away(error) from None
        records: dict[str, KeyRecord] = {}
        for field, document in found.items():
            name = field.decode("latin-1") if isinstance(field, bytes) else field
            try:
                record = decode_record(orjson.loads(document))
                if record.id != name:
                    raise ValueError("it stands under another id")
            except ValueError as error:
                log.error("key_record_corrupt", id=name[:16], reason=str(error))
                continue
            records[record.id] = record
        left = kept(records, time.time())
        await self._forget(records.keys() - left.keys())
        return left

    async def _forget(self, ended: Set[str]) -> None:
        """Remove records that nobody will ask for; the next load does it if this one cannot."""
        if ended:
            with contextlib.suppress(RedisError, OSError):
                await self._redis.hdel(self._records, *ended)

    async def put(self, *records: KeyRecord) -> None:
        """See `KeyStore`."""
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                for record in records:
                    pipeline.hset(self._records, record.id, orjson.dumps(encode_record(record)))
                pipeline.incr(self._changes)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            raise _away(error) from None

    async def number(self) -> int:
        """See `KeyStore`."""
        try:
            return int(await self._redis.get(self._changes) or 0)
        except (RedisError, OSError, ValueError) as error:
            raise _away(error) from None

    async def close(self) -> None:
        """Give up the connections."""
        await self._redis.aclose()


def _away(error: Exception) -> Unavailable:
    return Unavailable(f"the keys' Redis is away: {type(error).__name__}", retry_after_s=1.0)
