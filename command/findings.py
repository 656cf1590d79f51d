"""Tables of what was found in pictures and videos, and of jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from command.terminal import Column, FittingTable, counted, table

if TYPE_CHECKING:
    from command.client import JsonObject

BOX_COLUMNS = (
    Column("label", lambda box: box.get("label") or box["class"], flexible=True),
    Column("score", lambda box: f"{box['score']:.3f}", right=True),
    Column("x1", lambda box: f"{box['box'][0]:.1f}", right=True),
    Column("y1", lambda box: f"{box['box'][1]:.1f}", right=True),
    Column("x2", lambda box: f"{box['box'][2]:.1f}", right=True),
    Column("y2", lambda box: f"{box['box'][3]:.1f}", right=True),
)
TAG_COLUMNS = (
    Column("label", "label", flexible=True),
    Column("score", lambda tag: f"{tag['score']:.3f}", right=True),
    Column("from s", lambda tag: f"{tag['start_s']:.2f}", right=True),
    Column("to s", lambda tag: f"{tag['end_s']:.2f}", right=True),
)
JOB_COLUMNS = (
    Column("job", "id"),
    Column("model", "model", flexible=True),
    Column("state", "state"),
    Column("parts", lambda job: _parts(job.get("progress") or {}), rank=2, right=True),
    Column("left s", lambda job: _left(job.get("eta_s")), rank=3, right=True),
    Column("made", lambda job: _minute(job["created"]), rank=1),
)
STATES = {"done": "green", "running": "cyan", "failed": "red", "cancelled": "yellow"}


def render(answer: JsonObject) -> RenderableType:
    """A headline, boxes or tags, and what is missing or worth a note."""
    parts: list[RenderableType] = [headline(answer)]
    if answer.get("boxes"):
        parts.append(boxes(answer["boxes"]))
    if answer.get("tags"):
        parts.append(tags(answer["tags"]))
    return Group(*parts, *remarks(answer))


def headline(answer: JsonObject) -> Text:
    """Model, counts and time, and how the work was shared."""
    shards = answer.get("shards", ())
    names = {each["shard"] for each in shards}
    cached = sum(bool(each["cached"]) for each in shards)
    name = f"{answer['model']}/{answer['version']}" if answer.get("version") else answer["model"]
    found = ", ".join(
        counted(len(answer[kind]), word)
        for kind, word in (("boxes", "box"), ("tags", "tag"))
        if kind in answer
    )
    work = f"{counted(len(shards), 'part')} on {counted(len(names), 'shard')}"
    if cached:
        work += f", {cached} from the cache"
    took = answer.get("timing", {}).get("total_s")
    more = f" in {took:.2f} s" if took is not None else ""
    return Text.assemble((name, "bold"), f": {found or 'done'}{more} ({work})")


def boxes(found: Sequence[JsonObject]) -> FittingTable:
    """One row for each box, the highest score first."""
    ranked = sorted(found, key=lambda box: -float(box["score"]))
    return table(BOX_COLUMNS, ranked)


def tags(found: Sequence[JsonObject]) -> FittingTable:
    """One row for each range, in order of time."""
    ranked = sorted(found, key=lambda tag: (tag["start_s"], tag["end_s"]))
    return table(TAG_COLUMNS, ranked)


def remarks(answer: JsonObject) -> Iterator[Text]:
    """A line for each part without a result, and for each note."""
    for each in answer.get("missing", ()):
        if each.get("box"):
            x1, y1, x2, y2 = each["box"]
            where = f"{x1:.0f}, {y1:.0f} to {x2:.0f}, {y2:.0f}"
        else:
            where = f"{each['start_s']:.2f} s to {each['end_s']:.2f} s"
        yield Text(f"part {each['part']} ({where}) was not done: {each['reason']}", style="red")
    for note in answer.get("notes", ()):
        yield Text(f"note: {note}", style="yellow")


def render_job(job: JsonObject) -> Text:
    """A line on how far a job is, and why it failed."""
    progress, left_s = job.get("progress") or {}, job.get("eta_s")
    style = STATES.get(job["state"], "")
    line = Text.assemble((str(job["id"]), "bold"), f" ({job['model']}): ", (job["state"], style))
    if progress.get("parts"):
        line.append(f", {progress['done']} of {counted(progress['parts'], 'part')}")
    if left_s is not None:
        line.append(f", about {left_s:.0f} s left")
    if job.get("error"):
        line.append(f": {job['error']['error']}", style="red")
    return line


def render_jobs(jobs: Sequence[JsonObject]) -> FittingTable:
    """One row for each job."""
    return table(JOB_COLUMNS, jobs, STATES)


def _parts(progress: JsonObject) -> str:
    return f"{progress.get('done', 0)}/{progress.get('parts') or '-'}"


def _left(eta_s: float | None) -> str | None:
    return None if eta_s is None else f"{eta_s:.0f}"


def _minute(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M")
