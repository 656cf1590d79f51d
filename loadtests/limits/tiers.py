"""`make loadtest-tiers`: strangers, standard and premium callers at once; who got what.

Loads a started system with bookings to `price`. Makes one key for each tier that needs one, and
revokes them at the end. A caller that is refused waits for the seconds of Retry-After and asks
once more: that must succeed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import click
import httpx
from rich.console import Console

from command.instance import find_instance
from headrace.errors import ConfigError
from headrace.secrets import admin_token
from loadtests import light
from loadtests.admin import Admin, wait_for_key
from loadtests.headrace import BadAnswer
from loadtests.limits.tiers_table import KEY_VARIABLE, Got, got_table, retry_sentence, who_got_what
from loadtests.machine import describe_machine
from loadtests.pictures import PicturesMissing
from loadtests.run import Refused, check_host
from loadtests.samples import Sample
from loadtests.steps import GRACE_S, ROOT, StepFailed, measured_seconds, read_samples

REPORTS = Path(__file__).resolve().parents[1] / "reports"
LOCUSTFILE = Path(__file__).resolve().parent / "tiers_locustfile.py"
MODEL = "price"
SAMPLES = "HEADRACE_LOADTEST_SAMPLES"
LOG_LINES = 5


@click.command(help=__doc__)
@click.option("--host", help="System to load; the one that runs here if left out.")
@click.option("--admin", metavar="HOST:PORT", help="Its admin listener.")
@click.option("--token-file", type=click.Path(), help="File with the admin token.")
@click.option("--users", default=8, show_default=True, help="Half strangers, the rest by tier.")
@click.option("--seconds", default=30.0, show_default=True, help="Length.")
@click.option("--out", default=REPORTS, type=click.Path(path_type=Path), help="Report folder.")
@click.option("--allow-remote", is_flag=True, help="Also load a host beyond this machine.")
def main(
    host: str | None,
    admin: str | None,
    token_file: str | None,
    users: int,
    seconds: float,
    out: Path,
    allow_remote: bool,
) -> None:
    console = Console()
    now = datetime.now().astimezone()
    try:
        target = find_instance(admin, token_file)
        url = check_host(host or f"http://{target.http}", allow_remote)
        desk = Admin(f"http://{target.admin}", admin_token(target.token))
        light.price_message()
        name = f"loadtest-{now:%Y%m%d-%H%M%S}"
        told = f"{users} users for {seconds:g} s"
        with keys(desk, url, name) as secrets, console.status(told):
            samples = run_locust(url, users, seconds, secrets)
    except httpx.TransportError as error:
        raise Refused(f"no system answers: start it with `make serve` ({error})") from error
    except (BadAnswer, ConfigError, PicturesMissing, StepFailed) as error:
        raise Refused(str(error)) from error
    found = who_got_what(samples, measured_seconds(samples, seconds))
    console.print(got_table(found))
    console.print(retry_sentence(found), soft_wrap=True, highlight=False)
    console.print(f"written: {publish(found, url, now, out)}", soft_wrap=True)
    if not samples or any(got.failures for got in found):
        sys.exit(2)


@contextmanager
def keys(desk: Admin, url: str, name: str) -> Iterator[dict[str, str]]:
    """A key for each tier that has keys, by the environment variable for it; raises `BadAnswer`."""
    made: list[str] = []
    secrets = {}
    try:
        for tier, variable in KEY_VARIABLE.items():
            secrets[variable] = desk.make_key(f"{name}-{tier}", tier)
            made.append(f"{name}-{tier}")
            wait_for_key(url, MODEL, secrets[variable])
        yield secrets
    finally:
        for each in made:
            desk.revoke_key(each)


def run_locust(
    url: str, users: int, seconds: float, secrets: Mapping[str, str]
) -> tuple[Sample, ...]:
    """All users at once for so long; raises `StepFailed`."""
    with tempfile.TemporaryDirectory(prefix="tiers-") as folder:
        rows, log = Path(folder) / "samples.csv", Path(folder) / "locust.log"
        path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
        with log.open("wb") as output:
            try:
                done = subprocess.run(
                    locust_command(url, users, seconds),
                    env={**os.environ, **secrets, SAMPLES: str(rows), "PYTHONPATH": path},
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=seconds + GRACE_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise StepFailed("locust did not end in time") from error
        if done.returncode != 0 or not rows.exists():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
            raise StepFailed(f"locust ended with status {done.returncode}: {tail}")
        with rows.open(newline="", encoding="utf-8") as lines:
            return read_samples(lines)


def locust_command(url: str, users: int, seconds: float) -> list[str]:
    """All users at once, no web page, status 0 with refusals."""
    return [
        *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE)),
        *("--headless", "--host", url, "--users", str(users), "--spawn-rate", str(users)),
        *("--run-time", f"{seconds:g}s", "--stop-timeout", "5", "--exit-code-on-error", "0"),
        "--only-summary",
    ]


def publish(found: Sequence[Got], url: str, when: datetime, out: Path) -> Path:
    """Write the figures; the file."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"tiers-{when:%Y%m%d-%H%M%S}.json"
    document = {
        "machine": describe_machine(("headrace", "locust", "ray")).line(),
        "host": url,
        "tiers": [got.document() for got in found],
    }
    file.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return file


if __name__ == "__main__":
    main()
