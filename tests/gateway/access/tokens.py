"""Real keys, the key set that shows their public halves, and tokens signed with them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from headrace.config.tiers import Jwt

ISSUER, AUDIENCE = "https://issuer.example", "headrace"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def config(**fields: Any) -> Jwt:
    """Settings with a source that nobody asks unless it is given."""
    given = {"jwks": "keys.json", "issuer": ISSUER, "audience": AUDIENCE, **fields}
    return Jwt.model_validate(given)


def public(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, kid: str | None) -> dict[str, Any]:
    """A key as a JWKS lists it."""
    half = key.public_key()
    algorithm = RSAAlgorithm if isinstance(half, rsa.RSAPublicKey) else ECAlgorithm
    document: dict[str, Any] = json.loads(algorithm.to_jwk(half))  # type: ignore[arg-type]
    document.pop("key_ops", None)
    return document if kid is None else {**document, "kid": kid}


def key_set(**keys: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    """The JWKS of these keys by their ids."""
    return {"keys": [public(key, kid) for kid, key in keys.items()]}


def claims(**changed: Any) -> dict[str, Any]:
    """What a good token says; a claim that is changed to None is left out."""
    now_s = int(time.time())
    given = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now_s + 600, **changed}
    return {name: value for name, value in given.items() if value is not None}


def token(
    key: Any = RSA_KEY,
    kid: str | None = "a",
    algorithm: str = "RS256",
    header: Mapping[str, Any] | None = None,
    **changed: Any,
) -> bytes:
    """A signed token."""
    more = {**({} if kid is None else {"kid": kid}), **(header or {})}
    return jwt.encode(claims(**changed), key, algorithm=algorithm, headers=more).encode()
