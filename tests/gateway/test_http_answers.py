"""Errors and envelopes of HTTP answers."""

from __future__ import annotations

import httpx
from fastapi import FastAPI

from gateway.errors import Unavailable
from gateway.http_answers import Envelope, answer_errors
from tests.gateway.views import FixedView


def broken_app() -> FastAPI:
    app = FastAPI()
    answer_errors(app)
    app.add_middleware(Envelope, view=FixedView())

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
