"""kserve's unmodified Python clients against the running gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.conftest import Addresses
from tests.clients.packages import run_with
from tests.system.running import DOUBLED

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

ANSWER = {"id": "seven", "model": "affine", "version": "2", "values": [DOUBLED]}
REST_ANSWER = ANSWER | {"version": None}
"""The client leaves the version of an HTTP answer unread."""


@pytest.fixture(scope="module")
def told(gateway: Addresses) -> dict[str, Any]:
    """What the clients said, by protocol."""
    answers: dict[str, Any] = json.loads(
        run_with("kserve", "ask_kserve", [gateway.http, gateway.grpc])
    )
    return answers


def test_v1_predicts_and_tells_who_is_ready(told: dict[str, Any]) -> None:
    answers = told["v1"]
    assert answers["predict"] == {"predictions": [DOUBLED]}
    assert (answers["live"], answers["model_ready"]) == (True, True)
    assert "Servable not found for request: Latest(nobody), '404" in answers["refused"]
    assert "Could not find any versions of model nobody, '404" in answers["nobody_ready"]


def test_v2_infers_with_raw_and_json_tensors(told: dict[str, Any]) -> None:
    assert told["v2"]["binary"] == REST_ANSWER
    assert told["v2"]["json"] == REST_ANSWER


def test_v2_tells_who_is_ready_and_what_was_wrong(told: dict[str, Any]) -> None:
    answers = told["v2"]
    assert (answers["live"], answers["ready"]) == (True, True)
    assert (answers["model_ready"], answers["nobody_ready"]) == (True, False)
    assert "404" in answers["refused"] and "nobody" in answers["refused"]


def test_grpc_infers_with_raw_and_typed_tensors(told: dict[str, Any]) -> None:
    assert told["grpc"]["raw"] == ANSWER
    assert told["grpc"]["typed"] == ANSWER


def test_grpc_tells_who_is_ready(told: dict[str, Any]) -> None:
    answers = told["grpc"]
    assert (answers["live"], answers["ready"]) == (True, True)
    assert (answers["model_ready"], answers["nobody_ready"]) == (True, False)
