"""JSON Web Tokens (RFC 7519): whom a signed token names, by the keys that may have signed it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm

from headrace.access import Caller
from headrace.config.tiers import Jwt
from headrace.errors import Unauthenticated, Unavailable

MAX_TOKEN_BYTES = 8192
MAX_ID = 128
REMEMBERED = 10_000
"""Cap on remembered tokens: to verify a signature takes 30 to 100 µs, to find its token 2 µs."""
SOONEST_S = 5.0
"""Least time between two looks at the source, which an unknown key id asks for."""
MAX_TIME_S = 1e12
"""Bound of a token's times; JSON can also say Infinity, or more than a float holds."""

_SHAPE = re.compile(rb"[\w-]+\.[\w-]+\.[\w-]+")


class JwtVerifier:
    """Tells callers by their tokens. `tiers` are the names that a token may ask for."""

    def __init__(
        self, config: Jwt, tiers: Collection[str], now_s: Callable[[], float] = time.time
    ) -> None:
        self.config, self._tiers, self._now_s = config, tiers, now_s
        self._document: Any = None
        self._keys: Mapping[tuple[str | None, str], jwt.PyJWK] | None = None
        self._known: OrderedDict[bytes, Caller] = OrderedDict()
        self.wanted = asyncio.Event()
        self.on_new_keys: Callable[[], None] = lambda: None

    def allow(self, tiers: Collection[str]) -> None:
        """Use these names of tiers."""
        self._tiers = tiers
        self._known.clear()

    def inherit(self, before: JwtVerifier) -> None:
        """Take over the keys of another verifier, if they are from the same source."""
        if before._document is not None and before.config.jwks == self.config.jwks:
            with contextlib.suppress(ValueError):
                self.take(before._document)

    def take(self, document: Any) -> None:
        """Use the keys of this JWKS; raises `ValueError` if none of them verifies signatures."""
        listed = document.get("keys") if isinstance(document, Mapping) else None
        keys = {
            (key.key_id, key.algorithm_name): key
            for each in (listed if isinstance(listed, list) else ())
            for key in _public_keys(each, self.config.algorithms)
        }
        if not keys:
            raise ValueError("it holds no public key for signatures")
        if document != self._document:
            self._known.clear()
            self.on_new_keys()
        self._document, self._keys = document, keys
        self.wanted.clear()

    def verify(self, token: bytes) -> Caller:
        """The caller that a token names.

        Raises `Unauthenticated`, or `Unavailable` as long as there are no keys at all.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
        name = hashlib.sha256(token).digest()
        known = self._known.get(name)
        if known is not None and self._now_s() < known.ends_s:
            self._known.move_to_end(name)
            return known
        claims = self._claims(token)
        caller = self._caller(claims, self._end_s(claims))
        self._known[name] = caller
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return caller

    def _claims(self, token: bytes) -> dict[str, Any]:
        if _SHAPE.fullmatch(token) is None:
            raise Unauthenticated("this is neither an API key nor a JSON Web Token")
        if self._keys is None:
            self.wanted.set()
            raise Unavailable(
                "the keys that tokens are signed with could not be fetched yet",
                retry_after_s=SOONEST_S,
            )
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Unauthenticated("this is no JSON Web Token") from None
        if header.get("alg") not in self.config.algorithms:
            allowed = ", ".join(self.config.algorithms)
            raise Unauthenticated(f"the token's algorithm is not allowed; allowed: {allowed}")
        key = self._key(header.get("kid"), header["alg"])
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(self.config.algorithms),
                audience=self.config.audience,
                issuer=self.config.issuer,
                options={
                    "require": ["exp", self.config.id_claim],
                    "enforce_minimum_key_length": True,
                    "verify_iat": False,
                    "verify_exp": False,  # by our own clock: see `_end_s`
                    "verify_nbf": False,
                },
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(_reason(error)) from None
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise Unauthenticated("the token cannot be read") from None
        return claims

    def _key(self, key_id: str | None, algorithm: str) -> jwt.PyJWK:
        """The key of that id; without an id, the only one of that algorithm."""
        keys = self._keys or {}
        if key_id is None:
            fitting = [key for (_, of), key in keys.items() if of == algorithm]
            key = fitting[0] if len(fitting) == 1 else None
        else:
            key = keys.get((key_id, algorithm))
        if key is None:
            self.wanted.set()
            raise Unauthenticated("the token names no signing key (`kid`) that is known")
        return key

    def _end_s(self, claims: Mapping[str, Any]) -> float:
        """When the token ends, in seconds since 1970; raises if it does not hold now."""
        now_s, leeway_s = self._now_s(), self.config.leeway_s
        ends_s = _time(claims, "exp") + leeway_s
        if ends_s <= now_s:
            raise Unauthenticated("the token has expired")
        if "nbf" in claims and _time(claims, "nbf") - leeway_s > now_s:
            raise Unauthenticated("the token is not valid yet")
        return ends_s

    def _caller(self, claims: Mapping[str, Any], ends_s: float) -> Caller:
        subject = claims.get(self.config.id_claim)
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_ID:
            raise Unauthenticated(f"the claim {self.config.id_claim!r} is no short text")
        if not subject.isprintable():
            raise Unauthenticated(f"the claim {self.config.id_claim!r} has unprintable characters")
        tier = claims.get(self.config.tier_claim, self.config.default_tier)
        if not isinstance(tier, str) or tier not in self._tiers:
            named = self.config.tier_claim in claims
            what = f"the claim {self.config.tier_claim!r}" if named else "`auth.jwt.default_tier`"
            raise Unauthenticated(f"{what} names no tier that exists")
        models = claims.get(self.config.models_claim)
        if models is not None and not (
            isinstance(models, list) and all(isinstance(each, str) for each in models)
        ):
            raise Unauthenticated(f"the claim {self.config.models_claim!r} is no list of names")
        allowed = None if models is None else frozenset(models)
        return Caller(f"jwt:{subject}", tier, allowed, ends_s=ends_s)


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not abs(value) < MAX_TIME_S:
        raise Unauthenticated(f"the claim {name!r} is no time in seconds since 1970")
    return float(value)


def _public_keys(each: Any, algorithms: Sequence[str]) -> Sequence[jwt.PyJWK]:
    """A key of a JWKS, once for each algorithm that it may be used with; empty if it is not ours.

    Most keys are for one: they name it, or their curve does. An RSA key that names none is for all.
    """
    try:
        if each.get("use", "sig") != "sig" or "d" in each:
            return ()  # for encryption; or a secret that everybody can read by now
        if not isinstance(each.get("kid", ""), str):
            return ()
        open_rsa = each.get("kty") == "RSA" and not each.get("alg")
        names = [name for name in algorithms if name[:2] in ("RS", "PS")] if open_rsa else [None]
        keys = [jwt.PyJWK(each, algorithm=name) for name in names]
    except (
        jwt.PyJWTError,
        UnsupportedAlgorithm,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ):
        return ()  # a kind of key that we do not know, beside others that we do
    return [key for key in keys if key.algorithm_name in algorithms]


def _reason(error: jwt.PyJWTError) -> str:
    """What is wrong, in words that quote nothing of the token."""
    reasons: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
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


MAX_JWKS_BYTES = 1024 * 1024
FETCH_S = 10.0

log = structlog.get_logger()


class Jwks:
    """Fetches the key set of a verifier from its source; keeps the last good one."""

    def __init__(self, verifier: JwtVerifier) -> None:
        self._verifier, self._config = verifier, verifier.config
        self._down = False

    async def run(self) -> None:
        """Fetch at once, every `refresh_s`, and sooner for an unknown key; until cancelled."""
        while True:
            await self.refresh()
            patience_s = SOONEST_S if self._down else self._config.refresh_s
            await asyncio.sleep(min(SOONEST_S, patience_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, patience_s - SOONEST_S)):
                    await self._verifier.wanted.wait()

    async def refresh(self) -> None:
        """Fetch the keys once; a source that is down or broken changes nothing."""
        try:
            async with asyncio.timeout(FETCH_S):
                content = await self._read()
            if len(content) > MAX_JWKS_BYTES:
                raise ValueError("the key set is too long")
            self._verifier.take(json.loads(content))
        except (OSError, httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError) as error:
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
        """The whole source, or its first bytes beyond `MAX_JWKS_BYTES`."""
        if not self._config.jwks.startswith(("http://", "https://")):
            return await asyncio.to_thread(_read_start, Path(self._config.jwks))
        async with (
            httpx.AsyncClient(timeout=FETCH_S) as client,
            client.stream("GET", self._config.jwks) as answer,
        ):
            answer.raise_for_status()
            content = b""
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > MAX_JWKS_BYTES:
                    break
            return content


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_JWKS_BYTES + 1)
