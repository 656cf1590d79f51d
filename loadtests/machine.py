"""What a measurement ran on, to be printed beside every figure."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and the versions that a figure depends on."""

    cores: int
    processor: str
    memory_bytes: int
    python: str
    system: str
    versions: dict[str, str]

    def line(self) -> str:
        """One line for titles: cores, processor and memory."""
        memory = self.memory_bytes / 2**30
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}"
        return f"{cores} · {self.processor} · {memory:.0f} GiB"


def describe_machine(packages: tuple[str, ...]) -> Machine:
    """This machine; `cores` are those this process may use."""
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        processor=_processor(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        versions={package: _version(package) for package in packages},
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
