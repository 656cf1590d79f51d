"""Tests run on uvloop, as the replicas do."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping

import pytest
import structlog
import uvloop
from hypothesis import settings

# A shell ignores SIGINT in what it starts in the background, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As `replicas.tensorflow_runtime` has it, whoever imports TensorFlow first.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

# A busy machine is slow, which says nothing of the code.
settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")

# Tracebacks that rich draws, structlog's default, take seconds each.
_renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure([*structlog.get_config()["processors"][:-1], _renderer])


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of every asynchronous test."""
    return {"uvloop": uvloop.new_event_loop}
