"""The admin API: a token for everything, the status that the command line reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.http.admin import create_admin_app
from headrace.config.args import ModelConfig
from headrace.errors import ConfigError, FailedPrecondition, NotFound
from headrace.metrics import Recorder
from headrace.metrics_export import Exporter
from headrace.snapshot import (
    Memory,
    ModelView,
    Override,
    Placement,
    SlotView,
    Snapshot,
    State,
    VersionView,
)
from tests.gateway.views import FixedView

TOKEN = "t" * 32
SLOT = SlotView("cpu-1", "cpu", "node", "/run/s", "127.0.0.1:9", pid=7)
MODEL = ModelView("m", ModelConfig(), (VersionView(1, State.READY),))
OLD = ModelView(
    "old",
    ModelConfig(),
    (VersionView(1, State.READY), VersionView(2, State.READY, served=False)),
    default=1,
    labels={"stable": 1},
    incomplete={3: "model.onnx is missing"},
)


@dataclass(kw_only=True)
class Desk(FixedView):
    """Operations with a fixed view; remembers what it was told to do."""

    metrics_folder: Path
    audit_folder: Path | None = None
    away: bool = False
    snapshot: Snapshot = field(
        default_factory=lambda: Snapshot(
            5,
            2,
            3,
            (SLOT,),
            (Placement("cpu-1", "m", 1, State.READY, 4, load_s=0.5),),
            {"m": MODEL, "old": OLD},
            "since 10:00:00: gone",
            memory=Memory({"old": Override(rejected=(2,))}),
        )
    )

    async def keys(self, order: str, **arguments: Any) -> Any:
        self.told.append((order, arguments))
        return [] if order == "list" else {"key": "hr_secret", "id": "abc"}

    def addresses(self) -> dict[str, str]:
        return {"http": "127.0.0.1:1", "grpc": "127.0.0.1:2", "admin": "127.0.0.1:3"}

    def links(self) -> dict[str, str]:
        return {"cpu-1": "unix"}

    async def details(self) -> dict[str, Any] | None:
        if self.away:
            return None
        gateway = {"gateway_id": "g", "node_id": "node", "addresses": self.addresses()}
        slots = {"cpu-1": {"memory_bytes": 9, "in_flight": 2}}
        failures = [{"model": "old", "version": 2, "reason": "killed", "exit_code": 137}]
        return {"slots": slots, "gateways": [gateway], "failures": failures}

    async def roll_back(self, name: str) -> dict[str, Any]:
        if name != "m":
            raise FailedPrecondition(f"model {name!r} has no version before 1")
        return {"model": name, "from": 2, "to": 1, "warm": True}

    async def pool_view(self) -> Mapping[str, Any]:
        return {"classes": [], "accounts": [], "groups": [], "leases": [], "decisions": []}

    async def lease(self, order: str, **arguments: Any) -> Any:
        self.told.append((order, arguments))
        return {"id": "a", "state": "WAITING"}

    async def watch_lease(self, lease_id: str, known: str) -> Mapping[str, Any]:
        raise NotFound(f"there is no lease {lease_id!r} (any more)")

    async def shutdown(self) -> None:
        self.told.append("shutdown")

    async def apply(self, document: dict[str, Any]) -> None:
        if "applications" not in document:
            raise ConfigError("no applications")
        self.told.append(document)


def client(desk: Desk, token: str = TOKEN) -> httpx.AsyncClient:
    app = create_admin_app(desk, TOKEN)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://admin", headers=headers
    )


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x"])
@pytest.mark.parametrize("path", ["/admin/v1/status", "/metrics", "/sd", "/nowhere"])
async def test_nothing_is_told_without_the_token(tmp_path: Path, token: str, path: str) -> None:
    async with client(Desk(metrics_folder=tmp_path), token) as http:
        answer = await http.get(path)
    assert answer.status_code == 401 and TOKEN not in answer.text


async def test_the_status_tells_models_slots_and_gateways(tmp_path: Path) -> None:
    async with client(Desk(metrics_folder=tmp_path)) as http:
        status = (await http.get("/admin/v1/status")).json()
    (slot,), (model, old) = status["slots"], status["models"]
    assert (status["epoch"], status["number"], status["generation"]) == (5, 2, 3)
    assert status["pool"] == "connected" and status["gateways"][0]["gateway_id"] == "g"
    assert slot["models"] == ["m/1"] and slot["link"] == "unix" and slot["memory_bytes"] == 9
    (version,) = model["versions"]
    assert version["state"] == "READY" and version["slots"] == ["cpu-1"]
    assert version["load_s"] == 0.5
    assert [v["state"] for v in old["versions"]] == ["READY", "STANDBY"]
    assert (old["default"], old["labels"], old["rejected"]) == (1, {"stable": 1}, [2])
    assert old["incomplete"] == {"3": "model.onnx is missing"}
    failure = {"version": 2, "reason": "killed", "exit_code": 137}
    assert (model["failures"], old["failures"]) == ([], [failure])
    assert status["store_problem"] == "since 10:00:00: gone"


async def test_the_status_goes_on_without_the_pool(tmp_path: Path) -> None:
    async with client(Desk(metrics_folder=tmp_path, away=True)) as http:
        status = (await http.get("/admin/v1/status")).json()
        targets = (await http.get("/sd")).json()
    assert status["pool"] == "away" and status["slots"][0]["slot_id"] == "cpu-1"
    assert targets == [{"targets": ["127.0.0.1:3"], "labels": {"job": "headrace"}}]


async def test_metrics_are_prometheus_text(tmp_path: Path) -> None:
    recorder = Recorder("gateway")
    recorder.request("m", 1, "tfserving", 200, "none", 0.01)
    Exporter(recorder, tmp_path).write()
    async with client(Desk(metrics_folder=tmp_path)) as http:
        answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'headrace_requests_total{code="200",model="m"' in answer.text


async def test_orders_are_passed_on_and_bad_ones_refused(tmp_path: Path) -> None:
    desk = Desk(metrics_folder=tmp_path)
    async with client(desk) as http:
        stopped = await http.post("/admin/v1/shutdown")
        applied = await http.put("/admin/v1/config", json={"applications": []})
        refused = await http.put("/admin/v1/config", json={})
    assert (stopped.status_code, applied.status_code, refused.status_code) == (202, 202, 400)
    assert refused.json() == {"error": "no applications"}
    assert desk.told == ["shutdown", {"applications": []}]


async def test_models_are_loaded_unloaded_and_rolled_back(tmp_path: Path) -> None:
    desk = Desk(metrics_folder=tmp_path)
    async with client(desk) as http:
        loaded = await http.post("/v2/repository/models/m/load")
        unloaded = await http.post("/v2/repository/models/m/unload")
        back = await http.post("/admin/v1/models/m/rollback")
        refused = await http.post("/admin/v1/models/other/rollback")
    assert (loaded.status_code, unloaded.status_code) == (200, 200)
    assert desk.told == [("load", "m", None), ("unload", "m")]
    assert back.json() == {"model": "m", "from": 2, "to": 1, "warm": True}
    assert (refused.status_code, refused.json()) == (
        409,
        {"error": "model 'other' has no version before 1"},
    )
