"""The measurement of TLS: its certificate, and what is left of a rate."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.certificates import check_files
from headrace.config.args import Tls
from loadtests.bench.generators import Result
from loadtests.tls import Turn, certificate, rate_left, time_left


def test_the_certificate_is_of_use_for_http_alone(tmp_path: Path) -> None:
    tls = Tls.model_validate(certificate(tmp_path))
    check_files(tls)
    assert tls.listeners == ("http",)


def test_what_is_left_is_a_part_of_the_plain_turn() -> None:
    plain, tls = (
        Turn(Result(64, 1000, rate, 1.0, 2.0, 0), cpu_us)
        for rate, cpu_us in ((4000.0, 90.0), (3000.0, 100.0))
    )
    assert rate_left(plain, tls) == pytest.approx(0.75)
    assert time_left(plain, tls) == pytest.approx(0.9)
