"""What the stage and the shards hold for small and for large inputs, beside one that takes all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loadtests.sharding.calls import process_file
from loadtests.sharding.correctness import run_direct
from loadtests.sharding.figures import Check
from loadtests.sharding.inputs import Inputs
from loadtests.sharding.models import Fleet
from loadtests.sharding.peak import largest_peak, reset_peaks

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Unsharded:
    """One replica that takes the whole input: its peak, or None if it was ended at the bound."""

    peak_bytes: int | None

    def __str__(self) -> str:
        if self.peak_bytes is None:
            return "ended at the bound"
        return f"{self.peak_bytes / MIB:.0f} MiB"


@dataclass(frozen=True, slots=True)
class Peaks:
    """The largest resident memory of a process of each kind while one input was worked on."""

    name: str
    stage_bytes: int
    shard_bytes: int
    gateway_bytes: int
    unsharded: Unsharded
    wall_s: float

    def within(self, bound_bytes: int) -> bool:
        """Whether the stage and every shard stayed within the bound, and one replica did not."""
        bounded = max(self.stage_bytes, self.shard_bytes) <= bound_bytes
        return bounded and self.unsharded.peak_bytes is None


def measure_memory(fleet: Fleet, inputs: Inputs, bound_bytes: int) -> list[Peaks]:
    """The peaks for a picture and a video of two sizes each; raises `BadAnswer`, `OSError`."""
    wanted = {
        "12 MP picture": ("faces", inputs.mosaic(12)),
        "100 MP picture": ("faces", inputs.mosaic(100)),
        "30 s video": ("tagger", inputs.video(30)),
        "10 min video": ("tagger", inputs.video(600)),
    }
    return [_peaks(fleet, name, *each, bound_bytes) for name, each in wanted.items()]


def _peaks(fleet: Fleet, name: str, model: str, path: Path, bound_bytes: int) -> Peaks:
    shards = fleet.shards[model].values()
    groups = (fleet.stage, tuple(shards), fleet.gateways)
    for pids in groups:
        reset_peaks(pids)
    answer = process_file(fleet.url, model, path)
    stage, shard, gateway = (largest_peak(pids) for pids in groups)
    alone = run_direct("whole", model, path, "--memory", str(bound_bytes))
    unsharded = Unsharded(None if alone is None else int(alone["peak_bytes"]))
    return Peaks(name, stage, shard, gateway, unsharded, answer.wall_s)


def memory_checks(peaks: Iterable[Peaks], bound_bytes: int) -> list[Check]:
    """Each input's peaks against the bound."""
    return [
        Check(
            f"memory, {each.name}",
            f"stage {each.stage_bytes / MIB:.0f} MiB, shards {each.shard_bytes / MIB:.0f} MiB; "
            f"un-sharded {each.unsharded}",
            f"{bound_bytes / MIB:.0f} MiB each, un-sharded ended there",
            each.within(bound_bytes),
        )
        for each in peaks
    ]
