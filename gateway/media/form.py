"""An upload as multipart/form-data: the part `file` is passed on as it comes, `options` is kept."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from headrace.errors import InvalidArgument, quoted

MAX_OPTIONS_BYTES = 64 * 1024
MAX_HEADERS = 8
MAX_HEADER_BYTES = 4096
PARTS = ("file", "options")


class FormReader:
    """Reads a body piece by piece; the parts may come in either order. Does no I/O.

    Every method raises `InvalidArgument` for what is no form, or not this one. `file_type` is the
    content type of the file, "" until it begins; `options` is JSON text once it has come.
    """

    def __init__(self, content_type: str) -> None:
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
                    "on_header_field": self._on_header_name,
                    "on_header_value": self._on_header_value,
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
        """What of this piece of the body belongs to the file."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise InvalidArgument(f"the multipart body is malformed: {error}") from None
        found, self._pieces = self._pieces, []
        return found

    def finish(self) -> None:
        """The body is over."""
        if not self._ended:
            raise InvalidArgument("the multipart body ends before its last boundary")
        if "file" not in self._seen:
            raise InvalidArgument("the multipart body has no part 'file' with the picture or video")

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

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
