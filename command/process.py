"""`headrace process` and `headrace jobs`: large pictures and videos, now or later."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from command.findings import render, render_job, render_jobs
from command.options import as_json, at_http, exit_codes, model_version, read_key
from command.terminal import WorkProgress
from headrace.errors import ConfigError, HeadraceError, InvalidArgument

if TYPE_CHECKING:
    from command.client import JsonObject
    from command.instance import InstanceAddress
    from command.media_client import MediaClient

POLLS_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between questions for a job; the last one for ever."""
OPEN_STATES = frozenset(("queued", "running"))


def drawable(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """A file to draw to, refused as wrong usage before anything is sent."""
    if value is None:
        return None
    path = Path(value)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise click.BadParameter(f"{value!r} should end in .png, .jpg or .webp")
    if not path.parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(path.parent)!r}")
    return path


@click.command()
@click.argument("model")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@model_version
@click.option("--threshold", type=float, help="Least score, 0 to 1.")
@click.option("--top-k", type=int, help="So many boxes or labels at most.")
@click.option("--classes", metavar="LIST", help="Only these: labels or class ids, with commas.")
@click.option("--tile", type=int, help="Side of a tile, pixels.")
@click.option("--overlap", type=int, help="Overlap of two tiles, pixels.")
@click.option("--scales", metavar="LIST", help="Look at the picture in these scales: 1,0.5.")
@click.option("--fps", type=float, help="Frames of a video to look at, per second.")
@click.option("--start", "start_s", type=float, help="From this moment of a video on, s.")
@click.option("--end", "end_s", type=float, help="Up to this moment of a video, s.")
@click.option("--partial", is_flag=True, help="Take what is there if parts fail.")
@click.option("--draw", callback=drawable, metavar="OUT.png", help="Draw what is found.")
@click.option("--async", "later", is_flag=True, help="As a job, which goes on without us.")
@click.option("--timeout", default=600.0, show_default=True, help="Deadline, s.")
@at_http
@as_json
def process(
    model: str,
    file: Path,
    model_version: int | None,
    draw: Path | None,
    later: bool,
    timeout: float,
    http: str | None,
    key_file: str | None,
    ca: str | None,
    certificate: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Find what is in FILE, a picture or video of any size, with MODEL.

    Shows boxes in the picture's pixels, or labels with their times in seconds.
    """
    from command.instance import find_listener

    options = _options(asked)
    with exit_codes():
        if draw is not None:
            _need_drawing()
        with (
            _client(find_listener(http, ca, certificate), key_file, timeout) as client,
            WorkProgress(Console(stderr=True), file) as progress,
        ):
            send = client.submit if later else client.process
            begun: Any = send(model, model_version, file, options, progress.sent)
            result = follow(client, begun, progress.job) if later else _last(begun, progress.event)
        if as_json:
            click.echo(json.dumps(result))
        else:
            Console().print(render(result))
        if draw is not None:
            save_drawing(file, result, draw)
            click.echo(f"drawn to {draw}", err=True)


@click.command()
@click.argument("job", required=False)
@click.option("--cancel", is_flag=True, help="Cancel JOB unless it has ended.")
@at_http
@as_json
def jobs(
    job: str | None,
    cancel: bool,
    http: str | None,
    key_file: str | None,
    ca: str | None,
    certificate: str | None,
    as_json: bool,
) -> None:
    """List your jobs, or show JOB: how far it is, or what it has found."""
    if cancel and job is None:
        raise click.UsageError("name the JOB to cancel")
    from command.instance import find_listener

    with exit_codes(), _client(find_listener(http, ca, certificate), key_file, 30.0) as client:
        if job is None:
            found = client.jobs()
            if as_json:
                click.echo(json.dumps({"jobs": found}))
            else:
                none = "no jobs are listed; those that were made without a key want their id"
                Console().print(render_jobs(found) if found else none)
            return
        document = client.cancel(job) if cancel else client.job(job)
    if as_json:
        click.echo(json.dumps(document))
        return
    Console().print(render_job(document), soft_wrap=True)
    if result := document.get("result"):
        Console().print(render(result))


def follow(
    client: MediaClient,
    document: JsonObject,
    shown: Callable[[JsonObject], None],
    sleep: Callable[[float], None] = time.sleep,
) -> JsonObject:
    """Wait for a job; its result. Raises `HeadraceError` where it failed.

    Ctrl-C leaves the job running.
    """
    job_id = str(document["id"])
    polls = 0
    try:
        while document["state"] in OPEN_STATES:
            shown(document)
            sleep(POLLS_S[min(polls, len(POLLS_S) - 1)])
            polls += 1
            document = client.job(job_id)
    except KeyboardInterrupt:
        raise HeadraceError(f"the job goes on; see it with: headrace jobs {job_id}") from None
    shown(document)
    result: JsonObject | None = document.get("result")
    if result is None:
        error = document.get("error")
        why = f": {error['error']}" if error else ""
        raise HeadraceError(f"job {job_id} is {document['state']}{why}")
    return result


def save_drawing(file: Path, result: JsonObject, target: Path) -> None:
    """Draw a result on its picture or video; raises `HeadraceError`."""
    from command.drawing import draw_boxes, draw_timeline, moments, read_frames, read_picture

    if "tags" in result:
        times_s = moments(float(result.get("duration_s") or 0.0))
        drawn = draw_timeline(result, read_frames(file, times_s))
    elif "boxes" in result:
        drawn = draw_boxes(read_picture(file), result)
    else:
        raise HeadraceError("the answer has neither boxes nor tags to draw")
    try:
        drawn.save(target)
    except OSError as error:
        raise HeadraceError(f"cannot write {target}: {error.strerror or error}") from None


def _last(events: Iterator[JsonObject], shown: Callable[[JsonObject], None]) -> JsonObject:
    """Result at the end of the events."""
    for event in events:
        shown(event)
        if event.get("event") == "result":
            result: JsonObject = event["result"]
            return result
    raise HeadraceError("the answer ended before the result: the connection was cut")


def _options(asked: Mapping[str, Any]) -> str:
    """JSON text of the options; raises `click.UsageError` where the server would refuse them."""
    from gateway.media.options import encode_options, query_options, read_options

    given = {name: value for name, value in asked.items() if value is not None}
    if given.pop("partial"):
        given["partial"] = "allow"
    try:
        pairs = [(name, str(value)) for name, value in given.items()]
        return encode_options(read_options(query_options(pairs)))
    except InvalidArgument as error:
        raise click.UsageError(error.message) from None


def _client(target: InstanceAddress, key_file: str | None, timeout_s: float) -> MediaClient:
    from command.media_client import MediaClient

    key, trust = read_key(key_file), target.trust("http")
    return MediaClient(target.http, key, trust=trust, timeout_s=timeout_s)


def _need_drawing() -> None:
    """Raise `ConfigError` where the libraries of the extra `media` are missing."""
    try:
        for name in ("av", "PIL", "pyvips"):
            import_module(name)
    except ImportError:
        raise ConfigError("drawing needs libraries: pip install 'headrace[media]'") from None
