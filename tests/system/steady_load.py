"""A constant load whose every answer is checked and timed, for tests in which things die."""

from __future__ import annotations

import http.client
import json
import threading
import time
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from tests.system.running import DOUBLED, ROW

BODY = json.dumps({"instances": [ROW]})
THREADS = 4
PAUSE_S = 0.02
RECONNECT_S = 0.1
"""A client waits so long before it connects anew: a process that is killed closes its connections
before its listener, which would take the new one with it."""
PER_CONNECTION = 100
"""Requests over one connection, then a new one: those of all threads spread over the gateways."""


class Answer(NamedTuple):
    """When a request was sent, on the monotonic clock, and after how long it was answered."""

    sent_s: float
    took_s: float


class SteadyLoad:
    """Clients that ask, pause and ask again over kept-alive connections.

    A connection that breaks under a request is a failure, unless a gateway has died last: then
    each client may connect once more, and the time that this takes counts.
    """

    def __init__(self, url: str, model: str = "affine") -> None:
        self._address = urlsplit(url).netloc
        self._path = f"/v1/models/{model}:predict"
        self._stop = threading.Event()
        self._counted = threading.Condition()
        self._pardoned: set[int] = set()
        self._asked_s: dict[int, float] = {}
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(THREADS)]
        self.answers: list[Answer] = []
        self.failures: list[str] = []
        self.reconnects = 0

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
        self.stop()

    def stop(self) -> None:
        """Ask no more; returns once all that was asked is answered."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def dies(self, kind: str) -> None:
        """One of a kind is killed next: only after a gateway may each client connect once more.

        Who did not need to after the gateway before has nothing left of that.
        """
        self._pardoned = set(range(THREADS)) if kind == "gateway" else set()

    def wait_for_answers(self, count: int) -> None:
        """Block until so many more requests are answered."""
        with self._counted:
            wanted = len(self.answers) + count
            assert self._counted.wait_for(lambda: len(self.answers) >= wanted, timeout=30)

    def slowest_s(self, at_s: float, span_s: float) -> float:
        """The longest that a request took which was under way at that time or began soon after."""
        with self._counted:
            now_s = time.monotonic()
            open_still = [Answer(sent_s, now_s - sent_s) for sent_s in self._asked_s.values()]
            return max(
                each.took_s
                for each in (*self.answers, *open_still)
                if each.sent_s < at_s + span_s and each.sent_s + each.took_s >= at_s
            )

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            connection = http.client.HTTPConnection(self._address, timeout=30)
            try:
                for _ in range(PER_CONNECTION):
                    if self._stop.is_set() or not self._ask(number, connection):
                        break
                    self._stop.wait(PAUSE_S)
            finally:
                connection.close()

    def _ask(self, number: int, connection: http.client.HTTPConnection) -> bool:
        """False if there must be a new connection."""
        sent_s = self._asked_s.setdefault(number, time.monotonic())
        try:
            connection.request("POST", self._path, BODY)
            answer = connection.getresponse()
            text = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            if number in self._pardoned:
                self._pardoned.discard(number)
                self.reconnects += 1
                time.sleep(RECONNECT_S)
            else:
                self._failed(number, f"{type(error).__name__}: {error}")
            return False
        if answer.status != 200 or json.loads(text) != {"predictions": [DOUBLED]}:
            self._failed(number, f"{answer.status}: {text[:200]}")
            return False
        with self._counted:
            del self._asked_s[number]
            self.answers.append(Answer(sent_s, time.monotonic() - sent_s))
            self._counted.notify_all()
        return not answer.will_close

    def _failed(self, number: int, what: str) -> None:
        with self._counted:
            at_s = self._asked_s.pop(number, 0.0)
            self.failures.append(f"sent at {at_s:.3f}: {what}")
            self._counted.notify_all()
