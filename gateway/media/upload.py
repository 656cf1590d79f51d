"""Uploads on their way into the spool: raw bodies and forms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gateway.media.options import json_options, query_options
from headrace.config.sharding import ProcessOptions
from headrace.errors import (
    InvalidArgument,
    RequestTimeout,
    Unimplemented,
    UnsupportedCoding,
    UnsupportedMedia,
    quoted,
)
from sharding.sniff import HEAD_BYTES, TAIL_BYTES, MediaKind, Medium, identify, type_note
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

    def check(self, strict: bool) -> None:
        """Raises `UnsupportedMedia` for what cannot be taken, before the body is read.

        With `strict`, that is also what its content type says to be no picture or video.
        """
        if self.coding.strip().lower() not in ("", "identity"):
            raise UnsupportedCoding(
                f"Content-Encoding {quoted(self.coding)} is not taken here: pictures and videos "
                "are compressed already",
                accepted="identity",
            )
        media = (*UNDECLARED, FORM), ("image/", "video/")
        if strict and self.kind not in media[0] and not self.kind.startswith(media[1]):
            raise UnsupportedMedia(
                f"the content type {quoted(self.kind)} is neither image/*, video/*, "
                f"application/octet-stream nor {FORM}"
            )


def check_type(declared: str, kind: MediaKind) -> None:
    """Raises `UnsupportedMedia` for bytes that are not what their content type says."""
    if (note := type_note(declared, kind)) is not None:
        raise UnsupportedMedia(note)


async def take(
    pieces: AsyncIterator[bytes], spool: Spool, declared: Declared, wanted: Medium, strict: bool
) -> tuple[Upload, MediaKind, dict[str, Any]]:
    """Write a body into the spool; the upload, its kind, and the options that came in its form.

    The first bytes are checked when they come, so that an unreadable file is refused before the
    rest comes; `strict` checks its content type too. Raises `InvalidArgument`, `UnsupportedMedia`,
    `PayloadTooLarge`, `Unavailable` (no room), and what the pieces raise.
    """
    if declared.kind == FORM:
        content_type, name, options = await _take_form(pieces, spool, declared, wanted)
    else:
        if declared.length is not None:
            await spool.expect(declared.length)
        content_type, name, options = _type(declared.kind), "", {}
        head = _Head(spool, wanted, content_type if strict else "")
        async for piece in pieces:
            await head.write(piece)
    digest = await spool.finish()
    size = spool.size_bytes
    first = await spool.read(0, HEAD_BYTES)
    tail = await spool.read(max(0, size - TAIL_BYTES), TAIL_BYTES)
    kind = identify(first, tail, wanted)
    return Upload(str(await spool.path()), size, digest, content_type, name), kind, options


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
                head = _Head(spool, wanted)
            await head.write(content)
        if length - spool.size_bytes > FORM_BYTES:
            raise InvalidArgument(f"the form has over {FORM_BYTES} bytes besides the file")
    form.finish()
    options = query_options(form.fields) | json_options(form.options, "the part 'options'")
    return _type(form.file_type), form.file_name, options


def _type(content_type: str) -> str:
    kind = content_type.partition(";")[0].strip().lower()
    return "" if kind in UNDECLARED else kind


class _Head:
    """Writer into the spool that checks the first bytes, and what they are `declared` to be."""

    def __init__(self, spool: Spool, wanted: Medium, declared: str = "") -> None:
        self._spool, self._wanted, self._declared = spool, wanted, declared
        self._bytes: bytearray | None = bytearray()

    async def write(self, piece: bytes) -> None:
        if self._bytes is not None:
            self._bytes += piece[: HEAD_BYTES - len(self._bytes)]
            if len(self._bytes) == HEAD_BYTES:
                check_type(self._declared, identify(bytes(self._bytes), b"", self._wanted))
                self._bytes = None
        await self._spool.write(piece)


MAX_OPTIONS_BYTES = 64 * 1024
MAX_HEADERS = 8
MAX_HEADER_BYTES = 4096
FILE, OPTIONS = "file", "options"


class FormReader:
    """Reads a form piece by piece, without I/O; its parts may come in any order.

    Every method raises `InvalidArgument` for anything else than such a form. `file_type` is the
    content type of the file, "" until it begins; `options` is JSON text once it has come; `fields`
    are options that are parts of their own, as in a query.
    """

    def __init__(self, content_type: str) -> None:
        if MultipartParser is None:
            raise Unimplemented(
                "this server reads no forms: send the picture or video itself as the body"
            )
        self.file_type, self.file_name, self.options = "", "", b""
        self.fields: list[tuple[str, str]] = []
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
        if FILE not in self._seen:
            raise InvalidArgument("the multipart body has no part 'file' with the picture or video")

    def _on_header_end(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _on_headers(self) -> None:
        _, fields = parse_options_header(self._headers.get(b"content-disposition"))
        name = fields.get(b"name", b"").decode("utf-8", "replace")
        if name not in (FILE, OPTIONS, *ProcessOptions.model_fields):
            raise InvalidArgument(
                f"the multipart body has a part {quoted(name)}; it takes 'file', 'options' and "
                "parts named as an option is"
            )
        if name in self._seen and name in (FILE, OPTIONS):
            raise InvalidArgument(f"the multipart body has two parts '{name}'")
        self._part = name
        self._seen.add(name)
        if name == FILE:
            self.file_type = self._headers.get(b"content-type", b"").decode("latin-1")
            self.file_name = fields.get(b"filename", b"").decode("utf-8", "replace")[:256]

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == FILE:
            self._pieces.append(data[start:end])
            return
        self._kept += data[start:end]
        if len(self._kept) > MAX_OPTIONS_BYTES:
            raise InvalidArgument(f"the part '{self._part}' is over {MAX_OPTIONS_BYTES} bytes")

    def _on_part_end(self) -> None:
        if self._part == OPTIONS:
            self.options = bytes(self._kept)
        elif self._part != FILE:
            self.fields.append((self._part, self._kept.decode("utf-8", "replace")))
        self._kept.clear()

    def _on_end(self) -> None:
        self._ended = True
