"""Tables of what was found in pictures and videos, and of jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from command.terminal import Column, FittingTable, counted

if TYPE_CHECKING:
    from command.client import JsonObject

BOX_COLUMNS = (
    Column("label", flexible=True),
    Column("score", right=True),
    Column("x1", right=True),
    Column("y1", right=True),
    Column("x2", right=True),
    Column("y2", right=True),
)
TAG_COLUMNS = (
    Column("label", flexible=True),
    Column("score", right=True),
    Column("from s", right=True),
    Column("to s", right=True),
)

JOB_COLUMNS = (
    Column("job"),
    Column("model", flexible=True),
    Column("state"),
    Column("parts", rank=2, right=True),
    Column("left s", rank=3, right=True),
    Column("made", rank=1),
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
    places = {each["shard"] for each in shards}
    cached = sum(bool(each["cached"]) for each in shards)
    name = f"{answer['model']}/{answer['version']}" if answer.get("version") else answer["model"]
    found = ", ".join(
        counted(len(answer[kind]), word)
        for kind, word in (("boxes", "box"), ("tags", "tag"))
        if kind in answer
    )
    work = f"{counted(len(shards), 'part')} on {counted(len(places), 'shard')}"
    if cached:
        work += f", {cached} from the cache"
    took = answer.get("timing", {}).get("total_s")
    more = f" in {took:.2f} s" if took is not None else ""
    return Text.assemble((name, "bold"), f": {found or 'done'}{more} ({work})")


def boxes(found: Sequence[JsonObject]) -> FittingTable:
    """One row for each box, the highest score first."""
    ranked = sorted(found, key=lambda box: -float(box["score"]))
    rows = [
        (_label(box), f"{box['score']:.3f}", *(f"{side:.1f}" for side in box["box"]))
        for box in ranked
    ]
    return _table(BOX_COLUMNS, rows)


def tags(found: Sequence[JsonObject]) -> FittingTable:
    """One row for each range, in order of time."""
    ranked = sorted(found, key=lambda tag: (tag["start_s"], tag["end_s"]))
    rows = [
        (tag["label"], f"{tag['score']:.3f}", f"{tag['start_s']:.2f}", f"{tag['end_s']:.2f}")
        for tag in ranked
    ]
    return _table(TAG_COLUMNS, rows)


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
    rows = []
    for job in jobs:
        progress, left_s = job.get("progress") or {}, job.get("eta_s")
        made = datetime.fromtimestamp(job["created"], UTC).strftime("%Y-%m-%d %H:%M")
        parts = f"{progress.get('done', 0)}/{progress.get('parts') or '-'}"
        left = "-" if left_s is None else f"{left_s:.0f}"
        state = Text(job["state"], STATES.get(job["state"], ""))
        rows.append((job["id"], job["model"], state, parts, left, made))
    return _table(JOB_COLUMNS, rows)


def _label(box: JsonObject) -> str:
    return str(box.get("label") or box["class"])


def _table(columns: tuple[Column, ...], rows: Sequence[Sequence[str | Text]]) -> FittingTable:
    return FittingTable(columns, tuple(tuple(map(_text, row)) for row in rows))


def _text(cell: str | Text) -> Text:
    return Text(cell) if isinstance(cell, str) else cell
