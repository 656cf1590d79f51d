"""What `headrace status` shows on wide and narrow terminals, and how it asks."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from rich.console import Console

from command.client import AdminClient
from command.status import render
from headrace.errors import HeadraceError, Unauthenticated, Unavailable

DEMO = ("tagger", "tagger_tf", "digits", "price", "faces")


def model(name: str, **changes: Any) -> dict[str, Any]:
    version = {"version": 1, "state": "READY", "reason": "", "load_s": 1.25, "slots": ["s"]}
    figures = {"requests": 12_345, "errors": 7, "in_flight": 12, "queued": 3}
    latencies = {"p50_ms": 12.345, "p99_ms": 1234.5}
    base = {"name": name, "reason": "", "versions": [version], "default": 1, "labels": {}}
    base |= {"incomplete": {}, "rejected": []}
    return {**base, **figures, **latencies, **changes}


def slot(name: str, *models: str, **changes: Any) -> dict[str, Any]:
    state = {"state": "UP", "pid": 4711, "memory_bytes": 300 * 2**20, "in_flight": 2}
    return {"slot_id": name, "slot_class": "cpu", "models": list(models), **state, **changes}


def status(models: list[dict[str, Any]], slots: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "version": "0.1.0",
        "epoch": 1,
        "generation": 4,
        "ready": True,
        "pool": "connected",
        "store_problem": "",
        "addresses": {"http": "127.0.0.1:8080", "grpc": "127.0.0.1:8081"},
        "gateways": [{}],
        "models": models,
        "slots": slots,
    }


def shown(answer: dict[str, Any], width: int) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width).print(render(answer))
    return [line.rstrip() for line in text.getvalue().splitlines()]


def line_of(lines: list[str], begin: str) -> list[str]:
    """The words of the one line that begins with this word."""
    (line,) = [words for line in lines if (words := line.split()) and words[0] == begin]
    return line


def test_a_wide_terminal_shows_every_figure() -> None:
    lines = shown(status([model("tagger")], [slot("cpu-4711-ab12cd", "tagger/1")]), 140)
    assert lines[0] == "Headrace 0.1.0 is ready  generation 4  gateways 1"
    headers = "model state serves slots load s requests errors in flight queued p50 ms p99 ms"
    assert " ".join(line_of(lines, "model")) == headers
    figures = "tagger/1 READY default 1 1.25 12345 7 12 3 12.3 1234"
    assert " ".join(line_of(lines, "tagger/1")) == figures
    slots = "cpu-4711-ab12cd cpu UP tagger/1 4711 300 2"
    assert " ".join(line_of(lines, "cpu-4711-ab12cd")) == slots


def test_the_demo_fits_80_columns_without_cut_or_broken_names() -> None:
    slots = [slot(f"tensorflow-{pid}-ab12cd", "tagger_tf/1", pid=pid) for pid in (10_001, 10_002)]
    lines = shown(status([model(name) for name in DEMO], slots), 80)
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    for name in DEMO:
        words = line_of(lines, f"{name}/1")
        assert words[1] == "READY" and words[-2:] == ["12.3", "1234"]
    assert "tagger_tf/1" in line_of(lines, "tensorflow-10002-ab12cd")


@pytest.mark.parametrize("width", range(48, 141, 4))
def test_a_row_stays_on_one_line_in_any_common_width(width: int) -> None:
    answer = status([model(name) for name in DEMO], [slot("cpu-4711-ab12cd", "tagger/1")])
    lines = shown(answer, width)
    rows = [line for line in lines if "READY" in line]
    assert len(rows) == len(DEMO) and all(len(line) <= width for line in lines)
    assert "in flight" in next(line for line in lines if line.startswith("model"))


def test_what_matters_least_goes_first() -> None:
    answer = status([model("a" * 20)], [])
    headers = [shown(answer, width)[3] for width in (120, 90, 80, 60)]
    for header, gone in zip(headers[1:], ("load s", "queued", "requests"), strict=True):
        assert gone not in header
    assert all("state" in header and "p99 ms" in header for header in headers)


def test_a_long_name_continues_on_the_next_line() -> None:
    name = "".join(f"part{number:02}_" for number in range(12))
    lines = shown(status([model(name)], []), 80)
    start = next(number for number, line in enumerate(lines) if "READY" in line)
    assert "".join(line.split()[0] for line in lines[start : start + 3] if line).startswith(name)


def test_reasons_stand_below_the_table_in_full() -> None:
    reason = "model.onnx is not an ONNX model: the file ends early"
    version = {"version": 2, "state": "FAILED", "reason": reason, "load_s": 0, "slots": []}
    nothing = {"p50_ms": None, "p99_ms": None}
    gone = model("gone", reason="no folder [gone] in the store", versions=[], **nothing)
    lines = shown(status([model("bad", versions=[version]), gone], []), 80)
    assert f"bad/2: {reason}" in lines and "gone: no folder [gone] in the store" in lines
    assert line_of(lines, "bad/2")[:2] == ["bad/2", "FAILED"]
    assert line_of(lines, "gone")[-2:] == ["-", "-"]


def test_versions_labels_and_what_is_not_taken_up_are_told() -> None:
    versions = [
        {"version": number, "state": state, "reason": "", "load_s": 1.0, "slots": ["s"]}
        for number, state in ((1, "READY"), (2, "STANDBY"))
    ]
    versions[0]["ignored"] = ["instance_group", "parameters"]
    more = {"incomplete": {"3": "model.onnx is missing"}, "rejected": [2]}
    answer = status([model("m", versions=versions, labels={"stable": 1}, **more)], [])
    lines = shown({**answer, "store_problem": "cannot be read since 10:00:00"}, 140)
    assert line_of(lines, "m/1")[2:4] == ["default,", "stable"]
    assert line_of(lines, "m/2")[1:3] == ["STANDBY", "-"]
    assert "store: cannot be read since 10:00:00" in lines
    assert "m/3: not taken up: model.onnx is missing" in lines
    assert "m: rolled back from 2" in lines
    assert "m/1: config.pbtxt: ignored are instance_group, parameters" in lines


def test_figures_of_a_model_stand_once() -> None:
    versions = [
        {"version": number, "state": "READY", "reason": "", "load_s": 1.0, "slots": ["s"]}
        for number in (1, 2)
    ]
    lines = shown(status([model("digits", versions=versions)], []), 140)
    assert "12345" in line_of(lines, "digits/1") and "12345" not in line_of(lines, "digits/2")


def test_not_ready_and_a_lost_pool_are_said_in_the_headline() -> None:
    answer = {**status([], []), "ready": False, "pool": "away"}
    assert shown(answer, 80)[0].startswith("Headrace 0.1.0 is not ready, the pool is away")


def admin(answer: Callable[[httpx.Request], httpx.Response]) -> AdminClient:
    return AdminClient("h:1", "the token", transport=httpx.MockTransport(answer))


def test_the_client_sends_its_token_and_reads_the_status() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        known = request.headers["authorization"] == "Bearer the token"
        return httpx.Response(200 if known else 401, json={"path": request.url.path})

    with admin(answer) as client:
        assert client.status() == {"path": "/admin/v1/status"}


def test_the_client_tells_why_a_config_was_refused() -> None:
    with (
        admin(lambda _: httpx.Response(400, json={"error": "no slot class 'x'"})) as client,
        pytest.raises(HeadraceError, match="answered 400: no slot class 'x'"),
    ):
        client.apply({"applications": []})


def test_orders_about_models_go_to_their_paths() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.raw_path.decode()}")
        return httpx.Response(200, json={"to": 1} if "rollback" in request.url.path else None)

    with admin(answer) as client:
        client.load("a b")
        client.unload("m")
        assert client.roll_back("m") == {"to": 1}
    assert asked == [
        "POST /v2/repository/models/a%20b/load",
        "POST /v2/repository/models/m/unload",
        "POST /admin/v1/models/m/rollback",
    ]


def silent(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (lambda _: httpx.Response(401), Unauthenticated, "refused the admin token"),
        (lambda _: httpx.Response(500, text="oops"), HeadraceError, "500 to /admin/v1/status"),
        (lambda _: httpx.Response(200, text="<html>"), HeadraceError, "not Headrace's"),
        (lambda _: httpx.Response(200, json=[1]), HeadraceError, "not Headrace's"),
        (silent, Unavailable, "nothing answers on h:1"),
    ],
)
def test_what_the_client_cannot_use_is_one_sentence(
    answer: Callable[[httpx.Request], httpx.Response], kind: type[HeadraceError], words: str
) -> None:
    with admin(answer) as client, pytest.raises(kind, match=words) as found:
        client.status()
    assert "the token" not in found.value.message
