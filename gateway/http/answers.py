"""What every HTTP answer outside of the fast lane has: JSON, error bodies and a request id."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access.limits import limit_fields
from gateway.access.visit import Head, Visit
from gateway.headers import combined, error_headers
from gateway.http.cors import Cors
from gateway.http.paths import routed_path
from headrace.errors import (
    HeadraceError,
    InternalError,
    InvalidArgument,
    MethodNotAllowed,
    NotFound,
)
from headrace.link.queue import Answer
from headrace.protocols.targets import canonical_path, encode_error, is_upload

OPEN_PATHS = ("/healthz", "/readyz", "/v2/health/")
"""Paths that are answered without access control: a probe has no credential."""
METHODS = ("GET", "POST", "PUT", "DELETE")
"""The methods that any path has, besides HEAD."""
MAX_FIELD = 128
"""Cap on the characters of a field's name in an error: the sender may have made it up."""

log = structlog.get_logger()


def json_answer(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def answer_errors(app: FastAPI) -> None:
    """Answer every error of the application with `{"error": text}`."""
    app.add_exception_handler(HeadraceError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_routing)
    app.add_exception_handler(RequestValidationError, _answer_unfit)
    app.add_exception_handler(Exception, _answer_unexpected)


class HeadAsGet:
    """Gives HEAD requests to the handlers of GET; the server leaves the body of an answer out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class Envelope:
    """Lets callers in; gives each request its canonical path, each answer its `X-Request-Id`.

    A browser that asks before it sends is answered here: it has no credential yet.
    """

    def __init__(self, app: ASGIApp, admit: Callable[[Visit], None], cors: Cors) -> None:
        self._app, self._admit, self._cors = app, admit, cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = combined(scope["headers"])
        client = scope.get("client")
        shown = scope.get("state", {}).get("certificate")
        visit = Visit(Head(headers, client[0] if client else "", shown))
        identity = visit.request_id
        path = canonical_path(routed_path(scope["raw_path"]))
        headers[b"x-request-id"] = identity.encode("latin-1")
        more = {"x-request-id": identity, **self._cors.fields(headers)}
        state = {**scope.get("state", {}), "request_id": identity}

        async def send_with_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(more)
            await send(message)

        try:
            preflight = self._cors.preflight(scope["method"], headers)
        except HeadraceError as error:
            await error_answer(error)(scope, receive, send_with_more)
            return
        if preflight is not None:
            await Response(None, 204, preflight)(scope, receive, send_with_more)
            return
        # What is uploaded has a way in of its own: it may have to wait for its turn.
        probed = path == "/" or path.startswith(OPEN_PATHS)
        if not (probed or is_upload(scope["method"], path)):
            state["visit"] = visit
            try:
                self._admit(visit)
            except HeadraceError as error:
                more |= told_limits(visit, error)
                await error_answer(error)(scope, receive, send_with_more)
                return
            more |= told_limits(visit)
        await self._app({**scope, "path": path, "state": state}, receive, send_with_more)


def told_limits(visit: Visit, answer: Answer | None = None) -> dict[str, str]:
    """The headers that tell what is left of a caller's limits."""
    return dict(limit_fields(visit.limit_headers(time.monotonic(), answer)))


def error_answer(error: HeadraceError) -> Response:
    """The answer that says what was wrong, and when to come back."""
    body, headers = encode_error(error).body, error_headers(error)
    return Response(body, error.http_status, headers, media_type="application/json")


async def _answer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HeadraceError)
    return error_answer(error)


async def _answer_routing(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405 in the protocols' form."""
    assert isinstance(error, HTTPException)
    if error.status_code == MethodNotAllowed.http_status:
        text = f"{request.method} is not allowed on this path"
        return error_answer(MethodNotAllowed(text, _allowed(request)))
    if error.status_code == NotFound.http_status:
        text = "there is nothing at this path"
    else:
        text = str(error.detail)
    body = encode_error(HeadraceError(text)).body
    headers = dict(error.headers or {})
    return Response(body, error.status_code, headers, media_type="application/json")


def _allowed(request: Request) -> str:
    """The methods of all routes at this path: the router names those of the first one."""
    found = [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.router.routes
        )
    ]
    return ", ".join(["HEAD", *found] if "GET" in found else found)


async def _answer_unfit(_: Request, error: Exception) -> Response:
    """FastAPI's 422 shows the input, which may hold a secret; this names the field alone."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return error_answer(InvalidArgument("the body is not valid JSON"))
    field = ".".join(map(str, first["loc"][1:])) or "the body"
    return error_answer(InvalidArgument(f"{field[:MAX_FIELD]}: {first['msg']}"))


async def _answer_unexpected(request: Request, error: Exception) -> Response:
    log.error("request_failed", path=request.url.path, exc_info=error)
    return error_answer(InternalError())
