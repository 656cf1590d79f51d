"""New versions under load, rollbacks, unloads and labels on the running system, on real Ray."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import tritonclient.http as triton
import yaml

from loadtests.processes import free_ports
from tests.house import affine_model
from tests.system.load import Load
from tests.system.running import (
    ROW,
    Running,
    affine_store,
    config,
    running,
    wait_for,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

SWAPS = 6


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One model, one slot for it and a spare one; each test goes on where the last one ended."""
    folder = tmp_path_factory.mktemp("versions")
    models = {"affine": {"batching": {"max_rows": 8}}}
    document = config(affine_store(folder), free_ports(3), slots=2, models=models)
    with running(folder, document) as system:
        yield system


def write_version(system: Running, version: int) -> None:
    """As a deployment does: written aside, then renamed into place."""
    folder = system.file.parent
    draft = folder / f"draft-{version}"
    affine_model(draft / "model.onnx")
    draft.rename(folder / "store" / "affine" / str(version))


def served(system: Running, path: str = "") -> str:
    """The version that answers."""
    url = f"{system.url}/v2/models/affine{path}/infer"
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": ROW}
    answer = httpx.post(url, json={"inputs": [tensor]}, timeout=20)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["model_version"])


def serves(system: Running, version: int) -> bool:
    return served(system) == str(version)


def affine_versions(system: Running) -> list[dict[str, Any]]:
    (model,) = [each for each in system.status()["models"] if each["name"] == "affine"]
    versions: list[dict[str, Any]] = model["versions"]
    return versions


def states(system: Running) -> dict[int, str]:
    return {version["version"]: version["state"] for version in affine_versions(system)}


def test_versions_swap_under_load_without_a_failed_request(system: Running) -> None:
    with Load(system.url) as load:
        load.wait_for_answers(50)
        for version in range(2, 2 + SWAPS):
            write_version(system, version)
            wait_for(partial(serves, system, version), f"version {version} serves")
            load.wait_for_answers(50)
    assert load.failures == [] and load.answered > 50 * SWAPS
    newest = SWAPS + 1
    wait_for(
        lambda: states(system) == {newest - 1: "STANDBY", newest: "READY"}, "the one before is warm"
    )


def test_a_rollback_is_instant_and_outlives_the_pool(system: Running) -> None:
    newest = int(served(system))
    with Load(system.url) as load:
        load.wait_for_answers(20)
        back = system.run("rollback", "affine", "--admin", system.admin, "--json")
        assert back.returncode == 0, back.stderr
        change = {"model": "affine", "from": newest, "to": newest - 1, "warm": True}
        assert json.loads(back.stdout) == change
        assert served(system) == str(newest - 1)
        epoch = system.status()["epoch"]
        (pool,) = system.replicas("Pool")
        pool.kill()
        wait_for(lambda: system.status()["epoch"] > epoch, "a new epoch of the pool")
        wait_for(lambda: states(system).get(newest - 1) == "READY", "the new pool has settled")
        assert served(system) == str(newest - 1)
    assert load.failures == []
    loaded = system.run("load", "affine", "--admin", system.admin)
    assert loaded.returncode == 0, loaded.stderr
    assert served(system) == str(newest)


def test_a_broken_or_unfinished_version_changes_nothing(system: Running) -> None:
    before = served(system)
    store = system.file.parent / "store" / "affine"
    broken = store / "100"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"not a model")
    wait_for(lambda: states(system).get(100) == "FAILED", "the broken version is told")
    unfinished = store / "101"
    unfinished.mkdir()
    (unfinished / "SHA256SUMS").write_text(f"{'0' * 64}  model.onnx\n")

    def told() -> str:
        (model,) = system.status()["models"]
        return str(model["incomplete"].get("101", ""))

    assert "model.onnx" in wait_for(told, "the unfinished version is told")
    assert served(system) == before
    for folder in (broken, unfinished):
        shutil.rmtree(folder)
    wait_for(lambda: 100 not in states(system), "the broken version is forgotten")


def test_the_last_good_version_comes_back_when_its_slot_dies_beside_a_broken_one(
    system: Running,
) -> None:
    before = served(system)
    broken = system.file.parent / "store" / "affine" / "100"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"not a model")
    wait_for(lambda: states(system).get(100) == "FAILED", "the broken version is told")
    (slot_id,) = [
        slot_id
        for version in affine_versions(system)
        for slot_id in version["slots"]
        if version["version"] == int(before)
    ]
    psutil.Process(system.pid_of(slot_id)).kill()
    assert served(system) == before
    assert states(system)[100] == "FAILED"
    shutil.rmtree(broken)
    wait_for(lambda: states(system).get(int(before)) == "READY", "it is READY")
    wait_for(lambda: 100 not in states(system), "the broken version is forgotten")


def test_models_are_unloaded_and_loaded_by_a_triton_client_on_the_admin_listener(
    system: Running,
) -> None:
    token = (system.home / "admin.token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    with triton.InferenceServerClient(system.admin) as admin:
        admin.unload_model("affine", headers=headers)
        assert httpx.get(f"{system.url}/v2/models/affine/ready").status_code == 404
        assert admin.get_model_repository_index(headers=headers)[0]["state"] == "UNAVAILABLE"
        admin.load_model("affine", headers=headers)
    with triton.InferenceServerClient(system.http) as public:
        assert public.is_model_ready("affine")
        with pytest.raises(triton.InferenceServerException, match="admin listener"):
            public.load_model("affine")
        assert [row["state"] for row in public.get_model_repository_index()].count("READY") == 1


def test_a_label_moves_with_a_change_of_the_config(system: Running) -> None:
    newest = int(served(system))
    for target in (newest - 1, newest):
        document = yaml.safe_load(system.file.read_text())
        (pool,) = document["applications"][0]["deployments"]
        pool["user_config"]["models"]["affine"]["labels"] = {"stable": target}
        system.file.write_text(yaml.safe_dump(document))
        applied = system.run("apply", str(system.file))
        assert applied.returncode == 0, applied.stderr
        url = f"{system.url}/v1/models/affine/labels/stable"

        def label_serves(url: str = url, target: int = target) -> bool:
            answer = httpx.get(url)
            versions = answer.json().get("model_version_status", [])
            return [v["version"] for v in versions] == [str(target)]

        wait_for(label_serves, f"the label is at version {target}")
        answer = httpx.post(f"{url}:predict", json={"instances": [ROW]})
        assert answer.status_code == 200, answer.text
    assert served(system) == str(newest)


def test_statistics_count_what_was_asked(system: Running) -> None:
    def counted() -> int:
        answer = httpx.get(f"{system.url}/v2/models/affine/stats").json()
        return sum(int(row["inference_stats"]["success"]["count"]) for row in answer["model_stats"])

    before = counted()
    for _ in range(10):
        served(system)
    assert counted() == before + 10


def test_the_store_can_go_away(system: Running, tmp_path: Path) -> None:
    store = system.file.parent / "store"
    away = store.rename(tmp_path / "store")
    problem = wait_for(lambda: system.status()["store_problem"], "the problem is told")
    assert "since" in problem
    assert served(system)
    away.rename(store)
    wait_for(lambda: not system.status()["store_problem"], "the store is back")
