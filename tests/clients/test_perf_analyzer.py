"""Triton's perf_analyzer, the real binary, which lies in an older wheel of tritonclient."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.shared_memory.regions import Regions
from headrace.access import Access
from headrace.config.args import SharedMemory
from headrace.config.tiers import AuthConfig, Tier
from headrace.keys import new_key
from tests.clients.packages import side_packages
from tests.house import PEPPER, House, open_house

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
REQUESTS = 30
RUN_S = 60.0
SHARED = ("--shared-memory", "system", "--output-shared-memory-size", "64")


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    """What the binary needs; skips where it is not for this machine or lacks a library."""
    packages = side_packages("perf-analyzer")
    libraries = packages / "nvidia" / "cuda_runtime" / "lib"
    found = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PATH": str(packages / "bin")}
    try:
        run = ["perf_analyzer", "--version"]
        said = subprocess.run(run, env=found, capture_output=True, text=True, timeout=RUN_S)
    except OSError:
        pytest.skip("perf_analyzer is no program of this kind of machine")
    if "error while loading shared libraries" in said.stderr:
        pytest.skip(f"perf_analyzer does not start: {said.stderr.strip()}")
    return found


async def analyze(house: House, environment: Mapping[str, str], *more: str) -> str:
    """What it prints of REQUESTS predictions, by a model of four columns."""
    process = await asyncio.create_subprocess_exec(
        *("perf_analyzer", "-m", "affine", "--request-count", str(REQUESTS), *more),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(RUN_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_it_measures_with_and_without_shared_memory(
    tmp_path: Path, environment: Mapping[str, str]
) -> None:
    key, record = new_key(PEPPER, name="alice", tier="all", now_s=1.0)
    tiers = {"anonymous": Tier(rate="1/s", burst=1), "all": Tier()}
    access = Access(1, tiers, AuthConfig(), {record.id: record})
    regions = Regions(SharedMemory(), tmp_path / "regions")
    async with open_house(tmp_path, "a", regions=regions, access=access) as house:
        http = ["-u", house.http.address, "-H", f"x-api-key:{key}"]
        grpc = ["-u", house.grpc.address, "-i", "grpc", "-H", f"x-api-key:{key}"]
        runs = [
            await analyze(house, environment, *http),
            await analyze(house, environment, *grpc),
            await analyze(house, environment, *http, *SHARED),
            await analyze(house, environment, *grpc, *SHARED, "--streaming"),
        ]
        # It has registered regions, which makes the folder, and unregistered them all.
        assert (tmp_path / "regions").is_dir()
        assert regions.listed(f"key:{record.id}") == []
    for output in runs:
        # It counts what it sent, and reads what the server has counted.
        assert f"Request count: {REQUESTS}" in output, output
        assert "Successful request count:" in output
        assert "compute infer" in output
