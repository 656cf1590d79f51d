"""How a command ends with the process that started it, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


def ends_with_us() -> Callable[[], None] | None:
    """For `preexec_fn`: SIGKILL to the command when the thread that starts it ends, prctl(2).

    What the command has started in its turn is not reached. None where the kernel has no such call.
    """
    if sys.platform != "linux":
        return None
    # Looked up here: between fork and exec as little as possible may run.
    prctl = ctypes.CDLL(None).prctl
    us = os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != us:  # we ended before the kernel was asked
            os.kill(os.getpid(), signal.SIGKILL)

    return ask
