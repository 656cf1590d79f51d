"""What `headrace status MODEL` tells of versions that could not be loaded; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

KINDS = {
    "broken": "its files are refused",
    "memory": "its slot ran out of memory",
    "died": "its slot's process died",
    "other": "",
}


def report(name: str, failures: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """For each failure why, how often, the next try, what the slot's process left behind."""
    for failure in failures:
        yield Text()
        yield Text(f"{name}/{failure['version']} could not be loaded", style="bold red")
        for label, text in _facts(failure):
            yield Text.assemble((f"  {label:<13}", "dim"), text)
        if failure["lines"]:
            yield Text("  last lines of its slot's log", style="dim")
            yield from (Padding(Text(line), (0, 0, 0, 4)) for line in failure["lines"])


def _facts(failure: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    kind = KINDS.get(failure["kind"], "")
    yield "why", f"{kind}: {failure['reason']}" if kind else failure["reason"]
    times = "once" if failure["count"] == 1 else f"{failure['count']} times"
    yield "failed", f"{times}, last {_duration(failure['ago_s'])} ago{_where(failure)}"
    yield "next try", _next_try(failure)
    if failure["kind"] in ("memory", "died"):
        code = failure["exit_code"]
        unknown = "not known: it was ended from outside, or was on another node than the pool"
        yield "exit code", unknown if code is None else str(code)
    if failure["memory_bytes"]:
        yield "memory", _memory(failure["memory_bytes"], failure["limit_bytes"])


def _where(failure: Mapping[str, Any]) -> str:
    slot_class = failure["slot_class"]
    return f", in a slot of class {slot_class}" if slot_class else ""


def _next_try(failure: Mapping[str, Any]) -> str:
    if failure["retry_in_s"] is None:
        return "not until its files or its config change, or `headrace load` orders it"
    when = f"in {_duration(failure['retry_in_s'])}" if failure["retry_in_s"] else "now"
    if failure["next_class"] != failure["slot_class"]:
        return f"{when}, in a slot of class {failure['next_class']}, which may take more memory"
    return when


def _memory(memory_bytes: int, limit_bytes: int) -> str:
    """`498 MB of 500 MB (100 %)`."""
    taken = f"{memory_bytes / 2**20:.0f} MB"
    if not limit_bytes:
        return f"{taken} when last seen; the slot class has no limit"
    return f"{taken} of {limit_bytes / 2**20:.0f} MB ({memory_bytes / limit_bytes:.0%})"


def _duration(seconds: float) -> str:
    """`4 s`, `12 min`, `3 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"
