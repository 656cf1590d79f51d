"""What was found, drawn: boxes on their picture. Pure: from a picture and an answer to a picture.

Lines and letters are sized by the picture that they stand on; a small one is enlarged first, so
that its labels can be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

Picture = Image.Image
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]

SMALLEST_SIDE = 900
"""A picture whose longer side has fewer pixels is enlarged, by a whole number."""
MOST_LABELS = 300
"""More would hide the picture; boxes are drawn for all."""
WHITE: Colour = (255, 255, 255)
INK: Colour = (24, 26, 30)
# Okabe and Ito's colours, which the colour-blind can tell apart, the most visible ones first.
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


def draw_boxes(picture: Picture, answer: Mapping[str, Any]) -> Picture:
    """The picture with the boxes of an answer, and with those parts marked that are missing.

    The answer's boxes count in pixels of its `width` and `height`; `picture` may be scaled.
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
    """The colour of letters on this one."""
    red, green, blue = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else WHITE


def font(pixels: int) -> Font:
    """A sans-serif font of that height; Pillow's own where the machine has none of many scripts."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", pixels)
    except OSError:
        return ImageFont.load_default(pixels)


def _outline(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], rect: Rect, colour: Colour, stroke: int
) -> None:
    """A frame around the box, all of it in the picture; a thin dark rim shows it on any ground."""
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


def _enlarged(picture: Picture) -> Picture:
    """A copy in RGB, at least as large as labels need."""
    times = max(1, -(-SMALLEST_SIDE // max(picture.size))) if min(picture.size) > 8 else 1
    size = (picture.width * times, picture.height * times)
    drawn = picture.convert("RGB")
    return drawn.copy() if times == 1 else drawn.resize(size, Image.Resampling.LANCZOS)


def _with_missing(drawn: Picture, missing: Iterable[Mapping[str, Any]], scale: float) -> Picture:
    """Parts without a result, under a grey veil and named."""
    places = [_scaled(each["box"], scale) for each in missing if each.get("box")]
    if not places:
        return drawn
    veil = Image.new("L", drawn.size, 0)
    over = ImageDraw.Draw(veil)
    for place in places:
        over.rectangle(place, fill=150)
    drawn = Image.composite(Image.new("RGB", drawn.size, (96, 96, 96)), drawn, veil)
    draw = ImageDraw.Draw(drawn)
    letters, words = font(_letter_pixels(drawn.size)), "not done"
    for place in places:
        draw.rectangle(place, outline=WHITE)
        if letters.getlength(words) < place.right - place.left:
            middle = ((place.left + place.right) / 2, (place.top + place.bottom) / 2)
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
    """A label at each box, the surest first, each where it hides least of the others."""
    letters = font(_letter_pixels(size))
    taken: list[Rect] = []
    for box in boxes:
        text = f"{_name(box)} {float(box['score']):.2f}".strip()
        rect, colour = _scaled(box["box"], scale), colours[_name(box)]
        inner = draw.textbbox((0, 0), text, letters, anchor="la")
        pad = max(2, round((inner[3] - inner[1]) / 4))
        wide, high = inner[2] - inner[0] + 2 * pad, inner[3] - inner[1] + 2 * pad
        place = _place(rect, (wide, high), size, taken)
        taken.append(place)
        draw.rectangle(place, fill=colour)
        at = (place.left + pad - inner[0], place.top + pad - inner[1])
        draw.text(at, text, ink_on(colour), letters)


def _place(
    rect: Rect, label: tuple[float, float], size: tuple[int, int], taken: Sequence[Rect]
) -> Rect:
    """Where the label goes: above the box, below it, or inside of it; always in the picture."""
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
        place = Rect(left, top, left + wide, top + high)
        # In doubt the box's own inside is better hidden than another's label.
        hidden = sum(place.shared(other) for other in taken) + 0.1 * place.shared(rect)
        if hidden < least:
            best, least = place, hidden
    return best
