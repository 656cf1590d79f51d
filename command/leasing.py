"""Leases of slots for other work: `async with lease(slots=2) as granted:`.

The lease outlives restarts of pool and gateway: it is kept, or asked for again under its id.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import random
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import structlog

from command.client import JsonObject, NothingAnswers, bearer, connection, mapped_errors
from headrace.errors import HeadraceError, NotFound, Unauthenticated, Unavailable, error_for_status

WATCH_S = 15.0
"""Time-out of a question for a lease's state, which the pool answers much sooner."""
ASK_S = 5.0
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 2.0
LEAVE_S = 3.0

log = structlog.get_logger()


def pauses_s() -> Iterator[float]:
    """Pauses before further attempts: exponential backoff with jitter."""
    for number in itertools.count():
        longest_s = min(FIRST_PAUSE_S * 2.0 ** min(number, 10), LAST_PAUSE_S)
        yield longest_s * random.uniform(0.5, 1.0)


class LeaseApi:
    """The routes of `/admin/v1/leases`.

    Every call raises `HeadraceError`, `Unavailable` where trying again can help.
    """

    def __init__(self, address: str, token: str, trust: ssl.SSLContext | None = None) -> None:
        self.address = address
        self._http = httpx.AsyncClient(
            headers=bearer(token), timeout=ASK_S, **connection(address, trust)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def request(self, lease_id: str, wanted: JsonObject) -> JsonObject:
        """Ask for slots under an id that the client chose."""
        return await self._ask("POST", "", json={"id": lease_id, **wanted})

    async def watch(self, lease_id: str, known: str) -> JsonObject:
        """The lease once its state is not `known`, or after some seconds; raises `NotFound`."""
        return await self._ask("GET", f"/{quote(lease_id)}?known={quote(known)}", timeout_s=WATCH_S)

    async def give_back(self, lease_id: str) -> JsonObject:
        """Give the slots back after a notice."""
        return await self._ask("POST", f"/{quote(lease_id)}/return")

    async def release(self, lease_id: str) -> None:
        """End the lease."""
        await self._ask("DELETE", f"/{quote(lease_id)}")

    async def _ask(
        self, method: str, path: str, json: Any = None, timeout_s: float = ASK_S
    ) -> JsonObject:
        route = f"/admin/v1/leases{path}"
        with mapped_errors(self.address, route, NothingAnswers):
            response = await self._http.request(method, route, json=json, timeout=timeout_s)
        try:
            answer = response.json()
        except ValueError as error:
            raise Unavailable(f"{self.address} answered {response.status_code}") from error
        if response.status_code == Unauthenticated.http_status:
            raise Unauthenticated(f"{self.address} refused the admin token")
        if response.is_error:
            said = str(answer.get("error", "")) if isinstance(answer, dict) else ""
            if response.is_server_error:
                raise Unavailable(said or f"{self.address} answered {response.status_code}")
            raise error_for_status(response.status_code, said)
        found: JsonObject = answer
        return found


class GrantedLease:
    """A lease whose slots are held.

    `notice` is set while the slots must be back within `due_in_s`, `lost` once they are gone. Both
    stay set until `again` returns; a notice may be withdrawn before.
    """

    def __init__(self, api: LeaseApi, wanted: JsonObject) -> None:
        self.id = secrets.token_hex(8)
        self.holder, self.slot_class = str(wanted["holder"]), str(wanted["slot_class"])
        self.slots = int(wanted["slots"])
        self.notice, self.lost = asyncio.Event(), asyncio.Event()
        self.preemptions = 0
        self._api, self._wanted = api, wanted
        self._state = ""
        self._held = asyncio.Event()
        self._due_s = math.inf
        self._in_use = False
        self._failure: HeadraceError | None = None

    @property
    def due_in_s(self) -> float:
        """Seconds until the slots are taken; infinite without a notice."""
        return max(0.0, self._due_s - time.monotonic())

    async def noticed(self) -> float:
        """Wait until the slots are wanted back, or gone; `due_in_s`.

        Raises `HeadraceError` where the lease can be neither kept nor asked for again.
        """
        await self.notice.wait()
        self._check()
        return self.due_in_s

    async def again(self) -> None:
        """Wait until the slots are held again; raises like `noticed`."""
        self._in_use = False
        while not self._held.is_set():
            await self._held.wait()
        self._check()
        self._in_use = True
        self.lost.clear()
        if self._state != "NOTICED":
            self.notice.clear()

    async def give_back(self) -> None:
        """Give the slots back before they are taken; `again` waits for others.

        Where nothing answers, they are taken when their time is over.
        """
        self._in_use = False
        with contextlib.suppress(Unavailable, NotFound):
            self._take(await self._api.give_back(self.id))

    async def begin(self) -> None:
        """Ask for the slots; raises `HeadraceError` where the pool can never grant them."""
        for pause_s in pauses_s():
            try:
                self._take(await self._api.request(self.id, self._wanted))
                return
            except NothingAnswers:
                raise
            except Unavailable:  # the pool is starting
                await asyncio.sleep(pause_s)

    async def follow(self) -> None:
        """Follow the lease's state until an error that another attempt cannot help."""
        pauses = pauses_s()
        while True:
            try:
                self._take(await self._hear())
                pauses = pauses_s()
            except Unavailable as error:
                log.debug("lease_not_heard", reason=error.message)
                await asyncio.sleep(next(pauses))
            except HeadraceError as error:
                self._fail(error)
                return

    async def _hear(self) -> JsonObject:
        try:
            return await self._api.watch(self.id, self._state)
        except NotFound:
            self._forget()
            return await self._api.request(self.id, self._wanted)

    def _take(self, document: JsonObject) -> None:
        self._state = str(document["state"])
        granted, preemptions = bool(document["granted"]), int(document["preemptions"])
        # Taken and granted again between two questions, it is lost too.
        if self._in_use and (not granted or preemptions > self.preemptions):
            self._lose()
        self.preemptions = preemptions
        if granted:
            self._held.set()
        else:
            self._held.clear()
        if self._state == "NOTICED":
            self._due_s = time.monotonic() + float(document["due_in_s"])
            self.notice.set()
        elif granted and not self.lost.is_set():
            self._due_s = math.inf
            self.notice.clear()

    def _forget(self) -> None:
        """Reset to a lease that the pool does not know."""
        self._state, self.preemptions = "", 0
        self._held.clear()
        if self._in_use:
            self._lose()

    def _lose(self) -> None:
        self._in_use = False
        self._due_s = time.monotonic()
        self.lost.set()
        self.notice.set()

    def _fail(self, error: HeadraceError) -> None:
        self._failure = error
        self._lose()
        self._held.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


@contextlib.asynccontextmanager
async def lease(
    slots: int = 1,
    slot_class: str = "cpu",
    grace_s: float | None = None,
    holder: str = "",
    *,
    address: str | None = None,
    token: str | None = None,
    trust: ssl.SSLContext | None = None,
) -> AsyncIterator[GrantedLease]:
    """Wait until the slots are granted, all of them at once; leaving gives them back.

    Without `address` and `token` they are found as the `headrace` command does, and so is whether
    it speaks TLS; with them it does where `trust` says whose certificates are good. Raises
    `InvalidArgument` where that many can never be had, `Unauthenticated`, and `Unavailable` where
    nothing answers at the first attempt.
    """
    if address is None or token is None:
        address, token, found = _found(address)
        trust = trust or found
    wanted: dict[str, Any] = {
        "holder": holder or f"process {os.getpid()}",
        "slots": slots,
        "slot_class": slot_class,
    }
    if grace_s is not None:
        wanted["grace_s"] = grace_s
    async with LeaseApi(address, token, trust) as api:
        granted = GrantedLease(api, wanted)
        heartbeat = None
        try:
            await granted.begin()
            heartbeat = asyncio.create_task(granted.follow())
            await granted.again()
            yield granted
        finally:
            if heartbeat is not None:
                heartbeat.cancel()
                await asyncio.gather(heartbeat, return_exceptions=True)
            with contextlib.suppress(HeadraceError, TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await api.release(granted.id)


def _found(address: str | None) -> tuple[str, str, ssl.SSLContext | None]:
    # Only a program that gives no address needs the state files.
    from command.instance import find_instance
    from headrace.secrets import admin_token

    found = find_instance(address, None)
    return found.admin, admin_token(found.token), found.trust("admin")
