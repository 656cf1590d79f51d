"""Errors and envelopes of HTTP answers."""

from __future__ import annotations

import httpx
from fastapi import FastAPI

from gateway.access.limits import Limiter, OverBudget
from gateway.access.visit import Visit
from gateway.http.answers import Envelope, answer_errors
from gateway.http.cors import NO_CORS
from headrace.access import Caller
from headrace.config.tiers import Tier
from headrace.errors import Unavailable
from tests.gateway.views import admit


def broken_app() -> FastAPI:
    app = FastAPI()
    answer_errors(app)
    app.add_middleware(Envelope, admit=admit, cors=NO_CORS)

    @app.get("/bug")
    async def bug() -> None:
        raise RuntimeError("a secret detail")

    @app.get("/busy")
    async def busy() -> None:
        raise Unavailable("no slot", retry_after_s=0.2)

    return app


async def test_unexpected_errors_show_nothing() -> None:
    transport = httpx.ASGITransport(app=broken_app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.get("/bug")
    assert answer.status_code == 500
    assert answer.json() == {"error": "internal error"}


async def test_errors_say_when_to_come_back() -> None:
    transport = httpx.ASGITransport(app=broken_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.get("/busy")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json() == {"error": "no slot"}


async def test_several_forwarding_lines_are_one_list() -> None:
    seen: list[bytes] = []

    def listening(visit: Visit) -> None:
        seen.append(visit.head.headers[b"x-forwarded-for"])
        admit(visit)

    app = FastAPI()
    app.add_middleware(Envelope, admit=listening, cors=NO_CORS)
    lines = [("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-For", "10.0.0.3")]
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        await client.get("/v2", headers=lines)
    assert seen == [b"203.0.113.9, 10.0.0.3"]


async def test_a_refused_visit_tells_its_limits_too() -> None:
    limiter = Limiter({"anonymous": Tier(rate="1/s", burst=5)}, 10, 0.0)
    account = limiter.account(Caller("ip:192.0.2.7", "anonymous"), 0.0)

    def full(visit: Visit) -> None:
        limit = account.limit_headers(0.0)
        raise OverBudget("too many", limit, retry_after_s=1.2, reason="rate")

    app = FastAPI()
    app.add_middleware(Envelope, admit=full, cors=NO_CORS)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.get("/v2")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert answer.headers["ratelimit-policy"] == '"rate";q=5;w=5'
    assert answer.headers["ratelimit"].startswith('"rate";r=')
