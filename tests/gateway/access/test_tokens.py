"""Tokens signed with real keys: whom they name, and each way to refuse one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from gateway.access import tokens
from gateway.access.tokens import MAX_TOKEN_BYTES, JwtVerifier
from headrace.access import Caller
from headrace.errors import Unauthenticated, Unavailable
from tests.gateway.access.tokens import EC_KEY, OTHER_KEY, RSA_KEY, config, key_set, public, token

TIERS = ("anonymous", "standard", "premium")


class Clock:
    def __init__(self) -> None:
        self.now_s = time.time()

    def __call__(self) -> float:
        return self.now_s


def verifier(document: Any = None, clock: Clock | None = None, **fields: Any) -> JwtVerifier:
    ready = JwtVerifier(config(**fields), TIERS, clock or Clock())
    ready.take(document or key_set(a=RSA_KEY, e=EC_KEY))
    return ready


READY = verifier()
GOOD = token()


def segment(value: Any) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=")


def refused(ready: JwtVerifier, given: bytes) -> str:
    with pytest.raises(Unauthenticated) as caught:
        ready.verify(given)
    assert given.decode("latin-1") not in caught.value.message
    return caught.value.message


def test_a_token_names_its_caller() -> None:
    ready = verifier()
    assert ready.verify(token()) == Caller("jwt:alice", "standard")
    given = token(EC_KEY, "e", "ES256", sub="Zoë", tier="premium", models=["faces"])
    assert ready.verify(given) == Caller("jwt:Zoë", "premium", frozenset({"faces"}))


def test_the_claims_that_count_are_those_of_the_config() -> None:
    ready = verifier(id_claim="client", tier_claim="plan", models_claim="may", default_tier="x")
    given = token(sub=None, client="c-7", plan="premium", may=[], tier=7, models=7)
    assert ready.verify(given) == Caller("jwt:c-7", "premium", frozenset())
    assert "`auth.jwt.default_tier` names no tier" in refused(ready, token(client="c-7"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"iss": "https://other.example"}, "another issuer"),
        ({"iss": None}, "lacks the claim 'iss'"),
        ({"aud": "somebody"}, "another audience"),
        ({"aud": None}, "lacks the claim 'aud'"),
        ({"exp": None}, "lacks the claim 'exp'"),
        ({"exp": 1_000_000_000}, "has expired"),
        ({"exp": "4000000000"}, "'exp' is no time"),
        ({"exp": float("inf")}, "'exp' is no time"),
        ({"exp": float("nan")}, "'exp' is no time"),
        ({"exp": 10**400}, "'exp' is no time"),
        ({"exp": True}, "'exp' is no time"),
        ({"nbf": 4_000_000_000}, "not valid yet"),
        ({"nbf": [1]}, "'nbf' is no time"),
        ({"sub": None}, "lacks the claim 'sub'"),
        ({"sub": ""}, "no short text"),
        ({"sub": "x" * 129}, "no short text"),
        ({"sub": "a\nb"}, "unprintable"),
        ({"sub": "a\u202eb"}, "unprintable"),
        ({"tier": "gold"}, "'tier' names no tier"),
        ({"tier": ["premium"]}, "'tier' names no tier"),
        ({"models": "faces"}, "no list of names"),
        ({"models": ["faces", 1]}, "no list of names"),
    ],
)
def test_a_signed_token_with_a_wrong_claim_is_refused(changed: dict[str, Any], words: str) -> None:
    assert words in refused(verifier(), token(**changed))


def test_times_have_a_leeway() -> None:
    clock = Clock()
    ready = verifier(clock=clock, leeway_s=30)
    now_s = int(clock.now_s)
    assert ready.verify(token(exp=now_s - 20, nbf=now_s + 20)).id == "jwt:alice"
    assert "expired" in refused(ready, token(exp=now_s - 31))
    assert "not valid yet" in refused(ready, token(nbf=now_s + 32))


def test_a_token_that_was_verified_is_remembered_until_it_ends() -> None:
    clock = Clock()
    ready = verifier(clock=clock, leeway_s=0)
    given = token(exp=int(clock.now_s) + 60)
    first = ready.verify(given)
    assert ready.verify(given) is first
    clock.now_s += 61
    assert "expired" in refused(ready, given)


def test_only_so_many_tokens_are_remembered_the_last_used_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokens, "REMEMBERED", 2)
    ready = verifier()
    one, two, three = (token(sub=name) for name in ("one", "two", "three"))
    first, second = ready.verify(one), ready.verify(two)
    assert ready.verify(one) is first
    ready.verify(three)
    assert ready.verify(one) is first and ready.verify(two) is not second


def test_a_key_that_is_withdrawn_ends_what_it_signed() -> None:
    ready = verifier()
    given = token()
    ready.verify(given)
    ready.take(key_set(e=EC_KEY))
    assert "`kid`" in refused(ready, given)


def test_an_unknown_key_asks_for_a_newer_set() -> None:
    ready = verifier()
    refused(ready, token(OTHER_KEY, "next"))
    assert ready.wanted.is_set()
    ready.take(key_set(next=OTHER_KEY))
    assert not ready.wanted.is_set() and ready.verify(token(OTHER_KEY, "next")).id == "jwt:alice"


def test_without_a_kid_the_only_key_that_fits_is_taken() -> None:
    ready = verifier()
    assert ready.verify(token(kid=None)).id == "jwt:alice"
    assert ready.verify(token(EC_KEY, None, "ES256")).id == "jwt:alice"
    ready.take(key_set(a=RSA_KEY, b=OTHER_KEY))
    assert "`kid`" in refused(ready, token(kid=None))


def test_an_rsa_key_without_an_algorithm_is_good_for_each_that_is_allowed() -> None:
    ready = verifier(algorithms=["RS256", "RS512", "PS384"])
    for algorithm in ("RS256", "RS512", "PS384"):
        assert ready.verify(token(algorithm=algorithm)).id == "jwt:alice"
    assert "not allowed" in refused(ready, token(algorithm="PS256"))
    ready.take({"keys": [{**public(RSA_KEY, "a"), "alg": "RS512"}]})
    assert "`kid`" in refused(ready, token(algorithm="RS256"))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_each_curve_has_its_algorithm(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    algorithm = {256: "ES256", 384: "ES384", 521: "ES512"}[curve.key_size]
    ready = verifier(key_set(k=key), algorithms=["ES256", "ES384", "ES512"])
    assert ready.verify(token(key, "k", algorithm)).id == "jwt:alice"


def test_edwards_keys_verify() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    x = segment(key.public_key().public_bytes_raw()).decode()
    document = {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "k"}]}
    ready = verifier(document, algorithms=["EdDSA"])
    assert ready.verify(token(key, "k", "EdDSA")).id == "jwt:alice"


def test_a_token_signed_by_another_key_is_refused() -> None:
    assert "signature is wrong" in refused(verifier(), token(OTHER_KEY, "a"))


def test_changed_claims_break_the_signature() -> None:
    header, _, signature = token().split(b".")
    better = token(tier="premium").split(b".")[1]
    assert "signature is wrong" in refused(verifier(), b".".join((header, better, signature)))


def test_no_algorithm_is_no_token() -> None:
    body = token().split(b".")[1]
    for name in ("none", "None", "", None, ["RS256"], 7):
        head = segment({"alg": name, "kid": "a"})
        assert refused(verifier(), head + b"." + body + b".AAAA")
    assert refused(verifier(), token("", algorithm="none"))


def test_a_public_key_is_no_secret_to_sign_with() -> None:
    pem = RSA_KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signed = segment({"alg": "HS256", "kid": "a"}) + b"." + token().split(b".")[1]
    forged = signed + b"." + segment(hmac.digest(pem, signed, hashlib.sha256))
    assert "algorithm is not allowed" in refused(verifier(), forged)


def test_a_short_rsa_key_is_not_believed() -> None:
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        given = token(short, "s")
    assert refused(verifier(key_set(s=short)), given) == "the token cannot be verified"


@pytest.mark.parametrize(
    "given",
    [
        b"no-token",
        b"a.b",
        b"..",
        b"a.b.c",
        b"a.b.c.d",
        b"a.b.\r\nx-evil: 1",
        b"\xff\xfe.\x00.\x80",
        segment(b"\xff\xfe") + b".e30.AAAA",
        segment([]) + b".e30.AAAA",
        segment(b'{"alg":' + b"[" * 5000) + b".e30.AAAA",
        segment({"alg": "RS256", "kid": ["a"]}) + b".e30.AAAA",
        segment({"alg": "RS256", "kid": "a", "crit": ["x"]}) + b".e30.AAAA",
        segment({"alg": "RS256", "kid": "a", "b64": False}) + b".e30.AAAA",
    ],
)
def test_what_is_no_token_is_refused(given: bytes) -> None:
    assert refused(READY, given)


def test_a_token_that_is_too_long_is_not_read() -> None:
    assert "longer than" in refused(verifier(), token(sub="x" * MAX_TOKEN_BYTES))


@given(st.binary(max_size=200), st.integers(0, 2), st.integers(0, 10_000))
def test_a_damaged_token_is_refused_or_says_the_same(noise: bytes, part: int, at: int) -> None:
    segments = GOOD.split(b".")
    cut = at % (len(segments[part]) + 1)
    segments[part] = segments[part][:cut] + noise + segments[part][cut + len(noise) :]
    damaged = b".".join(segments)
    try:
        caller = READY.verify(damaged)
    except Unauthenticated as error:
        assert GOOD.decode() not in error.message
    else:
        assert caller == Caller("jwt:alice", "standard")


def test_before_the_first_key_set_the_answer_is_to_come_back() -> None:
    ready = JwtVerifier(config(), TIERS)
    with pytest.raises(Unavailable, match="could not be fetched yet") as caught:
        ready.verify(token())
    assert caught.value.retry_after_s and ready.wanted.is_set()
    assert refused(ready, b"garbage")


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"keys": None},
        {"keys": []},
        {"keys": ["a", None, 7]},
        {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]},
        {"keys": [{"kty": "RSA", "n": "AQAB", "kid": "a"}]},
        {"keys": [{"kty": "RSA", "n": "AA", "e": "AA", "kid": "a"}]},
        {"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]},
        {"keys": [{"kty": "EC", "crv": "brainpool", "x": "AA", "y": "AA"}]},
        {"keys": [{"kty": ["RSA"], "alg": ["RS256"]}]},
        {"keys": [{**public(RSA_KEY, None), "kid": {"a": 1}}]},
        {"keys": [{**public(RSA_KEY, "a"), "use": "enc"}]},
        {"keys": [{**public(RSA_KEY, "a"), "alg": "HS256"}]},
        {"keys": [RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True)]},
        {"keys": [ECAlgorithm.to_jwk(EC_KEY, as_dict=True) | {"key_ops": ["verify"]}]},
    ],
)
def test_a_set_without_a_public_key_is_not_taken(document: Any) -> None:
    ready = verifier()
    with pytest.raises(ValueError, match="no public key"):
        ready.take(document)
    assert ready.verify(token()).id == "jwt:alice"


def test_a_key_of_an_unknown_kind_does_not_hide_the_others() -> None:
    strange = {"kty": "PQC", "kid": "z"}
    ready = verifier({"keys": [strange, *key_set(a=RSA_KEY)["keys"]]})
    assert ready.verify(token()).id == "jwt:alice"


def test_other_tiers_keep_the_keys() -> None:
    ready = verifier()
    given = token(tier="premium")
    ready.verify(given)
    ready.allow(("standard",))
    assert "names no tier" in refused(ready, given) and ready.verify(token()).id == "jwt:alice"


def test_a_changed_config_keeps_the_keys_of_the_same_source() -> None:
    before = verifier()
    after = JwtVerifier(config(audience="second"), TIERS)
    after.inherit(before)
    assert after.verify(token(aud="second")).id == "jwt:alice"
    elsewhere = JwtVerifier(config(jwks="other.json"), TIERS)
    elsewhere.inherit(before)
    with pytest.raises(Unavailable):
        elsewhere.verify(token())
