"""Large pictures and videos to a running Headrace, and what its answers say of their parts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtests.headrace import BadAnswer
from sharding.parts import Box

ANSWER_S = 600.0
TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".mp4": "video/mp4"}


@dataclass(frozen=True, slots=True)
class Processed:
    """An answer to `:process`, and how long its caller waited for it."""

    wall_s: float
    result: Mapping[str, Any]

    @property
    def parts(self) -> int:
        """How many tiles or segments there were."""
        return len(self.result["shards"])

    @property
    def computed(self) -> int:
        """How many of them no shard had in its cache."""
        return sum(not shard["cached"] for shard in self.result["shards"])

    @property
    def boxes(self) -> list[Box]:
        """The merged boxes of a picture."""
        found = []
        for each in self.result["boxes"]:
            x1, y1, x2, y2 = each["box"]
            found.append(Box(x1, y1, x2, y2, each["score"], each["class"], each["label"]))
        return found

    @property
    def stage_s(self) -> float:
        """The stage's time for all parts and the answer; the upload came before."""
        return float(self.result["timing"]["total_s"])

    @property
    def overhead(self) -> float:
        """The share of split, hash and merge in the stage's time."""
        timing = self.result["timing"]
        return float((timing["split_s"] + timing["merge_s"]) / timing["total_s"])


def process(
    url: str, model: str, content: bytes, content_type: str = "image/jpeg", **options: Any
) -> Processed:
    """Send an upload and wait for its answer; raises `BadAnswer`."""
    where = f"{url}/v1/models/{model}:process"
    headers = {"Content-Type": content_type, "X-Request-Timeout-Seconds": f"{ANSWER_S:g}"}
    begin_s = time.perf_counter()
    try:
        # Without `verify` it reads no certificates, which takes longer than many a small request.
        answer = httpx.post(
            where,
            params=options,
            content=content,
            headers=headers,
            timeout=ANSWER_S,
            verify=False,
        )
    except httpx.TransportError as error:
        raise BadAnswer(f"{where}: {type(error).__name__}: {error}") from error
    wall_s = time.perf_counter() - begin_s
    if answer.status_code != 200:
        raise BadAnswer(f"{where} answered {answer.status_code}: {answer.text[:200]}")
    return Processed(wall_s, answer.json())


def process_file(url: str, model: str, path: Path, **options: Any) -> Processed:
    """`process` for a file."""
    return process(url, model, path.read_bytes(), TYPES[path.suffix], **options)
