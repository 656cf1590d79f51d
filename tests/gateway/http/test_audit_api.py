"""The audit log over the admin API, from real files."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from gateway.http.admin import audit
from gateway.http.answers import answer_errors
from headrace.config.args import Audit
from tests.gateway.access.test_audit import ByHand, record


def client(folder: Path | None) -> httpx.AsyncClient:
    app = FastAPI()
    app.state.audit_folder = folder
    app.include_router(audit)
    answer_errors(app)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin")


def fill(folder: Path) -> None:
    """An hour-old failure, then a flood from one address and a refusal of a key."""
    now_s = time.time()
    times = iter([0.0, now_s - 3600, *[now_s] * 201])
    log = ByHand(Audit(), folder, "gateway-1", clock=lambda: next(times))
    log.write(record(decision="failed", reason="", code=500, request_id="old"))
    for _ in range(200):
        log.write(record(caller="ip:6.6.6.6", request_id="flood"))
    log.write(record(request_id="key", model="price"))
    log._drain(0.0)


async def test_records_are_found_by_the_filters_of_the_path(tmp_path: Path) -> None:
    fill(tmp_path)
    asked = {
        "": ["key", "flood", "old"],
        "caller=ip:6.6.": ["flood"],
        "since=10m": ["key", "flood"],
        "until=10m": ["old"],
        "decision=failed": ["old"],
        "model=price&caller=": ["key"],
        "reason=rate&limit=1": ["key"],
    }
    async with client(tmp_path) as http:
        for query, expected in asked.items():
            answer = await http.get(f"/admin/v1/audit?{query}")
            found = [each["request_id"] for each in answer.json()["records"]]
            assert sorted(found) == sorted(expected), query


async def test_the_summary_says_who_sent_the_flood(tmp_path: Path) -> None:
    fill(tmp_path)
    async with client(tmp_path) as http:
        answer = (await http.get("/admin/v1/audit/summary?since=10m&limit=1")).json()
    (worst,) = answer["callers"]
    assert (worst["caller"], worst["decisions"]["refused"]) == ("ip:6.6.6.6", 200)
    assert answer["total"]["decisions"]["refused"] == 201 and answer["callers_seen"] == 2


@pytest.mark.parametrize("path", ["", "/summary"])
@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("since=soon", "'since' should be like"),
        ("until=soon", "'until' should be like"),
        ("decision=no", "allowed, refused, cancelled, failed"),
        ("limit=0", "from 1 to 10000"),
        ("limit=10001", "from 1 to 10000"),
        ("limit=%D9%A1", "from 1 to 10000"),
        ("calller=x", "there is no parameter 'calller'"),
    ],
)
async def test_a_wrong_parameter_is_one_sentence(
    tmp_path: Path, path: str, query: str, words: str
) -> None:
    async with client(tmp_path) as http:
        answer = await http.get(f"/admin/v1/audit{path}?{query}")
    assert answer.status_code == 400 and words in answer.json()["error"]


async def test_a_log_that_is_off_or_unreadable_is_said(tmp_path: Path) -> None:
    async with client(None) as http:
        off = await http.get("/admin/v1/audit")
    assert off.status_code == 409 and "`audit.enabled`" in off.json()["error"]
    (tmp_path / "audit").write_text("a file")
    async with client(tmp_path / "audit") as http:
        broken = await http.get("/admin/v1/audit/summary")
    assert broken.status_code == 409 and "Not a directory" in broken.json()["error"]
