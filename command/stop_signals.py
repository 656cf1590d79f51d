"""SIGINT and SIGTERM as a wish: the first one to drain, the second one to hurry."""

from __future__ import annotations

import signal
import time
from types import FrameType


class Hurry(BaseException):
    """Raised in the main thread by the second signal; like KeyboardInterrupt, not an error."""


class StopSignals:
    """Handlers of the main thread. Ray sets its own at its start: install again after that."""

    def __init__(self) -> None:
        self.asked = False
        self._hurried = False

    def install(self) -> None:
        """Take both signals over."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def wait(self, seconds: float) -> bool:
        """Sleep, or return at once when asked to stop; True when asked."""
        deadline_s = time.monotonic() + seconds
        while not self.asked and (left_s := deadline_s - time.monotonic()) > 0:
            time.sleep(min(0.1, left_s))
        return self.asked

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.asked and not self._hurried:
            self._hurried = True
            raise Hurry
        self.asked = True
