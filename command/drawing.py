"""Drawings of answers: boxes on their picture, tags of a video as a timeline.

Lines and letters are sized by the picture; a small one is enlarged first, so that labels can be
read. A timeline has a row for each label and frames on top; it is `WIDTH` pixels wide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from headrace.errors import HeadraceError, InvalidArgument
from sharding.sniff import HEAD_BYTES, sniff

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]

SMALLEST_SIDE = 900
"""Pixels of the longer side, below which a picture is enlarged by a whole number."""
MOST_LABELS = 300
"""Cap on labels, which would hide the picture; all boxes are drawn."""
WHITE: Colour = (255, 255, 255)
INK: Colour = (24, 26, 30)
# Colours of Okabe and Ito, which the colour-blind can tell apart; the most visible come first.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
    (170, 220, 120),
    (190, 160, 255),
    (255, 170, 160),
)


class Rect(NamedTuple):
    """Left, top, right and bottom in pixels of the drawing."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: Rect) -> float:
        """The area of both, in pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def draw_boxes(picture: Image.Image, answer: Mapping[str, Any]) -> Image.Image:
    """The picture with the boxes of an answer, and marks on the parts that are missing.

    Boxes are in pixels of the answer's `width` and `height`; `picture` may be scaled.
    """
    drawn = _enlarged(picture)
    scale = drawn.width / float(answer.get("width") or picture.width)
    drawn = _with_missing(drawn, answer.get("missing", ()), scale)
    draw = ImageDraw.Draw(drawn)
    boxes = sorted(answer.get("boxes", ()), key=lambda box: float(box["score"]))
    colours = colours_of(_name(box) for box in boxes)
    stroke = max(3, round(max(drawn.size) / 500))
    for box in boxes:
        _outline(draw, drawn.size, _scaled(box["box"], scale), colours[_name(box)], stroke)
    surest = boxes[: -MOST_LABELS - 1 : -1]
    _label_all(draw, drawn.size, surest, scale, colours)
    return drawn


def colours_of(names: Iterable[str]) -> dict[str, Colour]:
    """A colour for each name; the most frequent names have one of their own."""
    ranked = sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))
    return {name: PALETTE[rank % len(PALETTE)] for rank, (name, _) in enumerate(ranked)}


def ink_on(colour: Colour) -> Colour:
    """Colour of letters on this ground."""
    red, green, blue = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else WHITE


def font(pixels: int) -> Font:
    """Sans-serif font, `pixels` high; Pillow's own, of fewer scripts, where none is installed."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", pixels)
    except OSError:
        return ImageFont.load_default(pixels)


def _outline(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], rect: Rect, colour: Colour, stroke: int
) -> None:
    """Draw a frame around the box, inside of the picture; a dark rim shows it on any ground."""
    for colour_now, rim in ((INK, 1 + stroke // 4), (colour, 0)):
        out = stroke // 2 + rim
        left, top = max(0, round(rect.left) - out), max(0, round(rect.top) - out)
        right = max(left, min(size[0] - 1, round(rect.right) + out))
        bottom = max(top, min(size[1] - 1, round(rect.bottom) + out))
        draw.rectangle((left, top, right, bottom), outline=colour_now, width=stroke + 2 * rim)


def _name(box: Mapping[str, Any]) -> str:
    return str(box.get("label") or box.get("class", ""))


def _scaled(corners: Sequence[float], scale: float) -> Rect:
    return Rect(*(float(each) * scale for each in corners))


def _enlarged(picture: Image.Image) -> Image.Image:
    """A copy in RGB, at least as large as labels need."""
    times = max(1, -(-SMALLEST_SIDE // max(picture.size))) if min(picture.size) > 8 else 1
    size = (picture.width * times, picture.height * times)
    drawn = picture.convert("RGB")
    return drawn.copy() if times == 1 else drawn.resize(size, Image.Resampling.LANCZOS)


def _with_missing(
    drawn: Image.Image, missing: Iterable[Mapping[str, Any]], scale: float
) -> Image.Image:
    """The picture with a grey veil and a label over parts without a result."""
    regions = [_scaled(each["box"], scale) for each in missing if each.get("box")]
    if not regions:
        return drawn
    veil = Image.new("L", drawn.size, 0)
    over = ImageDraw.Draw(veil)
    for region in regions:
        over.rectangle(region, fill=150)
    drawn = Image.composite(Image.new("RGB", drawn.size, (96, 96, 96)), drawn, veil)
    draw = ImageDraw.Draw(drawn)
    letters, words = font(_letter_pixels(drawn.size)), "not done"
    for region in regions:
        draw.rectangle(region, outline=WHITE)
        if letters.getlength(words) < region.right - region.left:
            middle = ((region.left + region.right) / 2, (region.top + region.bottom) / 2)
            draw.text(middle, words, WHITE, letters, anchor="mm")
    return drawn


def _letter_pixels(size: tuple[int, int]) -> int:
    return max(13, min(44, round(max(size) / 70)))


def _label_all(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    boxes: Sequence[Mapping[str, Any]],
    scale: float,
    colours: Mapping[str, Colour],
) -> None:
    """Draw a label at each box, the surest first, each where it hides least of the others."""
    letters = font(_letter_pixels(size))
    taken: list[Rect] = []
    for box in boxes:
        text = f"{_name(box)} {float(box['score']):.2f}".strip()
        rect, colour = _scaled(box["box"], scale), colours[_name(box)]
        inner = draw.textbbox((0, 0), text, letters, anchor="la")
        pad = max(2, round((inner[3] - inner[1]) / 4))
        wide, high = inner[2] - inner[0] + 2 * pad, inner[3] - inner[1] + 2 * pad
        spot = _label_box(rect, (wide, high), size, taken)
        taken.append(spot)
        draw.rectangle(spot, fill=colour)
        at = (spot.left + pad - inner[0], spot.top + pad - inner[1])
        draw.text(at, text, ink_on(colour), letters)


def _label_box(
    rect: Rect, label: tuple[float, float], size: tuple[int, int], taken: Sequence[Rect]
) -> Rect:
    """Where a label goes: above the box, below it, or inside of it; always in the picture."""
    wide, high = label
    spots = (
        (rect.left, rect.top - high),
        (rect.right - wide, rect.top - high),
        (rect.left, rect.bottom),
        (rect.right - wide, rect.bottom),
        (rect.left, rect.top),
        (rect.left, rect.bottom - high),
    )
    best = Rect(0, 0, wide, high)
    least = float("inf")
    for left, top in spots:
        left = max(0.0, min(left, size[0] - wide - 1))
        top = max(0.0, min(top, size[1] - high - 1))
        spot = Rect(left, top, left + wide, top + high)
        # Hiding the box's own inside is better than hiding another label.
        hidden = sum(spot.shared(other) for other in taken) + 0.1 * spot.shared(rect)
        if hidden < least:
            best, least = spot, hidden
    return best


WIDTH = 1600
MARGIN = 24
ROW = 34
BAR = 24
MOST_ROWS = 40
MOST_GUTTER = 380
"""Pixels of the widest label; longer ones are cut."""
GREY: Colour = (110, 114, 120)
LINE: Colour = (224, 226, 230)
STRIPE: Colour = (246, 247, 249)
STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400)
TICKS = 16
"""Cap on marks of time."""

Frames = Sequence[tuple[float, Image.Image]]
"""Moments of a video in seconds, and its frames there."""


@dataclass(frozen=True, slots=True)
class TimelineRow:
    """A label and its ranges: (score, start_s, end_s)."""

    label: str
    ranges: tuple[tuple[float, float, float], ...]

    @property
    def held(self) -> float:
        """Score times seconds."""
        return sum(score * (end_s - start_s) for score, start_s, end_s in self.ranges)


def draw_timeline(answer: Mapping[str, Any], frames: Frames = ()) -> Image.Image:
    """The `tags` of an answer over its `duration_s`; `frames` stand above their moments."""
    rows, left_out = rows_of(answer.get("tags", ()))
    missing = [each for each in answer.get("missing", ()) if each.get("start_s") is not None]
    ends_s = [end_s for row in rows for _, _, end_s in row.ranges]
    duration_s = float(answer.get("duration_s") or max(ends_s, default=1.0))
    letters, small = font(17), font(14)
    gutter = min(MOST_GUTTER, max((_wide(letters, row.label) for row in rows), default=0)) + 18
    scale = _Scale(MARGIN + gutter, WIDTH - MARGIN, duration_s)
    strip = _strip_height(frames, scale)
    top = MARGIN + (strip + 12 if strip else 0)
    bottom = top + ROW * max(1, len(rows))
    drawn = Image.new("RGB", (WIDTH, bottom + 34 + (22 if left_out else 0) + MARGIN // 2), WHITE)
    draw = ImageDraw.Draw(drawn)
    _draw_frames(drawn, frames, scale, strip)
    _draw_rows(draw, rows, scale, top, letters)
    _draw_axis(draw, scale, (top, bottom), small)
    _draw_missing(drawn, missing, scale, (top, bottom), small)
    _draw_bars(draw, rows, scale, top, small)
    if not rows:
        middle = (scale.left + scale.right) / 2
        draw.text((middle, top + ROW / 2), "no tags", GREY, letters, anchor="mm")
    if left_out:
        text = f"and {left_out} more labels"
        draw.text((scale.left, bottom + 36), text, GREY, small)
    return drawn


def rows_of(tags: Iterable[Mapping[str, Any]]) -> tuple[tuple[TimelineRow, ...], int]:
    """Rows in order of their first range, and how many were left out.

    Beyond `MOST_ROWS` those with the most score times seconds are kept.
    """
    found: dict[str, list[tuple[float, float, float]]] = {}
    for tag in tags:
        span = (float(tag["score"]), float(tag["start_s"]), float(tag["end_s"]))
        found.setdefault(str(tag["label"]), []).append(span)
    rows = [TimelineRow(label, tuple(ranges)) for label, ranges in found.items()]
    kept = sorted(rows, key=lambda row: -row.held)[:MOST_ROWS]
    first = {row.label: min(start_s for _, start_s, _ in row.ranges) for row in kept}
    kept.sort(key=lambda row: (first[row.label], row.label))
    return tuple(kept), len(rows) - len(kept)


def moments(duration_s: float, count: int = 10) -> tuple[float, ...]:
    """Moments of the frames to draw, in seconds: the middles of `count` equal parts."""
    return tuple(duration_s * (number + 0.5) / count for number in range(count))


def clock(time_s: float, step_s: float = 1.0) -> str:
    """A moment as `m:ss` or `h:mm:ss`, with tenths where `step_s` is below a second."""
    whole = int(time_s + 1e-6)
    tenths = f".{round(time_s * 10) % 10}" if step_s < 1 else ""
    hours, minutes, seconds = whole // 3600, whole // 60 % 60, whole % 60
    text = f"{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{hours}:{text}{tenths}" if hours else text + tenths


@dataclass(frozen=True, slots=True)
class _Scale:
    """Map from seconds to pixels."""

    left: float
    right: float
    duration_s: float

    def x(self, time_s: float) -> float:
        fraction = max(0.0, min(1.0, time_s / self.duration_s))
        return self.left + fraction * (self.right - self.left)

    def step_s(self) -> float:
        """Seconds between two marks."""
        return next((step for step in STEPS_S if self.duration_s / step <= TICKS), STEPS_S[-1])


def _wide(letters: Font, text: str) -> int:
    return round(letters.getlength(text))


def _cut(letters: Font, text: str, width: float) -> str:
    """The text, cut to a width in pixels with an ellipsis."""
    if _wide(letters, text) <= width:
        return text
    while text and _wide(letters, text + "…") > width:
        text = text[:-1]
    return text + "…"


def _strip_height(frames: Frames, scale: _Scale) -> int:
    if not frames:
        return 0
    slot = (scale.right - scale.left) / len(frames) - 4
    return round(min(180.0, max(slot * each.height / each.width for _, each in frames)))


def _draw_frames(drawn: Image.Image, frames: Frames, scale: _Scale, height: int) -> None:
    if not frames:
        return
    slot = (scale.right - scale.left) / len(frames)
    for number, (_, frame) in enumerate(frames):
        small = frame.convert("RGB")
        small.thumbnail((max(1, round(slot - 4)), height), Image.Resampling.LANCZOS)
        left = scale.left + slot * number + (slot - small.width) / 2
        drawn.paste(small, (round(left), MARGIN + (height - small.height) // 2))


def _draw_rows(
    draw: ImageDraw.ImageDraw, rows: Sequence[TimelineRow], scale: _Scale, top: int, letters: Font
) -> None:
    for number, row in enumerate(rows):
        y = top + ROW * number
        if number % 2 == 0:
            draw.rectangle((MARGIN // 2, y, WIDTH - MARGIN // 2, y + ROW - 1), fill=STRIPE)
        name = _cut(letters, row.label, MOST_GUTTER)
        draw.text((scale.left - 12, y + ROW / 2), name, INK, letters, anchor="rm")


def _draw_axis(
    draw: ImageDraw.ImageDraw, scale: _Scale, span: tuple[int, int], small: Font
) -> None:
    top, bottom = span
    step_s = scale.step_s()
    for number in range(int(scale.duration_s / step_s + 1e-6) + 1):
        x = scale.x(number * step_s)
        draw.line((x, top, x, bottom + 4), fill=LINE)
        draw.text((x, bottom + 8), clock(number * step_s, step_s), GREY, small, anchor="mt")
    draw.line((scale.left, bottom, scale.right, bottom), fill=GREY)


def _draw_missing(
    drawn: Image.Image,
    missing: Iterable[Mapping[str, Any]],
    scale: _Scale,
    span: tuple[int, int],
    small: Font,
) -> None:
    """Hatch the times without a result."""
    for each in missing:
        left, right = scale.x(float(each["start_s"])), scale.x(float(each["end_s"]))
        size = (max(1, round(right - left)), span[1] - span[0])
        patch = Image.new("RGB", size, (236, 236, 238))
        draw = ImageDraw.Draw(patch)
        for x in range(-size[1], size[0], 10):
            draw.line((x, size[1], x + size[1], 0), fill=(208, 210, 214), width=2)
        if _wide(small, "not done") < size[0]:
            draw.text((size[0] / 2, size[1] / 2), "not done", GREY, small, anchor="mm")
        drawn.paste(patch, (round(left), span[0]))


def _draw_bars(
    draw: ImageDraw.ImageDraw, rows: Sequence[TimelineRow], scale: _Scale, top: int, small: Font
) -> None:
    colours = colours_of(row.label for row in rows)
    for number, row in enumerate(rows):
        y = top + ROW * number + (ROW - BAR) / 2
        colour = colours[row.label]
        for score, start_s, end_s in row.ranges:
            left = scale.x(start_s)
            right = max(left + 3, scale.x(end_s) - 1)
            draw.rounded_rectangle((left, y, right, y + BAR), 4, fill=colour)
            text = f"{score:.2f}"
            if _wide(small, text) + 10 < right - left:
                at = (left + 6, y + BAR / 2)
                draw.text(at, text, ink_on(colour), small, anchor="lm")


LARGEST_SIDE = 4096
FRAME_SIDE = 180


def read_picture(path: Path) -> Image.Image:
    """The picture upright and in sRGB, at most `LARGEST_SIDE` pixels a side.

    It is never whole in memory at full size. Raises `InvalidArgument`.
    """
    import pyvips

    try:
        small = pyvips.Image.thumbnail(
            str(path), LARGEST_SIDE, height=LARGEST_SIDE, size="down", output_profile="srgb"
        )
        if small.hasalpha():
            small = small.flatten(background=255)
        small = small.colourspace("srgb").cast("uchar")
        if small.bands < 3:
            small = small[0].bandjoin([small[0], small[0]])
        content = small.write_to_memory()
        return Image.frombytes("RGB", (small.width, small.height), content)
    except pyvips.Error as error:
        raise InvalidArgument(f"{path} cannot be drawn on: it is damaged") from error


def read_frames(path: Path, times_s: Sequence[float]) -> list[tuple[float, Image.Image]]:
    """Frames of a video at these moments; those that cannot be decoded are left out."""
    from sharding.parts import Segment
    from sharding.video import probe
    from sharding.video_frames import frames

    found: list[tuple[float, Image.Image]] = []
    try:
        with path.open("rb") as file:
            kind = sniff(file.read(HEAD_BYTES))
        info = probe(path, kind)
        for number, time_s in enumerate(times_s):
            segment = Segment(number, time_s, time_s, (time_s,), 0.0)
            shown = frames(path, info, segment, short_side=FRAME_SIDE)
            found += [(each.time_s, Image.fromarray(each.pixels)) for each in shown]
    except HeadraceError:
        # A timeline without some of its frames is better than none.
        return found
    return found
