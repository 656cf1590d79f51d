"""JSON Web Tokens (RFC 7519): whom a signed token names, and the keys that may have signed it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import httpx
import jwt
import structlog

from gateway.access.caller import Caller
from gateway.access.tiers import Jwt
from gateway.errors import Unauthenticated, Unavailable

MAX_TOKEN_BYTES = 8192
MAX_JWKS_BYTES = 1024 * 1024
MAX_ID = 128
REMEMBERED = 10_000
"""Verified tokens: a signature costs 30 to 100 µs, finding the token again 2."""
SOONEST_S = 5.0
"""Unknown key ids make us look at the source again, but not more often than so."""
FETCH_S = 10.0

log = structlog.get_logger()


class JwtVerifier:
    """See the module. `tiers` are the names that a token may ask for."""

    def __init__(
        self, config: Jwt, tiers: Collection[str], now_s: Callable[[], float] = time.time
    ) -> None:
        self.config, self._tiers, self._now_s = config, tiers, now_s
        self._keys: dict[str, jwt.PyJWK] | None = None
        self._known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()
        self.wants_refresh = False

    def take(self, document: Any) -> None:
        """Use the keys of this JWKS from now on; raises `ValueError` if it has none for us."""
        listed = document.get("keys") if isinstance(document, Mapping) else None
        keys: dict[str, jwt.PyJWK] = {}
        for each in listed if isinstance(listed, list) else ():
            try:
                key = jwt.PyJWK(each)
            except (jwt.PyJWTError, KeyError, TypeError, ValueError, AttributeError):
                continue  # a kind of key that we do not know, beside others that we do
            if key.public_key_use in (None, "sig") and key.key_type != "oct":
                keys[str(key.key_id or "")] = key
        if not keys:
            raise ValueError("it holds no public key for signatures")
        self._keys = keys
        self._known.clear()
        self.wants_refresh = False

    def verify(self, token: bytes) -> Caller:
        """The caller that a token names.

        Raises `Unauthenticated`, or `Unavailable` as long as there are no keys at all.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
        name = hashlib.sha256(token).digest()
        known = self._known.get(name)
        if known is not None and self._now_s() < known[0]:
            return known[1]
        claims = self._claims(token)
        caller = self._caller(claims)
        self._known[name] = (float(claims["exp"]) + self.config.leeway_s, caller)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return caller

    def _claims(self, token: bytes) -> dict[str, Any]:
        if self._keys is None:
            self.wants_refresh = True
            raise Unavailable(
                "the keys that tokens are signed with could not be fetched yet",
                retry_after_s=SOONEST_S,
            )
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise Unauthenticated("this is no JSON Web Token") from None
        if header.get("alg") not in self.config.algorithms:
            allowed = ", ".join(self.config.algorithms)
            raise Unauthenticated(f"the token's algorithm is not allowed; allowed: {allowed}")
        key = self._key(header.get("kid"))
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(self.config.algorithms),
                audience=self.config.audience,
                issuer=self.config.issuer,
                leeway=self.config.leeway_s,
                options={"require": ["exp", self.config.id_claim], "verify_iat": False},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(_reason(error)) from None
        except (ValueError, TypeError, OverflowError):
            raise Unauthenticated("the token cannot be read") from None
        return claims

    def _key(self, key_id: Any) -> jwt.PyJWK:
        keys = self._keys or {}
        if key_id is None and len(keys) == 1:
            return next(iter(keys.values()))
        key = keys.get(key_id) if isinstance(key_id, str) else None
        if key is None:
            self.wants_refresh = True
            raise Unauthenticated("the token names a signing key (`kid`) that is not known")
        return key

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        subject = claims.get(self.config.id_claim)
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_ID:
            raise Unauthenticated(f"the claim {self.config.id_claim!r} is no short text")
        if not subject.isprintable():
            raise Unauthenticated(f"the claim {self.config.id_claim!r} has unprintable characters")
        tier = claims.get(self.config.tier_claim, self.config.default_tier)
        if not isinstance(tier, str) or tier not in self._tiers:
            raise Unauthenticated(f"the claim {self.config.tier_claim!r} names no tier")
        models = claims.get(self.config.models_claim)
        if models is not None and not (
            isinstance(models, list) and all(isinstance(each, str) for each in models)
        ):
            raise Unauthenticated(f"the claim {self.config.models_claim!r} is no list of names")
        return Caller(f"jwt:{subject}", tier, None if models is None else frozenset(models))


def _reason(error: jwt.PyJWTError) -> str:
    """What is wrong, in words that quote nothing of the token."""
    reasons: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
        (jwt.ExpiredSignatureError, "the token has expired"),
        (jwt.ImmatureSignatureError, "the token is not valid yet"),
        (jwt.InvalidAudienceError, "the token is for another audience"),
        (jwt.InvalidIssuerError, "the token is from another issuer"),
        (jwt.InvalidSignatureError, "the token's signature is wrong"),
    )
    for kind, words in reasons:
        if isinstance(error, kind):
            return words
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"the token lacks the claim {error.claim!r}"
    return "the token cannot be verified"


class Jwks:
    """Fetches the key set of a verifier, now and then; keeps the last good one."""

    def __init__(self, verifier: JwtVerifier) -> None:
        self._verifier, self._config = verifier, verifier.config
        self._down = False

    async def run(self) -> None:
        """Fetch at once, every `refresh_s`, and sooner for an unknown key; until cancelled."""
        while True:
            fetched_s = time.monotonic()
            await self.refresh()
            patience_s = self._config.refresh_s if not self._down else SOONEST_S
            while time.monotonic() - fetched_s < patience_s:
                await asyncio.sleep(0.1)
                if self._verifier.wants_refresh:
                    patience_s = min(patience_s, SOONEST_S)

    async def refresh(self) -> None:
        """Fetch the keys once; a source that is down or broken changes nothing."""
        try:
            self._verifier.take(json.loads(await self._read()))
        except (OSError, httpx.HTTPError, ValueError) as error:
            if not self._down:
                log.warning("jwks_away", source=self._source(), reason=type(error).__name__)
            self._down = True
        else:
            if self._down:
                log.info("jwks_back", source=self._source())
            self._down = False

    def _source(self) -> str:
        """The source without what may be a secret in it."""
        return self._config.jwks.partition("?")[0].rpartition("@")[2]

    async def _read(self) -> bytes:
        if not self._config.jwks.startswith(("http://", "https://")):
            return await asyncio.to_thread(_read_file, Path(self._config.jwks))
        async with (
            httpx.AsyncClient(timeout=FETCH_S) as client,
            client.stream("GET", self._config.jwks) as answer,
        ):
            answer.raise_for_status()
            content = b""
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > MAX_JWKS_BYTES:
                    raise ValueError("the key set is too long")
            return content


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_JWKS_BYTES + 1)
    if len(content) > MAX_JWKS_BYTES:
        raise ValueError("the key set is too long")
    return content
