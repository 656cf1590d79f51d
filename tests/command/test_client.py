"""The client of the admin API: its token, its paths, its errors."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from command.client import AdminClient
from headrace.errors import DeadlineExceeded, HeadraceError, Unauthenticated, Unavailable


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


def late(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("late", request=request)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (lambda _: httpx.Response(401), Unauthenticated, "refused the admin token"),
        (lambda _: httpx.Response(500, text="oops"), HeadraceError, "500 to /admin/v1/status"),
        (lambda _: httpx.Response(200, text="<html>"), HeadraceError, "not Headrace's"),
        (lambda _: httpx.Response(200, json=[1]), HeadraceError, "not Headrace's"),
        (lambda _: httpx.Response(504, json={"error": "x"}), DeadlineExceeded, "answered 504: x"),
        (silent, Unavailable, "nothing answers on h:1"),
        (late, DeadlineExceeded, "h:1 has not answered /admin/v1/status in time"),
    ],
)
def test_what_the_client_cannot_use_is_one_sentence(
    answer: Callable[[httpx.Request], httpx.Response], kind: type[HeadraceError], words: str
) -> None:
    with admin(answer) as client, pytest.raises(kind, match=words) as found:
        client.status()
    assert "the token" not in found.value.message
