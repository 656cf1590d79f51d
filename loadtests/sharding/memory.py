"""Peak memory of stage and shards for small and large inputs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loadtests.report import MIB, Check, Report
from loadtests.sharding.calls import process_file
from loadtests.sharding.inputs import Inputs, ShardedSystem

RESET = "5"
"""Value for `clear_refs` that resets the peak to what is resident now (proc(5))."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """The largest resident memory of a process of each kind while one input was worked on."""

    name: str
    stage_bytes: int
    shard_bytes: int
    gateway_bytes: int
    wall_s: float

    def check(self, bound_bytes: int) -> Check:
        return Check(
            f"memory, {self.name}",
            f"stage {self.stage_bytes / MIB:.0f} MiB, shards {self.shard_bytes / MIB:.0f} MiB",
            f"{bound_bytes / MIB:.0f} MiB each",
            max(self.stage_bytes, self.shard_bytes) <= bound_bytes,
        )


def run_memory(fleet: ShardedSystem, inputs: Inputs, rounds: int, report: Report) -> list[Check]:
    """The peaks for a picture and a video of two sizes each; raises `HeadraceError`, `OSError`."""
    wanted = {
        "12 MP picture": ("faces", inputs.mosaic(12)),
        "100 MP picture": ("faces", inputs.mosaic(100)),
        "30 s video": ("tagger", inputs.video(30)),
        "10 min video": ("tagger", inputs.video(600)),
    }
    peaks = []
    for name, (model, path) in wanted.items():
        groups = (fleet.stage, tuple(fleet.shards[model].values()), fleet.gateways)
        for pids in groups:
            reset_peaks(pids)
        answer = process_file(fleet.url, model, path)
        stage, shard, gateway = (max(map(peak_bytes, pids)) for pids in groups)
        peaks.append(Peaks(name, stage, shard, gateway, answer.wall_s))
    report.write(memory=peaks)
    return [each.check(fleet.bound_bytes) for each in peaks]


def reset_peaks(pids: Iterable[int]) -> None:
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text(RESET, encoding="ascii")


def peak_bytes(pid: int | str) -> int:
    """The peak of resident memory of a process since it began or its peak was reset."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise ValueError(f"process {pid} tells no VmHWM")
    return int(found[1]) * 1024
