"""The public HTTP API apart from predictions."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.http.api import create_app
from gateway.view import RELEASE, GatewayView
from headrace.config.args import Batching, ModelConfig
from headrace.snapshot import ModelView, Snapshot, State, VersionView
from tests.gateway.views import INDEX, FixedPool, fixed_view
from tests.headrace.protocols.specs import F4, model, signature, spec

SPEC = model(signature([spec("x", F4, None, 2)]))
SNAPSHOT = Snapshot(
    models={
        "m": ModelView(
            "m",
            ModelConfig(batching=Batching(max_rows=8)),
            (
                VersionView(1, State.READY, SPEC, served=False),
                VersionView(2, State.FAILED, None, "no file"),
                VersionView(3, State.READY, SPEC),
            ),
            labels={"stable": 3},
        ),
        "a b": ModelView("a b", ModelConfig(), (VersionView(1, State.LOADING),)),
        "empty": ModelView("empty", ModelConfig(), (), "the store has no such folder"),
    }
)


async def ask(
    path: str, method: str = "GET", view: GatewayView | None = None, **more: Any
) -> httpx.Response:
    transport = httpx.ASGITransport(app=create_app(view or fixed_view(SNAPSHOT)))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.request(method, path, **more)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", {"status": "alive"}),
        ("/healthz", {"live": True}),
        ("/v2/health/live", {"live": True}),
        ("/base/path/v2/health/live?query", {"live": True}),
        ("/readyz", {"ready": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/m/ready", {"name": "m", "ready": True}),
        ("/v2/models/m/versions/3/ready", {"name": "m", "ready": True}),
    ],
)
async def test_health(path: str, expected: dict[str, Any]) -> None:
    answer = await ask(path)
    assert answer.status_code == 200
    assert answer.json() == expected
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/readyz", "/v2/health/ready"])
async def test_ready_when_gateway_is_not(path: str) -> None:
    answer = await ask(path, view=fixed_view(SNAPSHOT, is_ready=False))
    assert answer.status_code == 503
    assert answer.json()["ready"] is False and "not ready" in answer.json()["error"]
    assert (await ask("/healthz", view=fixed_view(SNAPSHOT, is_ready=False))).status_code == 200


async def test_server_metadata() -> None:
    body = (await ask("/v2")).json()
    assert body["name"] == "triton" and body["version"] == RELEASE
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(body["extensions"])


async def test_model_metadata_and_config() -> None:
    for path in ("/v2/models/m", "/v2/models/m/versions/3"):
        body = (await ask(path)).json()
        assert body["versions"] == ["3"]
        assert body["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    for path in ("/v2/models/m/config", "/v2/models/m/versions/3/config"):
        assert (await ask(path)).json()["max_batch_size"] == 8


@pytest.mark.parametrize(
    ("path", "versions"),
    [
        ("/v1/models/m", ["3", "2"]),
        ("/V1/Models/m/Versions/2", ["2"]),
        ("/v1/models/m/labels/stable", ["3"]),
        ("/v1/models/a%20b", ["1"]),
    ],
)
async def test_tfserving_status(path: str, versions: list[str]) -> None:
    answer = await ask(path)
    assert answer.status_code == 200
    assert [v["version"] for v in answer.json()["model_version_status"]] == versions


async def test_the_status_of_a_model_tells_kserve_whether_it_is_ready() -> None:
    ready, loading = (await ask("/v1/models/m")).json(), (await ask("/v1/models/a%20b")).json()
    assert (ready["name"], ready["ready"]) == ("m", True)
    assert (loading["name"], loading["ready"]) == ("a b", False)
    assert (await ask("/v1/models/m/versions/3")).json().keys() == {"model_version_status"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/m/metadata",
        "/V1/models/m/versions/3/METADATA",
        "/v1/models/m/labels/stable/metadata",
    ],
)
async def test_tfserving_metadata(path: str) -> None:
    body = (await ask(path)).json()
    assert body["model_spec"]["version"] == "3"
    assert "serving_default" in body["metadata"]["signature_def"]["signature_def"]


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v1/models/zzz", 404, "Could not find any versions of model zzz"),
        ("GET", "/v1/models/empty", 404, "Could not find any versions of model empty"),
        ("GET", "/v1/models/m/versions/9", 404, "Could not find version 9 of model m"),
        ("GET", "/v1/models/zzz/metadata", 404, "Servable not found for request: Latest(zzz)"),
        ("GET", "/v1/models/m/versions/2/metadata", 404, "request: Specific(m, 2)"),
        ("GET", "/v1/models/m/labels/new", 404, "Unrecognized servable version label: new"),
        ("GET", "/v1/models/m/labels/new/metadata", 404, "version label: new"),
        ("GET", "/v1", 400, "Malformed request: GET /v1"),
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("POST", "/v1/models", 400, "Malformed request: POST /v1/models"),
        ("GET", "/v1/models/", 400, "Malformed request: GET /v1/models/"),
        ("GET", "/v1/models/m/versions/x", 400, "Malformed request: GET /v1/models/m/versions/x"),
        ("GET", "/v1/models/m:predict", 400, "Malformed request: GET /v1/models/m:predict"),
        ("GET", "/V1/x", 400, "Malformed request: GET /V1/x"),
        ("POST", "/v1/models/m", 400, "Malformed request: POST /v1/models/m"),
        ("POST", "/v1/models/m:other", 400, "Malformed request: POST /v1/models/m:other"),
        ("GET", "/v1/models/m/versions/3/labels/x", 400, "Malformed request"),
        ("POST", "/v1/models/m/versions/3/labels/x:predict", 400, "Malformed request: POST"),
        ("POST", "/v1/models/m:Predict", 400, "Malformed request: POST /v1/models/m:Predict"),
        ("POST", "/v1/models/m/versions/x:predict", 400, "Malformed request: POST"),
        ("GET", f"/v1/models/m/versions/{2**63}", 400, "Failed to convert version: "),
        ("POST", f"/v1/models/m/versions/{2**63}:predict", 400, "Failed to convert version: "),
        ("POST", "/v1/models/m:predict", 501, "predictions are not answered"),
        ("POST", "/v2/models/m/infer", 501, "predictions are not answered"),
        ("POST", "/v2/models/m/versions/x/infer", 400, "must be a number, not 'x'"),
        ("GET", "/v2/models/m/infer", 405, "GET is not allowed"),
        ("POST", "/v2/health/live", 405, "POST is not allowed"),
        ("POST", "/v2/models/m", 405, "POST is not allowed"),
        ("GET", "/v2/models/zzz", 404, "Request for unknown model: 'zzz' is not found"),
        ("GET", "/v2/models/zzz/ready", 404, "Request for unknown model: 'zzz' is not found"),
        (
            "GET",
            "/v2/models/m/versions/9/config",
            404,
            "Request for unknown model: 'm' version 9 is not found",
        ),
        ("GET", "/v2/models/m/versions/x", 400, "must be a number, not 'x'"),
        ("GET", "/v2/models/m/versions/2", 503, "version 2 is FAILED: no file"),
        ("GET", "/v2/models/m/versions/2/ready", 503, "version 2 is FAILED: no file"),
        ("GET", "/v2/models/a%20b/ready", 503, "'a b' version 1 is LOADING"),
        ("GET", "/v2/models/empty", 503, "has no version yet: the store has no such folder"),
        ("GET", "/v2/other", 404, "nothing at this path"),
        ("GET", "/other", 404, "nothing at this path"),
        ("GET", "/docs", 404, "nothing at this path"),
        ("GET", "/v2/models/zzz/stats", 404, "Request for unknown model: 'zzz' is not found"),
        (
            "GET",
            "/v2/models/m/versions/9/stats",
            404,
            "Request for unknown model: 'm' version 9 is not found",
        ),
        ("GET", "/v1/models/m/versions/1", 404, "Could not find version 1 of model m"),
        (
            "GET",
            "/v2/models/m/versions/1",
            404,
            "Request for unknown model: 'm' version 1 is not found",
        ),
        ("GET", "/v2/repository/index", 405, "GET is not allowed"),
        ("POST", "/v2/repository/models/m/load", 403, "repository.control: public"),
        ("POST", "/v2/repository/models/m/unload", 403, "admin listener"),
        ("POST", "/v2/repository/other/index", 501, "one repository"),
        ("POST", "/v2/repository/other/models/m/load", 501, "one repository"),
        ("DELETE", "/v2/logging", 405, "DELETE is not allowed"),
        ("POST", "/v2/systemsharedmemory/status", 405, "POST is not allowed"),
        ("GET", "/v2/cudasharedmemory/unregister", 405, "GET is not allowed"),
    ],
)
async def test_errors_are_json(method: str, path: str, status: int, text: str) -> None:
    answer = await ask(path, method)
    assert answer.status_code == status
    assert text in answer.json()["error"]
    assert answer.headers["content-type"] == "application/json"


async def test_statistics_have_every_pair_for_models_without_traffic_too() -> None:
    totals = [{"model": "m", "version": 3, "inference_count": 5}]
    answer = await ask("/v2/models/stats", view=fixed_view(SNAPSHOT, FixedPool(totals=totals)))
    rows = {(row["name"], row["version"]): row for row in answer.json()["model_stats"]}
    assert rows["m", "3"]["inference_count"] == 5 and rows["a b", "1"]["inference_count"] == 0
    assert len(rows["m", "3"]["inference_stats"]) == 8
    one = await ask("/v2/models/m/versions/3/stats")
    assert [row["version"] for row in one.json()["model_stats"]] == ["3"]


async def test_the_repository_index_can_leave_out_what_is_not_ready() -> None:
    assert (await ask("/v2/repository/index", "POST")).json() == INDEX
    ready = await ask("/v2/repository/index", "POST", json={"ready": True})
    assert ready.json() == INDEX[1:]


DEEP = b"[" * 250_000


@pytest.mark.parametrize("ready", ["5", '"true"', "null", "NaN", "1.5", "[]", "{}"])
async def test_the_index_takes_ready_as_true_or_false_only(ready: str) -> None:
    answer = await ask("/v2/repository/index", "POST", content=b'{"ready": %b}' % ready.encode())
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("'ready' must be true or false, not ")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (DEEP, "JSON Parse error"),
        (b'{"ready": ' + DEEP, "JSON Parse error"),
        (b"[NaN, " + DEEP, "JSON Parse error"),
        (b'{"ready": ' + b"9" * 5000 + b"}", "JSON Parse error"),
        (b'{"\\ud800": true}', "JSON Parse error"),
        (b'{"ready": "\xff"}', "JSON Parse error"),
        (b"true", "must be a JSON object"),
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        "repository/index",
        "repository/models/m/load",
        "repository/models/m/unload",
        "logging",
        "trace/setting",
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(path: str, body: bytes, text: str) -> None:
    pool = FixedPool()
    view = fixed_view(SNAPSHOT, pool, repository_control="public")
    answer = await ask(f"/v2/{path}", "POST", view, content=body)
    assert answer.status_code == 400 and text in answer.json()["error"]
    assert pool.told == []


async def test_models_are_loaded_and_unloaded_where_the_config_opens_it() -> None:
    pool = FixedPool()
    view = fixed_view(SNAPSHOT, pool, repository_control="public")
    config = {"parameters": {"config": '{"max_batch_size": 4}'}}
    loaded = await ask("/v2/repository/models/m/load", "POST", view, json=config)
    unloaded = await ask("/v2/repository/models/m/unload", "POST", view)
    assert (loaded.status_code, loaded.content, unloaded.status_code) == (200, b"", 200)
    assert pool.told == [("load", "m", {"max_batch_size": 4}), ("unload", "m")]


@pytest.mark.parametrize(
    ("name", "body", "status", "text"),
    [
        ("absent", {}, 404, "failed to load 'absent', there is no model 'absent' in the store"),
        ("m", {"parameters": {"file:1/model.onnx": "AAAA"}}, 400, "would be run as a model"),
        (
            "m",
            {"parameters": {"config": "{"}},
            400,
            "failed to load 'm', the parameter 'config' must be the",
        ),
        ("m", {"parameters": 3}, 400, "'parameters' must be an object"),
        ("m", [], 400, "must be a JSON object"),
    ],
)
async def test_a_load_that_cannot_be_carried_out_says_why(
    name: str, body: Any, status: int, text: str
) -> None:
    pool = FixedPool()
    view = fixed_view(SNAPSHOT, pool, repository_control="public")
    answer = await ask(f"/v2/repository/models/{name}/load", "POST", view, json=body)
    assert answer.status_code == status and text in answer.json()["error"]
    assert pool.told == []


async def test_wrong_method_names_the_right_one() -> None:
    assert (await ask("/v2/models/m/infer")).headers["allow"] == "POST"


async def test_request_id_is_returned() -> None:
    given = await ask("/healthz", headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert (await ask("/zzz")).headers["x-request-id"]
    replaced = await ask("/healthz", headers={"X-Request-Id": "x" * 500})
    assert replaced.headers["x-request-id"] != "x" * 500
