"""Uploads on their way into the spool: raw bodies and forms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gateway.media.options import json_options
from headrace.errors import (
    InvalidArgument,
    RequestTimeout,
    Unimplemented,
    UnsupportedCoding,
    UnsupportedMedia,
    quoted,
)
from sharding.sniff import HEAD_BYTES, TAIL_BYTES, Medium, identify
from sharding.spool import Spool
from sharding.upload import Upload

try:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header
except ImportError:  # it is in the extra `media`
    MultipartParser = None  # type: ignore[assignment, misc]

MIN_BYTES_PER_S = 16 * 1024
"""Least rate of a sender: a slower one would keep its place from others."""


async def paced(
    read: Callable[[], Awaitable[bytes | None]], timeout_s: float
) -> AsyncIterator[bytes]:
    """The pieces that `read` gives until None; raises `RequestTimeout`.

    The sender has `timeout_s` in all and one second more for every `MIN_BYTES_PER_S` that have
    come. Time that the reader spends between pieces does not count.
    """
    loop = asyncio.get_running_loop()
    waited_s, length = 0.0, 0
    while True:
        began_s = loop.time()
        left_s = timeout_s + length / MIN_BYTES_PER_S - waited_s
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                piece = await read()
        except TimeoutError:
            raise RequestTimeout(
                f"the body took too long: {length} bytes came in {timeout_s:g} s"
            ) from None
        if piece is None:
            return
        waited_s += loop.time() - began_s
        length += len(piece)
        yield piece


FORM = "multipart/form-data"
FORM_BYTES = 128 * 1024
"""Cap on a form's bytes besides the file: boundaries, headers, options."""
UNDECLARED = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Content types that say nothing; curl declares the last one for any bytes."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A body as its headers declare it; `length` is None for one in chunks."""

    content_type: str
    coding: str
    length: int | None

    @property
    def kind(self) -> str:
        """The content type without its parameters."""
        return self.content_type.partition(";")[0].strip().lower()

    def check(self) -> None:
        """Raises `UnsupportedMedia` for what is no picture or video, before the body is read."""
        if self.coding.strip().lower() not in ("", "identity"):
            raise UnsupportedCoding(
                f"Content-Encoding {quoted(self.coding)} is not taken here: pictures and videos "
                "are compressed already",
                accepted="identity",
            )
        if self.kind not in (*UNDECLARED, FORM) and not self.kind.startswith(("image/", "video/")):
            raise UnsupportedMedia(
                f"the content type {quoted(self.kind)} is neither image/*, video/*, "
                f"application/octet-stream nor {FORM}"
            )


async def take(
    pieces: AsyncIterator[bytes], spool: Spool, declared: Declared, wanted: Medium
) -> tuple[Upload, dict[str, Any]]:
    """Write a body into the spool; the upload, and the options that came in its form.

    The first bytes are checked when they come, so that an unreadable file is refused before the
    rest comes. Raises `InvalidArgument`, `UnsupportedMedia`, `PayloadTooLarge`, `Unavailable` (no
    room), and what the pieces raise.
    """
    if declared.kind == FORM:
        content_type, name, options = await _take_form(pieces, spool, declared, wanted)
    else:
        if declared.length is not None:
            await spool.expect(declared.length)
        content_type, name, options = _type(declared.kind), "", {}
        head = _Head(spool, content_type, wanted)
        async for piece in pieces:
            await head.write(piece)
    digest = await spool.finish()
    size = spool.size_bytes
    first = await spool.read(0, HEAD_BYTES)
    tail = await spool.read(max(0, size - TAIL_BYTES), TAIL_BYTES)
    identify(content_type, first, tail, wanted)
    return Upload(str(await spool.path()), size, digest, content_type, name), options


async def _take_form(
    pieces: AsyncIterator[bytes], spool: Spool, declared: Declared, wanted: Medium
) -> tuple[str, str, dict[str, Any]]:
    if declared.length is not None:
        await spool.expect(declared.length - FORM_BYTES)
    form = FormReader(declared.content_type)
    head: _Head | None = None
    length = 0
    async for piece in pieces:
        length += len(piece)
        for content in form.read(piece):
            if head is None:
                head = _Head(spool, _type(form.file_type), wanted)
            await head.write(content)
        if length - spool.size_bytes > FORM_BYTES:
            raise InvalidArgument(f"the form has over {FORM_BYTES} bytes besides the file")
    form.finish()
    options = json_options(form.options, "the part 'options'")
    return _type(form.file_type), form.file_name, options


def _type(content_type: str) -> str:
    kind = content_type.partition(";")[0].strip().lower()
    return "" if kind in UNDECLARED else kind


class _Head:
    """Writer into the spool that checks the first bytes."""

    def __init__(self, spool: Spool, content_type: str, wanted: Medium) -> None:
        self._spool, self._content_type, self._wanted = spool, content_type, wanted
        self._bytes: bytearray | None = bytearray()

    async def write(self, piece: bytes) -> None:
        if self._bytes is not None:
            self._bytes += piece[: HEAD_BYTES - len(self._bytes)]
            if len(self._bytes) == HEAD_BYTES:
                identify(self._content_type, bytes(self._bytes), wanted=self._wanted)
                self._bytes = None
        await self._spool.write(piece)


MAX_OPTIONS_BYTES = 64 * 1024
MAX_HEADERS = 8
MAX_HEADER_BYTES = 4096
PARTS = ("file", "options")


class FormReader:
    """Reads a form piece by piece, without I/O; its two parts may come in either order.

    Every method raises `InvalidArgument` for anything else than such a form. `file_type` is the
    content type of the file, "" until it begins; `options` is JSON text once it has come.
    """

    def __init__(self, content_type: str) -> None:
        if MultipartParser is None:
            raise Unimplemented(
                "this server reads no forms: send the picture or video itself as the body"
            )
        self.file_type, self.file_name, self.options = "", "", b""
        self._part, self._ended = "", False
        self._seen: set[str] = set()
        self._name, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._kept = bytearray()
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise InvalidArgument("the content type multipart/form-data names no boundary")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._headers.clear,
                    "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers,
                    "on_part_data": self._on_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
                max_header_count=MAX_HEADERS,
                max_header_size=MAX_HEADER_BYTES,
            )
        except FormParserError as error:
            raise InvalidArgument(f"the multipart body cannot be read: {error}") from None

    def read(self, piece: bytes) -> list[bytes]:
        """The bytes of the file in this piece of the body."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise InvalidArgument(f"the multipart body is malformed: {error}") from None
        found, self._pieces = self._pieces, []
        return found

    def finish(self) -> None:
        """Check that the form is complete."""
        if not self._ended:
            raise InvalidArgument("the multipart body ends before its last boundary")
        if "file" not in self._seen:
            raise InvalidArgument("the multipart body has no part 'file' with the picture or video")

    def _on_header_end(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _on_headers(self) -> None:
        _, fields = parse_options_header(self._headers.get(b"content-disposition"))
        name = fields.get(b"name", b"").decode("utf-8", "replace")
        if name not in PARTS:
            raise InvalidArgument(
                f"the multipart body has a part {quoted(name)}; it takes 'file' and 'options'"
            )
        if name in self._seen:
            raise InvalidArgument(f"the multipart body has two parts '{name}'")
        self._part = name
        self._seen.add(name)
        if name == "file":
            self.file_type = self._headers.get(b"content-type", b"").decode("latin-1")
            self.file_name = fields.get(b"filename", b"").decode("utf-8", "replace")[:256]

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == "file":
            self._pieces.append(data[start:end])
            return
        self._kept += data[start:end]
        if len(self._kept) > MAX_OPTIONS_BYTES:
            raise InvalidArgument(f"the part 'options' is over {MAX_OPTIONS_BYTES} bytes")

    def _on_part_end(self) -> None:
        if self._part == "options":
            self.options = bytes(self._kept)

    def _on_end(self) -> None:
        self._ended = True
