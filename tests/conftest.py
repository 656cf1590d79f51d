"""Tests run on uvloop, as the replicas do."""

from __future__ import annotations

import asyncio

import pytest
import uvloop


@pytest.fixture(scope="session")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """The policy of every test's loop."""
    return uvloop.EventLoopPolicy()
