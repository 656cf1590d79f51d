"""Locust users of three tiers, who come back when a refusal told them to.

`loadtests/limits/tiers.py` runs them all at once, with keys in the environment; by hand:
`HEADRACE_KEY_PREMIUM=hr_… locust -f loadtests/limits/tiers_locustfile.py --host http://127.0.0.1:8080`.
"""

from __future__ import annotations

import os

import gevent
from locust import FastHttpUser, task
from locust.exception import StopUser

from loadtests.limits.tiers import KEY_VARIABLE, RETRY, TIERS, retry_after_s, status_error
from loadtests.locustfile import record_samples  # noqa: F401 - it writes a row for each request
from loadtests.messages import (
    HIGHEST_PRICE,
    LENGTH_HEADER,
    LOWEST_PRICE,
    WrongAnswer,
    check_number,
    price_message,
    read_infer,
)


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
        """One request, and its retry at the promised second."""
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
