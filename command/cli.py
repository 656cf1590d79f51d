"""The `headrace` command: the table of its commands."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from command.audit import audit
from command.keys import keys
from command.lease import lease
from command.options import (
    Exit,
    as_json,
    asks_admin,
    at_admin,
    at_http,
    config_file,
    exit_codes,
    model_version,
    read_key,
    say,
)
from command.pool import pool
from command.process import jobs, process
from command.status import status
from headrace.errors import ConfigError, InvalidArgument

if TYPE_CHECKING:
    from command.client import AdminClient
    from command.launch import Ready
    from gateway.config_file import Config

DEFAULT_FILES = ("headrace.yaml", "examples/demo.yaml")


class _Commands(click.Group):
    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command; what the terminal cannot show is printed as an escape."""
        for stream in (sys.stdout, sys.stderr):
            # Names of files and what stands in them may be any text.
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **extra)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "FILE is headrace.yaml here, else examples/demo.yaml, when it is left out. Exit codes: "
        "0 done, 1 failed, 2 wrong usage, 3 config invalid or something not installed, "
        "4 nothing answers, 5 token refused, 6 not in time."
    ),
)
def main() -> None:
    """Serve models: start, check, watch and stop a Headrace, and ask it for predictions."""


for _command in (audit, jobs, keys, lease, pool, process, status):
    main.add_command(_command)


@main.command()
@config_file
@click.option("--detach", is_flag=True, help="Run in the background; return when ready.")
@click.option("--address", metavar="RAY", help="Join this Ray cluster (auto: the one here).")
@click.option("--timeout", default=300.0, show_default=True, help="Patience with the start, s.")
@click.option("--log", hidden=True, default="")
@as_json
def up(
    file: str | None, detach: bool, address: str | None, timeout: float, log: str, as_json: bool
) -> None:
    """Start FILE and serve until Ctrl-C or SIGTERM, which drain."""
    from command import instance, launch
    from command.terminal import Progress
    from gateway import ray_cluster

    if address is None:
        # Reading the config imports Ray, which must find its settings by then.
        ray_cluster.prepare_environment()
    # Ray prints what it notices to stdout, which belongs to the record that is asked for.
    out, console = sys.stdout, Console(stderr=as_json)

    def announce(ready: Ready) -> None:
        text = f"{ready}\n\nStop it with {'headrace down' if detach else 'Ctrl-C'}."
        if as_json:
            click.echo(json.dumps(ready.as_json()), file=out)
        else:
            console.print(Text(text), soft_wrap=True)

    with exit_codes():
        config = _load(file)
        progress = Progress(console)
        for warning in config.warnings:
            progress.warn(str(warning))
        if not detach:
            with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
                launch.up(config, launch.Options(address, timeout, log), progress, announce)
            return
        path = instance.state_file(config.args.listen.http)
        command = ["up", config.file, "--timeout", str(timeout)]
        command += ["--log", str(launch.log_file(path))]
        command += ["--address", address] if address else []
        ready = launch.up_detached(config, launch.Options(address, timeout), progress, command)
        announce(ready)
    if ready.late:
        raise SystemExit(Exit.TIMED_OUT)


@main.command()
@config_file
@as_json
def check(file: str | None, as_json: bool) -> None:
    """Report every mistake in FILE; starts nothing."""
    from gateway.yaml_source import ConfigFileError, Problem

    def records(problems: Iterable[Problem]) -> list[dict[str, Any]]:
        names = ("file", "line", "path", "message")
        return [{name: getattr(problem, name) for name in names} for problem in problems]

    with exit_codes():
        try:
            config = _load(file)
        except ConfigFileError as error:
            if not as_json:
                raise
            found = {"valid": False, "problems": records(error.problems), "warnings": []}
            click.echo(json.dumps(found))
            raise SystemExit(Exit.CONFIG_INVALID) from None
    if not as_json:
        for warning in config.warnings:
            click.echo(f"warning: {warning}", err=True)
    found = {"valid": True, "problems": [], "warnings": records(config.warnings)}
    say(found, f"{config.file} is valid: {len(config.pool.models)} models", as_json)


@main.command()
@config_file
@at_admin
@as_json
def apply(
    file: str | None, admin: str | None, token_file: str | None, ca: str | None, as_json: bool
) -> None:
    """Give a changed FILE to the running system.

    What stands in the Pool's user_config changes live; a change of args restarts the replicas,
    one after the other.
    """
    from command.instance import find_instance

    with exit_codes():
        config = _load(file)
        target = find_instance(admin or config.args.listen.admin, token_file, ca)
        with target.client() as client:
            client.apply(config.document)
    say({"applied": config.file}, f"{config.file} is applied", as_json)


@main.command()
@click.argument("model")
@click.option("--image", type=click.Path(exists=True, dir_okay=False), help="A picture to send.")
@click.option(
    "--json",
    "body",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="A JSON body to send (-: stdin). Without FILE, last: print the answer as JSON.",
)
@model_version
@at_http
@click.option("--top", default=5, show_default=True, help="How many labels or values to show.")
@click.option("--timeout", default=60.0, show_default=True, help="Patience with the answer, s.")
def infer(
    model: str,
    image: str | None,
    body: str | None,
    model_version: int | None,
    http: str | None,
    key_file: str | None,
    ca: str | None,
    certificate: str | None,
    top: int,
    timeout: float,
) -> None:
    """Ask MODEL for one prediction, from a picture or a JSON body."""
    from command.infer import InferenceClient, describe, read_labels
    from command.instance import find_listener

    if bool(image) == bool(body):
        raise click.UsageError("give either --image FILE or --json FILE")
    with exit_codes():
        target = find_listener(http, ca, certificate)
        trust, key = target.trust("http"), read_key(key_file)
        client = InferenceClient(target.http, key, trust=trust, timeout_s=timeout)
        version = str(model_version) if model_version else None
        if image is None:
            answer = client.infer_json(model, version, _read_body(str(body)))
        else:
            answer = client.infer_image(model, version, Path(image).read_bytes())
    if image is None or body is not None:
        click.echo(json.dumps(answer))
        return
    store = target.found.store if target.found else "models/repository"
    labels = read_labels(store, model, str(answer.get("model_version", "")))
    for output in describe(answer, labels, top):
        click.secho(f"{output.name}  {output.datatype}{list(output.shape)}", bold=True)
        for line in output.lines:
            click.echo(f"  {line}")


@main.command()
@click.argument("model")
@asks_admin()
@as_json
def load(client: AdminClient, model: str, as_json: bool) -> None:
    """Load MODEL of the store, or load it anew if its files have changed; ends a rollback."""
    client.load(model)
    say({"loaded": model}, f"{model} is ready", as_json)


@main.command()
@click.argument("model")
@asks_admin()
@as_json
def unload(client: AdminClient, model: str, as_json: bool) -> None:
    """Serve MODEL no more, until it is loaded again or its config changes."""
    client.unload(model)
    say({"unloaded": model}, f"{model} is unloaded", as_json)


@main.command()
@click.argument("model")
@asks_admin()
@as_json
def rollback(client: AdminClient, model: str, as_json: bool) -> None:
    """Serve the version of MODEL before the present one; at once, where it is still warm.

    The version that is left stays out until the next one, `headrace load` or a change of config.
    """
    change = client.roll_back(model)
    how = "was warm" if change["warm"] else "was loaded"
    text = f"{model} serves version {change['to']} ({how}), no longer {change['from']}"
    say(change, text, as_json)


@main.command()
@click.option("--timeout", default=60.0, show_default=True, help="Patience with draining, s.")
@at_admin
@as_json
def down(
    timeout: float, admin: str | None, token_file: str | None, ca: str | None, as_json: bool
) -> None:
    """Drain and stop a running Headrace."""
    from command.instance import find_instance
    from command.launch import take_down

    with exit_codes():
        target = find_instance(admin, token_file, ca)
        outcome = take_down(target, timeout, known=admin is not None)
    say({"outcome": outcome.name.lower()}, outcome.value, as_json)


@main.command()
@as_json
def version(as_json: bool) -> None:
    """Show the versions of Headrace, Python and Ray, and whether Headrace runs compiled."""
    import platform
    from importlib import metadata

    from headrace import compiled
    from headrace.runtimes import RUNTIMES

    found = {
        "headrace": metadata.version("headrace"),
        "code": compiled.status,
        "python": platform.python_version(),
    }
    for package in ("ray", *(name for kind in RUNTIMES.values() for name in kind.packages)):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    say(found, "\n".join(f"{name} {number}" for name, number in found.items()), as_json)


def _load(file: str | None) -> Config:
    from gateway.config_file import load_config

    if file is None:
        file = next((name for name in DEFAULT_FILES if Path(name).is_file()), None)
    if file is None:
        raise ConfigError(f"no FILE given, and neither {' nor '.join(DEFAULT_FILES)} is here")
    return load_config(file)


def _read_body(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"cannot read {file}: {error.strerror}") from None


if __name__ == "__main__":
    main(prog_name="headrace")
