"""One picture to `tagger` over Open Inference v2, and a right answer to it."""

from __future__ import annotations

import httpx

from loadtests.exchange import (
    LENGTH_HEADER,
    Message,
    WrongAnswer,
    check_classes,
    infer_binary_message,
    read_infer,
    read_version,
)
from loadtests.open_loop import AskFailed
from loadtests.pictures import Picture

MODEL = "tagger"
OUTPUT = "scores"
CLASSES = 1000


def tagger_message(picture: Picture) -> Message:
    """The picture's raw pixels, asking for its scores."""
    return infer_binary_message(MODEL, "images", picture.pixels, OUTPUT)


async def ask_tagger(client: httpx.AsyncClient, message: Message, picture: Picture) -> str:
    """The version that answered rightly; raises `AskFailed`."""
    try:
        answer = await client.post(message.path, content=message.body, headers=message.headers)
    except httpx.TransportError as error:
        raise AskFailed(f"{type(error).__name__}: {error}") from error
    if answer.status_code != 200:
        raise AskFailed(f"status {answer.status_code}: {answer.text[:120]}")
    length = answer.headers.get(LENGTH_HEADER)
    try:
        check_classes(read_infer(answer.content, length, OUTPUT), picture.expected, CLASSES)
        return read_version(answer.content, length)
    except WrongAnswer as error:
        raise AskFailed(str(error)) from error
