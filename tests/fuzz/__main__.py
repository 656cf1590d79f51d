"""`python -m tests.fuzz`: each target in a process of its own, so that a crash is a finding too."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import click

from tests.fuzz.runner import Finding, Report, fuzz, replay
from tests.fuzz.table import TARGETS

FOUND = Path("build/fuzz")
COMMAND = (sys.executable, "-X", "faulthandler", "-m", "tests.fuzz")


@click.command()
@click.option("--target", "names", multiple=True, type=click.Choice(sorted(TARGETS)))
@click.option("--seed", default=1, show_default=True, help="Equal seeds make equal inputs.")
@click.option("--seconds", default=60.0, show_default=True, help="Time limit of each target.")
@click.option("--inputs", type=int, help="So many inputs of each target at most.")
@click.option(
    "--replay", "file", type=click.Path(exists=True, path_type=Path), help="Run this input again."
)
@click.option("--report", type=click.Path(path_type=Path), hidden=True)
def main(
    names: tuple[str, ...],
    seed: int,
    seconds: float,
    inputs: int | None,
    file: Path | None,
    report: Path | None,
) -> None:
    """Feed changed inputs to Headrace's parsers and servers; findings go to build/fuzz/TARGET."""
    if report is not None:
        found = fuzz(TARGETS[names[0]], seed, seconds, inputs, report.with_suffix(".input"))
        _write(found, report)
        return
    if file is not None:
        if len(names) != 1:
            raise click.UsageError("--replay takes one --target")
        raise SystemExit(_tell(replay(TARGETS[names[0]], [file.read_bytes()])))
    failed = 0
    for name in names or TARGETS:
        failed += _tell(apart(name, seed, seconds, inputs))
    raise SystemExit(bool(failed))


def apart(
    name: str, seed: int, seconds: float, inputs: int | None, command: tuple[str, ...] = COMMAND
) -> Report:
    """The report of a target that runs in another process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        asked = ["--target", name, "--seed", str(seed), "--seconds", str(seconds)]
        asked += ["--inputs", str(inputs)] if inputs is not None else []
        asked += ["--report", str(path)]
        ended = subprocess.run(
            [*command, *asked], stderr=subprocess.PIPE, text=True, errors="replace"
        )
        if path.exists():
            report = _read(path)
            if ended.stderr:
                # Nothing that comes from outside may reach the log in other ways than ours.
                report.findings.append(Finding(f"on stderr: {ended.stderr[-4000:]}"))
            return report
        current = path.with_suffix(".input")
        data = current.read_bytes() if current.exists() else b""
        text = f"the process ended with {ended.returncode}: {ended.stderr[-4000:]}"
        return Report(name, findings=[Finding(text, data)])


def _tell(report: Report) -> int:
    """Print a report and keep its findings; gives how many there are."""
    click.echo(str(report))
    for finding in report.findings:
        click.echo(f"--- {report.target} {finding.name}\n{finding.text}")
        if finding.data:
            path = FOUND / report.target / finding.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(finding.data)
            click.echo(f"--- kept in {path}")
    return len(report.findings)


def _write(report: Report, path: Path) -> None:
    document = asdict(report)
    document["findings"] = [(each.text, each.data.hex()) for each in report.findings]
    path.write_text(json.dumps(document))


def _read(path: Path) -> Report:
    document = json.loads(path.read_text())
    found = [Finding(text, bytes.fromhex(data)) for text, data in document.pop("findings")]
    return Report(**document, findings=found)


if __name__ == "__main__":
    main()
