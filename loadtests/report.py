"""What a benchmark leaves: lines and tables on the terminal; JSON, Markdown and plots."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import httpx
import psutil
import rich.table
from rich.console import Console

from headrace.errors import HeadraceError
from loadtests.processes import ROOT, Failed

REPORTS = ROOT / "loadtests" / "reports"
LOG_LINES = 5
"""Last lines of each server's log that a failure shows."""

MIB = 2**20
WIDTH = 120
"""Columns where the output is no terminal: wide enough for every table."""

FORESEEN = (Failed, HeadraceError, httpx.HTTPError, OSError, psutil.Error)

out_option = click.option(
    "--out", default=REPORTS, type=click.Path(path_type=Path), help="Report folder."
)


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and the versions that a figure depends on."""

    cores: int
    processor: str
    memory_bytes: int
    python: str
    system: str
    versions: dict[str, str]

    def line(self) -> str:
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}"
        return f"{cores} · {self.processor} · {self.memory_bytes / 2**30:.0f} GiB"


def describe_machine(packages: Sequence[str]) -> Machine:
    """This machine; `cores` are those this process may use."""
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*: (.*)$", told, re.MULTILINE)
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        processor=model[1] if model else platform.machine(),
        memory_bytes=psutil.virtual_memory().total,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        versions={package: version(package) for package in packages},
    )


@dataclass(frozen=True, slots=True)
class Check:
    """A figure beside its goal."""

    name: str
    measured: str
    goal: str
    met: bool

    @classmethod
    def at_most(cls, name: str, measured: float, most: float) -> Check:
        """A figure that has an upper bound; NaN, which is what was not measured, misses it."""
        return cls(name, f"{measured:.3g}", f"at most {most:g}", measured <= most)

    def sentence(self) -> str:
        verdict = "met" if self.met else "MISSED"
        return f"{self.name}: {self.measured} (goal: {self.goal}: {verdict})"


def missed(checks: Iterable[Check]) -> list[str]:
    return [check.sentence() for check in checks if not check.met]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the first `texts` columns are words, the others figures, set to the right."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1

    def rich(self) -> rich.table.Table:
        table = rich.table.Table(title=self.title)
        for number, head in enumerate(self.heads):
            words = number < self.texts
            whole = number == 0 or not words
            table.add_column(head, justify="left" if words else "right", no_wrap=whole)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """With pipes, without the title."""
        rule = ["---" if number < self.texts else "---:" for number in range(len(self.heads))]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.heads, rule, *self.rows))


def figure(value: float, style: str, absent: str = "-") -> str:
    """A figure in a format; NaN is what was not measured."""
    return absent if math.isnan(value) else format(value, style)


def figures(thing: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in names}


def plain(value: Any) -> Any:
    """For JSON: dataclasses with their properties, fractions of four decimals, NaN as null."""
    if is_dataclass(value) and not isinstance(value, type):
        properties = [n for n, each in vars(type(value)).items() if isinstance(each, property)]
        names = [*(each.name for each in fields(value)), *properties]
        value = figures(value, *names)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value


def common_errors(errors: Iterable[str]) -> Counter[str]:
    return Counter(error for error in errors if error)


def failure_sentences(failures: Counter[str], where: str = "") -> list[str]:
    """The five most common reasons, one line each."""
    return [f"{where}failed {count} times: {error}" for error, count in failures.most_common(5)]


class Report:
    """Says what a run finds, and writes it to `NAME-DATE.json`, `.md` and plots.

    `setting` is what the titles of plots tell besides the machine and the date.
    """

    def __init__(
        self, name: str, out: Path, setting: str = "", packages: Sequence[str] = ()
    ) -> None:
        self.when = datetime.now().astimezone()
        self.machine = describe_machine(("headrace", "ray", "onnxruntime", *packages))
        parts = (self.machine.line(), setting, f"{self.when:%Y-%m-%d %H:%M %Z}")
        self.title = " · ".join(part for part in parts if part)
        self.console = terminal()
        self.checks: list[Check] = []
        self._stem = out / f"{name}-{self.when:%Y%m%d-%H%M%S}"
        when = self.when.isoformat(timespec="seconds")
        self._document: dict[str, Any] = {"when": when, "setting": setting}
        self._document["machine"] = plain(self.machine)
        self._blocks: list[str] = []

    def say(self, *lines: str) -> None:
        """Print lines and keep them for Markdown, a paragraph each."""
        for line in lines:
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)
        self._blocks += lines

    def show(self, table: Table) -> None:
        """Print a table and keep it for Markdown; nothing where it has no rows."""
        if table.rows:
            self.console.print(table.rich())
            self._blocks.append(table.markdown())

    def check(self, checks: Iterable[Check]) -> None:
        for check in checks:
            self.say(check.sentence())
            self.checks.append(check)

    def path(self, ending: str) -> Path:
        self._stem.parent.mkdir(parents=True, exist_ok=True)
        return self._stem.with_name(self._stem.name + ending)

    def picture(self, ending: str = ".png") -> Path:
        """Where to draw a plot, which the Markdown shows here."""
        path = self.path(ending)
        self._blocks.append(f"![{path.stem}]({path.name})")
        return path

    def write(self, **found: Any) -> None:
        """Add figures (see `plain`), and write all that are there so far."""
        self._document |= plain(found)
        if self.checks:
            self._document |= {"checks": plain(self.checks), "missed": missed(self.checks)}
        text = json.dumps(self._document, indent=2, allow_nan=False)
        self.path(".json").write_text(text + "\n", encoding="utf-8")
        text = "\n\n".join([f"{self.title}:", *self._blocks])
        self.path(".md").write_text(text + "\n", encoding="utf-8")

    def end(self, missed: int = 1) -> None:
        """Say where all is; exit with the status `missed` if a goal is."""
        self.console.print(f"written: {self._stem}*", soft_wrap=True, highlight=False)
        if missed and not all(check.met for check in self.checks):
            raise SystemExit(missed)


def terminal() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


@contextmanager
def workplace(name: str) -> Iterator[Path]:
    """A temporary folder; a foreseen failure shows the logs' ends in it and one sentence."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as text:
        folder = Path(text)
        try:
            yield folder
        except (*FORESEEN, ExceptionGroup) as error:
            reason = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
            if not isinstance(reason, FORESEEN):
                raise
            for log in sorted((*folder.glob("*.log"), *folder.glob("*/headrace.log"))):
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                click.echo("\n".join(lines[-LOG_LINES:]), err=True)
            raise click.ClickException(str(reason) or type(reason).__name__) from error
