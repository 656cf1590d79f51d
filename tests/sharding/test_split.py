"""What an upload is split into, and by what its parts are known."""

from __future__ import annotations

from dataclasses import asdict, replace
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import pytest

from headrace.config.sharding import ProcessOptions, ShardingConfig
from headrace.errors import PayloadTooLarge, Unavailable
from sharding.parts import Segment, segment_of, video_document, video_of
from sharding.plan import plan_segments
from sharding.split import MAX_FRAMES, VideoSource, held_frames, open_source, shortened
from sharding.upload import MediaJob, Upload
from sharding.video_frames import DecodeReport, frames
from tests.sharding.media_files import clip
from tests.sharding.test_run import mosaic, png

TILES = ShardingConfig(
    kind="image-tiles", preprocess="centernet", postprocess="centernet", tile=512, overlap=64
)
SEGMENTS = ShardingConfig(
    kind="video-segments", preprocess="imagenet-224", postprocess="class-scores", segment_s=1.0
)


def job(path: Path, content: bytes | None = None, **options: object) -> MediaJob:
    """A request for a file, which may be written first."""
    if content is not None:
        path.write_bytes(content)
    digest = blake2b(path.read_bytes(), digest_size=32).hexdigest()
    upload = Upload(str(path), path.stat().st_size, digest)
    return MediaJob("model", upload, options=ProcessOptions.model_validate(options))


def keys(config: ShardingConfig, asked: MediaJob, folder: Path) -> set[bytes]:
    source = open_source(asked, config, folder, lambda: None)
    try:
        return {source.key(part) for part in source.plan}
    finally:
        source.close()


@pytest.mark.parametrize("change", [{"labels": "other.txt"}, {"postprocess": "centerface"}])
def test_a_tiles_key_holds_all_that_its_result_depends_on(
    tmp_path: Path, change: dict[str, str]
) -> None:
    asked = job(tmp_path / "picture.png", png(mosaic(())))
    before = keys(TILES, asked, tmp_path)
    assert before == keys(TILES, asked, tmp_path)
    assert not before & keys(TILES.model_copy(update=change), asked, tmp_path)


@pytest.mark.parametrize("declared", ["image/jpeg", "video/webm"])
def test_a_wrong_content_type_becomes_a_note(tmp_path: Path, declared: str) -> None:
    picture = job(tmp_path / "picture.png", png(mosaic(())))
    video = job(clip(tmp_path / "clip.mp4"))
    for asked, config, told in ((picture, TILES, "PNG"), (video, SEGMENTS, "MP4 or QuickTime")):
        asked = replace(asked, upload=replace(asked.upload, content_type=declared))
        source = open_source(asked, config, tmp_path, lambda: None)
        source.close()
        assert f"the content type says {declared}, but the bytes are {told} (" in source.notes[0]


def test_a_frame_that_stands_for_another_time_has_another_key(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4")
    short = keys(SEGMENTS, job(path, fps=4, end_s=0.2), tmp_path)
    long = keys(SEGMENTS, job(path, fps=2, end_s=0.2), tmp_path)
    assert len(short) == len(long) == 1
    assert short != long


def test_shards_seek_as_near_as_the_stage_would(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4")
    source = VideoSource(job(path, fps=5), SEGMENTS, lambda: None)
    info, last = source._info, source.plan[-1]
    assert isinstance(last, Segment)
    assert len(info.keyframes_s) > 2
    decoded = []
    for video in (info, video_of(video_document(info, last))):
        report = DecodeReport()
        times = [each.time_s for each in frames(path, video, last, report=report)]
        decoded.append((times, report.decoded))
    assert segment_of(asdict(last)) == last
    assert decoded[0] == decoded[1]
    assert decoded[1][1] < info.frames / 2


def test_only_the_next_keyframes_travel(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4")
    source = VideoSource(job(path, fps=5), SEGMENTS, lambda: None)
    many = replace(source._info, keyframes_s=tuple(range(1000)))
    sent = video_of(video_document(many, Segment(0, 500.0, 501.0, (500.0,), 1.0)))
    assert sent.keyframes_s == (497, 498, 499, 500)


def test_large_frames_are_held_a_few_at_a_time(tmp_path: Path) -> None:
    assert held_frames(1920, 1080, "imagenet-224") == MAX_FRAMES
    assert held_frames(1920, 1080, "centernet") == 5
    assert held_frames(16_384, 16_384, "centernet") == 1
    path = clip(tmp_path / "clip.mp4")
    config = SEGMENTS.model_copy(update={"segment_s": 100.0})
    limits = config.limits.model_copy(update={"max_parts": 2})
    few = shortened(plan_segments(2.0, (0.0,), 100.0, 5.0), 4)
    assert max(len(part.times_s) for part in few) == 4
    assert all(one.times_s[-1] < other.times_s[0] for one, other in pairwise(few))
    with pytest.raises(PayloadTooLarge, match="above the limit of 2"):
        small = config.model_copy(update={"limits": limits})
        open_source(job(path, fps=200), small, tmp_path, lambda: None)


def test_an_upload_that_is_elsewhere_is_told(tmp_path: Path) -> None:
    asked = job(tmp_path / "picture.png", png(mosaic(())))
    (tmp_path / "picture.png").unlink()
    with pytest.raises(Unavailable, match="not on the node"):
        open_source(asked, TILES, tmp_path, lambda: None)
