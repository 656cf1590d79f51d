"""TensorFlow Serving's unmodified gRPC stubs against the running gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.conftest import Addresses
from tests.clients.packages import run_with
from tests.system.running import DOUBLED

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.tensorflow,
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def told(gateway: Addresses) -> dict[str, Any]:
    """What the stubs said."""
    answers: dict[str, Any] = json.loads(
        run_with("tensorflow-serving-api", "ask_serving", [gateway.grpc])
    )
    return answers


@pytest.mark.parametrize(("asked", "version"), [("latest", 2), ("version", 1), ("label", 1)])
def test_predict_names_the_version_that_answered(
    told: dict[str, Any], asked: str, version: int
) -> None:
    assert told[asked] == {
        "model": "affine",
        "version": version,
        "signature": "serving_default",
        "y": [DOUBLED],
    }


@pytest.mark.parametrize(
    ("asked", "code", "word"),
    [
        ("nobody", "NOT_FOUND", "nobody"),
        ("no_version", "NOT_FOUND", "9"),
        ("no_label", "NOT_FOUND", "nowhere"),
        ("classify", "INVALID_ARGUMENT", "signature"),
    ],
)
def test_a_refusal_has_its_code_and_says_why(
    told: dict[str, Any], asked: str, code: str, word: str
) -> None:
    told_code, details = told[asked]
    assert told_code == code and word in details


def test_metadata_holds_the_signatures(told: dict[str, Any]) -> None:
    assert told["metadata"] == {
        "version": 2,
        "dtype": "float32",
        "shape": [-1, 4],
        "outputs": ["y"],
        "method": "tensorflow/serving/predict",
    }


def test_status_lists_all_versions(told: dict[str, Any]) -> None:
    versions = told["status"]["model_version_status"]
    assert {each["version"]: each["state"] for each in versions} == {
        "1": "AVAILABLE",
        "2": "AVAILABLE",
    }
