from __future__ import annotations

import io
import random
import resource
import struct
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from headrace.errors import InvalidArgument, PayloadTooLarge, UnsupportedMedia
from sharding.parts import Segment
from sharding.plan import plan_segments
from sharding.sniff import MP4
from sharding.video import VideoInfo, VideoLimits, _codec_name, probe
from sharding.video_frames import DecodeReport, VideoFrame, frames
from tests.sharding.media_files import Pixels, clip, kind_of, packets

FORMATS = [
    ("a.mp4", "libx264"),
    ("b-frames.mkv", "libx264"),
    ("a.webm", "libvpx-vp9"),
    ("a.avi", "mpeg4"),
    ("a.ts", "mpeg2video"),
    ("h264.ts", "libx264"),
    ("a.mpg", "mpeg2video"),
    ("a.flv", "flv"),
]


def inspect(path: Path, limits: VideoLimits | None = None) -> VideoInfo:
    return probe(path, kind_of(path), limits)


def watch(
    path: Path, fps: float = 5.0, segment_s: float = 0.5, **more: Any
) -> tuple[list[VideoFrame], DecodeReport]:
    """All frames at a rate, segment by segment as shards decode them, and how it went."""
    info, report = inspect(path), DecodeReport()
    found: list[VideoFrame] = []
    for segment in plan_segments(info.duration_s, info.keyframes_s, segment_s, fps):
        found += frames(path, info, segment, report=report, **more)
    return found, report


def number_of(pixels: Pixels) -> float:
    """Which frame of `clip` it is, by the grey level of its lower right."""
    height, width = pixels.shape[:2]
    return (float(pixels[height // 2 :, width // 2 :].mean()) - 20) / 4


@pytest.mark.parametrize(("name", "codec"), FORMATS)
def test_segments_give_what_is_shown_at_each_time(tmp_path: Path, name: str, codec: str) -> None:
    path = clip(tmp_path / name, codec)
    info = inspect(path)
    assert (info.width, info.height, info.rotation) == (160, 96, 0)
    assert info.duration_s == pytest.approx(2.0, abs=0.05)
    assert info.frames == 50
    assert len(info.keyframes_s) >= 4
    found, report = watch(path)
    assert [round(frame.time_s, 3) for frame in found] == [n / 5 for n in range(10)]
    for frame in found:
        assert number_of(frame.pixels) == pytest.approx(frame.time_s * 25, abs=0.9)
    assert (report.corrupt, report.missing) == (0, 0)


def test_a_segment_decodes_little_more_than_itself(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", frames=100)
    report = DecodeReport()
    segment = Segment(0, 3.2, 3.6, (3.2, 3.4), 0.2)
    found = list(frames(path, inspect(path), segment, report=report))
    assert [round(number_of(frame.pixels)) for frame in found] == [80 - 58, 85 - 58]
    assert report.decoded <= 16


def test_a_long_group_of_pictures_is_decoded_from_its_keyframe(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", gop=250, options={"bf": "0"})
    info = inspect(path)
    assert info.keyframes_s == (0.0,)
    found = list(frames(path, info, Segment(0, 1.6, 2.0, (1.6,), 0.4)))
    assert number_of(found[0].pixels) == pytest.approx(40, abs=1)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_variable_frame_rate_goes_by_time(tmp_path: Path, name: str) -> None:
    times = [0, 1, 2, 3, 30, 31, 60, 90, 91, 100]
    path = clip(tmp_path / name, frames=10, times=times)
    found, report = watch(path, fps=2.5)
    shown = [round(number_of(frame.pixels)) for frame in found]
    # At 0, 0.4 ... 3.6 s the last frame that began by then, in 1/25 s.
    expected = [sum(each <= 10 * n for each in times) - 1 for n in range(len(found))]
    assert shown == expected
    assert report.missing == 0


@pytest.mark.parametrize(
    ("matrix", "angle"),
    [((0, 1, -1, 0), 270), ((-1, 0, 0, -1), 180), ((0, -1, 1, 0), 90)],
)
def test_rotation_is_applied(tmp_path: Path, matrix: tuple[int, ...], angle: int) -> None:
    path = clip(tmp_path / "a.mp4", frames=5)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (each << 16 for each in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    info = inspect(path)
    assert info.rotation == angle
    sides = (96, 160) if angle % 180 else (160, 96)
    assert (info.width, info.height) == sides
    pixels = watch(path)[0][0].pixels
    assert pixels.shape == (sides[1], sides[0], 3)
    # The red corner at the top left, turned clockwise by 90, 180 and 270 degrees.
    row, column = {270: (0, -1), 180: (-1, -1), 90: (-1, 0)}[angle]
    assert pixels[row, column, 0] > 150 > pixels[row, column, 1] + 50


def test_frames_are_scaled_while_they_are_converted(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", frames=5)
    assert watch(path, short_side=48)[0][0].pixels.shape == (48, 80, 3)
    assert watch(path, short_side=480)[0][0].pixels.shape == (96, 160, 3)


@pytest.mark.parametrize("matrix", [1, 5])
@pytest.mark.parametrize("full", [1, 2])
def test_colours_follow_the_matrix_and_range(tmp_path: Path, matrix: int, full: int) -> None:
    def paint(number: int, size: tuple[int, int]) -> Pixels:
        return np.full((size[1], size[0], 3), (200, 60, 90), np.uint8)

    path = clip(
        tmp_path / "a.mkv", frames=3, tags=(matrix, full), paint=paint, options={"crf": "1"}
    )
    pixels = watch(path)[0][0].pixels
    assert np.abs(pixels.reshape(-1, 3).mean(axis=0) - (200, 60, 90)).max() < 4


def test_corrupt_frames_in_the_middle_are_skipped_and_reported(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", gop=1, options={"bf": "0"})
    content = bytearray(path.read_bytes())
    source = random.Random(1)
    for offset, size, _ in packets(path)[24:28]:
        content[offset + 4 : offset + size] = source.randbytes(size - 4)
    path.write_bytes(content)
    found, report = watch(path, fps=25)
    assert len(found) == 46
    assert (report.corrupt, report.missing) == (4, 4)
    assert [round(each * 25) for each in report.missing_s] == [24, 25, 26, 27]
    assert all(number_of(f.pixels) == pytest.approx(f.time_s * 25, abs=0.9) for f in found)


def test_a_file_object_reads_as_a_path_does(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    source = io.BytesIO(path.read_bytes())
    info = probe(source, MP4)
    assert info == inspect(path)
    segment = Segment(0, 1.2, 2.0, (1.6,), 0.4)
    found = list(frames(source, info, segment))
    assert number_of(found[0].pixels) == pytest.approx(40, abs=1)


def test_limits_are_told(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    with pytest.raises(PayloadTooLarge, match=r"longer than the limit of 1\.5 s"):
        inspect(path, VideoLimits(max_duration_s=1.5))
    with pytest.raises(PayloadTooLarge, match="160 x 96 pixels, above the limit of 10000"):
        inspect(path, VideoLimits(max_pixels=10_000))
    with pytest.raises(PayloadTooLarge, match="more frames"):
        inspect(path, VideoLimits(max_packets=10))


def test_huge_frames_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    def black(number: int, size: tuple[int, int]) -> Pixels:
        return np.zeros((size[1], size[0], 3), np.uint8)

    options = {"preset": "ultrafast"}
    path = clip(tmp_path / "a.mp4", frames=1, size=(8192, 4096), options=options, paint=black)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PayloadTooLarge, match="8192 x 4096"):
        inspect(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_unknown_codec_is_named(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", frames=5)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"xyz9"))
    with pytest.raises(UnsupportedMedia, match="xyz9"):
        inspect(path)
    path = clip(tmp_path / "a.mkv", frames=5)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/XYZ/ABC"))
    with pytest.raises(UnsupportedMedia, match="V_MPEG9/XYZ/ABC"):
        inspect(path)


def test_audio_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 16_000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(UnsupportedMedia, match="no video stream, only audio"):
        inspect(path)


def test_a_video_without_frames_is_an_error(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", frames=5)
    content = path.read_bytes()
    # The header alone, up to the first cluster.
    path.write_bytes(content[: content.index(b"\x1f\x43\xb6\x75")])
    with pytest.raises(InvalidArgument, match=r"no frames|cannot be read"):
        inspect(path)


def test_a_cut_off_video_is_an_error_or_says_so(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InvalidArgument, match="cut off or damaged"):
        inspect(path)
    path = clip(tmp_path / "a.mkv", frames=100)
    path.write_bytes(path.read_bytes()[: packets(path)[50][0]])
    info = inspect(path)
    assert info.duration_s == pytest.approx(2.0, abs=0.3)
    assert "cut off" in " ".join(info.notes)


def test_a_playlist_is_not_followed(tmp_path: Path) -> None:
    clip(tmp_path / "a.mp4", frames=5)
    path = tmp_path / "list.mp4"
    path.write_text("ffconcat version 1.0\nfile a.mp4\n")
    with pytest.raises(UnsupportedMedia, match="playlist"):
        inspect(path)
    with pytest.raises(InvalidArgument):
        probe(path, MP4)


def test_the_search_for_a_codecs_name_takes_no_longer_on_a_hostile_file() -> None:
    began_s = time.process_time()
    assert _codec_name(io.BytesIO(b"vmhd" * 300_000)) == "one without a name"
    assert (
        _codec_name(io.BytesIO(b"vmhd" * 9 + bytes(40) + b"stsd" + bytes(12) + b"abcd")) == "abcd"
    )
    assert time.process_time() - began_s < 2
