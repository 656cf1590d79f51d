"""Requests that are no predictions: what is counted and written of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.access.audit import AuditLog
from gateway.access.limits import OverBudget
from gateway.access.visit import Head, Visit
from headrace.config.args import Audit
from headrace.config.tiers import Quota, Tier
from headrace.metrics import REFUSALS
from tests.gateway.access.test_admission import House


def visit() -> Visit:
    return Visit(Head({b"caller": b"ip:192.0.2.7", b"x-request-id": b"one"}, "192.0.2.7"))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    opened = AuditLog(Audit(sample=1.0), tmp_path, "gateway")
    yield opened
    opened.close()


def written(folder: Path) -> list[Any]:
    content = b"".join(file.read_bytes() for file in folder.iterdir())
    return [orjson.loads(line) for line in content.splitlines()]


async def test_a_flood_of_visits_has_a_sender(log: AuditLog, tmp_path: Path) -> None:
    house = House({"anonymous": Tier(rate="1/s", burst=2)}, log)
    house.admission.admit(visit())
    await house.exchanged()
    refused = 0
    for _ in range(5):
        try:
            house.admission.admit(visit())
        except OverBudget as error:
            refused += 1
            assert error.limit is not None and error.limit[0] == b'"rate";q=2;w=2'
    assert refused >= 3
    assert house.recorder.snapshot().samples[REFUSALS.name] == {("anonymous", "rate"): (refused,)}
    log.close()
    lines = written(tmp_path)
    assert {line["caller"] for line in lines} == {"ip:192.0.2.7"}
    counts = {line["decision"]: 0 for line in lines}
    for line in lines:
        counts[line["decision"]] += line.get("count", 1)
    assert counts == {"allowed": 6 - refused, "refused": refused}
    assert lines[0]["request_id"] == "one" and lines[0]["protocol"] == "http"


async def test_without_an_audit_log_visits_are_still_counted() -> None:
    house = House({"anonymous": Tier(quota=Quota(per_day=1))})
    house.admission.admit(visit())
    await house.exchanged()
    with pytest.raises(OverBudget, match="quota"):
        house.admission.admit(visit())
    assert house.recorder.snapshot().samples[REFUSALS.name] == {("anonymous", "quota"): (1,)}
