"""The admin API: a token for everything, the status that the command line reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from gateway.http.admin import GatewayControl, create_admin_app
from gateway.media.desk import MediaDesk
from headrace.config.args import ModelConfig
from headrace.errors import ConfigError, FailedPrecondition
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
from tests.gateway.views import FixedPool, fixed_view

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


SNAPSHOT = Snapshot(
    5,
    2,
    3,
    (SLOT,),
    (Placement("cpu-1", "m", 1, State.READY, 4, load_s=0.5),),
    {"m": MODEL, "old": OLD},
    "since 10:00:00: gone",
    memory=Memory({"old": Override(rejected=(2,))}),
)
ADDRESSES = {"http": "127.0.0.1:1", "grpc": "127.0.0.1:2", "admin": "127.0.0.1:3"}
DETAILS = {
    "slots": {"cpu-1": {"memory_bytes": 9, "in_flight": 2}},
    "gateways": [{"gateway_id": "g", "node_id": "node", "addresses": ADDRESSES}],
    "failures": [{"model": "old", "version": 2, "reason": "killed", "exit_code": 137}],
}


@dataclass(kw_only=True)
class Desk(FixedPool):
    """A pool and what else operators ask of; remembers what it was told to do."""

    metrics_folder: Path
    audit_folder: Path | None = None
    refused: list[str] = field(default_factory=list)
    shown: Mapping[str, Any] = field(default_factory=lambda: DETAILS)

    def operations(self) -> dict[str, Callable[..., Any]]:
        return {
            **super().operations(),
            "roll_back": self.roll_back,
            "list_keys": lambda: [],
            "create_key": partial(self.told_of, "create_key"),
            "revoke_key": partial(self.told_of, "revoke_key"),
            "rotate_key": partial(self.told_of, "rotate_key"),
            "request_lease": self.request_lease,
        }

    def told_of(self, operation: str, **wanted: Any) -> Any:
        self.told.append((operation, wanted))
        return {"key": "hr_secret", "id": "abc"}

    def request_lease(self, **wanted: Any) -> Any:
        self.told.append(("request_lease", wanted))
        return {"id": "a", "state": "WAITING"}

    def roll_back(self, name: str) -> dict[str, Any]:
        if name != "m":
            raise FailedPrecondition(f"model {name!r} has no version before 1")
        return {"model": name, "from": 2, "to": 1, "warm": True}

    async def shut_down(self) -> None:
        self.told.append("shutdown")

    async def apply(self, document: dict[str, Any]) -> None:
        if "applications" not in document:
            raise ConfigError("no applications")
        self.told.append(document)


def admin_app(desk: Desk, media: MediaDesk | None = None) -> FastAPI:
    """The admin API of a gateway with this pool."""
    control = GatewayControl(
        desk.metrics_folder,
        desk.audit_folder,
        lambda: ADDRESSES,
        lambda: {"cpu-1": "unix"},
        desk.shut_down,
        desk.apply,
        desk.refused.append,
    )
    view = fixed_view(SNAPSHOT, desk)
    return create_admin_app(view, control, TOKEN, media)


def client(desk: Desk, token: str = TOKEN) -> httpx.AsyncClient:
    app = admin_app(desk)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://admin", headers=headers
    )


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x"])
@pytest.mark.parametrize("path", ["/admin/v1/status", "/metrics", "/sd", "/nowhere"])
async def test_nothing_is_told_without_the_token(tmp_path: Path, token: str, path: str) -> None:
    desk = Desk(metrics_folder=tmp_path)
    async with client(desk, token) as http:
        answer = await http.get(path)
    assert answer.status_code == 401 and TOKEN not in answer.text
    assert desk.refused == ["127.0.0.1"]


async def test_a_body_with_a_content_coding_is_refused(tmp_path: Path) -> None:
    desk = Desk(metrics_folder=tmp_path)
    async with client(desk) as http:
        answer = await http.put(
            "/admin/v1/config", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}
        )
    assert answer.status_code == 415 and "'gzip' is not taken here" in answer.json()["error"]
    assert answer.headers["accept-encoding"] == "identity" and not desk.told


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
    recorder.request(("m", 1, "tfserving", 200, "none", 0.01, None))
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
