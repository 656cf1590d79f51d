"""What `headrace up` shows while things start: lines that stay, and one that moves."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.text import Text

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
