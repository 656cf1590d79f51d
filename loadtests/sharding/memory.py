"""Peak memory of stage and shards for small and large inputs, beside one replica without shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.plots import COLORS, drawn, level
from loadtests.report import Check
from loadtests.sharding.calls import process_file, run_direct
from loadtests.sharding.inputs import Inputs, ShardedSystem

MIB = 2**20
RESET = "5"
"""Value for `clear_refs` that resets the peak to what is resident now (proc(5))."""


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


def measure_memory(fleet: ShardedSystem, inputs: Inputs, bound_bytes: int) -> list[Peaks]:
    """The peaks for a picture and a video of two sizes each; raises `BadAnswer`, `OSError`."""
    wanted = {
        "12 MP picture": ("faces", inputs.mosaic(12)),
        "100 MP picture": ("faces", inputs.mosaic(100)),
        "30 s video": ("tagger", inputs.video(30)),
        "10 min video": ("tagger", inputs.video(600)),
    }
    return [_peaks(fleet, name, *each, bound_bytes) for name, each in wanted.items()]


def _peaks(fleet: ShardedSystem, name: str, model: str, path: Path, bound_bytes: int) -> Peaks:
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


def reset_peaks(pids: Iterable[int]) -> None:
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text(RESET, encoding="ascii")


def largest_peak(pids: Iterable[int]) -> int:
    return max(peak_bytes(pid) for pid in pids)


def peak_bytes(pid: int | str) -> int:
    """The peak of resident memory of a process since it began or its peak was reset."""
    return parse_peak(Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))


def parse_peak(status: str) -> int:
    """VmHWM in `/proc/PID/status`, which is in kB."""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError("there is no VmHWM in this status")


def plot_memory(peaks: Sequence[Peaks], bound_bytes: int, title: str, path: Path) -> None:
    """Bars of the peaks of each kind of process; one that was ended reaches beyond the bound."""
    kinds = {
        "gateway": [each.gateway_bytes for each in peaks],
        "stage": [each.stage_bytes for each in peaks],
        "largest shard": [each.shard_bytes for each in peaks],
        "one replica, whole input": [each.unsharded.peak_bytes or bound_bytes for each in peaks],
    }
    with drawn(path, f"Peak resident memory by input\n{title}", (10, 5.2)) as [panel]:
        for number, ((kind, values), color) in enumerate(zip(kinds.items(), COLORS, strict=True)):
            places = [place + 0.2 * number for place in range(len(peaks))]
            panel.bar(places, [value / MIB for value in values], 0.18, color=color, label=kind)
        for place, each in enumerate(peaks):
            if each.unsharded.peak_bytes is None:
                above: dict[str, Any] = {"ha": "center", "va": "bottom", "size": 9}
                panel.text(place + 0.6, bound_bytes / MIB, "ended", **above)
        level(panel, bound_bytes / MIB, f"bound: {bound_bytes / MIB:.0f} MiB")
        panel.set_xticks([n + 0.3 for n in range(len(peaks))], [each.name for each in peaks])
        panel.set_ylabel("MiB")
