"""API keys: their form, what is kept of them, and each way to refuse one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.access import KeyRecord
from headrace.errors import InvalidArgument, Unauthenticated
from headrace.keys import (
    KEPT_S,
    MAX_KEY_BYTES,
    checked_name,
    decode_record,
    digest,
    encode_record,
    find_record,
    kept,
    key_pepper,
    new_key,
)

PEPPER = key_pepper(b"secret of the cluster")
NOW_S = 1_800_000_000.0
TEXT, RECORD = new_key(PEPPER, name="alice", tier="premium", now_s=NOW_S)
KEYS = {RECORD.id: RECORD}


def refused(given: bytes, record: KeyRecord = RECORD, pepper: bytes = PEPPER) -> str:
    with pytest.raises(Unauthenticated) as caught:
        find_record(pepper, {record.id: record}, given, NOW_S)
    return caught.value.message


def test_a_key_finds_its_record() -> None:
    assert find_record(PEPPER, KEYS, TEXT.encode(), NOW_S) is RECORD


def test_a_record_holds_nothing_of_the_secret() -> None:
    assert len(TEXT) == 55 and TEXT[:12] == f"hr_{RECORD.id}_"
    assert TEXT[12:] not in json.dumps(encode_record(RECORD))
    assert RECORD.digest == digest(PEPPER, TEXT.encode()) and len(RECORD.digest) == 64


def test_two_keys_have_nothing_in_common() -> None:
    other, record = new_key(PEPPER, name="alice", tier="premium", now_s=NOW_S)
    assert record.id != RECORD.id and other[12:] != TEXT[12:]


def test_an_unknown_id_and_a_wrong_secret_are_told_the_same() -> None:
    last = "A" if TEXT[-1] != "A" else "B"
    wrong = refused((TEXT[:-1] + last).encode())
    assert wrong == refused(b"hr_aaaaaaaa_" + b"x" * 43) == "this API key is not known"


def test_a_key_of_another_cluster_is_not_known() -> None:
    assert refused(TEXT.encode(), pepper=key_pepper(b"other")) == "this API key is not known"


def test_only_who_has_the_secret_hears_why_it_does_not_hold() -> None:
    revoked = replace(RECORD, revoked_s=NOW_S)
    expired = replace(RECORD, expires_s=NOW_S)
    assert refused(TEXT.encode(), revoked).endswith("has been revoked")
    assert refused(TEXT.encode(), expired).endswith("has expired")
    stranger = f"hr_{RECORD.id}_{'x' * 43}".encode()
    assert refused(stranger, revoked) == refused(stranger, expired) == "this API key is not known"


def test_a_key_holds_until_its_time() -> None:
    ending = replace(RECORD, revoked_s=NOW_S + 1, expires_s=NOW_S + 2)
    assert find_record(PEPPER, {RECORD.id: ending}, TEXT.encode(), NOW_S) is ending


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"hr_",
        TEXT.encode() + b"\n",
        TEXT.encode() + b"=",
        b" " + TEXT.encode(),
        TEXT.upper().encode(),
        TEXT[:-1].encode(),
        TEXT.encode() + b"x" * MAX_KEY_BYTES,
        b"hr_aaaaaaa1_" + b"x" * 43,
        b"hr_aaaaaaaa_" + b"x" * 42 + b"\x00",
        b"hr_aaaaaaaa_" + b"x" * 42 + b"\xe9",
    ],
)
def test_what_does_not_look_like_a_key_is_none(given: bytes) -> None:
    assert "no API key" in refused(given)


@given(st.binary(max_size=300))
def test_no_other_bytes_are_let_in_or_quoted(noise: bytes) -> None:
    for given_key in (noise, b"hr_" + noise, TEXT.encode()[:20] + noise):
        if given_key != TEXT.encode():
            said = refused(given_key)
            assert said == "this API key is not known" or said.startswith("this is no API key")


@pytest.mark.parametrize("name", ["alice", "Team Zoë / nightly", "x" * 128])
def test_a_name_is_printable(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", " a", "a ", "x" * 129, "a\nb", "a\r\nx: y", "a\tb", "\x1b[2J", "\x7f", "\ud800"],
)
def test_a_name_that_could_write_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="printable"):
        new_key(PEPPER, name=name, tier="premium", now_s=NOW_S)


def test_a_record_survives_its_json() -> None:
    full = replace(RECORD, expires_s=1.5, revoked_s=2.0, models=("a", "b"))
    for record in (RECORD, full):
        assert decode_record(json.loads(json.dumps(encode_record(record)))) == record


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"id": "short"}, "8 letters"),
        ({"id": None}, "'id' should be a text"),
        ({"id": "AAAAAAAA"}, "8 letters"),
        ({"digest": "00"}, "64 hex digits"),
        ({"name": "a\nb"}, "printable"),
        ({"name": 7}, "'name' should be a text"),
        ({"tier": ""}, "'tier' should be a text"),
        ({"created_s": None}, "'created_s' should be seconds"),
        ({"expires_s": "soon"}, "'expires_s' should be seconds"),
        ({"revoked_s": True}, "'revoked_s' should be seconds"),
        ({"models": "a"}, "list of names"),
        ({"models": [1]}, "list of names"),
        ({"extra": 1}, "unknown field 'extra'"),
    ],
)
def test_a_broken_record_says_what_is_wrong(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_record({**encode_record(RECORD), **changed})


def test_a_record_is_an_object() -> None:
    with pytest.raises(ValueError, match="object"):
        decode_record([1])


def test_keys_that_ended_long_ago_are_forgotten() -> None:
    records = {
        "valid": RECORD,
        "ended": replace(RECORD, revoked_s=NOW_S - KEPT_S + 1),
        "gone": replace(RECORD, revoked_s=NOW_S - KEPT_S - 1),
        "expired": replace(RECORD, expires_s=NOW_S - KEPT_S - 1),
    }
    assert kept(records, NOW_S).keys() == {"valid", "ended"}
