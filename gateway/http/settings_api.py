"""Triton's log and trace settings over HTTP: read, and set to what they are already."""

from __future__ import annotations

import structlog
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.answers import json_answer
from gateway.http.documents import read_document
from gateway.settings import TRACE_SETTINGS, check_log_settings, check_trace_settings, log_settings
from headrace.link.plane import find_model

settings = APIRouter()


@settings.api_route("/v2/logging", methods=["GET", "POST"])
async def logs(request: Request) -> Response:
    """What is logged; a POST that would change it is refused."""
    found = log_settings(structlog.get_logger().get_effective_level())
    if request.method == "POST":
        check_log_settings(await read_document(request), found)
    return json_answer(found)


@settings.api_route("/v2/trace/setting", methods=["GET", "POST"])
@settings.api_route("/v2/models/{name}/trace/setting", methods=["GET", "POST"])
async def traces(request: Request, name: str = "") -> Response:
    """What is traced, of all models or of one: nothing; a POST that would change it is refused."""
    if name:
        find_model(request.app.state.view.snapshot, name)
    if request.method == "POST":
        check_trace_settings(await read_document(request))
    return json_answer(TRACE_SETTINGS)
