"""The number of slots follows the pool's targets, on real Ray, whatever dies meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import yaml

from gateway.ray_cluster import SETTINGS
from loadtests.processes import free_ports
from tests.system.running import affine_store, config, environment_for, make_home

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of slots that do nothing, and then of a real system's."""
    folder = tmp_path_factory.mktemp("targets")
    slots = {"cpu": {"min": 1, "max": 3, "cpus": 0.1}}
    document = config(affine_store(folder), free_ports(3), slots=1, more={"slots": slots})
    file = folder / "headrace.yaml"
    file.write_text(yaml.safe_dump(document))
    settings = {**SETTINGS, "RAY_AUTH_MODE": "disabled"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.system.targets_app", str(file)],
        capture_output=True,
        text=True,
        env=environment_for(make_home(folder)) | settings,
        timeout=220,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("{")]
    told: dict[str, Any] = json.loads(line)
    return told


def test_slots_follow_the_targets_from_zero_up_and_back(seen: dict[str, Any]) -> None:
    assert seen["start"] == {"fixed": True, "free": 0}
    steps = seen["up_and_down"]
    assert list(steps) == ["1", "4", "2", "0"]
    assert all(step["s"] is not None and step["s"] < 8 for step in steps.values()), steps
    first, *later = (step["call_s"] for step in steps.values())
    # It makes an actor; no call waits until the slots are there.
    assert first < 2 and max(later) < 0.5, steps


def test_a_class_keeps_its_bounds_whatever_the_target_is(seen: dict[str, Any]) -> None:
    assert seen["bounds"] == {"free": True, "fixed": 1}


def test_slots_may_be_told_to_stop_before_they_have_started(seen: dict[str, Any]) -> None:
    assert seen["change_of_mind"]["s"] is not None


@pytest.mark.parametrize("step", ["controller_killed", "actor_killed", "pool_killed"])
def test_a_death_changes_no_number_and_the_next_target_is_followed(
    seen: dict[str, Any], step: str
) -> None:
    told = seen[step]
    assert told["victims"] == 1 and told["s"] is not None
    assert told["same"], "slots were stopped or started"
    assert told["followed_s"] is not None


def test_an_actor_made_anew_has_the_targets(seen: dict[str, Any]) -> None:
    assert seen["actor_killed"]["targets"]["free"] == 3


def test_an_update_of_the_application_keeps_the_number(seen: dict[str, Any]) -> None:
    assert seen["redeployed"] == {"free": 2, "replaced": True}


def test_the_policy_changes_nothing_until_its_first_answer_and_leaves_no_thread(
    seen: dict[str, Any],
) -> None:
    policy = seen["policy"]
    assert policy["first"] == 7 and policy["s"] is not None and policy["ended"] is not None


def test_a_newer_pool_outdoes_an_older_one(seen: dict[str, Any]) -> None:
    epochs = seen["epochs"]
    assert epochs["older"] and epochs["newer"] and epochs["s"] is not None
    assert epochs["targets"] == {"free": 3}


def test_nothing_is_left_of_the_targets_when_the_application_goes(seen: dict[str, Any]) -> None:
    assert seen["end"]["s"] is not None and seen["end"]["left"] == []


def test_slots_that_are_told_to_stop_drain_and_lose_no_request(seen: dict[str, Any]) -> None:
    told = seen["retiring"]
    assert told["kept"], "a change of the models replaced slots"
    assert told["failures"] == []
    assert told["ready"] == 1
    assert told["draining_s"] < 2
