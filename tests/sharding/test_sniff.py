from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgument, UnsupportedMedia
from sharding.sniff import (
    AVIF,
    GIF,
    JPEG,
    MP4,
    MPEG_PS,
    MPEG_TS,
    PNG,
    TIFF,
    WEBP,
    MediaKind,
    identify,
    sniff,
    type_note,
)
from sharding.video import probe
from tests.sharding.media_files import Pixels, clip, kind_of, photograph


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".jpg", JPEG),
        (".png", PNG),
        (".gif", GIF),
        (".webp", WEBP),
        (".tif", TIFF),
        (".avif", AVIF),
    ],
)
def test_sniff_knows_real_pictures(suffix: str, kind: MediaKind) -> None:
    content = photograph().crop(0, 0, 64, 48).write_to_buffer(suffix)
    assert sniff(content[:4096], content) is kind
    assert identify(content, b"", "image") is kind
    for declared in (kind.content_types[0].upper() + "; q=1", "image/*", ""):
        assert type_note(declared, kind) is None


@pytest.mark.parametrize(
    ("name", "codec", "reader"),
    [
        ("a.mp4", "libx264", "mov"),
        ("a.mov", "mpeg4", "mov"),
        ("a.mkv", "libx264", "matroska"),
        ("a.webm", "libvpx", "matroska"),
        ("a.avi", "mpeg4", "avi"),
        ("a.ts", "mpeg2video", "mpegts"),
        ("a.mpg", "mpeg2video", "mpeg"),
        ("a.flv", "flv", "flv"),
    ],
)
def test_sniff_knows_real_clips(tmp_path: Path, name: str, codec: str, reader: str) -> None:
    kind = kind_of(clip(tmp_path / name, codec, 3))
    assert (kind.medium, kind.reader) == ("video", reader)


def test_a_note_names_both_when_the_content_type_is_wrong() -> None:
    note = "the content type says video/mp4, but the bytes are JPEG (image/jpeg)"
    assert type_note("video/mp4; codecs=x", JPEG) == note
    assert "says video/webm, but the bytes are MP4" in str(type_note("video/webm", MP4))
    assert "says text/html" in str(type_note("text/html", PNG))
    assert "says something else" in str(type_note("<script>alert(1)</script>", JPEG))


def test_identify_refuses_the_other_medium() -> None:
    with pytest.raises(UnsupportedMedia, match="wants a video"):
        identify(photograph().crop(0, 0, 64, 48).write_to_buffer(".jpg"), b"", "video")


@pytest.mark.parametrize(
    ("name", "codec", "kind"),
    [
        ("a.ts", "mpeg2video", MPEG_TS),
        ("a.m2ts", "libx264", MPEG_TS),
        ("a.mpg", "mpeg1video", MPEG_PS),
        ("a.mpg", "mpeg2video", MPEG_PS),
        ("a.vob", "mpeg2video", MPEG_PS),
    ],
)
def test_a_broadcast_cut_at_both_ends_is_recognised_and_read(
    tmp_path: Path, name: str, codec: str, kind: MediaKind
) -> None:
    path = clip(tmp_path / name, codec, 30, size=(320, 240), paint=noise)
    whole = path.read_bytes()
    for start in (1, 100, 187, 189, 1000, 2047, len(whole) // 3):
        path.write_bytes(whole[start : -len(whole) // 5])
        assert kind_of(path) is kind
        info = probe(path, kind)
        assert 8 <= info.frames < 30 and (info.width, info.height) == (320, 240)


def noise(number: int, size: tuple[int, int]) -> Pixels:
    """A frame that fills many packets."""
    shape = (size[1], size[0], 3)
    return np.random.default_rng(number).integers(0, 255, shape, dtype=np.uint8)


def test_packets_with_check_sums_are_a_transport_stream() -> None:
    packets = (b"\x47" + bytes(203)) * 12
    assert sniff(packets[50:]) is MPEG_TS
    with pytest.raises(UnsupportedMedia):
        sniff(packets[50 : 50 + 7 * 204])


def test_sniff_refuses_polyglots() -> None:
    picture = photograph().crop(0, 0, 64, 48).write_to_buffer(".jpg")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "a")
    both = picture + archive.getvalue()
    with pytest.raises(UnsupportedMedia, match="as JPEG and as ZIP"):
        sniff(both[:4096], both[-4096:])
    with pytest.raises(UnsupportedMedia, match="as JPEG and as PDF"):
        sniff(picture[:20] + b"%PDF-1.4" + picture[20:])
    with pytest.raises(UnsupportedMedia, match="as JPEG and as MP4"):
        sniff(b"\xff\xd8\xff\xe0ftypisom" + bytes(20))


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"BM" + bytes(60), "BMP"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"  <svg xmlns", "SVG"),
        (b"#EXTM3U\nfile:///etc/passwd", "playlist"),
        (b"ID3\3" + bytes(20), "MP3"),
        (b"hello", "unknown"),
    ],
)
def test_sniff_names_what_is_not_read(head: bytes, name: str) -> None:
    with pytest.raises(UnsupportedMedia, match=name):
        sniff(head)


def test_sniff_when_empty() -> None:
    with pytest.raises(InvalidArgument, match="empty"):
        sniff(b"")


@given(st.binary(max_size=600), st.text(max_size=30))
def test_any_bytes_have_one_kind_or_an_error_of_ours(content: bytes, declared: str) -> None:
    try:
        kind = sniff(content, content)
    except (UnsupportedMedia, InvalidArgument) as error:
        assert len(str(error)) < 300
    else:
        assert kind.medium in ("image", "video")
        assert len(type_note(declared, kind) or "") < 300
