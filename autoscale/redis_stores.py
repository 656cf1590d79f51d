"""Budgets and API keys in a Redis, which several clusters may share; needs the extra `redis`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import Mapping, Sequence, Set
from typing import Any

import orjson
import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    NoScriptError,
    RedisError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from autoscale.budget_ledger import GATEWAYS_S, KEEP_S
from headrace.access import ACTIVE_S, BudgetsAway, Claim, Grant, KeyRecord
from headrace.config.args import Budgets
from headrace.config.tiers import UNLIMITED
from headrace.errors import ConfigError, Unavailable
from headrace.keys import decode_record, encode_record, kept
from headrace.secrets import resolve

KEYS_TIMEOUT_S = 1.0
TIMEOUT_S = 0.25
"""Time-out for budgets, of a connection and of each answer; an exchange may take both."""

log = structlog.get_logger()

# Follows the rules of `BudgetLedger`. One hash holds a caller: bucket, day, and when
# each gateway last claimed (fields "g:ID"). Numbers are stored and answered as text of 17
# digits, which keeps doubles exact; Redis would cut numbers to integers. They come in one argument:
# without a password, Redis reports an error only for commands of at most ten arguments. The clock
# is that of Redis, since the clocks of gateways differ.
SCRIPT = """
local gateway, numbers, count = 'g:' .. ARGV[1], {}, 0
for word in string.gmatch(ARGV[2], '%S+') do
  count = count + 1
  numbers[count] = tonumber(word)
end
-- A rate below 0 means no bucket; `believed` is nil where the gateway knows nothing.
local window, keep, rate, burst, charge, want, believed, used, used_before, claimed_day =
  unpack(numbers, 1, 10)

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local day = math.floor(now / 86400)

local function text(number) return string.format('%.17g', number) end
local function clamped(level) return math.max(-burst, math.min(burst, level)) end

local known, active = {}, 1
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local name, number = fields[i], tonumber(fields[i + 1])
  if string.sub(name, 1, 2) ~= 'g:' then
    known[name] = number
  elseif name ~= gateway then
    if math.abs(now - number) < window then
      active = active + 1
    else
      redis.call('HDEL', KEYS[1], name)
    end
  end
end

local level
if rate < 0 then
  level = math.huge
else
  if not known.rate then
    level = believed or burst
  elseif known.rate < 0 then
    level = burst
  else
    level = math.min(known.burst, known.level + known.rate * math.max(0, now - known.at))
  end
  level = clamped(clamped(level) - charge)
end

local portion = level / active
if portion < 1 and level >= 1 then portion = 1 end
local tokens = math.max(0, math.min(want, portion))
if rate >= 0 then level = level - tokens end

local total = 0
if known.day == day then
  total = known.used
elseif claimed_day == day then
  total = used_before
end
if claimed_day >= day then total = total + used end

redis.call('HSET', KEYS[1], gateway, text(now), 'at', text(now), 'rate', text(rate),
  'burst', text(burst), 'level', rate < 0 and '0' or text(level), 'day', text(day),
  'used', text(total))
local kept = 0
if rate >= 0 then kept = (burst - level) / rate end
if total ~= 0 then kept = math.max(kept, (day + 1) * 86400 - now) end
kept = math.min(kept, 1e9) + keep  -- seconds; Redis refuses what is no 64 bit integer
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.ceil(kept * 1000)))
return {text(tokens), text(level), text(active), text(total)}
"""


def _open(config: Budgets, timeout_s: float, **options: Any) -> Redis:
    """A client of the configured Redis; nothing is sent yet.

    Raises `ConfigError` for a wrong URL or an unreadable password.
    """
    password = None if config.password is None else resolve(config.password)
    try:
        return Redis.from_url(
            config.store,
            password=password,
            socket_connect_timeout=timeout_s,
            socket_timeout=timeout_s,
            **options,
        )
    except ValueError:  # without its text, which may quote the URL and so a password
        raise ConfigError("`budgets.store` is not a URL like redis://host:6379/0") from None


class RedisBudgets:
    """A `BudgetStore`. Raises `ConfigError` for a wrong URL or an unreadable password.

    Each script call has one key, so a proxy may spread callers over several Redis servers. A
    caller's id is hashed: it can be long, and names people.
    """

    def __init__(self, config: Budgets, gateway_id: str, *, script: str = SCRIPT) -> None:
        self._redis = _open(
            config,
            TIMEOUT_S,
            # No retry: a claim sent twice would count twice, and the next exchange is near.
            retry=Retry(NoBackoff(), 0),
            # RESP2: with RESP3 the client expects messages between answers, and does not check a
            # reused connection for unread answers.
            protocol=2,
        )
        self._gateway_id = gateway_id
        self._prefix = config.prefix
        self._script = script
        self._sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()

    async def exchange(self, claims: Sequence[Claim]) -> tuple[list[Grant], int]:
        """Exchange all claims in one message and one answer."""
        # Gateways are counted as those of an entry without limits, which each of them claims.
        everyone = Claim("", rate=UNLIMITED, burst=UNLIMITED)
        calls = [self._call(f"{self._prefix}:gateways", GATEWAYS_S, everyone)]
        calls += [self._call(self._key(claim.caller), ACTIVE_S, claim) for claim in claims]
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):
                answers = await self._answers(calls)
            gateways, *grants = [_grant(answer) for answer in answers]
        except (RedisError, OSError, ValueError, TypeError) as error:
            raise BudgetsAway(f"the budgets' Redis is away: {_reason(error)}") from None
        return grants, gateways.active

    async def close(self) -> None:
        await self._redis.aclose()

    def _key(self, caller: str) -> str:
        digest = hashlib.blake2b(caller.encode(), digest_size=16).hexdigest()
        return f"{self._prefix}:b:{{{digest}}}"

    def _call(self, key: str, window_s: float, claim: Claim) -> tuple[str, str, str]:
        """The script's key and its two arguments."""
        limited = not math.isinf(claim.rate)
        numbers = (
            *(window_s, KEEP_S),
            *((claim.rate, claim.burst) if limited else (-1, 0)),
            *(claim.charge, claim.want, "-" if claim.level is None else claim.level),
            *(claim.used, claim.used_before, claim.day),
        )
        return key, self._gateway_id, " ".join(map(str, numbers))

    async def _answers(self, calls: list[tuple[str, str, str]]) -> list[Any]:
        """The answer to each call; Redis may have lost the script before any of them.

        redis-py's `register_script` asks for the script before each pipeline, a round trip more.
        """
        answers = await self._send(calls)
        lost = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if lost:
            await self._redis.script_load(self._script)
            for at, answer in zip(lost, await self._send([calls[at] for at in lost]), strict=True):
                answers[at] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def _send(self, calls: list[tuple[str, str, str]]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for call in calls:
                pipeline.evalsha(self._sha, 1, *call)
            return await pipeline.execute(raise_on_error=False)


def _grant(answer: Any) -> Grant:
    tokens, level, active, used = (float(field) for field in answer)
    return Grant(tokens, level, int(active), used)


def _reason(error: Exception) -> str:
    """The reason, without any part of the URL or the password."""
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return "it refuses this user or password"
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return f"no answer in {TIMEOUT_S} s"
    return type(error).__name__


class KeyRedis:
    """A `KeyStore` in a Redis. Raises `ConfigError` for a wrong URL or an unreadable password."""

    def __init__(self, config: Budgets) -> None:
        self._redis = _open(config, KEYS_TIMEOUT_S)
        self._records = f"{config.prefix}:{{keys}}:records"
        self._changes = f"{config.prefix}:{{keys}}:number"

    async def load(self) -> Mapping[str, KeyRecord]:
        """All records by id; a corrupt one is left out, and named in the log."""
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
        """Remove ended records; after an error the next load does it."""
        if ended:
            with contextlib.suppress(RedisError, OSError):
                await self._redis.hdel(self._records, *ended)

    async def put(self, *records: KeyRecord) -> None:
        """Add or replace records in one transaction."""
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                for record in records:
                    pipeline.hset(self._records, record.id, orjson.dumps(encode_record(record)))
                pipeline.incr(self._changes)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            raise _away(error) from None

    async def number(self) -> int:
        """A number that rises with every change by any process."""
        try:
            return int(await self._redis.get(self._changes) or 0)
        except (RedisError, OSError, ValueError) as error:
            raise _away(error) from None

    async def close(self) -> None:
        await self._redis.aclose()


def _away(error: Exception) -> Unavailable:
    return Unavailable(f"the keys' Redis is away: {type(error).__name__}", retry_after_s=1.0)
