"""Pictures and clips, through the upload and the stage: an answer or an error that is the caller's.

An input's first byte says how the file is sent and what the model wants, the rest is the body.
"""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from gateway.media.options import check_tiling, read_options
from gateway.media.upload import Declared, check_type, take
from headrace.config.sharding import ShardingConfig, ShardingLimits
from headrace.errors import HeadraceError
from headrace.logs import SILENT_LOGGERS
from sharding.parts import Segment, Tile
from sharding.sniff import Medium
from sharding.split import open_source
from sharding.spool import Spool
from sharding.upload import MediaJob, identify_file
from sharding.video import VideoLimits, probe
from sharding.video_frames import frames
from tests.fuzz.mutation import Mutator
from tests.fuzz.runner import Target
from tests.fuzz.wires import cut
from tests.sharding.media_files import clip

SIDES = (96, 64)
LIMITS = ShardingLimits(
    max_pixels=4_000_000,
    max_duration_s=600,
    max_frames=500,
    max_parts=200,
    max_upload_bytes=256 * 1024,
)
CONFIGS: tuple[ShardingConfig, ...] = (
    ShardingConfig(
        kind="image-tiles",
        tile=64,
        overlap=32,
        preprocess="centernet",
        postprocess="centernet",
        limits=LIMITS,
    ),
    ShardingConfig(
        kind="video-segments",
        segment_s=0.2,
        preprocess="imagenet-224",
        postprocess="class-scores",
        limits=LIMITS,
    ),
)
TYPES = ("", "image/png", "video/mp4", "application/octet-stream")
FORM = "multipart/form-data; boundary=line"
FORM_WORDS = (
    *(b"--line\r\n", b"--line--\r\n", b"\r\n\r\n", b"\r\n", b'name="file"', b'name="options"'),
    *(b"Content-Disposition: form-data; ", b'filename="x"', b'name="scales"', b"Content-Type: "),
    *(b'{"scales":[1,0.5]}', b"[1,0.5]", b'name="strict_type"', b"true", b'{"tile":64}', b"\xff"),
)
IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": (".jpg", {}),
    "progressive": (".jpg", {"interlace": True}),
    "png": (".png", {}),
    "interlaced": (".png", {"interlace": True}),
    "webp": (".webp", {}),
    "gif": (".gif", {}),
    "tiff": (".tif", {"compression": "lzw"}),
    "tiles": (".tif", {"tile": True, "tile_width": 32, "tile_height": 32}),
    "avif": (".avif", {"effort": 0}),
}
CLIPS = (
    ("a.mp4", "libx264"),
    ("a.mkv", "libx264"),
    ("a.webm", "libvpx"),
    ("a.avi", "mpeg4"),
    ("a.ts", "mpeg2video"),
    ("a.mpg", "mpeg2video"),
)


def pictures() -> list[bytes]:
    """One small picture in every form that is read."""
    rows, columns = np.mgrid[: SIDES[1], : SIDES[0]]
    pixels = np.stack([rows * 3, columns * 2, (rows * columns) % 251], axis=2).astype(np.uint8)
    image = pyvips.Image.new_from_array(pixels)
    made = [image.write_to_buffer(suffix, **options) for suffix, options in IMAGES.values()]
    return [*made, image.bandjoin(128).write_to_buffer(".png")]


def clips() -> list[bytes]:
    """One short clip in every format and most codecs."""
    with tempfile.TemporaryDirectory() as folder:
        return [
            clip(Path(folder) / name, codec, 12, size=(64, 48), gop=4).read_bytes()
            for name, codec in CLIPS
        ]


class Media(Target):
    name = "media"

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._files = pictures(), clips()

    async def start(self) -> None:
        for name in SILENT_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name)

    async def stop(self) -> None:
        self._folder.cleanup()

    def make(self) -> bytes:
        source = self._source
        kind = source.randrange(2)
        wanted = kind if source.randrange(20) else 1 - kind
        content = source.choice(self._files[kind])
        content = self._changed(content)
        how = wanted | source.randrange(4) << 1
        if source.randrange(5) == 0:
            how |= 8
            content = self._form(content)
        return bytes([how]) + content

    def _changed(self, content: bytes) -> bytes:
        """The file with bytes changed, most often in its first ones, or in a few pieces."""
        source, changed = self._source, bytearray(content)
        reach = source.choice((64, 1024, len(changed)))
        for _ in range(source.choice((0, 1, 3, 20))):
            changed[source.randrange(min(reach, len(changed)))] = source.randrange(256)
        if source.randrange(2):
            return Mutator(source, [bytes(changed)], most_bytes=100_000).make()
        return bytes(changed)

    def _form(self, content: bytes) -> bytes:
        file = b'Content-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + content
        option = b'Content-Disposition: form-data; name="options"\r\n\r\n{"tile":64}'
        scales = b'Content-Disposition: form-data; name="scales"\r\n\r\n[1,0.5]'
        parts = self._source.sample([file, option, scales], self._source.randrange(1, 4))
        body = b"".join(b"--line\r\n" + part + b"\r\n" for part in parts) + b"--line--\r\n"
        if self._source.randrange(2):
            body = Mutator(self._source, [body], FORM_WORDS, 100_000).make()
        return body

    async def run(self, data: bytes) -> None:
        how, body = data[0] if data else 0, data[1:]
        config = CONFIGS[how & 1]
        medium: Medium = "image" if config.kind == "image-tiles" else "video"
        content_type = FORM if how & 8 else TYPES[how >> 1 & 3]

        async def pieces() -> AsyncIterator[bytes]:
            for piece in cut(body) if len(body) < 4000 else [body]:
                yield piece

        async with Spool(LIMITS.max_upload_bytes, 4096, self._path / "spool") as spool:
            try:
                declared = Declared(content_type, "", len(body))
                declared.check(strict=False)
                upload, kind, more = await take(pieces(), spool, declared, medium, False)
                options = read_options(more)
                check_tiling(options, config)
                if config.strict(options):
                    check_type(upload.content_type, kind)
                job = MediaJob("model", upload, options=options)
                self._work(job, config)
            except HeadraceError as error:
                assert error.http_status in (400, 413, 415), error
                assert len(error.message) < 600, error.message
        assert not self._left(), self._left()

    def _work(self, job: MediaJob, config: ShardingConfig) -> None:
        """What the stage does with an upload, and a shard with its first segments."""
        source = open_source(job, config, self._path / "spool", lambda: None)
        try:
            assert len(source.plan) <= LIMITS.max_parts
            assert len(source.notes) < 10
            for part in source.plan[:2]:
                key = source.key(part)
                head, buffers = source.body(part, key)
                assert len(key) == 16 and head
                if isinstance(part, Tile):
                    assert sum(map(len, buffers)) == 3 * part.width * part.height
        finally:
            source.close()
        if config.kind == "video-segments":
            self._frames(job, [each for each in source.plan[:2] if isinstance(each, Segment)])

    @staticmethod
    def _frames(job: MediaJob, segments: list[Segment]) -> None:
        limits = VideoLimits(600, 1_000_000, 10_000)
        path = Path(job.upload.path)
        info = probe(path, identify_file(job.upload, "video"), limits)
        for segment in segments:
            for frame in frames(path, info, segment, short_side=32, limits=limits):
                assert frame.pixels.shape[2] == 3

    def _left(self) -> list[str]:
        spool = self._path / "spool"
        return [each.name for each in spool.iterdir()] if spool.exists() else []

    def held(self) -> dict[str, int]:
        return {"files in the spool": len(self._left())}
