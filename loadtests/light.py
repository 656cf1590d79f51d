"""Requests to the small models, from what `models/build.py` left: digits and one booking."""

from __future__ import annotations

from loadtests.exchange import Message, picture_instance, predict_message
from loadtests.pictures import PicturesMissing, cache_folder

CLASSES = 10
LOWEST_PRICE, HIGHEST_PRICE = 60.0, 160.0
"""Around the booking's real price of 105 a night, by four times the model's mean error."""


def digit_messages() -> list[tuple[int, Message]]:
    """Each digit with the request that carries its picture; raises `PicturesMissing`."""
    folder = cache_folder() / "pictures"
    files = [(digit, folder / f"digit_{digit}.png") for digit in range(CLASSES)]
    if missing := [file.name for _, file in files if not file.is_file()]:
        raise PicturesMissing(f"no {missing[0]} in {folder}: build it first (make models)")
    return [
        (digit, predict_message("digits", [picture_instance(file.read_bytes())]))
        for digit, file in files
    ]


def price_message() -> Message:
    """A booking as v2 JSON; raises `PicturesMissing`."""
    file = cache_folder() / "requests" / "price.json"
    if not file.is_file():
        raise PicturesMissing(f"no {file}: build it first (make models)")
    json_type = {"Content-Type": "application/json"}
    return Message("/v2/models/price/infer", file.read_bytes(), json_type)
