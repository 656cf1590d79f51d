"""`headrace pool`: who holds, wants, lends and borrows slots, and why; replay of decisions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Group, RenderableType
from rich.text import Text

from command.options import Exit, as_json, at_admin, exit_codes, watched
from command.terminal import Column, show, table
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from autoscale.decision_file import Difference
    from command.client import JsonObject

DIFFERENCES_SHOWN = 20
COLOURS = {
    **dict.fromkeys(("served", "GRANTED"), "green"),
    **dict.fromkeys(("waiting", "WAITING", "lingering"), "yellow"),
    **dict.fromkeys(("hungry", "NOTICED"), "red"),
    "asleep": "cyan",
}

CLASS_COLUMNS = (
    Column("class", "slot_class"),
    Column("capacity", "capacity", right=True),
    Column("live", "live", right=True),
    Column("target", "target", right=True),
    Column("needed", "needed", rank=2, right=True),
    Column("held", "held", right=True),
    Column("leased", "leased", right=True),
    Column("free", "free", rank=1, right=True),
    Column("used", lambda each: f"{100 * each['utilisation']:.0f} %", rank=3, right=True),
)
ACCOUNT_COLUMNS = (
    Column("account", "name", flexible=True),
    Column("class", "slot_class", rank=6),
    Column("state", "state"),
    Column("group", "group", rank=7),
    Column("weight", lambda account: f"{account['weight']:g}", rank=9, right=True),
    Column("priority", "priority", rank=8, right=True),
    Column("min-max", lambda account: f"{account['min']}-{account['max']}", rank=4, right=True),
    Column("wants", "wanted", right=True),
    Column("may have", "granted", right=True),
    Column("holds", "held", right=True),
    Column("lends", lambda a: f"{a['lends']:g}" if a["lends"] else None, rank=3, right=True),
    Column("borrows from", lambda account: _lenders(account), rank=2, flexible=True),
    Column("why", lambda account: _why(account), rank=1, flexible=True),
)
LEASE_COLUMNS = (
    Column("lease", "id", rank=2),
    Column("holder", "holder", flexible=True),
    Column("state", "state"),
    Column("slots", "slots", right=True),
    Column("class", "slot_class"),
    Column("grace s", lambda lease: f"{lease['grace_s']:g}", rank=3, right=True),
    Column("back in s", lambda lease: _seconds(lease["due_in_s"]), rank=1, right=True),
    Column("preempted", "preemptions", right=True),
)
DECISION_COLUMNS = (
    Column("time", lambda decision: _local_time(decision["at"])),
    Column("kind", "kind", rank=1),
    Column("what", "what", flexible=True),
    Column("why", "why", flexible=True),
)


@click.group(invoke_without_command=True)
@watched
@at_admin
@as_json
@click.pass_context
def pool(
    ctx: click.Context,
    watch: bool,
    admin: str | None,
    token_file: str | None,
    ca: str | None,
    as_json: bool,
) -> None:
    """Show who holds, wants, lends and borrows slots, and why the last moves were made."""
    if ctx.invoked_subcommand is not None:
        return
    from command.instance import find_instance

    with exit_codes(), find_instance(admin, token_file, ca).client() as client:
        show(client.pool, render, as_json=as_json, watch=watch)


@pool.command()
@click.argument("log", required=False, type=click.Path(dir_okay=False, path_type=Path))
@as_json
def replay(log: Path | None, as_json: bool) -> None:
    """Replay the decisions in LOG offline and report where they differ.

    LOG is by default pool.log in the state folder, preceded by what is in LOG.1.
    """
    from autoscale.decision_file import FILE, read
    from autoscale.decision_file import replay as decide_anew
    from autoscale.decision_log import REPLAYED
    from headrace.secrets import headrace_home

    with exit_codes():
        file = log or headrace_home() / FILE
        try:
            entries = list(read(file))
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(str(error)) from None
    differences = decide_anew(entries, REPLAYED)
    told = Counter(entry.kind for entry in entries if entry.kind not in REPLAYED)
    same = Counter(entry.kind for entry in entries if entry.kind in REPLAYED)
    same.subtract(difference.entry.kind for difference in differences)
    if as_json:
        found = [_as_json_object(each) for each in differences]
        click.echo(json.dumps({"same": dict(same), "told": dict(told), "differences": found}))
    else:
        for kind, count in sorted(same.items()):
            click.echo(f"{kind}: {count} decided the same")
        for kind, count in sorted(told.items()):
            click.echo(f"{kind}: {count} follow from those")
        for difference in differences[:DIFFERENCES_SHOWN]:
            click.echo(_as_text(difference), err=True)
        if len(differences) > DIFFERENCES_SHOWN:
            click.echo(f"{len(differences) - DIFFERENCES_SHOWN} more differ", err=True)
    if differences:
        raise SystemExit(Exit.FAILED)


def _as_json_object(difference: Difference) -> JsonObject:
    entry = difference.entry
    return {
        "n": entry.n,
        "kind": entry.kind,
        "decision": entry.decision,
        "replayed": difference.replayed,
        "error": difference.error,
    }


def _as_text(difference: Difference) -> str:
    entry = difference.entry
    now = difference.error or json.dumps(difference.replayed)
    return f"{entry.kind} {entry.n}: was {json.dumps(entry.decision)}, is now {now}"


def render(view: JsonObject) -> RenderableType:
    """Classes, accounts, leases, the latest decisions, and guarantees that cannot be kept."""
    parts: list[RenderableType] = [table(CLASS_COLUMNS, view["classes"])]
    warnings = [each["warning"] for each in view["classes"] if each["warning"]]
    parts += [Text(warning, style="red") for warning in warnings]
    parts += [Text(), table(ACCOUNT_COLUMNS, view["accounts"], COLOURS)]
    parts += list(_group_lines(view["groups"]))
    if view["leases"]:
        parts += [Text(), table(LEASE_COLUMNS, view["leases"], COLOURS)]
    if view["decisions"]:
        parts += [Text(), table(DECISION_COLUMNS, view["decisions"])]
    return Group(*parts)


def _lenders(account: JsonObject) -> str | None:
    loans = (
        f"{'group ' if loan['group'] else ''}{loan['lender']} {loan['slots']:g}"
        for loan in account["borrows_from"]
    )
    return ", ".join(loans) or None


def _why(account: JsonObject) -> str:
    hungry = f"has had none for {account['hungry_s']:.0f} s" if account["hungry_s"] else ""
    turn = "it is its turn" if account["turn"] else ""
    return "; ".join(filter(None, (account["why"], account["waiting"], hungry, turn)))


def _group_lines(groups: Sequence[JsonObject]) -> Iterator[Text]:
    for each in groups:
        if each["lends"]:
            text = f"group {each['group']} lends {each['lends']:g} of {each['slot_class']}"
            yield Text(f"{text}: entitled to {each['entitled']:g}, uses {each['used']:g}")


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def _local_time(at: str) -> str:
    return datetime.fromisoformat(at).astimezone().strftime("%H:%M:%S")
