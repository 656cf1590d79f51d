"""API keys: their form, the record that is kept, and the check. Pure.

A key is `hr_ID_SECRET`: the id finds its record, the secret proves it. Only a keyed hash of the
whole is kept (HMAC-SHA256): a reader of the store can neither use keys nor guess them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from headrace.access import KeyRecord
from headrace.errors import InvalidArgument, Unauthenticated

PREFIX = "hr_"
MAX_KEY_BYTES = 256
MAX_NAME = 128
KEPT_S = 30 * 86_400.0
"""Time for which a revoked or expired key stays listed."""

_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_KEY = re.compile(rb"hr_([a-z2-7]{8})_[A-Za-z0-9_-]{43}")
_NO_DIGEST = "0" * 64


class KeyStore(Protocol):
    """Where records are kept. Raises `Unavailable` while it cannot be reached."""

    async def load(self) -> Mapping[str, KeyRecord]:
        """All records by id."""

    async def put(self, *records: KeyRecord) -> None:
        """Add records, or replace those with their ids, in one step."""

    async def number(self) -> int:
        """A number that rises when another process may have changed the records."""

    async def close(self) -> None:
        """Close connections; nothing is asked afterwards."""


def key_pepper(secret: bytes) -> bytes:
    """The key of the hashes, derived from the cluster's secret."""
    return hmac.digest(secret, b"headrace api keys 1", hashlib.sha256)


def digest(pepper: bytes, key: bytes) -> str:
    """The keyed hash of a key, in hex."""
    return hmac.digest(pepper, key, hashlib.sha256).hex()


def new_key(
    pepper: bytes,
    *,
    name: str,
    tier: str,
    now_s: float,
    models: tuple[str, ...] | None = None,
    expires_s: float | None = None,
) -> tuple[str, KeyRecord]:
    """A fresh key and its record; times are seconds since 1970. Raises `InvalidArgument`."""
    identity = "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
    text = f"{PREFIX}{identity}_{secrets.token_urlsafe(32)}"
    record = KeyRecord(
        id=identity,
        name=checked_name(name),
        tier=tier,
        digest=digest(pepper, text.encode()),
        created_s=now_s,
        expires_s=expires_s,
        models=models,
    )
    return text, record


def checked_name(name: str) -> str:
    """A name that can stand in a log line, a header or a table; raises `InvalidArgument`."""
    if not _is_name(name):
        raise InvalidArgument(
            f"a key's name should be 1 to {MAX_NAME} printable characters, no blanks around them"
        )
    return name


def _is_name(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME and name.isprintable() and name == name.strip()


def find_record(
    pepper: bytes, keys: Mapping[str, KeyRecord], given: bytes, now_s: float
) -> KeyRecord:
    """The record of a valid key; raises `Unauthenticated`.

    An unknown id takes as long as a wrong secret. Only with the right secret does the error tell
    that a key was revoked or has expired.
    """
    found = _KEY.fullmatch(given) if len(given) <= MAX_KEY_BYTES else None
    if found is None:
        raise Unauthenticated("this is no API key: it should look like hr_…")
    record = keys.get(found[1].decode())
    expected = _NO_DIGEST if record is None else record.digest
    right = hmac.compare_digest(digest(pepper, given), expected)
    if record is None or not right:
        raise Unauthenticated("this API key is not known")
    if record.revoked_s is not None and record.revoked_s <= now_s:
        raise Unauthenticated(f"the API key {record.id} has been revoked")
    if record.expires_s is not None and record.expires_s <= now_s:
        raise Unauthenticated(f"the API key {record.id} has expired")
    return record


def encode_record(record: KeyRecord) -> dict[str, Any]:
    return asdict(record)


def decode_record(document: Any) -> KeyRecord:
    """The inverse of `encode_record`; raises `ValueError` with what is wrong."""
    if not isinstance(document, dict):
        raise ValueError("it should be an object")
    known = set(KeyRecord.__dataclass_fields__)
    if strays := set(document) - known:
        raise ValueError(f"unknown field {sorted(strays)[0]!r}")
    texts = {name: document.get(name) for name in ("id", "name", "tier", "digest")}
    for name, text in texts.items():
        if not isinstance(text, str) or not text:
            raise ValueError(f"{name!r} should be a text")
    if not _is_name(texts["name"] or ""):
        raise ValueError(f"'name' should be 1 to {MAX_NAME} printable characters")
    if not re.fullmatch("[a-z2-7]{8}", texts["id"] or ""):
        raise ValueError("'id' should be 8 letters of the base32 alphabet")
    if not re.fullmatch("[0-9a-f]{64}", texts["digest"] or ""):
        raise ValueError("'digest' should be 64 hex digits")
    for name in ("created_s", "expires_s", "revoked_s"):
        given = document.get(name)
        numeric = isinstance(given, int | float) and not isinstance(given, bool)
        if not numeric and (given is not None or name == "created_s"):
            raise ValueError(f"{name!r} should be seconds since 1970")
    models = document.get("models")
    if models is not None:
        if not isinstance(models, list | tuple) or not all(isinstance(m, str) for m in models):
            raise ValueError("'models' should be a list of names")
        models = tuple(models)
    return KeyRecord(**{**document, "models": models})


def kept(records: Mapping[str, KeyRecord], now_s: float) -> dict[str, KeyRecord]:
    """Records of keys that are valid, or ended less than `KEPT_S` ago."""
    return {name: record for name, record in records.items() if ends_s(record) > now_s - KEPT_S}


def ends_s(record: KeyRecord) -> float:
    """Seconds since 1970 at which a key ends or has ended; infinite for never."""
    ends = (time_s for time_s in (record.expires_s, record.revoked_s) if time_s is not None)
    return min(ends, default=float("inf"))
