"""What TLS costs: the same requests over 64 kept-alive connections, plain and encrypted, in turns.

Starts Headrace once, and gives it a config with TLS, then one without, and so on. wrk encrypts too,
on the same cores. What the gateway's processor time for a request says is hardly disturbed by what
else the machine does: its inverse is the rate of a gateway that has a core of its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import psutil
import trustme
import yaml

from loadtests.bench.generators import Result, Target, run_wrk
from loadtests.bench.mlp import NAME, mlp_graph, write_bodies, write_version
from loadtests.headrace import Running, headrace
from loadtests.processes import Failed
from loadtests.report import workplace

CONNECTIONS = 64
WARM_UP_S = 2
AIM = 0.75
"""Least part of the plain rate that is to be left."""
MODELS = {NAME: {"runtime": "onnx"}}
SETTLED_S = 3.0
"""Time of good answers on new connections after which no gateway of the old config is left."""
SWITCH_LIMIT_S = 90.0
ANSWER_S = 5.0


class Authority:
    """An authority, its own certificate in a file (`root`), and a server's beside it."""

    def __init__(self, folder: Path) -> None:
        self._ca, self._folder = trustme.CA(), folder
        self.root = folder / "root.crt"
        self._ca.cert_pem.write_to_path(self.root)
        self.renew()

    def renew(self) -> str:
        """Write a new certificate for this machine over the one before; it in PEM form."""
        made = self._ca.issue_cert("127.0.0.1")
        [certificate] = made.cert_chain_pems
        certificate.write_to_path(self._folder / "server.crt")
        made.private_key_pem.write_to_path(self._folder / "server.key")
        return str(certificate.bytes(), "ascii")

    @property
    def files(self) -> dict[str, Any]:
        """For `listen.tls`."""
        places = {"cert": self._folder / "server.crt", "key": self._folder / "server.key"}
        return {name: {"file": str(place)} for name, place in places.items()}


def certificate(folder: Path) -> dict[str, Any]:
    """`listen.tls` with files made for this machine, for HTTP alone."""
    return {**Authority(folder).files, "grpc": False, "admin": False}


def switch(server: Running, document: dict[str, Any], tls: dict[str, Any] | None) -> str:
    """Use TLS or not from now on; the base URL. Raises `Failed` where it does not come."""
    listen = document["applications"][0]["args"]["listen"]
    listen.pop("tls", None)
    if tls is not None:
        listen["tls"] = tls
    server.admin.apply(document)
    url = server.url if tls is None else server.url.replace("http:", "https:")
    limit_s = time.monotonic() + SWITCH_LIMIT_S
    good_s = time.monotonic()
    while time.monotonic() - good_s < SETTLED_S:
        try:
            right = httpx.get(f"{url}/v2/models/{NAME}/ready", timeout=ANSWER_S, verify=False)
            if right.status_code != 200:
                good_s = time.monotonic()
        except httpx.TransportError:
            good_s = time.monotonic()
        if time.monotonic() > limit_s:
            raise Failed(f"{url} has not answered within {SWITCH_LIMIT_S:.0f} s")
        time.sleep(0.1)
    return url


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of wrk, and the gateway's processor time for one of its requests."""

    result: Result
    cpu_us: float


def take_turn(server: Running, target: Target, seconds: int) -> Turn:
    run_wrk(target, CONNECTIONS, WARM_UP_S)
    pids = server.admin.pids("gateways")  # that of the old config is on its way out, or gone
    before = cpu_s(pids)
    result = run_wrk(target, CONNECTIONS, seconds)
    spent_s = sum(after_s - before[pid] for pid, after_s in cpu_s([*before]).items())
    return Turn(result, spent_s / max(result.requests, 1) * 1e6)


def cpu_s(pids: Sequence[int]) -> dict[int, float]:
    """Processor time so far of those of these processes that still run."""
    found = {}
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            found[pid] = times.user + times.system
    return found


def measure(folder: Path, rounds: int, seconds: int) -> list[tuple[Turn, Turn]]:
    """Turns without and with TLS, by round."""
    write_version(folder / "store", NAME, mlp_graph())
    body = write_bodies(folder)[-1]
    tls, found = certificate(folder), []
    with headrace(folder, folder / "store", MODELS) as server:
        document = yaml.safe_load((folder / "headrace.yaml").read_text(encoding="utf-8"))
        for number in range(rounds):
            pair = {}
            for encrypted in (False, True) if number % 2 == 0 else (True, False):
                url = switch(server, document, tls if encrypted else None)
                pair[encrypted] = take_turn(server, Target.of(body, url), seconds)
            found.append((pair[False], pair[True]))
            click.echo(_described(number + 1, *found[-1]))
    return found


def _described(number: int, plain: Turn, tls: Turn) -> str:
    return (
        f"round {number}: {plain.result.per_second:.0f}/s plain, {tls.result.per_second:.0f}/s "
        f"with TLS ({rate_left(plain, tls):.2f}); {plain.cpu_us:.0f} and {tls.cpu_us:.0f} µs of "
        f"the gateway for a request ({time_left(plain, tls):.2f})"
    )


def rate_left(plain: Turn, tls: Turn) -> float:
    return tls.result.per_second / plain.result.per_second


def time_left(plain: Turn, tls: Turn) -> float:
    return plain.cpu_us / tls.cpu_us


@click.command(help=__doc__)
@click.option("--rounds", default=4, show_default=True)
@click.option("--seconds", default=8, show_default=True, help="Length of a run.")
def main(rounds: int, seconds: int) -> None:
    with workplace("tls") as folder:
        found = measure(folder, rounds, seconds)
    rate, by_time = (
        statistics.median(part(*pair) for pair in found) for part in (rate_left, time_left)
    )
    errors = sum(each.result.errors for pair in found for each in pair)
    click.echo(
        f"with TLS {rate:.2f} of the plain rate is left, {by_time:.2f} by the gateway's processor "
        f"time (medians; the aim is {AIM}), {errors} errors"
    )
    if max(rate, by_time) < AIM or errors:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
