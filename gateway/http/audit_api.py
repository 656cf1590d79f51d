"""`/admin/v1/audit`: the audit log of the gateways that write into this one's folder."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from gateway.access.audit import DECISIONS
from gateway.access.audit_reader import Query, find, parse_since, summarize
from gateway.http.answers import json_answer
from headrace.errors import FailedPrecondition, InvalidArgument

DEFAULT_LIMIT = 100
DEFAULT_CALLERS = 20
MAX_LIMIT = 10_000
FILTERS = ("caller", "since", "until", "decision", "reason", "model")

T = TypeVar("T")

audit = APIRouter()
"""Its application keeps the folder in `state.audit_folder`, None where the log is off."""


@audit.get("/admin/v1/audit")
async def records(request: Request) -> Response:
    """`{"records": [...]}`, newest first; `limit` of them at most."""
    query, limit = _query(request.query_params, DEFAULT_LIMIT)
    found = await _read(request, lambda folder: find(folder, query, limit))
    return json_answer({"records": found})


@audit.get("/admin/v1/audit/summary")
async def summary(request: Request) -> Response:
    """Counts by decision and reason of all, and of the `limit` callers with the most refusals."""
    query, limit = _query(request.query_params, DEFAULT_CALLERS)
    return json_answer(await _read(request, lambda folder: summarize(folder, query, limit)))


async def _read(request: Request, read: Callable[[Path], T]) -> T:
    folder: Path | None = request.app.state.audit_folder
    if folder is None:
        raise FailedPrecondition("the audit log is off: `audit.enabled` of the config is false")
    try:
        return await run_in_threadpool(read, folder)
    except OSError as error:
        raise FailedPrecondition(f"cannot read {folder}: {error.strerror or error}") from None


def _query(given: Mapping[str, str], limit: int) -> tuple[Query, int]:
    for name in given:
        if name not in (*FILTERS, "limit"):
            known = ", ".join((*FILTERS, "limit"))
            raise InvalidArgument(f"there is no parameter {name!r}; these are known: {known}")
    now_s = time.time()
    wanted: dict[str, Any] = {name: given.get(name) or None for name in FILTERS}
    if wanted["decision"] not in (None, *DECISIONS):
        raise InvalidArgument(f"'decision' should be one of {', '.join(DECISIONS)}")
    return Query(
        caller=wanted["caller"],
        since_s=_time(given, "since", now_s),
        until_s=_time(given, "until", now_s),
        decision=wanted["decision"],
        reason=wanted["reason"],
        model=wanted["model"],
    ), _limit(given.get("limit"), limit)


def _time(given: Mapping[str, str], name: str, now_s: float) -> float | None:
    if not (text := given.get(name)):
        return None
    try:
        return parse_since(text, now_s)
    except ValueError as error:
        raise InvalidArgument(f"{name!r} {error}") from None


def _limit(text: str | None, default: int) -> int:
    if not text:
        return default
    if not (re.fullmatch(r"[0-9]{1,9}", text) and 1 <= int(text) <= MAX_LIMIT):
        raise InvalidArgument(f"'limit' should be a number from 1 to {MAX_LIMIT}")
    return int(text)
