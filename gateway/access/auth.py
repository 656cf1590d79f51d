"""Who calls: an API key, a JSON Web Token, or an address without either."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import time
from collections.abc import Callable, Mapping, Sequence

from gateway.access.certificate import ClientCertificate
from gateway.access.tokens import Jwks, JwtVerifier
from headrace.access import Access, Caller
from headrace.config.tiers import ANONYMOUS, ClientCertificates
from headrace.errors import Unauthenticated, quoted
from headrace.keys import PREFIX, ends_s, find_record

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_HOPS = 32
"""Cap on the entries of an X-Forwarded-For that are read; nobody has so many proxies."""


def parse(text: str) -> IPAddress | None:
    """An address, an IPv4 one also if it is written as IPv6; None if it is none."""
    try:
        address = ipaddress.ip_address(text.strip().partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def origin(peer: str, forwarded_for: str, trusted: Sequence[IPNetwork]) -> IPAddress | None:
    """The last address on the way here that is no trusted proxy.

    `forwarded_for` is the header's value: each proxy adds on the right whom it heard, so it is
    read from there, and what a client wrote itself is never reached. An unreadable entry ends
    the search at the proxy that passed it on.
    """
    found = parse(peer)
    for entry in reversed(forwarded_for.rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
        if found is None or not any(found in network for network in trusted):
            break
        # Some proxies write `1.2.3.4:5` or `[::1]:5`.
        text = entry.strip()
        if text.startswith("["):
            text = text[1:].partition("]")[0]
        elif text.count(":") == 1:
            text = text.partition(":")[0]
        before = parse(text)
        if before is None:
            break
        found = before
    return found


def name_of(address: IPAddress | None) -> str:
    """What tells callers apart: an IPv4 address, or the /64 that an IPv6 site usually has."""
    if address is None:
        return "local"
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)


MAX_REMEMBERED = 50_000
"""Cap on the addresses whose callers are remembered; beyond it all are forgotten."""
MAX_PATH = 256
"""Cap on the characters of a remembered X-Forwarded-For; the sender chooses it."""
_KEY_PREFIX = PREFIX.encode()


MAX_NAME = 128
"""Longest name of a certificate that is a caller's id as it is."""


def _short(name: str) -> str:
    """A name as part of an id: printable, of bounded length, and no two alike."""
    if len(name) <= MAX_NAME and name.isprintable():
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    begin = "".join(letter for letter in name[:64] if letter.isprintable())
    return f"{begin}...{digest}"


class Authenticator:
    """Tells callers by their credentials. `run` keeps the keys of tokens fresh."""

    def __init__(self, pepper: bytes, now_s: Callable[[], float] = time.time) -> None:
        self._pepper, self._now_s = pepper, now_s
        self._access = Access()
        self._trusted: tuple[IPNetwork, ...] = ()
        self._verifier: JwtVerifier | None = None
        self._strangers: dict[str, Caller] = {}
        self._holders: dict[bytes, Caller] = {}
        self._certificates: dict[ClientCertificate, Caller] = {}
        self._changed = asyncio.Event()
        # What was told of a caller holds while this stays the same.
        self.generation = 0

    def update(self, access: Access) -> None:
        """Believe these keys and settings from now on."""
        before = self._access
        self._access = access
        self._forget()
        self._strangers.clear()
        self._holders.clear()
        self._certificates.clear()
        self._trusted = tuple(map(ipaddress.ip_network, access.auth.trusted_proxies))
        if access.auth.jwt != before.auth.jwt:
            former, self._verifier = self._verifier, None
            if access.auth.jwt is not None:
                self._verifier = JwtVerifier(access.auth.jwt, access.tiers or (), self._now_s)
                self._verifier.on_new_keys = self._forget
                if former is not None:
                    self._verifier.inherit(former)
            self._changed.set()
        elif self._verifier is not None and access.tiers != before.tiers:
            self._verifier.allow(access.tiers or ())

    def _forget(self) -> None:
        self.generation += 1

    def remaining_s(self, caller: Caller) -> float:
        """Seconds for which the credential of a caller still holds."""
        return caller.ends_s - self._now_s()

    def identify(
        self,
        headers: Mapping[bytes, bytes],
        address: str,
        certificate: ClientCertificate | None = None,
    ) -> Caller:
        """The caller of a request with these (lower-case) headers, from this peer.

        `certificate` is the one that the client of the connection has shown.

        Raises `Unauthenticated`: a bad credential is never taken for none.
        """
        authorization = headers.get(b"authorization")
        key = headers.get(b"x-api-key")
        if authorization is None and key is None:
            settings = self._access.auth
            if certificate is not None and settings.certificates is not None:
                return self._certified(certificate, settings.certificates)
            if not settings.anonymous:
                other = ", or a client certificate" if settings.certificates is not None else ""
                raise Unauthenticated(
                    f"a credential is needed: X-API-Key, or Authorization: Bearer{other}"
                )
            return self.stranger(headers, address)
        if authorization is None:
            assert key is not None
            # gRPC clients send what stands behind the colon, blanks and all.
            return self._key_holder(key.strip())
        scheme, _, bearer = authorization.partition(b" ")
        bearer = bearer.strip()
        if scheme.lower() != b"bearer" or not bearer:
            raise Unauthenticated("the Authorization header should be: Bearer KEY-OR-TOKEN")
        if key is not None and key != bearer:
            raise Unauthenticated("X-API-Key and Authorization name different credentials")
        if bearer.startswith(_KEY_PREFIX):
            return self._key_holder(bearer)
        if self._verifier is None:
            raise Unauthenticated("this is no API key, and no tokens are accepted here")
        return self._verifier.verify(bearer)

    def stranger(self, headers: Mapping[bytes, bytes], address: str) -> Caller:
        """The anonymous caller of that address, whatever its credential and whether it may ask."""
        given = ""
        if self._trusted:
            given = headers.get(b"x-forwarded-for", b"").decode("latin-1")
        path = f"{address} {given}" if given else address
        known = self._strangers.get(path)
        if known is None:
            name = f"ip:{name_of(origin(address, given, self._trusted))}"
            known = Caller(name, ANONYMOUS)
            if len(path) <= MAX_PATH:
                if len(self._strangers) >= MAX_REMEMBERED:
                    self._strangers.clear()
                self._strangers[path] = known
        return known

    def _key_holder(self, given: bytes) -> Caller:
        # By a hash, so that no key's text stays in memory.
        name = hashlib.sha256(given).digest()
        known = self._holders.get(name)
        if known is not None and self._now_s() < known.ends_s:
            return known
        record = find_record(self._pepper, self._access.keys, given, self._now_s())
        if record.tier not in (self._access.tiers or ()):
            raise Unauthenticated(f"the tier of the API key {record.id} does not exist any more")
        models = None if record.models is None else frozenset(record.models)
        caller = Caller(f"key:{record.id}", record.tier, models, record.name, ends_s(record))
        # Only keys that are right get here, so there are no more than were given out.
        self._holders[name] = caller
        return caller

    def _certified(self, shown: ClientCertificate, config: ClientCertificates) -> Caller:
        """The caller that a certificate names; one that names none is refused."""
        if shown.ends_s <= self._now_s():
            raise Unauthenticated("the client certificate has expired")
        known = self._certificates.get(shown)
        if known is None:
            by_name = {each.name: each for each in config.callers}
            name = next((name for name in shown.names if name in by_name), None)
            if name is not None:
                found = by_name[name]
                tier, models = found.tier, found.models
            elif shown.names and config.default_tier is not None:
                name, tier, models = shown.names[0], config.default_tier, None
            else:
                what = quoted(shown.names[0]) if shown.names else "it has no name"
                raise Unauthenticated(
                    f"the client certificate names no caller of `auth.certificates`: {what}"
                )
            allowed = None if models is None else frozenset(models)
            known = Caller(f"cert:{_short(name)}", tier, allowed, ends_s=shown.ends_s)
            if len(self._certificates) >= MAX_REMEMBERED:
                self._certificates.clear()
            self._certificates[shown] = known
        return known

    async def run(self) -> None:
        """Keep the keys of tokens fresh, where tokens are configured, until cancelled."""
        while True:
            self._changed.clear()
            async with asyncio.TaskGroup() as tasks:
                follower: asyncio.Task[None] | None = None
                if self._verifier is not None:
                    follower = tasks.create_task(Jwks(self._verifier).run())
                await self._changed.wait()
                if follower is not None:
                    follower.cancel()
