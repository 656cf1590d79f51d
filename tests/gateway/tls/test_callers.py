"""Client certificates as credentials: which caller a certificate names, over HTTP and gRPC."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc.aio
from cryptography import x509
from pydantic import ValidationError
from tritonclient.utils import InferenceServerException

from gateway.access.auth import MAX_NAME, Authenticator
from gateway.access.certificate import ClientCertificate
from headrace.access import Access, Caller
from headrace.config.args import PoolConfig
from headrace.config.tiers import AuthConfig, Tier
from headrace.errors import Unauthenticated
from headrace.keys import new_key
from tests.gateway.grpc.test_openinference import rows
from tests.gateway.tls.authority import Authority, fetch
from tests.house import PEPPER, House, open_house, until

TIERS = {name: Tier() for name in ("anonymous", "standard", "premium")}
KEY, RECORD = new_key(PEPPER, name="alice", tier="premium", now_s=1.0)
BATCH = {"name": "O=Example\\, Inc.,CN=batch", "tier": "premium", "models": ["affine"]}
TRAINER = {"name": "DNS:trainer.example", "tier": "standard"}
LATER_S = time.time() + 1000


def access(**auth: Any) -> Access:
    keys = {RECORD.id: RECORD}
    return Access(1, TIERS, AuthConfig.model_validate(auth), keys)


def caller(names: tuple[str, ...], ends_s: float = LATER_S, **certificates: Any) -> Caller:
    at = Authenticator(PEPPER)
    at.update(access(anonymous=False, certificates=certificates))
    return at.identify({}, "192.0.2.1", ClientCertificate(names, ends_s))


def test_the_first_name_that_is_known_counts() -> None:
    known: dict[str, Any] = {"callers": [BATCH, TRAINER]}
    both = caller(("CN=x", "DNS:trainer.example", "DNS:y.example"), **known)
    assert both == Caller("cert:DNS:trainer.example", "standard")
    batch = caller(("O=Example\\, Inc.,CN=batch", "DNS:trainer.example"), **known)
    assert (batch.tier, batch.models) == ("premium", frozenset({"affine"}))
    assert batch.ends_s == LATER_S
    other = caller(("CN=x", "DNS:y.example"), default_tier="standard", **known)
    assert other == Caller("cert:CN=x", "standard")


@pytest.mark.parametrize(
    ("names", "ends_s", "words"),
    [
        (("CN=x",), LATER_S, "names no caller of `auth.certificates`: 'CN=x'"),
        (("DNS:TRAINER.example",), LATER_S, "names no caller"),
        ((), LATER_S, "it has no name"),
        (("DNS:trainer.example",), 1.0, "has expired"),
    ],
)
def test_a_certificate_that_names_nobody_is_not_taken_for_none(
    names: tuple[str, ...], ends_s: float, words: str
) -> None:
    with pytest.raises(Unauthenticated, match=words):
        caller(names, ends_s, callers=[TRAINER])


def test_long_and_odd_names_are_ids_of_bounded_length() -> None:
    names = ["CN=" + "x" * 500 + last for last in "ab"] + ["CN=\x1b[2J"]
    ids = [caller((name,), default_tier="standard").id for name in names]
    assert len(set(ids)) == 3
    assert all(len(each) <= MAX_NAME + 5 and each.isprintable() for each in ids)


def test_a_key_outranks_the_certificate_and_a_wrong_one_is_not_forgiven() -> None:
    at = Authenticator(PEPPER)
    at.update(access(certificates={"default_tier": "standard"}))
    shown = ClientCertificate(("CN=x",), LATER_S)
    assert at.identify({b"x-api-key": KEY.encode()}, "", shown).name == "alice"
    with pytest.raises(Unauthenticated):
        at.identify({b"x-api-key": b"wrong"}, "", shown)
    assert at.identify({}, "", shown) is at.identify({}, "", ClientCertificate(("CN=x",), LATER_S))
    at.update(access())
    assert at.identify({}, "192.0.2.1", shown).id == "ip:192.0.2.1"


def test_without_any_credential_all_kinds_are_named() -> None:
    at = Authenticator(PEPPER)
    at.update(access(anonymous=False, certificates={}))
    with pytest.raises(Unauthenticated, match="or a client certificate"):
        at.identify({}, "192.0.2.1")


def test_tiers_of_certificates_must_exist() -> None:
    auth = {"certificates": {"callers": [{"name": "CN=x", "tier": "gold"}]}}
    with pytest.raises(ValidationError, match=r"names no tier: 'gold'"):
        PoolConfig.model_validate({"auth": auth})
    assert PoolConfig.model_validate({"auth": auth, "tiers": {"gold": {}}}).tiers


PREDICT = b"/v1/models/affine:predict"
BODY = json.dumps({"instances": [[1.0, 2.0, 3.0, 4.0]]}).encode()


def posted(body: bytes = BODY) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
    return head % (PREDICT, len(body), body)


METADATA = b"GET /v2/models/affine HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def busiest(house: House) -> dict[str, str]:
    """The callers that have asked, with their tiers."""
    found = house.admission.busy.busiest(10, time.monotonic())
    return {each["caller"]: each["tier"] for each in found}


async def infer(house: House, authority: Authority, shown: Path | None) -> str:
    """What becomes of a prediction over gRPC."""
    files = {"root_certificates": str(authority.root)}
    if shown is not None:
        files |= {"private_key": str(shown), "certificate_chain": str(shown)}
    client = tritonclient.grpc.aio.InferenceServerClient(house.grpc.address, ssl=True, **files)
    async with client:
        try:
            await client.infer("affine", rows(), client_timeout=10)
        except InferenceServerException as error:
            return str(error.status())
    return "OK"


async def test_a_certificate_is_a_caller_over_http_and_grpc(
    tmp_path: Path, authority: Authority
) -> None:
    tls = authority.server(clients=authority, client_certificates="optional")
    batch = authority.issue(
        "batch", "b.example", common_name="batch", organization_name="Example, Inc."
    )
    shown = x509.load_pem_x509_certificate((tmp_path / "batch.cert").read_bytes())
    subject = shown.subject.rfc4514_string()
    assert subject.startswith("CN=batch,") and "O=Example\\, Inc." in subject
    trainer = authority.issue("trainer", "trainer.example")
    stranger = authority.issue("stranger", "stranger.example")
    callers = [{"name": subject, "tier": "premium"}, TRAINER]
    rules = access(anonymous=False, certificates={"callers": callers})
    async with open_house(tmp_path, "a", listen_tls=tls, access=rules) as house:
        for sent in (posted(), METADATA):
            answers = [
                await fetch(house.http.address, authority.client(each), sent)
                for each in (batch, trainer, stranger, None)
            ]
            assert [answer.split(b" ")[1] for answer in answers] == [b"200", b"200", b"401", b"401"]
            assert b"names no caller" in answers[2] and b"or a client certificate" in answers[3]
        assert busiest(house) == {
            f"cert:{subject}": "premium",
            "cert:DNS:trainer.example": "standard",
            "ip:127.0.0.1": "anonymous",  # It pays for the refused ones.
        }
        said = [await infer(house, authority, each) for each in (trainer, stranger, None)]
        assert said == ["OK", *["StatusCode.UNAUTHENTICATED"] * 2]


ODD_NAMES = {"x400": b"\x30\x02\xa3\x00", "no address": b"\x30\x05\x87\x03abc"}


@pytest.mark.parametrize("names", ODD_NAMES.values(), ids=ODD_NAMES)
async def test_a_certificate_that_openssl_reads_and_we_do_not_names_nobody(
    tmp_path: Path, authority: Authority, names: bytes
) -> None:
    tls = authority.server(clients=authority)
    odd = authority.issue_raw("odd", names)
    rules = access(anonymous=False, certificates={"default_tier": "standard"})
    async with open_house(tmp_path, "a", listen_tls=tls, access=rules) as house:
        answer = await fetch(house.http.address, authority.client(odd), posted())
        assert answer.split(b" ")[1] == b"401" and b"it has no name" in answer
        said = await infer(house, authority, odd)
        assert said == "StatusCode.UNAUTHENTICATED"
        await until(lambda: not house.door.addresses)
