"""Settings of the shard stage: where uploads lie, how much memory they get, and its jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import ByteSize, Field

from headrace.config.types import Seconds, Strict


class JobsConfig(Strict):
    """Requests that are answered later (`Prefer: respond-async`).

    `folder` holds the database and the uploads of the jobs (default: `jobs` in the state folder).
    Jobs that have ended are kept for `keep_s`. One runs for at most `max_run_s`, and a caller has
    at most `max_waiting` that have not ended.
    """

    keep_s: Annotated[float, Field(ge=1, le=366 * 86_400)] = 86_400.0
    max_running: int = Field(default=1, ge=1, le=64)
    max_waiting: int = Field(default=100, ge=1, le=100_000)
    max_run_s: Seconds = 3600.0
    folder: Annotated[str, Field(min_length=1)] | None = None


class MediaConfig(Strict):
    """The stage that splits large pictures and videos; `replicas: 0` turns it off.

    `cpus` is what Ray reserves for each replica: none, as shards do the work.
    `spool` is the folder of uploads (default: one of the node); if it is one that all nodes share,
    `shared` lets the slots of all of them work on a video. Up to `spool_memory` of an upload
    stay in memory while it comes.
    """

    replicas: int = Field(default=1, ge=0, le=256)
    cpus: float = Field(default=0.0, ge=0, le=1024)
    spool: Annotated[str, Field(min_length=1)] | None = None
    shared: bool = False
    spool_memory: Annotated[ByteSize, Field(ge=0, le=1024**3)] = ByteSize(1024 * 1024)
    jobs: JobsConfig = JobsConfig()

    def folder(self, of_node: Path) -> Path:
        """Where uploads lie; `of_node` is where they do if the config says nothing."""
        return Path(self.spool) if self.spool else of_node

    @property
    def enabled(self) -> bool:
        """Whether a stage runs at all."""
        return self.replicas > 0
