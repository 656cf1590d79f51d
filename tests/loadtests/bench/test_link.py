"""The measurement of the link's transports, with few requests."""

from __future__ import annotations

from loadtests.bench.link import WAYS, Load, table


def test_every_transport_answers_all_requests() -> None:
    rows = table(1, (Load("small", 100, 2, 9), Load("in parts", 200_000, 1, 3))).rows
    assert [row[:2] for row in rows] == [
        [load, way] for load in ("small", "in parts") for way in WAYS
    ]
    assert all(float(row[4].replace(",", "")) > 0 for row in rows)
