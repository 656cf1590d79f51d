"""The `headrace` command.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 config invalid or something not installed, 4 nothing
answers, 5 token refused, 6 not in time.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import click
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from command.audit import audit
from command.keys import key_commands
from command.lease import lease
from command.options import Exit, exit_codes, read_key, with_key
from command.pool import pool_commands
from command.process import commands as media_commands
from headrace.errors import ConfigError, InvalidArgument

DEFAULT_FILES = ("headrace.yaml", "examples/demo.yaml")


def checked_address(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """`HOST:PORT`, refused as wrong usage before anything is asked."""
    from headrace.config.args import split_address

    try:
        if value is not None:
            split_address(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} {error}") from None
    return value


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
config_file = click.argument("file", required=False, type=click.Path(dir_okay=False))


def at_admin(command: Any) -> Any:
    """The options of every command that asks a running Headrace."""
    token = click.option("--token-file", type=click.Path(), help="File with the admin token.")
    admin = click.option(
        "--admin", callback=checked_address, metavar="HOST:PORT", help="Its admin listener."
    )
    return admin(token(command))


def at_http(command: Any) -> Any:
    """The option of commands that ask as any caller does."""
    return click.option(
        "--http", callback=checked_address, metavar="HOST:PORT", help="The public listener to ask."
    )(command)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "FILE is headrace.yaml here, else examples/demo.yaml, when it is left out. Exit codes: "
        "0 done, 1 failed, 2 wrong usage, 3 config invalid or something not installed, "
        "4 nothing answers, 5 token refused, 6 not in time."
    ),
)
def main() -> None:
    """Serve models: start, check, watch and stop a Headrace, and ask it for predictions."""


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
    from command.progress import Progress
    from gateway import ray_cluster

    if address is None:
        # Reading the config imports Ray, which must find its settings by then.
        ray_cluster.prepare_environment()
    console = Console(stderr=as_json)
    with exit_codes():
        config = _load(file)
        progress = Progress(console)
        for warning in config.warnings:
            progress.warn(str(warning))
        announce = _Announcement(console, as_json, detach, sys.stdout)
        if not detach:
            # Ray prints what it notices to stdout, which belongs to the record that is asked for.
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


class _Announcement:
    """Tells the addresses and an example once all is ready."""

    def __init__(self, console: Console, as_json: bool, detached: bool, out: TextIO) -> None:
        self._console = console
        self._out = out
        self._as_json = as_json
        self._detached = detached

    def __call__(self, ready: Any) -> None:
        if self._as_json:
            models = {str(state): state.state for state in ready.models}
            record = {"ready": not ready.late, "addresses": dict(ready.addresses)}
            click.echo(
                json.dumps({**record, "models": models, "example": ready.example}), file=self._out
            )
            return
        lines = [f"  {name:<6}{where}" for name, where in ready.addresses.items()]
        stop = "headrace down" if self._detached else "Ctrl-C"
        text = "\n".join(["", *lines, "", ready.example, "", f"Stop it with {stop}."])
        self._console.print(Text(text), soft_wrap=True)


@main.command()
@config_file
@as_json
def check(file: str | None, as_json: bool) -> None:
    """Report every mistake in FILE; starts nothing."""
    from gateway.yaml_source import ConfigFileError, Problem

    def record(problem: Problem) -> dict[str, Any]:
        return {key: getattr(problem, key) for key in ("file", "line", "path", "message")}

    with exit_codes():
        try:
            config = _load(file)
        except ConfigFileError as error:
            if not as_json:
                raise
            problems = [record(problem) for problem in error.problems]
            click.echo(json.dumps({"valid": False, "problems": problems, "warnings": []}))
            raise SystemExit(Exit.CONFIG_INVALID) from None
    if as_json:
        warnings = [record(problem) for problem in config.warnings]
        click.echo(json.dumps({"valid": True, "problems": [], "warnings": warnings}))
        return
    for warning in config.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{config.file} is valid: {len(config.pool.models)} models")


@main.command()
@config_file
@at_admin
@as_json
def apply(file: str | None, admin: str | None, token_file: str | None, as_json: bool) -> None:
    """Give a changed FILE to the running system.

    What stands in the Pool's user_config changes live; a change of args restarts the replicas,
    one after the other.
    """
    from command.instance import find_instance

    with exit_codes():
        config = _load(file)
        with find_instance(admin or config.args.listen.admin, token_file).client() as client:
            client.apply(config.document)
    click.echo(json.dumps({"applied": config.file}) if as_json else f"{config.file} is applied")


@main.command()
@click.argument("model", required=False)
@click.option("--watch", is_flag=True, help="Show it again each second until Ctrl-C.")
@at_admin
@as_json
def status(
    model: str | None, watch: bool, admin: str | None, token_file: str | None, as_json: bool
) -> None:
    """Show models, versions, slots, states, requests in flight and latencies.

    With MODEL only that one, and why it could not be loaded: what its slot left behind, how often
    it failed and when it is tried again.
    """
    from command.instance import find_instance
    from command.status import model_of, render, render_model

    def shown(answer: dict[str, Any]) -> RenderableType:
        return render(answer) if model is None else render_model(answer, model)

    def told(answer: dict[str, Any]) -> str:
        return json.dumps(answer if model is None else model_of(answer, model))

    with exit_codes(), find_instance(admin, token_file).client() as client:
        answer = client.status()
        if as_json:
            click.echo(told(answer))
            while watch:
                time.sleep(1.0)
                click.echo(told(client.status()))
            return
        console = Console()
        if not watch:
            console.print(shown(answer))
            return
        with Live(shown(answer), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(1.0)
                live.update(shown(client.status()), refresh=True)


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
@click.option("--version", "model_version", type=click.IntRange(min=1), help="A model version.")
@at_http
@with_key
@click.option("--top", default=5, show_default=True, help="How many labels or values to show.")
@click.option("--timeout", default=60.0, show_default=True, help="Patience with the answer, s.")
def infer(
    model: str,
    image: str | None,
    body: str | None,
    model_version: int | None,
    http: str | None,
    key_file: str | None,
    top: int,
    timeout: float,
) -> None:
    """Ask MODEL for one prediction, from a picture or a JSON body."""
    from command.infer import InferenceClient, describe, read_labels
    from command.instance import find_instance

    if bool(image) == bool(body):
        raise click.UsageError("give either --image FILE or --json FILE")
    with exit_codes():
        target = find_instance(None, None) if http is None else None
        address = http or (target.http if target else "")
        client = InferenceClient(address, read_key(key_file), timeout_s=timeout)
        version = str(model_version) if model_version else None
        if image is None:
            answer = client.infer_json(model, version, _read_body(str(body)))
        else:
            answer = client.infer_image(model, version, Path(image).read_bytes())
    if image is None or body is not None:
        click.echo(json.dumps(answer))
        return
    store = target.found.store if target and target.found else "models/repository"
    labels = read_labels(store, model, str(answer.get("model_version", "")))
    for output in describe(answer, labels, top):
        click.secho(f"{output.name}  {output.datatype}{list(output.shape)}", bold=True)
        for line in output.lines:
            click.echo(f"  {line}")


@main.command()
@click.argument("model")
@at_admin
@as_json
def load(model: str, admin: str | None, token_file: str | None, as_json: bool) -> None:
    """Load MODEL of the store, or load it anew if its files have changed; ends a rollback."""
    from command.instance import find_instance

    with exit_codes(), find_instance(admin, token_file).client() as client:
        client.load(model)
    click.echo(json.dumps({"loaded": model}) if as_json else f"{model} is ready")


@main.command()
@click.argument("model")
@at_admin
@as_json
def unload(model: str, admin: str | None, token_file: str | None, as_json: bool) -> None:
    """Serve MODEL no more, until it is loaded again or its config changes."""
    from command.instance import find_instance

    with exit_codes(), find_instance(admin, token_file).client() as client:
        client.unload(model)
    click.echo(json.dumps({"unloaded": model}) if as_json else f"{model} is unloaded")


@main.command()
@click.argument("model")
@at_admin
@as_json
def rollback(model: str, admin: str | None, token_file: str | None, as_json: bool) -> None:
    """Serve the version of MODEL before the present one; at once, where it is still warm.

    The version that is left stays out until the next one, `headrace load` or a change of config.
    """
    from command.instance import find_instance

    with exit_codes(), find_instance(admin, token_file).client() as client:
        change = client.roll_back(model)
    if as_json:
        click.echo(json.dumps(change))
        return
    how = "was warm" if change["warm"] else "was loaded"
    click.echo(f"{model} serves version {change['to']} ({how}), no longer {change['from']}")


@main.command()
@click.option("--timeout", default=60.0, show_default=True, help="Patience with draining, s.")
@at_admin
@as_json
def down(timeout: float, admin: str | None, token_file: str | None, as_json: bool) -> None:
    """Drain and stop a running Headrace."""
    from command.instance import find_instance
    from command.launch import take_down

    with exit_codes():
        outcome = take_down(find_instance(admin, token_file), timeout, known=admin is not None)
    click.echo(json.dumps({"outcome": outcome.name.lower()}) if as_json else outcome.value)


@main.command()
@as_json
def version(as_json: bool) -> None:
    """Show the versions of Headrace, Python and Ray."""
    import platform
    from importlib import metadata

    found = {"headrace": metadata.version("headrace"), "python": platform.python_version()}
    for package in ("ray", "onnxruntime", "onnxruntime-gpu", "tensorflow", "tensorflow-cpu"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, number in found.items():
        click.echo(f"{name} {number}")


main.add_command(at_admin(as_json(audit)))
for _command in media_commands(lambda command: at_http(with_key(as_json(command)))):
    main.add_command(_command)
main.add_command(at_admin(lease))
main.add_command(pool_commands(at_admin, as_json))
main.add_command(key_commands(lambda command: at_admin(as_json(command))))


def _load(file: str | None) -> Any:
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
