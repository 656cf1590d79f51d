"""Media jobs: an upload in the spool, and what the shard stage should do with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.config.sharding import ProcessOptions
from headrace.errors import Unavailable
from sharding.sniff import HEAD_BYTES, TAIL_BYTES, MediaKind, Medium, identify

Event = Mapping[str, Any]
"""JSON that a caller is sent about a job: `event` is "plan", "part" or "result"."""
Tell = Callable[[Event], Awaitable[None]]
"""Function that is told of the plan and of every part; the work waits for it."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file in the node's spool; `digest` is blake2b of its content in hex."""

    path: str
    length: int
    digest: str
    content_type: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class MediaJob:
    """One large picture or video to work on. `timeout_s` counts from the start of the work."""

    model: str
    upload: Upload
    version: int | None = None
    options: ProcessOptions = field(default_factory=ProcessOptions)
    timeout_s: float = 60.0
    request_id: str = ""
    traceparent: str = ""
    priority: int = 0

    @property
    def meta(self) -> bytes:
        """Request id and trace context for the slots' log lines."""
        if not self.request_id:
            return b""
        tail = f"\n{self.traceparent}" if self.traceparent else ""
        return f"{self.request_id}{tail}".encode()


def identify_file(upload: Upload, wanted: Medium) -> MediaKind:
    """The format of the upload, by its bytes.

    Raises `InvalidArgument`, `UnsupportedMedia`, and `Unavailable` if it is not on this node.
    """
    try:
        with Path(upload.path).open("rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(max(0, upload.length - TAIL_BYTES))
            tail = file.read(TAIL_BYTES)
    except FileNotFoundError:
        raise Unavailable("the upload is not on the node of the shard stage any more") from None
    return identify(head, tail, wanted)
