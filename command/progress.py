"""What `headrace up` shows while things start: lines that stay, and one that moves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from command.findings import counted
from command.readiness import VersionState


class Progress:
    """Lines on a console; where it is no terminal the moving line is left out."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_s = time.monotonic()
        self._moving = console.status("")
        self._shown: dict[tuple[str, int], str] = {}

    @property
    def elapsed_s(self) -> float:
        """Seconds since this progress was made."""
        return time.monotonic() - self._began_s

    def now(self, text: str) -> None:
        """Say what is going on."""
        self._moving.update(Text(text))

    def done(self, text: str) -> None:
        """Say what was reached, and when."""
        line = Text.assemble(("✓ ", "green"), text, (f"  {self.elapsed_s:.1f} s", "dim"))
        self._console.print(line, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Say what is wrong but does not stop us."""
        self._console.print(Text.assemble(("! ", "yellow"), text), soft_wrap=True)

    def say(self, text: str) -> None:
        """A plain line."""
        self._console.print(Text(text), soft_wrap=True)

    def models(self, states: list[VersionState]) -> None:
        """Tell about versions that became READY or FAILED since the last call."""
        for state in states:
            key = (state.model, state.version)
            if self._shown.get(key) == state.state:
                continue
            self._shown[key] = state.state
            if state.state == "READY":
                self.done(f"{state} is READY (loaded in {state.load_s:.2f} s)")
            elif state.state == "FAILED":
                self.warn(f"{state} is FAILED: {state.reason}")

    def __enter__(self) -> Self:
        self._moving.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._moving.stop()


class WorkProgress:
    """A bar on a console; where it is no terminal nothing is shown."""

    def __init__(self, console: Console, file: Path) -> None:
        self._bar = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._length = file.stat().st_size
        self._sent = self._cached = self._failed = 0
        self._task = self._bar.add_task(f"sending {file.name}", total=self._length, figures="")
        self._working = False

    def sent(self, count: int) -> None:
        """So many bytes more went out."""
        self._sent += count
        figures = f"{decimal(self._sent)} of {decimal(self._length)}"
        self._bar.update(self._task, completed=self._sent, figures=figures)
        if self._sent == self._length and not self._working:
            self._begin("waiting", None)

    def event(self, event: Mapping[str, Any]) -> None:
        """The next event of the answer."""
        if event["event"] == "plan":
            self._cached = self._failed = 0
            parts, shards = counted(event["parts"], "part"), counted(event["shards"], "shard")
            self._begin(f"{parts} on {shards}", event["parts"])
        elif event["event"] == "part":
            self._cached += bool(event.get("cached"))
            self._failed += "error" in event
            self._parts(event["done"], event["parts"])

    def job(self, document: Mapping[str, Any]) -> None:
        """A job's document, as it is now."""
        progress = document.get("progress") or {}
        self._begin(f"job {document['id']} is {document['state']}", progress.get("parts") or None)
        if progress.get("parts"):
            self._parts(progress["done"], progress["parts"])

    def _parts(self, done: int, parts: int) -> None:
        figures = f"{done} of {parts}"
        figures += f", {self._cached} from the cache" if self._cached else ""
        figures += f", {self._failed} failed" if self._failed else ""
        self._bar.update(self._task, completed=done, total=parts, figures=figures)

    def _begin(self, description: str, total: int | None) -> None:
        """The next stage; its rate is its own, so the time that is left is too."""
        if not self._working or total is not None:
            self._working = total is not None
            self._bar.reset(self._task, total=total, figures="")
            # `reset` keeps the old total where the new one is None: the bar would look full.
            self._bar.tasks[0].total = total
        self._bar.update(self._task, description=description)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
