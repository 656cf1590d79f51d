"""Large pictures and videos over HTTP: `POST /v1/models/{model}:process`, and the jobs of it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.answers import json_answer
from gateway.http.media import MediaDesk, MediaExchange, owner_of
from headrace.errors import Unimplemented
from headrace.protocols.targets import InferPath, parse_version


def _desk(request: Request) -> MediaDesk:
    desk: MediaDesk | None = request.app.state.media
    if desk is None:
        raise Unimplemented("this server does not split large pictures and videos")
    return desk


def _caller(request: Request) -> str | None:
    """Whose jobs are asked for; None on the admin's listener, where all are seen."""
    return None if request.app.state.admin else owner_of(request.state.ticket)


Desk = Annotated[MediaDesk, Depends(_desk)]
Owner = Annotated[str | None, Depends(_caller)]
uploads = APIRouter()
jobs = APIRouter()


@uploads.post("/v1/models/{model}:process")
@uploads.post("/v1/models/{model}/versions/{version}:process")
@uploads.post("/v1/models/{model}/labels/{label}:process")
async def process(
    desk: Desk, model: str, version: str | None = None, label: str | None = None
) -> Response:
    """Find what a picture or video shows, however large it is: see `docs/media.md`."""
    number = None if version is None else parse_version(version)
    return MediaExchange(desk, InferPath("media", "process", model, number, label))


@jobs.get("/v1/jobs")
async def list_jobs(desk: Desk, caller: Owner) -> Response:
    """`{"jobs": [...]}`: the caller's own, newest first."""
    return json_answer({"jobs": await desk.stage.jobs(caller)})


@jobs.get("/v1/jobs/{job_id}")
async def read_job(desk: Desk, caller: Owner, job_id: str) -> Response:
    """A job's state, progress and result."""
    return json_answer(await desk.stage.job(job_id, caller))


@jobs.delete("/v1/jobs/{job_id}")
async def cancel_job(desk: Desk, caller: Owner, job_id: str) -> Response:
    """Cancel a job; one that has ended stays as it is."""
    return json_answer(await desk.stage.cancel(job_id, caller))
