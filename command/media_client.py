"""The command line's end of `/v1/models/MODEL:process` and `/v1/jobs`: files out, events in."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from mimetypes import guess_type
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from command.options import TimedOut, key_headers
from headrace.errors import (
    DeadlineExceeded,
    HeadraceError,
    InvalidArgument,
    Unauthenticated,
    Unavailable,
)

PIECE_BYTES = 256 * 1024
PATIENCE_S = 15.0
"""The server answers a deadline that has passed; so much later we stop waiting for it."""
NDJSON = "application/x-ndjson"

Document = dict[str, Any]


class MediaClient:
    """Asks the public listener; proxies of the environment are ignored.

    `key` may be "", `timeout_s` is the deadline that the server is told. Every method raises
    `HeadraceError`: `Unavailable` where nothing answers, `Unauthenticated` for a refused key,
    `TimedOut` where the deadline passed, else what the server said.
    """

    def __init__(
        self,
        address: str,
        key: str = "",
        *,
        timeout_s: float = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._address, self._timeout_s = address, timeout_s
        self._http = httpx.Client(
            base_url=f"http://{address}",
            headers=key_headers(key),
            timeout=httpx.Timeout(timeout_s + PATIENCE_S, connect=PATIENCE_S),
            trust_env=False,
            transport=transport,
        )

    def process(
        self,
        model: str,
        version: int | None,
        file: Path,
        options: str,
        sent: Callable[[int], None] = lambda _: None,
    ) -> Generator[Document]:
        """The events as they come, the last one with the result.

        `options` is the JSON text of what is asked, `sent` hears how many bytes went out. Closing
        the generator ends the request.
        """
        headers = {"Accept": NDJSON, "X-Request-Timeout-Seconds": f"{self._timeout_s:g}"}
        with self._post(model, version, file, headers, options, sent) as response:
            for line in response.iter_lines():
                if not line:
                    continue
                event = _document(line, response)
                if event.get("event") == "error":
                    raise self._error(int(event["status"]), str(event["error"]), response)
                yield event

    def submit(
        self,
        model: str,
        version: int | None,
        file: Path,
        options: str,
        sent: Callable[[int], None] = lambda _: None,
    ) -> Document:
        """Hand the file over to be worked on later; the job's document."""
        headers = {"Prefer": "respond-async"}
        with self._post(model, version, file, headers, options, sent) as response:
            response.read()
            return _document(response.text, response)

    def job(self, job_id: str) -> Document:
        """How far a job is, and its result once it is done."""
        return self._ask("GET", f"/v1/jobs/{quote(job_id, safe='')}")

    def jobs(self) -> list[Document]:
        """The caller's jobs without their results, newest first."""
        found: list[Document] = self._ask("GET", "/v1/jobs").get("jobs", [])
        return found

    def cancel(self, job_id: str) -> Document:
        """Cancel a job unless it has ended."""
        return self._ask("DELETE", f"/v1/jobs/{quote(job_id, safe='')}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    @contextmanager
    def _post(
        self,
        model: str,
        version: int | None,
        file: Path,
        headers: Mapping[str, str],
        options: str,
        sent: Callable[[int], None],
    ) -> Iterator[httpx.Response]:
        where = f"/versions/{version}" if version is not None else ""
        path = f"/v1/models/{quote(model, safe='')}{where}:process"
        length = file.stat().st_size
        more = {
            **headers,
            "Content-Type": guess_type(file.name)[0] or "application/octet-stream",
            "Content-Length": str(length),
            "X-Headrace-Options": options,
        }
        with self._mapped(path):
            body = _pieces(file, length, sent)
            with self._http.stream("POST", path, headers=more, content=body) as response:
                self._check(response)
                yield response

    def _ask(self, method: str, path: str) -> Document:
        with self._mapped(path):
            response = self._http.request(method, path)
            self._check(response)
            return _document(response.text, response)

    @contextmanager
    def _mapped(self, path: str) -> Iterator[None]:
        try:
            yield
        except httpx.ReadTimeout as error:
            raise TimedOut(f"{self._address} has not answered {path} in time") from error
        except httpx.ConnectError as error:
            raise Unavailable(f"nothing answers on {self._address}; is Headrace up?") from error
        except httpx.HTTPError as error:
            reason = type(error).__name__
            raise Unavailable(f"{self._address} has not answered {path} ({reason})") from error

    def _check(self, response: httpx.Response) -> None:
        if not response.is_error:
            return
        response.read()
        try:
            said = str(response.json()["error"])
        except (ValueError, KeyError, TypeError):
            said = response.text[:200]
        raise self._error(response.status_code, said, response)

    def _error(self, status: int, said: str, response: httpx.Response) -> HeadraceError:
        text = f"{status} from {response.request.url.path}: {said}"
        if status in (401, 403):
            return Unauthenticated(text)
        return TimedOut(text) if status == DeadlineExceeded.http_status else HeadraceError(text)


def _document(text: str, response: httpx.Response) -> Document:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        path = response.request.url.path
        raise HeadraceError(f"{response.status_code} from {path}: {text[:200]}")
    return document


def _pieces(file: Path, length: int, sent: Callable[[int], None]) -> Iterator[bytes]:
    """The file from the disk, exactly as long as it was said to be."""
    left = length
    with file.open("rb") as content:
        while left:
            piece = content.read(min(PIECE_BYTES, left))
            if not piece:
                raise InvalidArgument(f"{file} became shorter while it was sent")
            yield piece
            left -= len(piece)
            sent(len(piece))
