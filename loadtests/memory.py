"""What processes hold in memory, as the kernel counts it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BARE = """
import sys
import numpy
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {session.get_inputs()[0].name: numpy.zeros((64, 784), numpy.float32)})
print("loaded", flush=True)
sys.stdin.read()
"""
"""A process with nothing but the runtime and the model, as the yardstick for a slot."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes, and the same with shared pages divided among those who share them."""

    rss_bytes: int
    pss_bytes: int


def process_memory(pid: int) -> Memory:
    """The memory of one process; raises `OSError` when it is gone or not ours."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return parse_rollup(text)


def parse_rollup(text: str) -> Memory:
    """Read `/proc/PID/smaps_rollup`, whose figures are in kB."""
    fields = {}
    for line in text.splitlines()[1:]:
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) * 1024
    return Memory(fields["Rss"], fields["Pss"])


def bare_runtime_memory(model: Path) -> Memory:
    """Memory of a bare Python process that has loaded the model and run it once."""
    with subprocess.Popen(
        [sys.executable, "-c", BARE, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        if process.stdout.readline().strip() != b"loaded":
            raise OSError("the bare runtime process did not load the model")
        memory = process_memory(process.pid)
        process.stdin.close()
    return memory
