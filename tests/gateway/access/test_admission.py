"""The way in: places, queues, budgets and refusals, with a real ledger and a plane that waits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from autoscale.budget_ledger import BudgetLedger
from gateway.access.admission import BUSIEST, BUSY_HALF_LIFE_S, Admission, BusyCallers
from gateway.access.audit import AuditLog
from gateway.access.auth import Authenticator
from gateway.access.certificate import ClientCertificate
from gateway.access.limits import Limiter, OverBudget
from gateway.access.visit import Head, Visit
from headrace.access import Access, BudgetsAway, Caller, Claim, Grant
from headrace.config.args import Limits
from headrace.config.tiers import Queue, Tier
from headrace.errors import (
    DeadlineExceeded,
    HeadraceError,
    PayloadTooLarge,
    PermissionDenied,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from headrace.link.frames import Reply
from headrace.link.queue import Answer, Request
from headrace.metrics import REFUSALS, Recorder

TIERS = {
    "anonymous": Tier(rate="10/s", burst=100, concurrency=2, queue=Queue(size=2, wait_s=5)),
    "premium": Tier(priority=20),
    "narrow": Tier(models=("faces",), max_body_bytes=10, max_deadline_s=1),
}


@dataclass
class Plane:
    """Holds what is submitted until the test answers it; the clock stands until it is moved."""

    clock_s: float = 100.0
    submitted: list[Request] = field(default_factory=list)
    cancelled: list[Request] = field(default_factory=list)
    error: HeadraceError | None = None

    def now_s(self) -> float:
        return self.clock_s

    def submit(self, request: Request) -> None:
        if self.error is not None:
            raise self.error
        self.submitted.append(request)

    def cancel(self, request: Request) -> None:
        request.finished = True
        self.cancelled.append(request)


class ByHeader(Authenticator):
    """Takes the caller's name and tier from headers."""

    def __init__(self) -> None:
        super().__init__(b"no keys")

    def update(self, access: Access) -> None:
        """Nothing to know."""

    def identify(
        self,
        headers: Mapping[bytes, bytes],
        address: str,
        certificate: ClientCertificate | None = None,
    ) -> Caller:
        if b"wrong" in headers:
            raise Unauthenticated("this API key is not known")
        tier = headers.get(b"tier", b"anonymous").decode()
        models = frozenset({headers[b"models"].decode()}) if b"models" in headers else None
        return Caller(headers.get(b"caller", b"a").decode(), tier, models)

    def stranger(self, headers: Mapping[bytes, bytes], address: str) -> Caller:
        return Caller(f"ip:{address}", "anonymous")


@dataclass
class Store:
    """The ledger behind a switch."""

    plane: Plane
    ledger: BudgetLedger = field(default_factory=lambda: BudgetLedger(1000))
    away: bool = False

    async def exchange(self, claims: Sequence[Claim]) -> tuple[Sequence[Grant], int]:
        if self.away:
            raise BudgetsAway("the switch is off")
        return self.ledger.exchange("g", claims, self.plane.clock_s, 0)

    async def close(self) -> None:
        """Nothing to give up."""


class House:
    """An admission and the answers that its requests got."""

    def __init__(
        self,
        tiers: Mapping[str, Tier] | None = TIERS,
        audit: AuditLog | None = None,
        **limits: int,
    ) -> None:
        self.plane = Plane()
        self.store = Store(self.plane)
        self.recorder = Recorder("gateway")
        self.admission = Admission(
            self.plane,
            Limits(**limits),
            ByHeader(),
            self.store,
            self.recorder,
            audit,
            self.plane.now_s,
        )
        self.admission.apply(Access(1, tiers))
        self.answers: dict[int, Answer] = {}
        self.visits: dict[int, Visit] = {}

    def send(
        self, number: int, caller: str = "a", tier: str = "anonymous", timeout_s: float = 60.0
    ) -> Visit:
        """One request for `tagger`; an error that refuses it is raised."""
        headers = {b"caller": caller.encode(), b"tier": tier.encode()}
        visit = self.visits[number] = Visit(Head(headers, "127.0.0.1"))
        try:
            self.admission.enter(visit, "tagger", 5)
            now_s = self.plane.clock_s
            request = Request(
                number,
                5,
                key=("tagger", None),
                deadline_s=now_s + timeout_s,
                arrived_s=now_s,
                done=self._answered,
            )
            self.admission.submit(visit, request)
        except HeadraceError as error:
            self.admission.leave(visit, error, self.plane.clock_s)
            raise
        return visit

    def _answered(self, request: Request, answer: Answer) -> None:
        self.answers[request.id] = answer
        self.admission.leave(self.visits[request.id], answer, self.plane.clock_s)

    def answer(self, number: int, rows: int = 1) -> None:
        """The plane answers a request."""
        request = next(each for each in self.plane.submitted if each.id == number)
        self.plane.submitted.remove(request)
        request.finished = True
        reply = Reply(number, 0, 200, 0, 0, None, 0.0, 0.0, 0.0, 0.0, 0, b"", rows)
        request.done(request, reply)

    @property
    def running(self) -> list[int]:
        """The numbers of requests that the plane has."""
        return [each.id for each in self.plane.submitted]

    async def exchanged(self) -> None:
        await self.admission._exchange.once()


@pytest.fixture
def house() -> House:
    return House()


async def test_four_come_and_two_may_run(house: House) -> None:
    for number in range(4):
        house.send(number)
    assert house.running == [0, 1]
    with pytest.raises(TooManyRequests, match="2 requests in flight and 2 waiting") as refusal:
        house.send(4)
    assert refusal.value.reason == "queue"
    house.answer(1)
    assert house.running == [0, 2]
    house.answer(0)
    house.answer(2)
    assert house.running == [3]
    house.answer(3)
    assert sorted(house.answers) == [0, 1, 2, 3]


async def test_the_earliest_deadline_of_a_caller_runs_next(house: House) -> None:
    for number, timeout_s in enumerate((60, 60, 60, 30)):
        house.send(number, timeout_s=timeout_s)
    house.answer(0)
    assert house.running == [1, 3]


async def test_who_cannot_be_in_time_behind_its_own_requests_is_refused_now(house: House) -> None:
    for number in range(4):
        house.send(number)
    account = house.visits[0].account
    assert account is not None
    for number in (0, 1, 2, 3):  # each holds its place for one second
        house.plane.clock_s += 0.5
        house.answer(number)
    took_s = account.service_s
    assert 0 < took_s < 1.0  # on its way to 1 s: the wait in the queue is not in it
    house.send(4)
    house.send(5)
    with pytest.raises(TooManyRequests, match="deadline would pass") as refusal:
        house.send(6, timeout_s=took_s * 0.9)
    assert refusal.value.reason == "queue" and refusal.value.retry_after_s == took_s
    house.send(7, timeout_s=took_s * 1.1)
    with pytest.raises(TooManyRequests, match="1 of the caller's requests wait"):
        house.send(8, timeout_s=took_s * 1.2)
    house.send(9)
    assert house.running == [4, 5]


async def test_callers_do_not_share_places(house: House) -> None:
    for number in range(4):
        house.send(number)
    house.send(10, caller="b")
    assert house.running == [0, 1, 10]


async def test_a_waiting_request_whose_client_leaves_frees_its_place(house: House) -> None:
    for number in range(4):
        house.send(number)
    before = house.visits[2].account
    assert before is not None
    tokens = before.tokens
    house.admission.cancel(house.visits[2])
    assert before.tokens == tokens + 1
    house.send(5)
    house.answer(0)
    assert house.running == [1, 3]
    assert not house.plane.cancelled


async def test_a_running_request_whose_client_leaves_makes_room(house: House) -> None:
    for number in range(3):
        house.send(number)
    house.admission.cancel(house.visits[0])
    assert house.plane.cancelled[0].id == 0
    assert 2 in house.running


async def test_who_waits_too_long_is_refused(house: House) -> None:
    for number in range(3):
        house.send(number)
    house.send(3, timeout_s=2)
    house.plane.clock_s += 3
    house.admission._expire(house.plane.clock_s)
    assert isinstance(house.answers[3], DeadlineExceeded)
    house.plane.clock_s += 3
    house.admission._expire(house.plane.clock_s)
    refusal = house.answers[2]
    assert isinstance(refusal, TooManyRequests) and refusal.reason == "queue"


async def test_a_burst_beyond_the_lease_waits_for_the_store() -> None:
    house = House({"anonymous": Tier(rate="10/s", burst=100)})
    for number in range(30):
        house.send(number)
    assert len(house.running) == 10  # one block without asking
    await house.exchanged()
    await house.exchanged()
    assert len(house.running) == 30


async def test_what_the_rate_does_not_give_is_refused() -> None:
    house = House({"anonymous": Tier(rate="10/s", burst=20)})
    refused = 0
    for number in range(50):
        try:
            house.send(number)
        except TooManyRequests as error:
            assert error.reason == "rate"
            refused += 1
        await house.exchanged()
    assert len(house.running) == 20
    late = [each for each in house.answers.values() if isinstance(each, TooManyRequests)]
    assert refused + len(late) == 30
    house.plane.clock_s += 1.0
    house.send(100)
    await house.exchanged()
    assert 100 in house.running


async def test_the_store_away_refuses_nobody_within_the_share() -> None:
    house = House({"anonymous": Tier(rate="10/s", burst=20)})
    house.store.away = True
    await house.exchanged()
    for number in range(20):
        house.send(number)
    with pytest.raises(TooManyRequests):
        house.send(20)
    house.plane.clock_s += 0.5
    for number in range(30, 35):
        house.send(number)
    house.store.away = False
    house.plane.clock_s += 0.1
    assert await house.admission._exchange.once()
    assert not house.admission.limiter.away


async def test_a_plane_that_refuses_costs_nothing(house: House) -> None:
    house.plane.error = Unavailable("full")
    for number in range(5):
        with pytest.raises(Unavailable):
            house.send(number)
    account = house.visits[0].account
    assert account is not None and account.running == 0
    assert account.tokens == 10


async def test_a_plane_that_refuses_those_that_waited_answers_each(house: House) -> None:
    for number in range(4):
        house.send(number)
    house.plane.error = Unavailable("full")
    house.answer(0)
    assert isinstance(house.answers[2], Unavailable)
    assert isinstance(house.answers[3], Unavailable)


async def test_priority_and_caller_go_with_the_request(house: House) -> None:
    house.send(0, caller="p", tier="premium")
    assert (house.plane.submitted[0].priority, house.plane.submitted[0].caller) == (20, "p")


async def test_a_tier_without_the_model_is_denied(house: House) -> None:
    with pytest.raises(PermissionDenied, match="may not use model 'tagger'"):
        house.send(0, tier="narrow")


async def test_a_tiers_own_sizes_hold() -> None:
    house = House({"anonymous": Tier(max_body_bytes=10, max_deadline_s=1)})
    house.send(0)
    assert house.plane.submitted[0].deadline_s == house.plane.clock_s + 1
    with pytest.raises(PayloadTooLarge, match="over 10 bytes"):
        house.admission.enter(Visit(Head({}, "")), "tagger", 11)


async def test_bodies_beyond_the_memory_for_them_are_refused_and_it_is_freed() -> None:
    house = House(None, max_buffered_bytes=1024 * 1024)
    visits = [Visit(Head({}, "")) for _ in range(3)]
    house.admission.enter(visits[0], "tagger", 1_000_000)
    with pytest.raises(Unavailable) as refusal:
        house.admission.enter(visits[1], "tagger", 100_000)
    assert refusal.value.reason == "memory"
    house.admission.cancel(visits[0])
    house.admission.enter(visits[2], "tagger", 1_000_000)
    house.admission.leave(visits[2], Unavailable("x"), 0.0)
    assert house.admission.memory.used_bytes == 0


async def test_without_tiers_nothing_is_limited() -> None:
    house = House(None)
    for number in range(500):
        house.send(number)
    assert len(house.running) == 500
    assert house.visits[0].limit_headers(0.0) is None


async def test_rows_are_paid_when_they_are_known(house: House) -> None:
    visit = house.send(0)
    account = visit.account
    assert account is not None
    before = account.tokens
    assert house.admission.settle(visit, 0.5 * 8) == 0.5 * 8 - 1
    assert before - account.tokens == 0.5 * 8 - 1
    assert not house.admission.settle(visit, 0.5 * 8)


async def test_headers_tell_what_is_left(house: House) -> None:
    values = house.send(0).limit_headers(house.plane.clock_s)
    assert values == (b'"rate";q=100;w=10', b'"rate";r=99;t=1')


async def test_new_tiers_hold_for_those_who_are_in(house: House) -> None:
    for number in range(4):
        house.send(number)
    wider = dict(TIERS, anonymous=Tier(rate="10/s", burst=100, concurrency=4))
    house.admission.apply(Access(2, wider))
    house.send(4)
    house.answer(0)
    assert house.running == [1, 2, 3, 4]


async def test_a_visit_pays_too(house: House) -> None:
    refused = 0
    for _ in range(150):
        try:
            house.admission.admit(Visit(Head({}, "")))
        except TooManyRequests:
            refused += 1
        await house.exchanged()
    assert refused == pytest.approx(50, abs=2)


async def guess(house: House, times: int, address: str = "192.0.2.1") -> list[int]:
    """The statuses of so many bad credentials from an address."""
    statuses = []
    for _ in range(times):
        with pytest.raises((Unauthenticated, OverBudget)) as refusal:
            house.admission.identify(Visit(Head({b"wrong": b""}, address)))
        statuses.append(refusal.value.http_status)
        await house.exchanged()
    return statuses


async def test_guessing_costs_what_a_stranger_has(house: House) -> None:
    statuses = await guess(house, 300)
    paid = statuses.count(401)
    assert statuses == [401] * paid + [429] * (300 - paid)
    assert paid == pytest.approx(100, abs=2)
    with pytest.raises(OverBudget, match=r"credential is refused.*rate limit") as refusal:
        house.admission.identify(Visit(Head({b"wrong": b""}, "192.0.2.1")))
    wait_s = refusal.value.retry_after_s
    assert wait_s is not None and 0 < wait_s <= 0.2
    house.plane.clock_s += wait_s
    assert (await guess(house, 2))[0] == 401
    assert await guess(house, 1, "192.0.2.9") == [401]


async def test_who_guesses_is_among_the_busiest(house: House) -> None:
    await guess(house, 7)
    (one,) = house.admission.busy.busiest(5, house.plane.clock_s)
    assert (one["caller"], one["refused"], one["allowed"]) == ("ip:192.0.2.1", 7, 0)


async def test_a_good_credential_is_good_wherever_others_guess(house: House) -> None:
    assert 429 in await guess(house, 200, "192.0.2.1")
    visit = Visit(Head({b"caller": b"key:p", b"tier": b"premium"}, "192.0.2.1"))
    house.admission.enter(visit, "tagger", 5)
    assert visit.account is not None and visit.account.refused == 0


async def test_without_tiers_a_guess_is_not_looked_at() -> None:
    house = House(None)
    visit = Visit(Head({b"wrong": b""}, "192.0.2.1"))
    house.admission.identify(visit)
    assert visit.account is None


async def test_run_asks_the_store_by_itself() -> None:
    house = House({"anonymous": Tier(rate="10/s", burst=100)})
    task = asyncio.create_task(house.admission.run())
    for number in range(40):
        house.send(number)
    async with asyncio.timeout(5):
        while len(house.running) < 40:  # noqa: ASYNC110 - the exchange has no event to wait for
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_gauges_tell_the_state_of_limits() -> None:
    recorder = Recorder("gateway")
    recorder.budgets(callers=3, store_up=False, held_bytes=7)
    recorder.refusal("anonymous", "rate")
    samples = recorder.snapshot().samples
    assert samples["headrace_callers"] == {(): (3,)}
    assert samples["headrace_budget_store_up"] == {(): (0,)}
    assert samples[REFUSALS.name] == {("anonymous", "rate"): (1,)}


class Place:
    """Callers of a tier without limits."""

    def __init__(self) -> None:
        self.limiter = Limiter({"anonymous": Tier()}, 1000, 0.0)
        self.busy = BusyCallers()

    def ask(self, caller: str, times: int, now_s: float) -> None:
        account = self.limiter.account(Caller(caller, "anonymous"), now_s)
        for _ in range(times):
            self.busy.note(account)
        self.busy.fold(now_s)


def test_the_busiest_callers_come_first() -> None:
    place = Place()
    for number in range(300):
        place.ask(f"ip:{number}", number % 7 + (50 if number == 123 else 0), 1.0)
    busiest = place.busy.busiest(3, 1.0)
    assert busiest[0]["caller"] == "ip:123"
    assert len(busiest) == 3
    assert busiest[0]["per_s"] > busiest[1]["per_s"] > 0


def test_a_steady_caller_has_its_rate_and_one_that_is_quiet_fades() -> None:
    place = Place()
    for tick in range(3000):
        place.ask("ip:1", 1, tick / 10)
    (one,) = place.busy.busiest(5, 300.0)
    assert one["per_s"] == pytest.approx(10, rel=0.02)
    (later,) = place.busy.busiest(5, 300.0 + BUSY_HALF_LIFE_S)
    assert later["per_s"] == pytest.approx(5, rel=0.02)


def test_only_the_foremost_are_remembered() -> None:
    place = Place()
    for number in range(1000):
        place.ask(f"ip:{number}", 1 + number % 3, 1.0)
    assert len(place.busy.busiest(1000, 1.0)) == BUSIEST
    assert {each["per_s"] for each in place.busy.busiest(1000, 1.0)} == {
        place.busy.busiest(1, 1.0)[0]["per_s"]
    }


async def test_a_head_whose_caller_is_refused_is_not_let_in_by_what_was_known(house: House) -> None:
    head = Head({b"caller": b"key:p", b"tier": b"premium"}, "192.0.2.1")
    house.admission.identify(Visit(head))
    assert head.account is not None
    head.account.forgotten = True
    head.headers = {b"wrong": b""}
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            house.admission.enter(Visit(head), "tagger", 5)


async def test_a_credentials_models_hold_where_callers_share_an_account() -> None:
    house = House({"anonymous": Tier(), "premium": Tier()}, max_callers=100)
    for number in range(100):
        house.admission.identify(Visit(Head({b"caller": b"%d" % number}, "192.0.2.1")))
    head = Head({b"caller": b"second", b"models": b"other"}, "192.0.2.1")
    with pytest.raises(PermissionDenied, match="this credential may not be used"):
        house.admission.enter(Visit(head), "tagger", 5)
    house.admission.enter(Visit(head), "other", 5)
    assert head.account is not None and head.account.caller.id == "others:anonymous"
