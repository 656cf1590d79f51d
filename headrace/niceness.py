"""How work that makes up large requests gives way to small ones."""

from __future__ import annotations

import os
import threading

NICE = 10
"""A thread with it gets a tenth of what one without it gets where both want a core (sched(7))."""


def be_nice() -> None:
    """This thread, and those that it will start, from now on; it cannot be taken back.

    On Linux each thread has a niceness of its own.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
