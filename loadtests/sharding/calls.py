"""Large inputs to a running Headrace, and what it says of the parts of each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from mimetypes import guess_type
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from command.client import HttpClient

ANSWER_S = 600.0


@dataclass(frozen=True, slots=True)
class Processed:
    """An answer to `:process`, and how long its caller waited for it."""

    wall_s: float
    result: Mapping[str, Any]

    @property
    def parts(self) -> int:
        return len(self.result["shards"])

    @property
    def computed(self) -> int:
        """Number of parts that no shard had in its cache."""
        return sum(not shard["cached"] for shard in self.result["shards"])

    @property
    def shares(self) -> dict[str, int]:
        """The number of parts that each shard had."""
        return dict(Counter(sorted(shard["shard"] for shard in self.result["shards"])))

    @property
    def overhead(self) -> float:
        timing = self.result["timing"]
        return float((timing["split_s"] + timing["merge_s"]) / timing["total_s"])


def process(
    url: str, model: str, content: bytes, content_type: str = "image/jpeg", **options: Any
) -> Processed:
    """Send an upload and wait for its answer; raises `HeadraceError`."""
    headers = {"Content-Type": content_type, "X-Request-Timeout-Seconds": f"{ANSWER_S:g}"}
    asked: dict[str, Any] = {"params": options, "content": content, "headers": headers}
    begin_s = time.perf_counter()
    with HttpClient(urlsplit(url).netloc, timeout_s=ANSWER_S) as client:
        result = client.ask("POST", f"/v1/models/{model}:process", **asked)
    return Processed(time.perf_counter() - begin_s, result)


def process_file(url: str, model: str, path: Path, **options: Any) -> Processed:
    return process(url, model, path.read_bytes(), str(guess_type(path.name)[0]), **options)
