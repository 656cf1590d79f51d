"""Locust users: both HTTP protocols on real pictures, the small models, and callers of tiers.

`make loadtest` runs one class at a time, `make loadtest-tiers` three of them; by hand:
`locust -f loadtests/users/locustfile.py TensorFlowServing --host http://127.0.0.1:8080`.
"""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, events, task
from locust.exception import StopUser

from loadtests.messages import (
    CLASSES,
    DIGITS,
    HIGHEST_PRICE,
    LENGTH_HEADER,
    LOWEST_PRICE,
    Message,
    WrongAnswer,
    check_classes,
    check_number,
    check_tagged,
    digit_messages,
    load_pictures,
    picture_instance,
    predict_message,
    price_message,
    read_infer,
    read_predictions,
    tagger_message,
)
from loadtests.users.steps import KEY, KEY_VARIABLE, RETRY, SAMPLES, STATUS, TIERS, retry_after_s


class CheckedUser(FastHttpUser):  # type: ignore[misc]
    """Sends messages without a pause and counts a wrong answer as a failure."""

    abstract = True
    network_timeout = 60.0
    key = os.environ.get(KEY)

    def send(self, name: str, message: Message, check: Callable[[Any], None]) -> float | None:
        """Post one message; after how many seconds to come back, if it was refused with a time.

        `check` raises `WrongAnswer` for a 200 with wrong content.
        """
        with self.client.post(
            message.path,
            data=message.body,
            headers=message.headers | ({"X-API-Key": self.key} if self.key else {}),
            name=name,
            catch_response=True,
        ) as response:
            status = response.status_code
            if status != 200:
                response.failure(f"{STATUS}{status}: {(response.text or '')[:120]}")
                return retry_after_s(status, response.headers)
            try:
                check(response)
            except WrongAnswer as error:
                response.failure(str(error))
            return None


class TensorFlowServing(CheckedUser):
    """Encoded pictures in JSON to the TensorFlow tagger, as TensorFlow Serving's users send."""

    def on_start(self) -> None:
        self.requests = [
            (
                picture.expected,
                predict_message("tagger_tf", [picture_instance(picture.png)], "image_bytes"),
            )
            for picture in load_pictures()
        ]

    @task  # type: ignore[untyped-decorator]
    def tag(self) -> None:
        expected, message = random.choice(self.requests)

        def check(response: Any) -> None:
            check_classes(read_predictions(response.content, "scores"), expected, CLASSES)

        self.send("tagger_tf :predict (PNG)", message, check)


class OpenInference(CheckedUser):
    """Raw pixels with the binary tensor extension to the ONNX tagger, as Triton's users send."""

    def on_start(self) -> None:
        self.requests = [(picture, tagger_message(picture)) for picture in load_pictures()]

    @task  # type: ignore[untyped-decorator]
    def tag(self) -> None:
        picture, message = random.choice(self.requests)

        def check(response: Any) -> None:
            check_tagged(response.content, response.headers.get(LENGTH_HEADER), picture)

        self.send("tagger /infer (raw pixels)", message, check)


def check_price(response: Any) -> None:
    prices = read_infer(response.content, response.headers.get(LENGTH_HEADER), "price")
    check_number(prices, LOWEST_PRICE, HIGHEST_PRICE)


class Light(CheckedUser):
    """The small models in turn: a digit over one protocol, a price over the other."""

    def on_start(self) -> None:
        self.digits = digit_messages()
        self.price = price_message()

    @task  # type: ignore[untyped-decorator]
    def digit(self) -> None:
        digit, message = random.choice(self.digits)

        def check(response: Any) -> None:
            scores = read_predictions(response.content, "scores")
            check_classes(scores, frozenset({digit}), DIGITS)

        self.send("digits :predict (PNG)", message, check)

    @task  # type: ignore[untyped-decorator]
    def estimate(self) -> None:
        self.send("price /infer (JSON)", self.price, check_price)


class Caller(CheckedUser):
    """Asks for a price without a pause; waits as long as a refusal says, and asks once more."""

    abstract = True
    tier = TIERS[0]

    def on_start(self) -> None:
        self.price = price_message()
        variable = KEY_VARIABLE.get(self.tier, "")
        self.key = os.environ.get(variable)
        if variable and not self.key:
            raise StopUser(f"{variable} is not set")

    @task  # type: ignore[untyped-decorator]
    def estimate(self) -> None:
        wait_s = self.send(self.tier, self.price, check_price)
        if wait_s is not None:
            gevent.sleep(wait_s)
            self.send(self.tier + RETRY, self.price, check_price)


class Anonymous(Caller):
    """Strangers: all from this machine's address, so one caller to the gateway."""

    weight = 2


class Standard(Caller):
    """Users of one standard key."""

    tier = TIERS[1]


class Premium(Caller):
    """Users of one premium key."""

    tier = TIERS[2]


@events.init.add_listener  # type: ignore[untyped-decorator]
def record_samples(environment: Any, **_: Any) -> None:
    """Write each request to the file named by HEADRACE_LOADTEST_SAMPLES, if it is set."""
    path = os.environ.get(SAMPLES)
    if path is None:
        return
    file = Path(path).open("w", newline="", encoding="utf-8")  # noqa: SIM115 - closed at quit
    rows = csv.writer(file)
    rows.writerow(("started_s", "latency_ms", "name", "error"))

    def write(
        name: str, response_time: float, start_time: float, exception: object, **_: Any
    ) -> None:
        error = "" if exception is None else str(exception)
        rows.writerow((f"{start_time:.6f}", f"{response_time:.3f}", name, error))

    environment.events.request.add_listener(write)
    environment.events.quit.add_listener(lambda **_: file.close())
