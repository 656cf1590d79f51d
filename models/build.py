"""Builds the demo models: `python models/build.py [NAME ...] [--force]`.

Imports only what is light; a builder and its tools are imported when there is work for them.
"""

import fcntl
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from catalog import TARGETS, Target
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from sources import BuildError, NpmMissingError
from targets import PHASES, Report, is_built, make, write_beside

BASE = Path(__file__).resolve().parent
LOG = BASE / "cache" / "build.log"
NAMES = tuple(dict.fromkeys(target.name for target in TARGETS))


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES), metavar="[NAME]...")
@click.option("--force", is_flag=True, help="Build again what is up to date.")
def main(names: Sequence[str], force: bool) -> None:
    """Build the demo models NAME... (all of them without a name) into models/repository."""
    console = Console()
    with _alone(console):
        chosen = _with_needs(names or NAMES)
        failed = _build_all(chosen, force, console)
        write_beside(TARGETS, BASE)
    sys.exit(1 if failed else 0)


def _with_needs(names: Sequence[str]) -> list[Target]:
    needed = {need for target in TARGETS if target.name in names for need in target.needs}
    return [target for target in TARGETS if target.name in needed or target.name in names]


@contextmanager
def _alone(console: Console) -> Iterator[None]:
    """Hold the lock on the cache, so that two builds do not do the same work."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with (LOG.parent / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("Another build of the models is running: waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(LOG.parent / "work", ignore_errors=True)
        yield


def _build_all(chosen: Sequence[Target], force: bool, console: Console) -> int:
    """Build what is not up to date, in order, and return how many failed."""
    stale = [target for target in chosen if force or not is_built(target, BASE)]
    names = {target.name for target in stale}
    # What needs a stale target is judged again when its turn comes.
    waiting = [t for t in chosen if t in stale or names.intersection(t.needs)]
    failed = 0
    with _progress(console, shown=bool(waiting)) as progress:
        for number, target in enumerate(waiting, 1):
            if force or not is_built(target, BASE):
                failed += not _build_one(target, f"{number}/{len(waiting)}", progress)
    ready = sum(is_built(target, BASE) for target in chosen)
    console.print(f"Models: {ready} of {len(chosen)} up to date in models/repository.")
    return failed


def _progress(console: Console, shown: bool) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.fields[number]:>5} [bold]{task.description:<11}"),
        BarColumn(bar_width=12),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
        console=console,
        transient=True,
        disable=not shown,
    )


def _build_one(target: Target, number: str, progress: Progress) -> bool:
    """Build one target and say how it went; False where that is a failure of the build."""
    task = progress.add_task(target.label, total=PHASES, number=number, now="")
    started = time.monotonic()

    def report(finished: int, now: str) -> None:
        progress.update(task, completed=finished, now=escape(now))

    succeeded, outcome = _attempt(target, report)
    progress.remove_task(task)
    text = f"{number:>5} {target.label:<11} {outcome} ({time.monotonic() - started:.1f} s)"
    progress.console.print(text, soft_wrap=True)
    return succeeded


def _attempt(target: Target, report: Report) -> tuple[bool, str]:
    """Build one target; return whether the build may succeed as a whole, and what to print."""
    try:
        make(target, BASE, report)
    except NpmMissingError as error:
        # The system serves without this model, so its absence is a warning.
        return True, f"[yellow]skipped[/]: {escape(str(error))}"
    except BuildError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error}: free space or correct the permissions there, then run the build again."
    except Exception as error:  # the boundary of a builder: its traceback goes to the log
        with LOG.open("a", encoding="utf-8") as log:
            log.write(f"{target.label}\n{traceback.format_exc()}\n")
        reason = f"unexpected {type(error).__name__}; the traceback is in {os.path.relpath(LOG)}."
    else:
        return True, "built"
    return False, f"[red]failed[/]: {escape(reason)}"


if __name__ == "__main__":
    # TensorFlow reads these at import. Only its errors are news here, and the notice about oneDNN
    # (which would save seconds of training) comes whatever the level.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    main()
