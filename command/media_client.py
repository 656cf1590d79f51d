"""Client of `/v1/models/MODEL:process` and `/v1/jobs`: files out, events in."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from mimetypes import guess_type
from pathlib import Path
from urllib.parse import quote

import httpx

from command.client import HttpClient, JsonObject
from headrace.errors import InvalidArgument

PIECE_BYTES = 256 * 1024
PATIENCE_S = 15.0
"""Time beyond the deadline for the server's own answer that it has passed; time to connect."""
NDJSON = "application/x-ndjson"


class MediaClient(HttpClient):
    """Large pictures and videos; `timeout_s` is the deadline that the server is told."""

    def __init__(
        self,
        address: str,
        key: str = "",
        *,
        trust: ssl.SSLContext | None = None,
        timeout_s: float = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._deadline_s = timeout_s
        super().__init__(
            address,
            key,
            trust=trust,
            timeout_s=timeout_s + PATIENCE_S,
            connect_s=PATIENCE_S,
            transport=transport,
        )

    def process(
        self,
        model: str,
        version: int | None,
        file: Path,
        options: str,
        sent: Callable[[int], None] = lambda _: None,
    ) -> Generator[JsonObject]:
        """Events as they come, the last one with the result; closing it ends the request.

        `options` is the JSON text of what is asked, `sent` is called with counts of bytes sent.
        """
        headers = {"Accept": NDJSON, "X-Request-Timeout-Seconds": f"{self._deadline_s:g}"}
        path = _path(model, version)
        with self._post(path, file, headers, options, sent) as response:
            for line in filter(None, response.iter_lines()):
                event = self.parse(response, path, line)
                if event.get("event") == "error":
                    raise self.refusal(int(event["status"]), path, str(event["error"]), line)
                yield event

    def submit(
        self,
        model: str,
        version: int | None,
        file: Path,
        options: str,
        sent: Callable[[int], None] = lambda _: None,
    ) -> JsonObject:
        """Begin a job, which goes on by itself; its document."""
        path = _path(model, version)
        with self._post(path, file, {"Prefer": "respond-async"}, options, sent) as response:
            response.read()
            return self.parse(response, path, response.text)

    def job(self, job_id: str) -> JsonObject:
        """How far a job is, and its result once it is done."""
        return self.ask("GET", f"/v1/jobs/{quote(job_id, safe='')}")

    def jobs(self) -> list[JsonObject]:
        """The caller's jobs without their results, newest first."""
        found: list[JsonObject] = self.ask("GET", "/v1/jobs").get("jobs", [])
        return found

    def cancel(self, job_id: str) -> JsonObject:
        """Cancel a job unless it has ended."""
        return self.ask("DELETE", f"/v1/jobs/{quote(job_id, safe='')}")

    def _post(
        self,
        path: str,
        file: Path,
        headers: Mapping[str, str],
        options: str,
        sent: Callable[[int], None],
    ) -> AbstractContextManager[httpx.Response]:
        length = file.stat().st_size
        more = {
            **headers,
            "Content-Type": guess_type(file.name)[0] or "application/octet-stream",
            "Content-Length": str(length),
            "X-Headrace-Options": options,
        }
        return self.stream("POST", path, headers=more, content=_pieces(file, length, sent))


def _path(model: str, version: int | None) -> str:
    of_version = f"/versions/{version}" if version is not None else ""
    return f"/v1/models/{quote(model, safe='')}{of_version}:process"


def _pieces(file: Path, length: int, sent: Callable[[int], None]) -> Iterator[bytes]:
    """The file in pieces, exactly `length` bytes; raises `InvalidArgument` where it is shorter."""
    left = length
    with file.open("rb") as content:
        while left:
            piece = content.read(min(PIECE_BYTES, left))
            if not piece:
                raise InvalidArgument(f"{file} became shorter while it was sent")
            yield piece
            left -= len(piece)
            sent(len(piece))
