from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgument, UnsupportedMedia
from sharding.sniff import AVIF, GIF, JPEG, PNG, TIFF, WEBP, MediaKind, identify, sniff
from tests.sharding.media_files import clip, kind_of, photograph


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
    assert identify(kind.content_types[0].upper() + "; q=1", content) is kind
    assert identify("image/*", content, wanted="image") is kind


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


def test_identify_names_both_when_the_content_type_is_wrong() -> None:
    content = photograph().crop(0, 0, 64, 48).write_to_buffer(".jpg")
    with pytest.raises(UnsupportedMedia, match=r"video/mp4.*JPEG \(image/jpeg\)"):
        identify("video/mp4", content)
    with pytest.raises(UnsupportedMedia, match="image/png"):
        identify("image/png", content)
    with pytest.raises(UnsupportedMedia, match="wants a video"):
        identify(None, content, wanted="video")
    with pytest.raises(UnsupportedMedia, match="says something else"):
        identify("<script>alert(1)</script>", content)


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
        kind = identify(declared, content, content)
    except (UnsupportedMedia, InvalidArgument) as error:
        assert len(str(error)) < 300
    else:
        assert kind.medium in ("image", "video")
