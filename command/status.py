"""`headrace status`: models, versions, slots and callers of a running instance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from command.options import as_json, asks_admin, watched
from command.terminal import Column, FittingTable, show, table
from headrace.errors import NotFound

if TYPE_CHECKING:
    from command.client import AdminClient

KINDS = {
    "broken": "its files are refused",
    "memory": "its slot ran out of memory",
    "died": "its slot's process died",
    "other": "",
}


def report(name: str, failures: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """Reason, count, next try and last log lines of each failure."""
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


COLOURS = {
    "READY": "green",
    "UP": "green",
    "STANDBY": "cyan",
    "FAILED": "red",
    "DRAINING": "yellow",
}

MODEL_COLUMNS = (
    Column("model", "name", flexible=True),
    Column("state", "state"),
    Column("serves", "serves", rank=7, flexible=True),
    Column("slots", "slots", rank=2, right=True),
    Column("load s", "load_s", rank=6, right=True),
    Column("requests", "requests", rank=4, right=True),
    Column("errors", "errors", rank=3, right=True),
    Column("in flight", "in_flight", right=True),
    Column("queued", "queued", rank=5, right=True),
    Column("p50 ms", "p50_ms", rank=1, right=True),
    Column("p99 ms", "p99_ms", right=True),
)
SLOT_COLUMNS = (
    Column("slot", "slot_id"),  # begins with its class and process number
    Column("class", "slot_class", rank=3),
    Column("state", "state"),
    Column("models", lambda slot: ", ".join(slot["models"]) or None, flexible=True),
    Column("pid", "pid", rank=2, right=True),
    Column("MB", lambda slot: _megabytes(slot["memory_bytes"]), rank=1, right=True),
    Column("in flight", "in_flight", right=True),
)
CALLER_COLUMNS = (
    Column("busiest callers", "caller", flexible=True),
    Column("name", lambda caller: caller["name"] or None, rank=1, flexible=True),
    Column("tier", "tier"),
    Column("per s", lambda caller: f"{caller['per_s']:.1f}", right=True),
    Column("in flight", "in_flight", rank=2, right=True),
    Column("waiting", "waiting", rank=3, right=True),
    Column("allowed", "allowed", right=True),
    Column("refused", "refused", right=True),
)
SUMMED = ("per_s", "in_flight", "waiting", "allowed", "refused")
CALLERS_SHOWN = 5


@click.command()
@click.argument("model", required=False)
@watched
@asks_admin()
@as_json
def status(client: AdminClient, model: str | None, watch: bool, as_json: bool) -> None:
    """Show models, versions, slots, states, requests in flight and latencies.

    With MODEL only that one, and why it could not be loaded: what its slot left behind, how often
    it failed and when it is tried again.
    """
    if model is None:
        show(client.status, render, as_json=as_json, watch=watch)
        return
    one, named = partial(render_model, name=model), partial(model_of, name=model)
    show(client.status, one, as_json=as_json, watch=watch, document=named)


def render(status: Mapping[str, Any]) -> RenderableType:
    """Headline, models with their versions, what is wrong with them, slots, busiest callers."""
    parts: list[RenderableType] = [headline(status), Text(), models(status), *reasons(status)]
    parts += [Text(), slots(status)]
    if any(gateway.get("busiest") for gateway in status["gateways"]):
        parts += [Text(), callers(status)]
    return Group(*parts)


def render_model(status: Mapping[str, Any], name: str) -> RenderableType:
    """One model: its versions, the slots that hold it, its failures."""
    model = model_of(status, name)
    holders = {slot_id for version in model["versions"] for slot_id in version["slots"]}
    part = {
        **status,
        "models": [model],
        "slots": [slot for slot in status["slots"] if slot["slot_id"] in holders],
    }
    parts: list[RenderableType] = [models(part), *reasons(part)]
    if part["slots"]:
        parts += [Text(), slots(part)]
    return Group(*parts, *report(name, model["failures"]))


def model_of(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A model's part of the status; raises `NotFound`."""
    for model in status["models"]:
        if model["name"] == name:
            found: Mapping[str, Any] = model
            return found
    known = ", ".join(sorted(model["name"] for model in status["models"])) or "none"
    raise NotFound(f"model {name!r} is not served; served are: {known}")


def headline(status: Mapping[str, Any]) -> Text:
    """Readiness, pool and addresses."""
    ready = ("ready", "bold green") if status["ready"] else ("not ready", "bold red")
    pool = "" if status["pool"] == "connected" else ", the pool is away"
    addresses = "  ".join(f"{name} {where}" for name, where in status["addresses"].items())
    figures = f"{pool}  generation {status['generation']}  gateways {len(status['gateways'])}\n"
    return Text.assemble("Headrace ", status["version"], " is ", ready, figures, addresses)


def models(status: Mapping[str, Any]) -> FittingTable:
    """One row for each version; the figures of a model stand in its first row."""
    rows: list[dict[str, Any]] = []
    for model in status["models"]:
        figures: dict[str, Any] = {
            **{name: model[name] for name in ("requests", "errors", "in_flight", "queued")},
            **{name: _milliseconds(model[name]) for name in ("p50_ms", "p99_ms")},
        }
        if not model["versions"]:
            nothing = dict.fromkeys(("state", "serves", "load_s"))
            rows.append({"name": model["name"], **nothing, "slots": 0, **figures})
        for version in model["versions"]:
            row = {
                "name": f"{model['name']}/{version['version']}",
                "state": version["state"],
                "serves": _serves(model, version["version"]),
                "slots": len(version["slots"]),
                "load_s": f"{version['load_s']:.2f}" if version["load_s"] else None,
            }
            rows.append(row | figures)
            figures = dict.fromkeys(figures, "")
    return table(MODEL_COLUMNS, rows, COLOURS)


def _serves(model: Mapping[str, Any], version: int) -> str | None:
    """`default` and the labels that point to a version."""
    labels = [label for label, number in model["labels"].items() if number == version]
    return ", ".join((["default"] if model["default"] == version else []) + labels) or None


def reasons(status: Mapping[str, Any]) -> Sequence[Text]:
    """One line for each problem of the budgets, the store, models and versions."""
    lines: list[Text] = []
    if any(gateway.get("budget_store") == "away" for gateway in status["gateways"]):
        text = "the store of budgets is away: each gateway goes on with its part of the limits"
        lines.append(Text(text, style="yellow"))
    if status["store_problem"]:
        lines.append(Text(f"store: {status['store_problem']}", style="red"))
    for model in status["models"]:
        if model["reason"]:
            lines.append(Text(f"{model['name']}: {model['reason']}", style="red"))
        for version in model["versions"]:
            if version["reason"]:
                text = f"{model['name']}/{version['version']}: {version['reason']}"
                lines.append(Text(text, style="red"))
        for version in model["versions"]:
            if ignored := ", ".join(version.get("ignored", ())):
                text = f"{model['name']}/{version['version']}: config.pbtxt: ignored are {ignored}"
                lines.append(Text(text, style="yellow"))
        for number, reason in model["incomplete"].items():
            text = f"{model['name']}/{number}: not taken up: {reason}"
            lines.append(Text(text, style="yellow"))
        if model["rejected"]:
            left = ", ".join(map(str, model["rejected"]))
            lines.append(Text(f"{model['name']}: rolled back from {left}", style="yellow"))
    return [Text(), *lines] if lines else []


def slots(status: Mapping[str, Any]) -> FittingTable:
    """One row for each slot process."""
    return table(SLOT_COLUMNS, status["slots"], COLOURS)


def callers(status: Mapping[str, Any]) -> FittingTable:
    """One row for each of the busiest callers of all gateways."""
    found: dict[str, dict[str, Any]] = {}
    for gateway in status["gateways"]:
        for caller in gateway.get("busiest", ()):
            known = found.setdefault(caller["caller"], {**caller, **dict.fromkeys(SUMMED, 0)})
            for figure in SUMMED:
                known[figure] += caller[figure]
    ranked = sorted(found.values(), key=lambda caller: caller["per_s"], reverse=True)
    return table(CALLER_COLUMNS, ranked[:CALLERS_SHOWN])


def _milliseconds(value: float | None) -> str | None:
    """`0.8`, `12.3`, `1235`."""
    return None if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _megabytes(value: int) -> str | None:
    return f"{value / 2**20:.0f}" if value else None
