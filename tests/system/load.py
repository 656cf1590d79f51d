"""A steady load from a thread: every answer is checked, nothing is sent twice."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.system.running import DOUBLED, ROW, Running

BODY = json.dumps({"instances": [ROW]})
THREADS = 4


class Load:
    """Threads that ask one request after the other over kept-alive connections.

    `reconnects` is how often a thread may open a new connection after one broke under a request;
    answers that announce `Connection: close` are followed by a new connection as a client would.
    With `context` it speaks TLS.
    """

    def __init__(
        self, url: str, reconnects: int = 0, context: ssl.SSLContext | None = None
    ) -> None:
        self._address, self._context = urlsplit(url).netloc, context
        self._reconnects = reconnects
        self._stop = threading.Event()
        self._counted = threading.Condition()
        self._threads = [threading.Thread(target=self._ask) for _ in range(THREADS)]
        self.answered = 0
        self.failures: list[str] = []
        self.finish_after_close = False

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_answers(self, count: int) -> None:
        """Block until so many more requests are answered."""
        with self._counted:
            wanted = self.answered + count
            assert self._counted.wait_for(lambda: self.answered >= wanted, timeout=30)

    def _ask(self) -> None:
        if self._context is None:
            connection = http.client.HTTPConnection(self._address, timeout=30)
        else:
            connection = http.client.HTTPSConnection(
                self._address, timeout=30, context=self._context
            )
        try:
            self._ask_over(connection)
        finally:
            connection.close()

    def _ask_over(self, connection: http.client.HTTPConnection) -> None:
        left = self._reconnects
        while not self._stop.is_set():
            try:
                connection.request("POST", "/v1/models/affine:predict", BODY)
                answer = connection.getresponse()
                text = answer.read().decode()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if left:
                    left -= 1
                    continue
                if not self.finish_after_close:
                    self._failed(f"{type(error).__name__}: {error}")
                return
            if answer.status != 200 or json.loads(text) != {"predictions": [DOUBLED]}:
                self._failed(f"{answer.status}: {text[:200]}")
                return
            with self._counted:
                self.answered += 1
                self._counted.notify_all()
            if answer.will_close and self.finish_after_close:
                return

    def _failed(self, what: str) -> None:
        with self._counted:
            self.failures.append(what)


def stop_under_load(system: Running, number: int, group: bool = False) -> list[str]:
    """Stop it by a signal while clients ask; what failed for them, and what is left of it."""
    with Load(system.url) as load:
        load.wait_for_answers(20)
        load.finish_after_close = True
        code = system.stop(number, group)
        left = [f"exit code {code}"] if code else []
        left += [f"process {process.pid} is left" for process in system.survivors()]
    host, _, port = system.http.rpartition(":")
    with suppress(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=1).close()
        left.append("something listens still")
    return load.failures + left
