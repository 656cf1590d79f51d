"""`headrace keys`: make, list, revoke and rotate API keys of a running Headrace."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from command.options import as_json, asks_admin, say
from command.terminal import Column, table
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from command.client import AdminClient

COLUMNS = (
    Column("id", "id"),
    Column("name", "name", flexible=True),
    Column("tier", "tier"),
    Column("models", lambda key: _models(key["models"]), rank=2, flexible=True),
    Column("state", "state"),
    Column("made", lambda key: _day(key["created_s"]), rank=3),
    Column("ends", lambda key: _day(key["revoked_s"] or key["expires_s"]), rank=1),
)
UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def duration_s(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Seconds of `90s`, `10m`, `12h` or `30d`."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smhd])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} should be like 90s, 10m, 12h or 30d")
    return float(found[1]) * UNITS_S[found[2]]


@click.group()
def keys() -> None:
    """Give callers API keys, and take them away again."""


@keys.command()
@click.argument("name")
@click.option("--tier", required=True, help="Whose limits hold for it.")
@click.option("--model", "models", multiple=True, help="A model it may be used for; default: all.")
@click.option("--expires", callback=duration_s, metavar="TIME", help="When it ends: 30d, 12h.")
@asks_admin()
@as_json
def create(
    client: AdminClient,
    name: str,
    tier: str,
    models: tuple[str, ...],
    expires: float | None,
    as_json: bool,
) -> None:
    """Make a key for NAME; it is shown once, as the last word."""
    wanted = {"name": name, "tier": tier, "models": models or None, "expires_in_s": expires}
    # Shown before anything else is asked: nothing can show it again.
    _show_new(client.create_key(wanted), as_json)
    _warn_of_unknown(models, client)


@keys.command(name="list")
@asks_admin()
@as_json
def listed(client: AdminClient, as_json: bool) -> None:
    """List all keys, also those that ended lately."""
    answer = client.keys()
    if as_json:
        click.echo(json.dumps(answer))
    elif not answer["keys"]:
        click.echo("there are no keys; make one with: headrace keys create NAME --tier TIER")
    else:
        Console().print(table(COLUMNS, answer["keys"]))


@keys.command()
@click.argument("key")
@asks_admin()
@as_json
def revoke(client: AdminClient, key: str, as_json: bool) -> None:
    """End KEY, an id or a name, at once and everywhere."""
    ended = client.revoke_key(key)
    say(ended, f"the key {ended['id']} of {ended['name']} ended", as_json)


@keys.command()
@click.argument("key")
@click.option("--grace", callback=duration_s, metavar="TIME", help="The old one still holds: 1h.")
@asks_admin()
@as_json
def rotate(client: AdminClient, key: str, grace: float | None, as_json: bool) -> None:
    """Make a new key in place of KEY, an id or a name; it is shown once, as the last word."""
    _show_new(client.rotate_key(key, grace or 0.0), as_json)


def _show_new(made: Mapping[str, Any], as_json: bool) -> None:
    about = f"{made['name']} ({made['tier']}), key {made['id']}; keep it, it is shown this once:"
    say(made, f"{about}\n{made['key']}", as_json)


def _warn_of_unknown(models: Sequence[str], client: AdminClient) -> None:
    """Name on stderr the models that are not served: they may come later, or be mistyped."""
    if not models:
        return
    try:
        served = {model["name"] for model in client.status()["models"]}
    except (HeadraceError, KeyError):
        return  # the key is made; the warning is a service
    for model in models:
        if model not in served:
            click.echo(f"warning: no model {model!r} is served now", err=True)


def _models(models: Sequence[str] | None) -> str:
    return "all" if models is None else ", ".join(models)


def _day(time_s: float | None) -> str | None:
    if time_s is None:
        return None
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M")
