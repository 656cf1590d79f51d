"""`make loadtest`: locust through steps of concurrency against a started system, with a report."""

from __future__ import annotations

import ipaddress
import itertools
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import httpx

from headrace.errors import HeadraceError
from loadtests.headrace import BadAnswer, keys, local_system
from loadtests.messages import PicturesMissing, digit_messages, load_pictures, price_message
from loadtests.report import Report, failure_sentences, figures, out_option
from loadtests.users.step_plots import latency_over_time, percentiles_by_concurrency, step_table
from loadtests.users.steps import KEY, KINDS, Step, StepFailed, measured_seconds, run_locust

READY_MODELS = {
    "TensorFlowServing": ("tagger_tf",),
    "OpenInference": ("tagger",),
    "Light": ("digits", "price"),
}
ANSWER_WITHIN_S = 5.0
UNLIMITED_TIER = "admin"


class Refused(click.ClickException):
    """Raised for what a person must change before the load test can run; exit status 1."""


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--host", default="http://127.0.0.1:8080", help="System to load.")
@click.option("--users", default="1,4,16", help="Steps of concurrency.")
@click.option("--seconds", default=10.0, help="Length of a step.")
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Only these users."
)
@out_option
@click.option("--allow-remote", is_flag=True, help="Also load a host beyond this machine.")
def main(
    host: str, users: str, seconds: float, kinds: tuple[str, ...], out: Path, allow_remote: bool
) -> None:
    report = Report("loadtest", out, packages=("locust",))
    console = report.console
    counts = parse_users(users)
    kinds = kinds or tuple(KINDS)
    host = check_host(host, allow_remote)
    check_system(host, kinds)
    raw = report.path("-raw")
    raw.mkdir()
    steps: list[Step] = []
    with ExitStack() as stack:
        settings = credential(
            stack, host, READY_MODELS[kinds[0]][0], f"loadtest-{report.when:%Y%m%d-%H%M%S}"
        )
        for kind, count in itertools.product(kinds, counts):
            prefix = raw / f"{kind}-{count}"
            words = [kind, "--csv", str(prefix), "--csv-full-history"]
            with console.status(f"{KINDS[kind]}: {count} user(s) for {seconds:g} s"):
                try:
                    samples = run_locust(words, count, seconds, host, prefix, settings)
                except StepFailed as error:
                    raise Refused(str(error)) from error
            step = Step(kind, count, measured_seconds(samples, seconds), samples)
            steps.append(step)
            found = step.percentiles_ms
            console.print(
                f"{step.label}: {count} user(s), {step.per_second:,.0f} requests/s, "
                f"p50 {found['p50']:.1f} ms, p99 {found['p99']:.1f} ms, {step.failures} failed",
                soft_wrap=True,
            )
    report.show(step_table(steps))
    for step in steps:
        report.say(*failure_sentences(step.errors, f"{step.label}, {step.users} users: "))
    percentiles_by_concurrency(steps, report.title, report.picture("-by-users.png"))
    latency_over_time(steps, report.title, report.picture("-over-time.png"))
    report.write(host=host, steps=[step_document(step) for step in steps])
    report.end()
    if any(step.errors or not step.samples for step in steps):
        sys.exit(2)


def step_document(step: Step) -> dict[str, Any]:
    names = ("kind", "label", "users", "seconds", "requests", "failures", "per_second", "errors")
    return figures(step, *names) | {f"{name}_ms": ms for name, ms in step.percentiles_ms.items()}


def credential(stack: ExitStack, host: str, model: str, name: str) -> dict[str, str]:
    """A key without limits for locust, by its variable, unless the environment has one already.

    Where no admin listener can be asked for it, the users are strangers, and are limited as such.
    """
    if os.environ.get(KEY):
        return {}
    try:
        _, admin = local_system()
        return stack.enter_context(keys(admin, host, model, name, {KEY: UNLIMITED_TIER}))
    except (BadAnswer, HeadraceError) as error:
        click.echo(f"without a key, so the limits of strangers hold: {error}", err=True)
        return {}


def parse_users(text: str) -> list[int]:
    """`1,4,16` as numbers; raises `click.BadParameter`."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"--users takes numbers like 1,4,16, not {text!r}") from error
    if min(counts) < 1:
        raise click.BadParameter("--users takes numbers of at least 1")
    return counts


def check_host(host: str, allow_remote: bool) -> str:
    """The base URL to load: on this machine, unless somebody says otherwise."""
    parts = urlsplit(host)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refused(f"--host must look like http://127.0.0.1:8080, not {host!r}")
    if not allow_remote and not is_loopback(parts.hostname):
        raise Refused(f"{parts.hostname} is not this machine: add --allow-remote if you mean it")
    return host.rstrip("/")


def is_loopback(name: str) -> bool:
    """Whether a host name or address can only be this machine."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_system(host: str, kinds: tuple[str, ...]) -> None:
    """The pictures exist and the needed models are ready; raises `Refused` with one sentence."""
    try:
        load_pictures()
        if "Light" in kinds:
            digit_messages()
            price_message()
    except PicturesMissing as error:
        raise Refused(str(error)) from error
    with httpx.Client(base_url=host, timeout=ANSWER_WITHIN_S) as client:
        for model in (model for kind in kinds for model in READY_MODELS[kind]):
            try:
                status = client.get(f"/v2/models/{model}/ready").status_code
            except httpx.TransportError as error:
                raise Refused(f"no system answers at {host}: start it with `make serve`") from error
            if status != 200:
                raise Refused(f"model {model} is not ready at {host} (status {status})")


if __name__ == "__main__":
    main()
