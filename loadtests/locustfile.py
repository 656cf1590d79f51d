"""Locust users: both HTTP protocols on real pictures, the small models, and callers of tiers.

`loadtests/run.py` runs one class at a time, `loadtests/limits/tiers.py` three of them; by hand:
`locust -f loadtests/locustfile.py TensorFlowServing --host http://127.0.0.1:8080`.
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
    DIGITS,
    HIGHEST_PRICE,
    LENGTH_HEADER,
    LOWEST_PRICE,
    Message,
    Picture,
    WrongAnswer,
    check_classes,
    check_number,
    digit_messages,
    infer_binary_message,
    load_pictures,
    picture_instance,
    predict_message,
    price_message,
    read_infer,
    read_predictions,
)
from loadtests.steps import KEY_VARIABLE, RETRY, SAMPLES, TIERS, retry_after_s, status_error

KEY = "HEADRACE_LOADTEST_KEY"
"""Environment variable with the API key that every request brings; without it all are strangers."""

CLASSES = 1000


def _credential() -> dict[str, str]:
    key = os.environ.get(KEY)
    return {"X-API-Key": key} if key else {}


class CheckedUser(FastHttpUser):  # type: ignore[misc]
    """Sends messages without a pause and counts a wrong answer as a failure."""

    abstract = True
    network_timeout = 60.0

    def send(self, name: str, message: Message, check: Callable[[Any], None]) -> None:
        """Post one message; `check` raises `WrongAnswer` for a 200 with wrong content."""
        with self.client.post(
            message.path,
            data=message.body,
            headers=message.headers | _credential(),
            name=name,
            catch_response=True,
        ) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}: {(response.text or '')[:120]}")
                return
            try:
                check(response)
            except WrongAnswer as error:
                response.failure(str(error))


class TensorFlowServing(CheckedUser):
    """Encoded pictures in JSON to the TensorFlow tagger, as TensorFlow Serving's users send."""

    def on_start(self) -> None:
        self.requests = [(picture, _predict(picture)) for picture in load_pictures()]

    @task  # type: ignore[untyped-decorator]
    def tag(self) -> None:
        picture, message = random.choice(self.requests)
        self.send("tagger_tf :predict (PNG)", message, lambda response: _tagged(response, picture))


class OpenInference(CheckedUser):
    """Raw pixels with the binary tensor extension to the ONNX tagger, as Triton's users send."""

    def on_start(self) -> None:
        self.requests = [
            (picture, infer_binary_message("tagger", "images", picture.pixels, "scores"))
            for picture in load_pictures()
        ]

    @task  # type: ignore[untyped-decorator]
    def tag(self) -> None:
        picture, message = random.choice(self.requests)

        def check(response: Any) -> None:
            length = response.headers.get(LENGTH_HEADER)
            scores = read_infer(response.content, length, "scores")
            check_classes(scores, picture.expected, CLASSES)

        self.send("tagger /infer (raw pixels)", message, check)


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

        def check(response: Any) -> None:
            length = response.headers.get(LENGTH_HEADER)
            prices = read_infer(response.content, length, "price")
            check_number(prices, LOWEST_PRICE, HIGHEST_PRICE)

        self.send("price /infer (JSON)", self.price, check)


class Caller(FastHttpUser):  # type: ignore[misc]
    """Asks for a price without a pause; waits as long as a refusal says, and asks once more."""

    abstract = True
    network_timeout = 60.0
    tier = ""

    def on_start(self) -> None:
        """Read the request, and the tier's key unless strangers need none."""
        self.message = price_message()
        self.headers = dict(self.message.headers)
        variable = KEY_VARIABLE.get(self.tier)
        if variable is not None:
            key = os.environ.get(variable)
            if not key:
                raise StopUser(f"{variable} is not set")
            self.headers["X-API-Key"] = key

    @task  # type: ignore[untyped-decorator]
    def estimate(self) -> None:
        wait_s = self.send(self.tier)
        if wait_s is not None:
            gevent.sleep(wait_s)
            self.send(self.tier + RETRY)

    def send(self, name: str) -> float | None:
        """Post the request; after how many seconds to come back, if it was refused with a time."""
        with self.client.post(
            self.message.path,
            data=self.message.body,
            headers=self.headers,
            name=name,
            catch_response=True,
        ) as response:
            if response.status_code != 200:
                response.failure(status_error(response.status_code))
                return retry_after_s(response.status_code, response.headers)
            try:
                prices = read_infer(response.content, response.headers.get(LENGTH_HEADER), "price")
                check_number(prices, LOWEST_PRICE, HIGHEST_PRICE)
            except WrongAnswer as error:
                response.failure(str(error))
            return None


class Anonymous(Caller):
    """Strangers: all from this machine's address, so one caller to the gateway."""

    tier, weight = TIERS[0], 2


class Standard(Caller):
    """Users of one standard key."""

    tier, weight = TIERS[1], 1


class Premium(Caller):
    """Users of one premium key."""

    tier, weight = TIERS[2], 1


def _predict(picture: Picture) -> Message:
    return predict_message("tagger_tf", [picture_instance(picture.png)], "image_bytes")


def _tagged(response: Any, picture: Picture) -> None:
    scores = read_predictions(response.content, "scores")
    check_classes(scores, picture.expected, CLASSES)


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
