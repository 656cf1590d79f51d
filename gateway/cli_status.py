"""The tables of `headrace status`; pure: from the status answer to rich renderables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

COLOURS = {"READY": "green", "UP": "green", "FAILED": "red", "DRAINING": "yellow"}


def render(status: Mapping[str, Any]) -> RenderableType:
    """A headline, the models with their versions, and the slots."""
    return Group(headline(status), Text(), models(status), Text(), slots(status))


def headline(status: Mapping[str, Any]) -> Text:
    """Ready or not, the pool, and where it listens."""
    ready = ("ready", "bold green") if status["ready"] else ("not ready", "bold red")
    pool = "" if status["pool"] == "connected" else ", the pool is away"
    addresses = "  ".join(f"{name} {where}" for name, where in status["addresses"].items())
    figures = f"{pool}  generation {status['generation']}  gateways {len(status['gateways'])}\n"
    return Text.assemble("Headrace ", status["version"], " is ", ready, figures, addresses)


def models(status: Mapping[str, Any]) -> Table:
    """One row for each version; the figures of a model stand in its first row."""
    table = Table("model", "version", "state", "slots", box=None, pad_edge=False)
    for name in ("load", "requests", "errors", "in flight", "queued", "p50", "p99"):
        table.add_column(name, justify="right")
    for model in status["models"]:
        figures = (
            str(model["requests"]),
            str(model["errors"]),
            str(model["in_flight"]),
            str(model["queued"]),
            _milliseconds(model["p50_ms"]),
            _milliseconds(model["p99_ms"]),
        )
        if not model["versions"]:
            table.add_row(model["name"], "-", _state("", model["reason"]), "0", "-", *figures)
        for number, version in enumerate(model["versions"]):
            table.add_row(
                "" if number else model["name"],
                str(version["version"]),
                _state(version["state"], version["reason"]),
                str(len(version["slots"])),
                f"{version['load_s']:.2f} s" if version["load_s"] else "-",
                *(figures if number == 0 else ()),
            )
    return table


def slots(status: Mapping[str, Any]) -> Table:
    """One row for each slot process."""
    table = Table("slot", "class", "state", "models", box=None, pad_edge=False)
    for name in ("pid", "memory", "in flight"):
        table.add_column(name, justify="right")
    for slot in status["slots"]:
        table.add_row(
            str(slot["slot_id"])[:12],
            slot["slot_class"],
            _state(slot["state"], ""),
            ", ".join(slot["models"]) or "-",
            str(slot["pid"]),
            _megabytes(slot["memory_bytes"]),
            str(slot["in_flight"]),
        )
    return table


def _state(state: str, reason: str) -> Text:
    text = Text(state, style=COLOURS.get(state, ""))
    return text.append(f" {reason}".rstrip(), style="dim") if reason else text


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _megabytes(value: int) -> str:
    return f"{value / 2**20:.0f} MB" if value else "-"
