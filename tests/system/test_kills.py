"""Everything that can die is killed under load; two kills and an update here, 20 by the command."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loadtests import kills
from loadtests.headrace import copy_models, headrace
from loadtests.report import Report

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


@pytest.mark.parametrize("gateways", [1, 2])
def test_no_request_is_refused_or_lost(tmp_path: Path, gateways: int) -> None:
    store = copy_models(tmp_path, {kills.MODEL: kills.MODEL})
    order = ["gateway", "gateway", "pool", "controller", "slot", kills.UPDATE]
    folder = tmp_path / "system"
    more = {"gateways": gateways}
    with headrace(folder, store, kills.MODELS, kills.SLOTS, more=more) as server:
        system = kills.System(server, gateways, folder / "headrace.yaml")
        report = Report("kills", tmp_path)
        with system.admin:
            disturbances, asked = asyncio.run(kills.run(system, server.url, order, 1, report))
    everything = kills.Outcome.of("everything", disturbances, asked)
    assert (everything.refused, everything.lost, everything.times) == (0, 0, len(order))
    assert everything.requests > 200
    killed = [each for each in disturbances if each.kind == "gateway"]
    assert kills.Outcome.of("gateway", killed, asked).requests > 20
