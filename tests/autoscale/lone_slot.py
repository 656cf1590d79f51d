"""A slot in a process of its own, without Ray: it may die. It ends when its stdin does.

Told on its command line: the folder of the plant, its name, and by how many MB it may grow
(0: without a limit). It writes one line of JSON about itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from headrace.config.args import Limits
from headrace.link.handshake import Hello
from headrace.logs import configure
from headrace.metrics import Recorder
from headrace.process import resident_bytes
from replicas.last_words import LastWords, MemoryWatch
from replicas.placements import import_runtime
from replicas.repository import Repository
from replicas.service import SlotService
from tests.link_ends import MAX_BODY_BYTES, SECRET


async def main(folder: Path, name: str, growth_mb: int) -> None:
    configure("info", "slot")
    import_runtime("onnx")
    path = folder / f"{name}.sock"
    limit_bytes = resident_bytes() + growth_mb * 2**20 if growth_mb else None
    words = LastWords(path, limit_bytes)
    service = SlotService(
        Repository(str(folder / "store"), folder / "cache"),
        Hello(name, node_id="node"),
        SECRET,
        Limits(max_body_bytes=MAX_BODY_BYTES),
        Recorder("slot"),
        words=words,
    )
    await service.start(path, "127.0.0.1", 0)
    MemoryWatch(limit_bytes, words, farewell=service.out_of_memory).start()
    about = {"pid": os.getpid(), "address": service.tcp_address, "limit": limit_bytes}
    sys.stdout.write(json.dumps(about) + "\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
