"""What TLS costs: the same requests over kept-alive connections, plain and encrypted, in turns.

Starts Headrace twice, one of them with TLS, and lets wrk post to one after the other; the one that
is not asked sleeps. wrk encrypts too, on the same cores.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from pathlib import Path

import click
import trustme

from loadtests.bench.generators import Result, Target, run_wrk
from loadtests.bench.mlp import NAME, mlp_graph, write_bodies, write_version
from loadtests.headrace import headrace
from loadtests.report import workplace

CONNECTIONS = 64
WARM_UP_S = 3
AIM = 0.75
"""Least part of the plain rate that is to be left."""
MODELS = {NAME: {"runtime": "onnx"}}


def certificate(folder: Path) -> dict[str, dict[str, str]]:
    """`listen.tls` with files made for this machine."""
    made = trustme.CA().issue_cert("127.0.0.1")
    made.cert_chain_pems[0].write_to_path(folder / "server.crt")
    made.private_key_pem.write_to_path(folder / "server.key")
    return {
        "cert": {"file": str(folder / "server.crt")},
        "key": {"file": str(folder / "server.key")},
    }


def measure(folder: Path, rounds: int, seconds: int) -> list[tuple[Result, Result]]:
    """Results without and with TLS, by round."""
    write_version(folder / "store", NAME, mlp_graph())
    body = write_bodies(folder)[-1]
    with ExitStack() as stack:
        targets = []
        for name, tls in (("plain", None), ("tls", certificate(folder))):
            place = headrace(folder / name, folder / "store", MODELS, tls=tls)
            targets.append(Target.of(body, stack.enter_context(place).url))
        for target in targets:
            run_wrk(target, CONNECTIONS, WARM_UP_S)
        found = []
        for number in range(rounds):
            pair = {}
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                pair[which] = run_wrk(targets[which], CONNECTIONS, seconds)
            found.append((pair[0], pair[1]))
            plain, encrypted = found[-1]
            click.echo(
                f"round {number + 1}: {plain.per_second:.0f}/s plain, {encrypted.per_second:.0f}/s "
                f"with TLS ({encrypted.per_second / plain.per_second:.2f}), p99 {plain.p99_ms:.1f} "
                f"and {encrypted.p99_ms:.1f} ms, {plain.errors + encrypted.errors} errors"
            )
    return found


@click.command(help=__doc__)
@click.option("--rounds", default=6, show_default=True)
@click.option("--seconds", default=8, show_default=True, help="Length of a run.")
def main(rounds: int, seconds: int) -> None:
    with workplace("tls") as folder:
        found = measure(folder, rounds, seconds)
    part = statistics.median(tls.per_second / plain.per_second for plain, tls in found)
    errors = sum(each.errors for pair in found for each in pair)
    click.echo(f"with TLS {part:.2f} of the plain rate is left (median; the aim is {AIM})")
    if part < AIM or errors:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
