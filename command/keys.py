"""`headrace keys`: make, list, revoke and rotate API keys of a running Headrace."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from command.options import exit_codes
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from command.client import AdminClient

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def duration_s(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Seconds of `90s`, `10m`, `12h` or `30d`."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smhd])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} should be like 90s, 10m, 12h or 30d")
    return float(found[1]) * UNITS_S[found[2]]


def key_commands(options: Callable[[Any], Any]) -> click.Group:
    """The group; `options` adds those of every command that asks a running Headrace."""

    @click.group()
    def keys() -> None:
        """Give callers API keys, and take them away again."""

    for command in (create, listed, revoke, rotate):
        keys.add_command(options(command))
    return keys


@click.command()
@click.argument("name")
@click.option("--tier", required=True, help="Whose limits hold for it.")
@click.option("--model", "models", multiple=True, help="A model it may be used for; default: all.")
@click.option("--expires", callback=duration_s, metavar="TIME", help="When it ends: 30d, 12h.")
def create(
    name: str,
    tier: str,
    models: tuple[str, ...],
    expires: float | None,
    admin: str | None,
    token_file: str | None,
    as_json: bool,
) -> None:
    """Make a key for NAME; it is shown once, as the last word."""
    from command.instance import find_instance

    wanted = {"name": name, "tier": tier, "models": models or None, "expires_in_s": expires}
    with exit_codes(), find_instance(admin, token_file).client() as client:
        made = client.create_key(wanted)
        # First of all, for it is shown this once, whatever becomes of the rest.
        _show_new(made, as_json)
        _warn_of_unknown(models, client)


@click.command(name="list")
def listed(admin: str | None, token_file: str | None, as_json: bool) -> None:
    """List all keys, also those that ended lately."""
    from rich.console import Console

    from command.instance import find_instance

    with exit_codes(), find_instance(admin, token_file).client() as client:
        answer = client.keys()
    if as_json:
        click.echo(json.dumps(answer))
    elif not answer["keys"]:
        click.echo("there are no keys; make one with: headrace keys create NAME --tier TIER")
    else:
        Console().print(table(answer["keys"]))


@click.command()
@click.argument("key")
def revoke(key: str, admin: str | None, token_file: str | None, as_json: bool) -> None:
    """End KEY, an id or a name, at once and everywhere."""
    from command.instance import find_instance

    with exit_codes(), find_instance(admin, token_file).client() as client:
        ended = client.revoke_key(key)
    click.echo(json.dumps(ended) if as_json else f"the key {ended['id']} of {ended['name']} ended")


@click.command()
@click.argument("key")
@click.option("--grace", callback=duration_s, metavar="TIME", help="The old one still holds: 1h.")
def rotate(
    key: str, grace: float | None, admin: str | None, token_file: str | None, as_json: bool
) -> None:
    """Make a new key in place of KEY, an id or a name; it is shown once, as the last word."""
    from command.instance import find_instance

    with exit_codes(), find_instance(admin, token_file).client() as client:
        made = client.rotate_key(key, grace or 0.0)
    _show_new(made, as_json)


def _show_new(made: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(made))
        return
    click.echo(
        f"{made['name']} ({made['tier']}), key {made['id']}; keep it, it is shown this once:"
    )
    click.echo(made["key"])


def _warn_of_unknown(models: Sequence[str], client: AdminClient) -> None:
    """Say which models are not served, on stderr: they may come later, or be mistyped."""
    if not models:
        return
    try:
        served = {model["name"] for model in client.status()["models"]}
    except (HeadraceError, KeyError):
        return  # The key is made, and this was only a service.
    for model in models:
        if model not in served:
            click.echo(f"warning: no model {model!r} is served now", err=True)


def table(keys: list[Mapping[str, Any]]) -> Any:
    """One row for each key."""
    from rich.text import Text

    from command.status import Column, FittingTable

    columns = (
        Column("id"),
        Column("name", flexible=True),
        Column("tier"),
        Column("models", rank=2, flexible=True),
        Column("state"),
        Column("made", rank=3),
        Column("ends", rank=1),
    )
    rows = [
        (
            *(key["id"], key["name"], key["tier"]),
            ", ".join(key["models"]) if key["models"] is not None else "all",
            key["state"],
            _day(key["created_s"]),
            _day(key["revoked_s"] or key["expires_s"]),
        )
        for key in keys
    ]
    return FittingTable(columns, tuple(tuple(map(Text, row)) for row in rows))


def _day(time_s: float | None) -> str:
    if time_s is None:
        return "-"
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M")
