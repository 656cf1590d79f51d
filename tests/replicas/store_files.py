"""Files of a model store and their sums."""

from __future__ import annotations

import hashlib
from pathlib import Path

from replicas.repository import Repository

Files = dict[str, bytes]
TAGGER: Files = {"model.onnx": b"weights", "labels.txt": b"cat\ndog\n", "variables/data": b"more"}


def sums(files: Files) -> bytes:
    return b"".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()
        for name, content in files.items()
    )


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def signed(files: Files) -> Files:
    return {**files, "SHA256SUMS": sums(files)}


def local(tmp_path: Path) -> Repository:
    return Repository(str(tmp_path / "store"), tmp_path / "cache")
