"""`headrace audit`: who asked and was refused, from the audit log of a running Headrace."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from command.options import as_json, asks_admin
from command.terminal import Column, FittingTable

if TYPE_CHECKING:
    from command.client import AdminClient

PATIENCE_S = 60.0
"""Time-out of a search; the whole log may be gigabytes."""


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
        Console().print(callers(answer) if summary else records(answer))


def records(answer: Mapping[str, Any]) -> FittingTable:
    """One row for each record; `n` is how many it stands for."""
    from gateway.access.audit_reader import who

    columns = (
        Column("time", rank=1),
        Column("caller", flexible=True),
        Column("name", rank=6, flexible=True),
        Column("tier", rank=3),
        Column("model", flexible=True),
        Column("decision"),
        Column("reason"),
        Column("code", rank=2, right=True),
        Column("n", right=True),
        Column("ms", rank=4, right=True),
        Column("request", rank=5, flexible=True),
    )
    rows = [
        (
            record["time"],
            who(record),
            record.get("name"),
            record.get("tier"),
            record.get("model"),
            record["decision"],
            record.get("reason"),
            record.get("code"),
            record.get("count", 1),
            record.get("latency_ms", {}).get("total"),
            record.get("request_id"),
        )
        for record in answer["records"]
    ]
    return FittingTable(columns, tuple(_row(*row) for row in rows))


def callers(answer: Mapping[str, Any]) -> FittingTable:
    """One row for each caller, and one for all."""
    columns = (
        Column("caller", flexible=True),
        Column("name", rank=5, flexible=True),
        Column("tier", rank=3),
        Column("refused", right=True),
        Column("reasons", flexible=True),
        Column("failed", rank=1, right=True),
        Column("cancelled", rank=2, right=True),
        Column("allowed (sampled)", rank=4, right=True),
        Column("first", rank=6),
        Column("last"),
    )
    everybody = {**answer["total"], "caller": "all", "name": "", "tier": ""}
    rows = [
        (
            each["caller"],
            each["name"],
            each["tier"],
            each["decisions"]["refused"],
            ", ".join(f"{reason} {count}" for reason, count in each["reasons"].items()),
            each["decisions"]["failed"],
            each["decisions"]["cancelled"],
            each["decisions"]["allowed"],
            each["first"],
            each["last"],
        )
        for each in (*answer["callers"], everybody)
    ]
    return FittingTable(columns, tuple(_row(*row) for row in rows))


def _row(*cells: object) -> tuple[Any, ...]:
    """Cells whose text callers may have chosen: control characters would steer the terminal."""
    words = ("-" if cell in (None, "") else str(cell) for cell in cells)
    return tuple(Text(word if word.isprintable() else ascii(word)) for word in words)
