"""How far a start is: states of a status answer, and the example that is printed at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command.readiness import VersionState, example_request, request_path, unsettled, version_states
from headrace.config.args import Args, PoolConfig

ROW = b'{"instances": [[1.0]]}'
TENSOR = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}'


def args(store: Path | str) -> Args:
    return Args.model_validate({"schema": 1, "store": str(store)})


def ready(model: str, version: int = 1) -> VersionState:
    return VersionState(model, version, "READY")


def test_all_versions_of_a_status_are_told() -> None:
    versions = [
        {"version": 1, "state": "READY", "reason": "", "load_s": 0.5},
        {"version": 2, "state": "FAILED", "reason": "broken"},
    ]
    status = {"models": [{"name": "m", "reason": "", "versions": versions}]}
    assert version_states(status) == [
        VersionState("m", 1, "READY", "", 0.5),
        VersionState("m", 2, "FAILED", "broken"),
    ]


def test_a_model_without_versions_has_failed_if_there_is_a_reason_and_is_waited_for_if_not() -> (
    None
):
    gone = {"name": "gone", "reason": "no folder", "versions": []}
    incomplete = {"2": "it is still changing"}
    waiting = {"name": "waiting", "reason": "", "versions": [], "incomplete": incomplete}
    states = version_states({"models": [gone, waiting]})
    assert states == [
        VersionState("gone", 0, "FAILED", "no folder"),
        VersionState("waiting", 0, "PENDING", "version 2: it is still changing"),
    ]
    assert [str(state) for state in states] == ["gone", "waiting"]
    pool = PoolConfig.model_validate({"models": {"gone": {}, "waiting": {}}})
    assert unsettled(states, pool) == ["waiting"]


@pytest.mark.parametrize(
    ("states", "waiting"),
    [
        ([], ["m"]),
        ([VersionState("m", 1, "LOADING")], ["m"]),
        ([ready("m", 1), VersionState("m", 2, "PENDING")], ["m"]),
        ([ready("m", 1), VersionState("m", 2, "FAILED")], []),
        ([ready("other")], ["m"]),
    ],
)
def test_who_must_hold_a_slot_is_waited_for(states: list[VersionState], waiting: list[str]) -> None:
    on_demand = {"replicas": {"min": 0}}
    pool = PoolConfig.model_validate({"models": {"m": {}, "on_demand": on_demand}})
    assert unsettled(states, pool) == waiting


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (TENSOR, "/v2/models/m/infer"),
        (ROW, "/v1/models/m:predict"),
        (b'{"inputs": {"x": [1]}}', "/v1/models/m:predict"),
        (b'{"inputs": [[1]]}', "/v1/models/m:predict"),
        (b'{"examples": [{"x": 1}]}', "/v1/models/m:classify"),
        (b'{"examples": [{"x": 1}], "signature_name": "regress"}', "/v1/models/m:regress"),
        (b'{"rows": []}', None),
        (b"[1]", None),
        (b"{", None),
        (b"\xff", None),
    ],
)
def test_a_body_tells_its_path(body: bytes, path: str | None) -> None:
    assert request_path(body, "m") == path


def test_a_version_has_its_place_in_both_protocols() -> None:
    assert request_path(TENSOR, "m", "3") == "/v2/models/m/versions/3/infer"
    assert request_path(ROW, "m", "3") == "/v1/models/m/versions/3:predict"


def write_bodies(folder: Path, **bodies: Any) -> Path:
    """A store beside a cache of request bodies, as `make models` leaves them."""
    (folder / "cache" / "requests").mkdir(parents=True)
    for name, body in bodies.items():
        (folder / "cache" / "requests" / f"{name}.json").write_text(json.dumps(body))
    return folder / "repository"


def test_the_example_is_the_smallest_body_of_a_ready_model(tmp_path: Path) -> None:
    store = write_bodies(
        tmp_path,
        tagger={"instances": [[1.0] * 9]},
        tagger_tf_small={"instances": [[1.0]]},
        digits={"instances": [1]},
    )
    states = [ready("tagger"), ready("tagger_tf"), VersionState("digits", 1, "FAILED")]
    example = example_request(args(store), states, "127.0.0.1:1")
    body = tmp_path / "cache" / "requests" / "tagger_tf_small.json"
    assert example == f"curl -s http://127.0.0.1:1/v1/models/tagger_tf:predict -d @{body}"


def test_without_a_body_the_example_asks_for_metadata(tmp_path: Path) -> None:
    store = write_bodies(tmp_path, stranger={"instances": [1]}, b={"nothing": "known"})
    assert example_request(args(store), [ready("b"), ready("c")], "h:1").endswith("/v2/models/b")
    assert example_request(args("memory://x"), [], "h:1") == "curl -s http://h:1/v2"
