"""An upload on its way into the spool, as a raw body or as a form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.media.body import MediaBody
from gateway.media.options import json_options
from headrace.errors import InvalidArgument, Unimplemented, UnsupportedMedia, quoted
from sharding.sniff import HEAD_BYTES, TAIL_BYTES, Medium, identify
from sharding.spool import Spool
from sharding.upload import Upload

FORM = "multipart/form-data"
FORM_BYTES = 128 * 1024
"""What boundaries, headers and options may take besides the file."""
UNDECLARED = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""curl declares the last one for any bytes that it is given."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What the headers say of a body; `length` is None for one in chunks."""

    content_type: str
    coding: str
    length: int | None

    @property
    def kind(self) -> str:
        """The content type without its parameters."""
        return self.content_type.partition(";")[0].strip().lower()

    def check(self) -> None:
        """Refuse, before it comes, what is no picture or video; raises `UnsupportedMedia`."""
        if self.coding.strip().lower() not in ("", "identity"):
            raise UnsupportedMedia(
                f"Content-Encoding {quoted(self.coding)} is not taken here: pictures and videos "
                "are compressed already"
            )
        if self.kind not in (*UNDECLARED, FORM) and not self.kind.startswith(("image/", "video/")):
            raise UnsupportedMedia(
                f"the content type {quoted(self.kind)} is neither image/*, video/*, "
                f"application/octet-stream nor {FORM}"
            )


async def take(
    body: MediaBody, spool: Spool, declared: Declared, wanted: Medium
) -> tuple[Upload, dict[str, Any]]:
    """Write the body into the spool; what came, and the options that came with it.

    It is looked at as soon as its first bytes are here, so that what can never be read is refused
    before the rest comes. Raises `InvalidArgument`, `UnsupportedMedia`, `PayloadTooLarge`,
    `RequestTimeout`, `Cancelled` and `Unavailable` (no room).
    """
    if declared.kind == FORM:
        content_type, name, options = await _take_form(body, spool, declared, wanted)
    else:
        if declared.length is not None:
            await spool.expect(declared.length)
        content_type, name, options = _type(declared.kind), "", {}
        head = _Head(spool, content_type, wanted)
        async for piece in body.pieces():
            await head.write(piece)
    return await complete(spool, content_type, name, wanted), options


async def complete(spool: Spool, content_type: str, name: str, wanted: Medium) -> Upload:
    """All of it is in the spool: look at both of its ends. Raises as `take` does."""
    digest = await spool.finish()
    size = spool.size_bytes
    first = await spool.read(0, HEAD_BYTES)
    tail = await spool.read(max(0, size - TAIL_BYTES), TAIL_BYTES)
    identify(content_type, first, tail, wanted)
    return Upload(str(await spool.path()), size, digest, content_type, name)


async def _take_form(
    body: MediaBody, spool: Spool, declared: Declared, wanted: Medium
) -> tuple[str, str, dict[str, Any]]:
    try:
        from gateway.media.form import FormReader  # its library is in the extra `media`
    except ImportError:
        raise Unimplemented(
            "this server reads no forms: send the picture or video itself as the body"
        ) from None
    if declared.length is not None:
        await spool.expect(declared.length - FORM_BYTES)
    form = FormReader(declared.content_type)
    head: _Head | None = None
    async for piece in body.pieces():
        for content in form.read(piece):
            if head is None:
                head = _Head(spool, _type(form.file_type), wanted)
            await head.write(content)
        if body.length - spool.size_bytes > FORM_BYTES:
            raise InvalidArgument(f"the form has over {FORM_BYTES} bytes besides the file")
    form.finish()
    options = json_options(form.options, "the part 'options'")
    return _type(form.file_type), form.file_name, options


def _type(content_type: str) -> str:
    kind = content_type.partition(";")[0].strip().lower()
    return "" if kind in UNDECLARED else kind


class _Head:
    """Looks at the first bytes on their way into the spool."""

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
