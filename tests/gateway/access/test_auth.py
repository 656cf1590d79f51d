"""Who calls: keys, tokens and addresses, and what is said to everybody else."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access import auth
from gateway.access.auth import MAX_HOPS, MAX_PATH, Authenticator, name_of, origin, parse
from headrace.access import Access, Caller
from headrace.config.tiers import AuthConfig, Tier
from headrace.errors import Unauthenticated, Unavailable
from headrace.keys import key_pepper, new_key
from tests.gateway.access.tokens import RSA_KEY, config, key_set, token

PEPPER = key_pepper(b"secret of the cluster")
NOW_S = time.time()
TEXT, RECORD = new_key(PEPPER, name="alice", tier="premium", now_s=NOW_S, models=("faces",))
KEY = TEXT.encode()
ALICE = Caller(f"key:{RECORD.id}", "premium", frozenset({"faces"}), "alice")
TIERS = {name: Tier() for name in ("anonymous", "standard", "premium")}
PEER = "192.0.2.7"


def access(**fields: Any) -> Access:
    changed = {name: fields.pop(name) for name in ("tiers", "keys") if name in fields}
    return Access(**{"tiers": TIERS, "keys": {RECORD.id: RECORD}, **changed}, auth=_auth(fields))


def _auth(fields: dict[str, Any]) -> AuthConfig:
    return AuthConfig.model_validate(fields)


def gate(**fields: Any) -> Authenticator:
    opened = Authenticator(PEPPER, lambda: NOW_S)
    opened.update(access(**fields))
    return opened


def refused(at: Authenticator, headers: dict[bytes, bytes]) -> str:
    with pytest.raises(Unauthenticated) as caught:
        at.identify(headers, PEER)
    return caught.value.message


@pytest.mark.parametrize(
    "headers",
    [
        {b"x-api-key": KEY},
        {b"x-api-key": b" " + KEY},
        {b"authorization": b"Bearer " + KEY},
        {b"authorization": b"bearer  " + KEY + b" "},
        {b"authorization": b"Bearer " + KEY, b"x-api-key": KEY},
        {b"x-api-key": KEY, b"x-forwarded-for": b"198.51.100.9"},
    ],
)
def test_a_key_names_its_caller(headers: dict[bytes, bytes]) -> None:
    at = gate()
    assert at.identify(headers, PEER) == ALICE
    assert at.identify(headers, "198.51.100.1") == ALICE


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({b"x-api-key": b""}, "no API key"),
        ({b"x-api-key": b"secret"}, "no API key"),
        ({b"x-api-key": KEY + b"x" * 300}, "no API key"),
        ({b"authorization": b""}, "should be: Bearer"),
        ({b"authorization": b"Bearer"}, "should be: Bearer"),
        ({b"authorization": b"Bearer  "}, "should be: Bearer"),
        ({b"authorization": KEY}, "should be: Bearer"),
        ({b"authorization": b"Basic " + KEY}, "should be: Bearer"),
        ({b"authorization": b"Bearer hr_" + b"x" * 300}, "no API key"),
        ({b"authorization": b"Bearer " + KEY + b"\x00"}, "no API key"),
        ({b"authorization": b"Bearer a.b.c"}, "no tokens are accepted"),
        ({b"authorization": b"Bearer " + KEY, b"x-api-key": b""}, "different credentials"),
        ({b"authorization": b"Bearer other", b"x-api-key": KEY}, "different credentials"),
    ],
)
def test_a_bad_credential_is_never_taken_for_none(headers: dict[bytes, bytes], words: str) -> None:
    assert words in refused(gate(), headers)


def test_a_key_ends_with_the_next_news() -> None:
    at = gate()
    assert at.identify({b"x-api-key": KEY}, PEER) == ALICE
    at.update(access(keys={RECORD.id: replace(RECORD, revoked_s=NOW_S)}))
    assert "has been revoked" in refused(at, {b"x-api-key": KEY})
    at.update(access(keys={}))
    assert "is not known" in refused(at, {b"x-api-key": KEY})


def test_a_key_ends_without_news_when_its_time_has_come() -> None:
    now_s = [NOW_S]
    at = Authenticator(PEPPER, lambda: now_s[0])
    at.update(access(keys={RECORD.id: replace(RECORD, expires_s=NOW_S + 5)}))
    assert at.identify({b"x-api-key": KEY}, PEER) == ALICE
    now_s[0] += 5
    assert "has expired" in refused(at, {b"x-api-key": KEY})


def test_no_key_stays_in_memory_as_it_is() -> None:
    at = gate()
    first = at.identify({b"x-api-key": KEY}, PEER)
    assert at.identify({b"x-api-key": bytes(KEY)}, PEER) is first  # remembered
    assert at._holders and KEY not in at._holders
    assert TEXT not in repr(vars(at))


def test_a_key_whose_tier_is_gone_says_so_to_its_holder_only() -> None:
    at = gate(tiers={"anonymous": Tier()})
    assert "tier of the API key" in refused(at, {b"x-api-key": KEY})
    stranger = f"hr_{RECORD.id}_{'x' * 43}".encode()
    assert refused(at, {b"x-api-key": stranger}) == "this API key is not known"


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("192.0.2.7", "ip:192.0.2.7"),
        ("::ffff:192.0.2.7", "ip:192.0.2.7"),
        ("2001:db8::1:2", "ip:2001:db8::/64"),
        ("", "ip:local"),
        ("/run/headrace.sock", "ip:local"),
    ],
)
def test_who_shows_nothing_is_an_address(peer: str, name: str) -> None:
    at = gate()
    assert at.identify({}, peer) == Caller(name, "anonymous")
    assert at.identify({}, peer) is at.identify({}, peer)


def test_without_anonymous_a_credential_is_needed() -> None:
    at = gate(anonymous=False)
    assert "a credential is needed" in refused(at, {})
    assert at.identify({b"x-api-key": KEY}, PEER) == ALICE


@pytest.mark.parametrize("anonymous", [True, False])
def test_whoever_shows_a_bad_credential_has_an_address(anonymous: bool) -> None:
    at = gate(anonymous=anonymous, trusted_proxies=("10.0.0.1",))
    headers = {b"x-api-key": b"wrong", b"x-forwarded-for": b"192.0.2.9"}
    assert at.stranger(headers, "10.0.0.1") == Caller("ip:192.0.2.9", "anonymous")
    assert at.stranger(headers, "192.0.2.1") == Caller("ip:192.0.2.1", "anonymous")
    refused(at, headers)


def test_forwarded_addresses_count_from_trusted_proxies_only() -> None:
    at = gate(trusted_proxies=["10.0.0.0/8"])
    headers = {b"x-forwarded-for": b"198.51.100.9, 10.0.0.3"}
    assert at.identify(headers, "10.0.0.1").id == "ip:198.51.100.9"
    assert at.identify(headers, PEER).id == f"ip:{PEER}"
    assert at.identify({b"x-forwarded-for": b"\xff\x00"}, "10.0.0.1").id == "ip:10.0.0.1"
    at.update(access(trusted_proxies=["10.0.0.1"]))
    assert at.identify(headers, "10.0.0.1").id == "ip:10.0.0.3"
    at.update(access())
    assert at.identify(headers, "10.0.0.1").id == "ip:10.0.0.1"


def test_what_is_remembered_of_strangers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MAX_REMEMBERED", 10)
    at = gate(trusted_proxies=["10.0.0.0/8"])
    for number in range(100):
        at.identify({}, f"192.0.2.{number}")
        assert len(at._strangers) <= 10
    assert at._strangers
    long = {b"x-forwarded-for": b"x" * MAX_PATH + b", 198.51.100.9"}
    assert at.identify(long, "10.0.0.1").id == "ip:198.51.100.9"
    assert all(len(path) <= MAX_PATH for path in at._strangers)


class TestTokens:
    def gate(self, tmp_path: Path, **fields: Any) -> Authenticator:
        (tmp_path / "keys.json").write_text(json.dumps(key_set(a=RSA_KEY)))
        return gate(jwt=config(jwks=str(tmp_path / "keys.json")), **fields)

    @staticmethod
    def bearer(**changed: Any) -> dict[bytes, bytes]:
        return {b"authorization": b"Bearer " + token(**changed)}

    async def until_known(self, at: Authenticator, **changed: Any) -> Caller:
        while True:
            try:
                return at.identify(self.bearer(**changed), PEER)
            except Unavailable:
                await asyncio.sleep(0.001)

    async def test_they_are_known_when_their_keys_are(self, tmp_path: Path) -> None:
        at = self.gate(tmp_path)
        with pytest.raises(Unavailable):
            at.identify(self.bearer(), PEER)
        assert "neither an API key nor" in refused(at, {b"authorization": b"Bearer junk"})
        running = asyncio.create_task(at.run())
        caller = await self.until_known(at, tier="premium")
        running.cancel()
        assert caller == Caller("jwt:alice", "premium")

    async def test_other_tiers_and_settings_lose_no_keys(self, tmp_path: Path) -> None:
        at = self.gate(tmp_path)
        running = asyncio.create_task(at.run())
        await self.until_known(at)
        (tmp_path / "keys.json").unlink()
        settings = config(jwks=str(tmp_path / "keys.json"))
        at.update(access(jwt=settings, tiers={**TIERS, "gold": Tier()}))
        assert at.identify(self.bearer(tier="gold"), PEER).tier == "gold"
        at.update(access(jwt=settings.model_copy(update={"audience": "two"})))
        assert at.identify(self.bearer(aud="two"), PEER).id == "jwt:alice"
        assert "names no tier" in refused(at, self.bearer(aud="two", tier="gold"))
        running.cancel()

    async def test_they_can_be_turned_on_and_off_while_it_runs(self, tmp_path: Path) -> None:
        at = gate()
        running = asyncio.create_task(at.run())
        await asyncio.sleep(0)
        on = self.gate(tmp_path)._access
        at.update(on)
        await self.until_known(at)
        at.update(access())
        assert "no tokens are accepted" in refused(at, self.bearer())
        at.update(on)
        await self.until_known(at)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()


FULL = gate(jwt=config(), trusted_proxies=["10.0.0.0/8"])
FULL._verifier.take(key_set(a=RSA_KEY))  # type: ignore[union-attr]
ANY = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=60).map(lambda noise: b"Bearer " + noise),
    st.binary(max_size=60).map(lambda noise: KEY[:30] + noise),
    st.binary(max_size=60).map(lambda noise: b"Bearer " + KEY[:40] + noise),
    st.binary(max_size=60).map(lambda noise: b"Bearer " + token()[:-40] + noise),
)


# Nothing that is said to a bad credential depends on it, so that no log can hold a part of one.
SAID = {
    "X-API-Key and Authorization name different credentials",
    "the Authorization header should be: Bearer KEY-OR-TOKEN",
    "this is no API key: it should look like hr_…",
    "this API key is not known",
    "this is neither an API key nor a JSON Web Token",
    "this is no JSON Web Token",
    "the token's algorithm is not allowed; allowed: RS256, ES256",
    "the token names no signing key (`kid`) that is known",
    "the token's signature is wrong",
    "the token cannot be verified",
    "the token cannot be read",
}


@given(st.dictionaries(st.sampled_from([b"authorization", b"x-api-key"]), ANY, min_size=1))
def test_any_credential_is_right_or_refused_and_never_quoted(
    headers: dict[bytes, bytes],
) -> None:
    try:
        caller = FULL.identify(headers, PEER)
    except Unauthenticated as error:
        assert error.message in SAID
    else:
        assert caller in (ALICE, Caller("jwt:alice", "standard"))


@given(st.binary(max_size=400), st.text(max_size=50))
def test_any_way_of_a_request_has_an_address(forwarded_for: bytes, peer: str) -> None:
    for address in (peer, "10.0.0.1"):
        caller = FULL.identify({b"x-forwarded-for": forwarded_for}, address)
        assert caller.tier == "anonymous" and caller.id.startswith("ip:")


TRUSTED = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "fd00::/8")))


def named(peer: str, forwarded_for: str) -> str:
    return name_of(origin(peer, forwarded_for, TRUSTED))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", "local"),
        ("/run/headrace.sock", "local"),
        ("192.0.2", "local"),
        ("192.0.2.07", "local"),
    ],
)
def test_an_address_has_a_name(text: str, name: str) -> None:
    assert name_of(parse(text)) == name


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "name"),
    [
        ("192.0.2.1", "198.51.100.9", "192.0.2.1"),
        ("10.0.0.1", "198.51.100.9", "198.51.100.9"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.9", "198.51.100.9"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.9, 10.0.0.2,10.0.0.3", "198.51.100.9"),
        ("10.0.0.1", "10.0.0.9", "10.0.0.9"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.9, unknown", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.9, unknown, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "198.51.100.9:4711", "198.51.100.9"),
        ("fd00::1", "[2001:db8::5]:4711", "2001:db8::/64"),
        ("fd00::1", "2001:db8::5", "2001:db8::/64"),
        ("::ffff:10.0.0.1", "::ffff:198.51.100.9", "198.51.100.9"),
        ("", "198.51.100.9", "local"),
        ("socket", "10.0.0.1", "local"),
    ],
)
def test_only_what_trusted_proxies_heard_counts(peer: str, forwarded_for: str, name: str) -> None:
    assert named(peer, forwarded_for) == name


def test_a_long_way_is_read_only_so_far() -> None:
    proxies = ", ".join(f"10.0.0.{number % 250}" for number in range(MAX_HOPS))
    assert named("10.0.0.1", f"198.51.100.9, {proxies}") == "10.0.0.0"
    assert named("10.0.0.1", "," * 100_000 + "198.51.100.9") == "198.51.100.9"


@given(st.text(alphabet="0123456789abcdef.:,[]% \t;=\xff", max_size=60))
def test_who_is_not_trusted_cannot_choose_a_name(forwarded_for: str) -> None:
    assert named("192.0.2.1", forwarded_for) == "192.0.2.1"
    # The proxy adds whom it heard; whatever stands before it is the client's own invention.
    assert named("10.0.0.1", f"{forwarded_for},192.0.2.1") == "192.0.2.1"


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_gives_a_name_that_is_safe_to_log(peer: str, forwarded_for: str) -> None:
    assert set(named(peer, forwarded_for)) <= set("0123456789abcdef.:/local")
