"""The tags of a video, drawn: a row for each label, its ranges along the time, frames on top. Pure.

All sizes are pixels of the drawing, which is `WIDTH` wide and as high as it needs to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from command.drawing import INK, WHITE, Colour, Font, Picture, colours_of, font, ink_on

WIDTH = 1600
MARGIN = 24
ROW = 34
BAR = 24
MOST_ROWS = 40
MOST_GUTTER = 380
"""Longer names are cut."""
GREY: Colour = (110, 114, 120)
LINE: Colour = (224, 226, 230)
STRIPE: Colour = (246, 247, 249)
STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400)
TICKS = 16
"""At most so many marks of time."""

Frames = Sequence[tuple[float, Picture]]
"""Moments in seconds and what the video shows then."""


@dataclass(frozen=True, slots=True)
class Row:
    """A label and its ranges: (score, start_s, end_s)."""

    label: str
    ranges: tuple[tuple[float, float, float], ...]

    @property
    def held(self) -> float:
        """Score times seconds."""
        return sum(score * (end_s - start_s) for score, start_s, end_s in self.ranges)


def draw_timeline(answer: Mapping[str, Any], frames: Frames = ()) -> Picture:
    """The `tags` of an answer over its `duration_s`; `frames` stand above the time they show."""
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


def rows_of(tags: Iterable[Mapping[str, Any]]) -> tuple[tuple[Row, ...], int]:
    """A row for each label, by its beginning; of too many the longest, and how many are left out.

    Beyond `MOST_ROWS` a label's worth is its score times its seconds.
    """
    found: dict[str, list[tuple[float, float, float]]] = {}
    for tag in tags:
        span = (float(tag["score"]), float(tag["start_s"]), float(tag["end_s"]))
        found.setdefault(str(tag["label"]), []).append(span)
    rows = [Row(label, tuple(ranges)) for label, ranges in found.items()]
    kept = sorted(rows, key=lambda row: -row.held)[:MOST_ROWS]
    first = {row.label: min(start_s for _, start_s, _ in row.ranges) for row in kept}
    kept.sort(key=lambda row: (first[row.label], row.label))
    return tuple(kept), len(rows) - len(kept)


def moments(duration_s: float, count: int = 10) -> tuple[float, ...]:
    """The middles of `count` equal parts of a video, in seconds: what frames to draw."""
    return tuple(duration_s * (number + 0.5) / count for number in range(count))


def clock(time_s: float, step_s: float = 1.0) -> str:
    """A moment as `m:ss` or `h:mm:ss`; with tenths where the marks are closer than a second."""
    whole = int(time_s + 1e-6)
    tenths = f".{round(time_s * 10) % 10}" if step_s < 1 else ""
    hours, minutes, seconds = whole // 3600, whole // 60 % 60, whole % 60
    text = f"{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{hours}:{text}{tenths}" if hours else text + tenths


@dataclass(frozen=True, slots=True)
class _Scale:
    """From seconds to pixels."""

    left: float
    right: float
    duration_s: float

    def x(self, time_s: float) -> float:
        """Where a moment stands."""
        share = max(0.0, min(1.0, time_s / self.duration_s))
        return self.left + share * (self.right - self.left)

    def step_s(self) -> float:
        """The distance of the marks."""
        return next((step for step in STEPS_S if self.duration_s / step <= TICKS), STEPS_S[-1])


def _wide(letters: Font, text: str) -> int:
    return round(letters.getlength(text))


def _cut(letters: Font, text: str, width: float) -> str:
    """The text, or as much of its beginning as fits, with an ellipsis."""
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


def _draw_frames(drawn: Picture, frames: Frames, scale: _Scale, height: int) -> None:
    if not frames:
        return
    slot = (scale.right - scale.left) / len(frames)
    for number, (_, frame) in enumerate(frames):
        small = frame.convert("RGB")
        small.thumbnail((max(1, round(slot - 4)), height), Image.Resampling.LANCZOS)
        left = scale.left + slot * number + (slot - small.width) / 2
        drawn.paste(small, (round(left), MARGIN + (height - small.height) // 2))


def _draw_rows(
    draw: ImageDraw.ImageDraw, rows: Sequence[Row], scale: _Scale, top: int, letters: Font
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
    drawn: Picture,
    missing: Iterable[Mapping[str, Any]],
    scale: _Scale,
    span: tuple[int, int],
    small: Font,
) -> None:
    """Times without a result: hatched."""
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
    draw: ImageDraw.ImageDraw, rows: Sequence[Row], scale: _Scale, top: int, small: Font
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
