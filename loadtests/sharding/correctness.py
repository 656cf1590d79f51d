"""Whether large inputs get the right answers: boxes as without tiles, tags where the scenes are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from loadtests.headrace import BadAnswer
from loadtests.reload import ROOT
from loadtests.sharding.calls import process_file
from loadtests.sharding.figures import Check, Match, match_boxes, match_scenes
from loadtests.sharding.inputs import Inputs, scenes_of
from loadtests.sharding.models import Fleet
from replicas.last_words import EXIT_CODE
from sharding.parts import Box

SURE = 0.5
"""Below it the detector sees faces in a small tile that it does not see in the whole picture."""


def measure_correctness(fleet: Fleet, inputs: Inputs) -> list[Check]:
    """All checks; raises `BadAnswer`."""
    picture = inputs.mosaic(12)
    faces, objects = untiled("faces", picture), untiled("objects", picture)
    checks = []
    large = match_boxes(faces, process_file(fleet.url, "faces", picture).boxes)
    checks.append(large_tiles(large))
    options = {"tile": 512, "overlap": 256, "threshold": SURE}
    small = process_file(fleet.url, "faces", picture, **options).boxes
    checks.append(small_tiles(match_boxes(faces, small)))
    checks.append(
        more_objects(match_boxes(objects, process_file(fleet.url, "objects", picture).boxes))
    )
    clip = inputs.clip()
    match = match_scenes(scenes_of(clip), process_file(fleet.url, "tagger", clip).result["tags"])
    worst_s = max(match.worst_start_s, match.worst_end_s)
    checks.append(
        Check(
            f"`tagger`, a clip of {match.scenes} scenes",
            f"starts within {match.worst_start_s:.2f} s, ends within {match.worst_end_s:.2f} s, "
            f"{len(match.strays)} stray tags {', '.join(match.strays)}".rstrip(),
            "within 1 s, none stray",
            worst_s <= 1.0 and not match.strays,
        )
    )
    return checks


def large_tiles(match: Match) -> Check:
    """Faces in tiles much larger than they."""
    return Check(
        "`faces`, tile 1024, overlap 256",
        f"{match.found} of {match.expected} found, IoU at least {match.worst_iou:.4f}, "
        f"scores within {match.worst_score:.5f}",
        "all found, IoU 0.99, scores within 0.001",
        match.recall == 1 and match.worst_iou >= 0.99 and match.worst_score <= 0.001,
    )


def small_tiles(match: Match) -> Check:
    """Faces in tiles that cut many of them."""
    return Check(
        f"`faces`, tile 512, overlap 256, threshold {SURE:g}",
        f"{match.given} boxes, IoU to an un-tiled one at least {match.extra_iou:.3f}",
        "0.9",
        match.extra_iou >= 0.9,
    )


def more_objects(match: Match) -> Check:
    """Objects, of which a tile shows more."""
    return Check(
        "`objects`, tile 512, overlap 256",
        f"{match.found} of {match.expected} un-tiled boxes found, {match.given} in all",
        "90 %, and more in all than un-tiled",
        match.recall >= 0.9 and match.given > match.expected,
    )


def untiled(model: str, path: Path) -> list[Box]:
    """The boxes of the whole picture in one run; raises `BadAnswer`."""
    told = run_direct("whole", model, path)
    if told is None:
        raise BadAnswer(f"{model} did not end with the whole of {path.name}")
    return [Box(**each) for each in told["boxes"]]


def run_direct(command: str, model: str, path: Path, *options: str) -> dict[str, Any] | None:
    """What `loadtests.sharding.direct` prints; None if it was ended at its limit of memory.

    Raises `BadAnswer`.
    """
    words = [sys.executable, "-m", "loadtests.sharding.direct", command, model, str(path)]
    done = subprocess.run([*words, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == EXIT_CODE:
        return None
    if done.returncode:
        raise BadAnswer(f"{model} failed by itself: {done.stderr.strip()[-300:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told
