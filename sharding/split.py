"""Sources: a spooled upload as a plan, with a key and a body for each part. Methods block."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any

from headrace.config.sharding import ShardingConfig
from headrace.errors import ConfigError, InvalidArgument, PayloadTooLarge
from headrace.link.frames import Buffer
from sharding.merge import Whole
from sharding.parts import Part, Segment, Tile, video_document
from sharding.pictures import Picture, PictureLimits
from sharding.plan import TooManyPartsError, plan_segments, plan_tiles
from sharding.preprocess import load_preprocessor
from sharding.sniff import Check, MediaKind, type_note
from sharding.upload import MediaJob, identify_file
from sharding.video import VideoInfo, VideoLimits, probe

MAX_FRAMES = 64
"""Frames whose inputs a shard holds at once; longer segments are cut again."""
INPUT_BYTES = 128 * 1024 * 1024
"""Bytes of inputs that a shard holds at once, at `PIXEL_BYTES` for each pixel."""
PIXEL_BYTES = 12
"""Bytes of a pixel: three colours as float32."""
PIXELS_IN_MEMORY = 64 * 1024 * 1024


class Source:
    """An upload with the plan of its parts."""

    whole: Whole
    plan: Sequence[Part]
    notes: tuple[str, ...]

    def key(self, part: Part) -> bytes:
        """The digest of what decides the part's result; called from several threads at once."""
        raise NotImplementedError

    def body(self, part: Part, key: bytes, more: bool = False) -> tuple[bytes, tuple[Buffer, ...]]:
        """What a shard is sent: the JSON part and what follows it; `more` parts come after it."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove what was decoded."""


def open_source(job: MediaJob, config: ShardingConfig, folder: Path, check: Check) -> Source:
    """Look at the upload and plan its parts; `folder` takes decoded pixels.

    Raises what is wrong with the upload, or with the options for it: `InvalidArgument`,
    `UnsupportedMedia`, `PayloadTooLarge`, `Unavailable` (no room in the folder).
    """
    if config.preprocess is None or config.postprocess is None:
        raise ConfigError("`sharding` needs `preprocess` and `postprocess`")
    try:
        if config.kind == "image-tiles":
            return PictureSource(job, config, folder, check)
        return VideoSource(job, config, check)
    except TooManyPartsError as error:
        raise PayloadTooLarge(str(error)) from error
    except ValueError as error:
        raise InvalidArgument(str(error)) from error


def _digest(*facts: object) -> bytes:
    return blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).digest()


class PictureSource(Source):
    """Tiles of a picture, keyed by their pixels."""

    def __init__(self, job: MediaJob, config: ShardingConfig, folder: Path, check: Check) -> None:
        self._config = config
        tile, overlap, scales = config.tiling(job.options)
        limits = PictureLimits(config.limits.max_pixels, memory_bytes=PIXELS_IN_MEMORY)
        kind = identify_file(job.upload, "image")
        self._picture = Picture.open(Path(job.upload.path), kind, folder, limits, check)
        try:
            width, height = self._picture.width, self._picture.height
            self.plan: Sequence[Part] = plan_tiles(
                width, height, tile, overlap, scales, max_parts=config.limits.max_parts
            )
        except BaseException:
            self._picture.close()
            raise
        self.whole = Whole(width, height)
        self.notes = (*_type_notes(job, kind), *self._picture.info.notes)
        self._reading = Lock()

    def key(self, part: Part) -> bytes:
        # Equal pixels have equal results wherever they lie.
        digest = blake2b(self._pixels(part), digest_size=16).digest()
        assert isinstance(part, Tile)
        return _digest(digest.hex(), part.width, part.height, *_facts(self._config))

    def body(self, part: Part, key: bytes, more: bool = False) -> tuple[bytes, tuple[Buffer, ...]]:
        assert isinstance(part, Tile)
        head = {
            "kind": "tile",
            "width": part.width,
            "height": part.height,
            "more": more,
            **_reading(self._config, key),
        }
        return json.dumps(head).encode(), (self._pixels(part),)

    def close(self) -> None:
        self._picture.close()

    def _pixels(self, part: Part) -> memoryview:
        assert isinstance(part, Tile)
        with self._reading:
            pixels = self._picture.read(part.x, part.y, part.width, part.height, part.scale)
        return pixels.reshape(-1).data


class VideoSource(Source):
    """Segments of a video, keyed by the file's digest and their frames: shards decode them."""

    def __init__(self, job: MediaJob, config: ShardingConfig, check: Check) -> None:
        self._upload, self._config = job.upload, config
        self._deadline_s = time.monotonic() + job.timeout_s
        limits, options = config.limits, job.options
        kind = identify_file(job.upload, "video")
        self._info: VideoInfo = probe(
            Path(job.upload.path), kind, VideoLimits(limits.max_duration_s), check
        )
        segments = plan_segments(
            self._info.duration_s,
            self._info.keyframes_s,
            config.segment_s,
            options.fps or config.fps,
            options.start_s,
            options.end_s,
            limits.max_parts,
            limits.max_frames,
        )
        frames = held_frames(self._info.width, self._info.height, config.preprocess)
        self.plan: Sequence[Part] = shortened(segments, frames)
        if len(self.plan) > limits.max_parts:
            raise TooManyPartsError(
                f"this would take {len(self.plan)} segments, above the limit of "
                f"{limits.max_parts}: ask for a shorter time range or a lower `fps`"
            )
        self.whole = Whole(self._info.width, self._info.height, self._info.duration_s)
        self.notes = (*_type_notes(job, kind), *self._info.notes)

    def key(self, part: Part) -> bytes:
        assert isinstance(part, Segment)
        return _digest(self._upload.digest, part.times_s, part.step_s, *_facts(self._config))

    def body(self, part: Part, key: bytes, more: bool = False) -> tuple[bytes, tuple[Buffer, ...]]:
        assert isinstance(part, Segment)
        head = {
            "kind": "segment",
            "path": self._upload.path,
            "segment": asdict(part),
            "video": video_document(self._info, part),
            "within_s": max(0.0, self._deadline_s - time.monotonic()),
            **_reading(self._config, key),
        }
        return json.dumps(head).encode(), ()


def _type_notes(job: MediaJob, kind: MediaKind) -> tuple[str, ...]:
    note = type_note(job.upload.content_type, kind)
    return () if note is None else (note,)


def _facts(config: ShardingConfig) -> tuple[object, ...]:
    """The keys of the config that decide the result of a part."""
    return config.preprocess, config.postprocess, config.labels


def _reading(config: ShardingConfig, key: bytes) -> dict[str, Any]:
    return {
        "preprocess": config.preprocess,
        "postprocess": config.postprocess,
        "labels": config.labels,
        "key": key.hex(),
    }


def held_frames(width: int, height: int, preprocess: str | None) -> int:
    """Cap on the frames whose inputs a shard holds at once, at least one."""
    assert preprocess is not None
    pixels, least = width * height, min(width, height)
    short_side = load_preprocessor(preprocess).short_side
    if short_side is not None and short_side < least:
        pixels = round(pixels * (short_side / least) ** 2)
    return max(1, min(MAX_FRAMES, INPUT_BYTES // max(1, pixels * PIXEL_BYTES)))


def shortened(segments: Sequence[Segment], most: int = MAX_FRAMES) -> tuple[Segment, ...]:
    """Segments cut to `most` frames each: where keyframes are rare, several begin at one."""
    found: list[Segment] = []
    for segment in segments:
        times = segment.times_s
        for first in range(0, len(times), most):
            mine = times[first : first + most]
            last = first + most >= len(times)
            end_s = segment.end_s if last else times[first + most]
            cut = replace(segment, index=len(found), end_s=end_s, times_s=mine)
            found.append(cut)
    return tuple(found)
