"""`headrace audit`: who asked and was refused, from the audit log of a running Headrace."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from command.options import as_json, asks_admin
from command.terminal import Column, table

if TYPE_CHECKING:
    from command.client import AdminClient

PATIENCE_S = 60.0
"""Time-out of a search; the whole log may be gigabytes."""


def _caller(record: Mapping[str, Any]) -> str:
    from gateway.access.audit_reader import who

    return who(record)


def _optional(name: str) -> Callable[[Mapping[str, Any]], object]:
    return lambda row: row.get(name) or None


def _decisions(name: str) -> Callable[[Mapping[str, Any]], object]:
    return lambda caller: caller["decisions"][name]


def _reasons(caller: Mapping[str, Any]) -> str | None:
    return ", ".join(f"{reason} {count}" for reason, count in caller["reasons"].items()) or None


RECORD_COLUMNS = (
    Column("time", "time", rank=1),
    Column("caller", _caller, flexible=True),
    Column("name", _optional("name"), rank=6, flexible=True),
    Column("tier", _optional("tier"), rank=3),
    Column("model", _optional("model"), flexible=True),
    Column("decision", "decision"),
    Column("reason", _optional("reason")),
    Column("code", lambda record: record.get("code"), rank=2, right=True),
    Column("n", lambda record: record.get("count", 1), right=True),
    Column("ms", lambda record: record.get("latency_ms", {}).get("total"), rank=4, right=True),
    Column("request", _optional("request_id"), rank=5, flexible=True),
)
"""Columns of records; `n` is how many requests one stands for."""
CALLER_COLUMNS = (
    Column("caller", "caller", flexible=True),
    Column("name", _optional("name"), rank=5, flexible=True),
    Column("tier", _optional("tier"), rank=3),
    Column("refused", _decisions("refused"), right=True),
    Column("reasons", _reasons, flexible=True),
    Column("failed", _decisions("failed"), rank=1, right=True),
    Column("cancelled", _decisions("cancelled"), rank=2, right=True),
    Column("allowed (sampled)", _decisions("allowed"), rank=4, right=True),
    Column("first", _optional("first"), rank=6),
    Column("last", _optional("last")),
)


def checked_time(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A time that the admin API reads, refused as wrong usage before anything is asked."""
    from gateway.access.audit_reader import parse_since

    try:
        if value is not None:
            parse_since(value, time.time())
    except ValueError as error:
        raise click.BadParameter(f"{value!r} {error}") from None
    return value


@click.command()
@click.option("--caller", help="key:ID, jwt:SUBJECT, ip:ADDRESS, or how it begins: ip:10.0.")
@click.option("--since", callback=checked_time, metavar="TIME", help="10m, 2h, 1d or ISO time.")
@click.option("--until", callback=checked_time, metavar="TIME", help="Before that time.")
@click.option(
    "--decision",
    type=click.Choice(["allowed", "refused", "cancelled", "failed"]),
    help="What became of the request; what was allowed is written as a sample only.",
)
@click.option("--reason", metavar="WORD", help="rate, quota, concurrency, queue, credential, ...")
@click.option("--model", help="Asked for that model.")
@click.option("--limit", type=click.IntRange(1, 10_000), help="So many lines at most.")
@click.option("--summary", is_flag=True, help="Count by caller, the most refused first.")
@asks_admin(timeout_s=PATIENCE_S)
@as_json
def audit(client: AdminClient, summary: bool, as_json: bool, **filters: Any) -> None:
    """Show decisions of the gateways on that machine, newest first."""
    given = {name: value for name, value in filters.items() if value is not None}
    answer = client.audit_summary(given) if summary else client.audit(given)
    if as_json:
        click.echo(json.dumps(answer))
    elif not answer["callers" if summary else "records"]:
        click.echo("nothing is found")
    else:
        everybody = {**answer.get("total", {}), "caller": "all", "name": "", "tier": ""}
        rows = [*answer["callers"], everybody] if summary else answer["records"]
        Console().print(table(CALLER_COLUMNS if summary else RECORD_COLUMNS, rows))
