"""Boxes on pictures and tags along the time, drawn from real pictures and clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from command.drawing import (
    INK,
    LARGEST_SIDE,
    MOST_ROWS,
    WHITE,
    WIDTH,
    Rect,
    _label_box,
    clock,
    colours_of,
    draw_boxes,
    draw_timeline,
    ink_on,
    moments,
    read_frames,
    read_picture,
    rows_of,
)
from headrace.errors import InvalidArgument
from tests.sharding.media_files import PICTURES, clip

ORANGE = (230, 159, 0)


def box(x1: float, y1: float, x2: float, y2: float, label: str = "cup") -> dict[str, Any]:
    return {"box": [x1, y1, x2, y2], "score": 0.5, "class": 41, "label": label}


def tag(label: str, start_s: float, end_s: float, score: float = 0.5) -> dict[str, Any]:
    return {"label": label, "score": score, "start_s": start_s, "end_s": end_s}


def pixels(picture: Image.Image) -> Any:
    return np.asarray(picture.convert("RGB")).astype(int)


def coffee() -> Image.Image:
    return read_picture(PICTURES / "coffee.png")


def where(picture: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The smallest rectangle (x1, y1, x2, y2) with all pixels of that colour."""
    rows, columns = np.nonzero((pixels(picture) == colour).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def test_a_box_is_drawn_where_the_answer_says() -> None:
    picture = coffee()
    scale = 2  # 600 x 400: enlarged to at least 900
    answer = {"boxes": [box(100, 150, 400, 350)], "width": 600, "height": 400}
    drawn = draw_boxes(picture, answer)
    assert drawn.size == (1200, 800)
    left, top, right, bottom = where(drawn, ORANGE)
    assert abs(left - 100 * scale) <= 3 and abs(right - 400 * scale) <= 3
    assert abs(bottom - 350 * scale) <= 3 and top < 150 * scale  # its label stands above
    inside = np.s_[460:540, 460:540]
    enlarged = picture.resize(drawn.size, Image.Resampling.LANCZOS)
    assert (pixels(drawn)[inside] == pixels(enlarged)[inside]).all()


def test_boxes_count_in_pixels_of_the_picture_before_it_was_scaled() -> None:
    picture = coffee()
    half = {"boxes": [box(1000, 1500, 4000, 3500)], "width": 6000, "height": 4000}
    same = {"boxes": [box(100, 150, 400, 350)], "width": 600, "height": 400}
    assert (pixels(draw_boxes(picture, half)) == pixels(draw_boxes(picture, same))).all()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(-50, 700)] * 4, st.sampled_from(["", "cup", "a very long label"])),
        max_size=8,
    )
)
def test_any_boxes_can_be_drawn(boxes: list[tuple[float, float, float, float, str]]) -> None:
    found = [box(min(a, c), min(b, d), max(a, c), max(b, d), name) for a, b, c, d, name in boxes]
    picture = Image.new("RGB", (600, 400))
    drawn = draw_boxes(picture, {"boxes": found, "width": 600, "height": 400})
    assert drawn.size == (1200, 800)
    assert bool(pixels(drawn).any()) == bool(boxes)


def test_a_box_at_the_edge_of_the_picture_keeps_its_frame() -> None:
    drawn = draw_boxes(coffee(), {"boxes": [box(0, 0, 600, 400)], "width": 600})
    left, _, right, bottom = where(drawn, ORANGE)
    assert left < 4 and right > 1195 and bottom > 795


def test_labels_do_not_hide_one_another_where_there_is_room() -> None:
    taken: list[Rect] = []
    for number in range(4):
        at = Rect(300 + number, 300 + number, 500, 500)
        taken.append(_label_box(at, (80, 20), (1000, 1000), taken))
    pairs = [(one, other) for one in taken for other in taken if one is not other]
    assert not any(one.shared(other) for one, other in pairs)
    assert taken[0] == Rect(300, 280, 380, 300)  # the first one above its box


def test_missing_parts_are_veiled() -> None:
    picture = coffee()
    missing = [{"part": 1, "reason": "died", "box": [300, 0, 600, 200]}]
    drawn = draw_boxes(picture, {"boxes": [], "missing": missing, "width": 600})
    plain = draw_boxes(picture, {"boxes": [], "width": 600})
    changed = (pixels(drawn) != pixels(plain)).any(axis=2)
    assert changed[:400, 602:].mean() > 0.95 and not changed[402:].any()


def test_the_picture_that_was_given_stays_as_it_is() -> None:
    picture = Image.new("RGB", (1000, 1000))
    draw_boxes(picture, {"boxes": [box(10, 10, 500, 500)], "width": 1000})
    assert not pixels(picture).any()


def test_frequent_labels_have_colours_of_their_own() -> None:
    names = [f"label {number}" for number in range(30)]
    colours = colours_of([*names, *names[:10]])
    assert len({colours[name] for name in names[:10]}) == 10
    assert {ink_on(colour) for colour in colours.values()} == {INK, WHITE}


def test_a_picture_is_read_upright_and_small(tmp_path: Path) -> None:
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned by a quarter
    with Image.open(PICTURES / "coffee.png") as image:
        image.convert("RGB").resize((4500, 3000)).save(turned, exif=exif)
    picture = read_picture(turned)
    assert max(picture.size) <= LARGEST_SIDE and picture.height == LARGEST_SIDE
    upright = pixels(coffee().rotate(-90, expand=True).resize((100, 150)))
    assert abs(pixels(picture.resize((100, 150))) - upright).mean() < 6


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    Image.new(mode, (64, 32)).save(path)
    assert (read_picture(path).mode, read_picture(path).size) == ("RGB", (64, 32))


def test_what_is_no_picture_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(InvalidArgument, match="cannot be drawn on"):
        read_picture(tmp_path / "x.png")


def test_frames_are_those_of_the_asked_moments(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", frames=50)  # 2 s, a grey level more each frame
    found = read_frames(path, (0.2, 1.0, 1.8))
    assert [round(time_s, 2) for time_s, _ in found] == [0.2, 1.0, 1.8]
    levels = [pixels(frame)[-1, -1].mean() for _, frame in found]
    assert np.allclose(levels, [20 + 4 * 5, 20 + 4 * 25, 20 + 4 * 45], atol=3)
    (tmp_path / "x.mp4").write_bytes(b"no video")
    assert read_frames(tmp_path / "x.mp4", (0.0,)) == []


def test_tags_are_bars_over_their_time() -> None:
    answer = {"tags": [tag("espresso", 5.0, 7.5)], "duration_s": 10.0}
    drawn = draw_timeline(answer)
    left, _, right, _ = where(drawn, ORANGE)
    bare = draw_timeline({"tags": [tag("espresso", 0.0, 10.0)], "duration_s": 10.0})
    first, _, last, _ = where(bare, ORANGE)
    assert drawn.width == WIDTH
    assert (left - first) / (last - first) == pytest.approx(0.5, abs=0.005)
    assert (right - first) / (last - first) == pytest.approx(0.75, abs=0.005)


def test_frames_stand_above_the_time_they_show() -> None:
    red, blue = Image.new("RGB", (160, 90), (255, 0, 0)), Image.new("RGB", (160, 90), (0, 0, 255))
    answer = {"tags": [tag("espresso", 0.0, 5.0)], "duration_s": 10.0}
    drawn = draw_timeline(answer, [(2.5, red), (7.5, blue)])
    bar = where(drawn, ORANGE)
    first, second = where(drawn, (255, 0, 0)), where(drawn, (0, 0, 255))
    assert first[3] < bar[1] and second[3] < bar[1]
    assert bar[0] <= first[0] < first[2] <= bar[2] <= second[0]


def test_times_that_are_missing_are_hatched() -> None:
    answer = {"tags": [tag("espresso", 0.0, 1.0)], "duration_s": 10.0}
    missing = [{"part": 2, "reason": "died", "start_s": 5.0, "end_s": 10.0}]
    plain, hatched = draw_timeline(answer), draw_timeline({**answer, "missing": missing})
    changed = (pixels(plain) != pixels(hatched)).any(axis=(0, 2))
    assert changed[900:1550].mean() > 0.95 and not changed[:700].any()


def test_rows_are_by_their_beginning_and_the_least_are_left_out() -> None:
    tags = [tag(f"label {number}", 60.0 - number, 61.0, (number + 1) / 60) for number in range(60)]
    rows, left_out = rows_of([*tags, tag("label 59", 0.0, 0.5, 1.0)])
    assert (len(rows), left_out) == (MOST_ROWS, 60 - MOST_ROWS)
    assert rows[0].label == "label 59" and len(rows[0].ranges) == 2
    assert [row.label for row in rows[1:3]] == ["label 58", "label 57"]
    tall = draw_timeline({"tags": tags, "duration_s": 61.0})
    assert tall.height > draw_timeline({"tags": tags[:1], "duration_s": 61.0}).height
    assert draw_timeline({"tags": [], "duration_s": 0.0}).width == WIDTH


@settings(max_examples=50)
@given(st.floats(0.01, 1e6), st.integers(1, 40))
def test_moments_lie_in_the_video_in_order(duration_s: float, count: int) -> None:
    found = moments(duration_s, count)
    assert len(found) == count and found[0] > 0 and found[-1] < duration_s
    assert list(found) == sorted(found)


def test_a_moment_is_told_as_a_clock_does() -> None:
    assert [clock(each) for each in (0, 59.9999999, 75, 3600, 7325)] == [
        *("0:00", "1:00", "1:15"),
        *("1:00:00", "2:02:05"),
    ]
    assert [clock(each, 0.2) for each in (0.2, 1.0, 1.4)] == ["0:00.2", "0:01.0", "0:01.4"]
