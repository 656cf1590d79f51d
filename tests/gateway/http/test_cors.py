"""CORS, over real connections: predictions in the fast lane, all else in the application."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.http.cors import USUAL
from headrace.config.args import CorsConfig
from headrace.config.tiers import Tier
from tests.gateway.test_limits_served import tiers
from tests.house import client, open_house

PAGE = "https://app.example.com"
CORS = CorsConfig(origins=(PAGE, "http://localhost:3000"), headers=("X-Mine",), max_age_s=60)
PREDICT, INFER = "/v1/models/affine:predict", "/v2/models/affine/infer"
BODY = {"instances": [[1.0, 2.0, 3.0, 4.0]]}
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, x-mine",
}


@pytest.mark.parametrize(
    "path", [PREDICT, INFER, "/v1/models/affine:process", "/v1/models/affine/versions/1:process"]
)
async def test_a_preflight_is_answered_without_a_credential(tmp_path: Path, path: str) -> None:
    """Nobody may call without one here, and a browser sends none with its question."""
    place = open_house(tmp_path, "a", cors=CORS, access=tiers(anonymous=False))
    async with place as house, client(house) as http:
        assert (await http.post(PREDICT, json=BODY)).status_code == 401
        answer = await http.options(path, headers=PREFLIGHT)
        other = await http.options(path, headers={**PREFLIGHT, "Origin": "https://evil.example"})
    assert answer.status_code == 204 and answer.content == b""
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"].split(", ")
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert {*USUAL, "X-Mine"} == set(allowed)
    assert answer.headers["access-control-max-age"] == "60"
    assert answer.headers["vary"] == other.headers["vary"] == "origin"
    assert other.status_code == 403 and "'https://evil.example'" in other.json()["error"]
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", PREDICT, b'{"instances": [[1.0, 2.0, 3.0, 4.0]]}', 200),
        ("POST", PREDICT, b"{", 400),
        ("POST", "/v1/models/nobody:predict", b"{}", 404),
        ("POST", f"/v1/models/affine/versions/{2**63}:predict", b"{}", 400),
        ("PUT", PREDICT, b"", 405),
        ("GET", "/v2/models/affine", b"", 200),
        ("GET", "/v2/models/nobody", b"", 404),
        ("POST", "/v1/models/affine:process", b"", 501),
        ("GET", "/healthz", b"", 200),
        ("GET", "/healthz#part", b"", 400),
    ],
)
async def test_every_answer_tells_a_browser_who_may_read_it(
    tmp_path: Path, method: str, path: str, content: bytes, status: int
) -> None:
    async with open_house(tmp_path, "a", cors=CORS) as house, client(house) as http:
        found = []
        for origin in (PAGE, "https://evil.example", None):
            headers = {} if origin is None else {"Origin": origin}
            target = {"target": path.encode()}  # as it is: httpx would leave a fragment out
            found.append(
                await http.request(
                    method, path, content=content, headers=headers, extensions=target
                )
            )
        mine, evil, plain = found
    assert [answer.status_code for answer in found] == [status] * 3
    assert mine.headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in mine.headers["access-control-expose-headers"].split(", ")
    assert "access-control-allow-credentials" not in mine.headers
    for answer in (evil, plain):
        assert "access-control-allow-origin" not in answer.headers
    assert all("origin" in answer.headers["vary"] for answer in found)


async def test_refusals_of_limits_can_be_read_by_a_page(tmp_path: Path) -> None:
    place = open_house(tmp_path, "a", cors=CORS, access=tiers(Tier(rate="1/s", burst=1)))
    async with place as house, client(house) as http:
        answers = [
            await http.post(path, json=BODY, headers={"Origin": PAGE})
            for path in (PREDICT, PREDICT, "/v2/repository/index")
        ]
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert all(answer.headers["access-control-allow-origin"] == PAGE for answer in answers)


async def test_any_origin_may_read_where_the_config_says_so(tmp_path: Path) -> None:
    cors = CorsConfig(origins=("*",))
    async with open_house(tmp_path, "a", cors=cors) as house, client(house) as http:
        answers = [
            await http.post(PREDICT, json=BODY),
            await http.get("/healthz", headers={"Origin": "https://any.example"}),
            await http.options(INFER, headers=PREFLIGHT),
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 204]
    assert all(answer.headers["access-control-allow-origin"] == "*" for answer in answers)
    assert not any("vary" in answer.headers for answer in answers)


async def test_without_a_config_browsers_are_told_nothing(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        asked = await http.options(PREDICT, headers=PREFLIGHT)
        answer = await http.post(PREDICT, json=BODY, headers={"Origin": PAGE})
    assert asked.status_code == 405 and answer.status_code == 200
    for each in (asked, answer):
        assert not [name for name in each.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("origins", "text"),
    [
        ((), "at least 1 item"),
        (("*", PAGE), "stands alone"),
        ((PAGE + "/",), "https://app.example.com"),
        (("https://App.example.com",), "https://app.example.com"),
        (("app.example.com",), "https://app.example.com"),
        (("null",), "https://app.example.com"),
        (("https://a.example\r\nx: y",), "https://app.example.com"),
    ],
)
def test_origins_are_written_as_browsers_send_them(origins: tuple[str, ...], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        CorsConfig(origins=origins)


def test_a_header_name_is_one() -> None:
    with pytest.raises(ValidationError, match="pattern"):
        CorsConfig(origins=("*",), headers=("x-mine: 1",))
