"""Limits as clients meet them, over HTTP and gRPC, through a gateway with a real slot."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import orjson
import pytest
import tritonclient.grpc.aio
import tritonclient.http.aio
from google.protobuf import duration_pb2
from structlog.testing import capture_logs
from tritonclient.utils import InferenceServerException

from gateway.access.audit import AuditLog
from headrace.access import Access
from headrace.config.args import Audit, Batching, Cost, Limits, ModelConfig
from headrace.config.tiers import AuthConfig, Queue, Tier
from headrace.keys import new_key
from headrace.metrics import REFUSALS, REQUESTS
from tests.gateway.grpc.test_openinference import ROW, rows
from tests.house import PEPPER, House, open_house, until
from tests.link_ends import MAX_BODY_BYTES

PREDICT = "/v1/models/affine:predict"
BODY = {"instances": [[1.0, 2.0, 3.0, 4.0]]}
STRICT = Tier(rate="1/s", burst=5, concurrency=2, queue=Queue(size=2, wait_s=5))
WIDE = Tier(priority=20)
KEY, RECORD = new_key(PEPPER, name="alice", tier="premium", now_s=1.0)
NARROW_KEY, NARROW = new_key(PEPPER, name="bob", tier="premium", models=("other",), now_s=1.0)
SLOW = ModelConfig(batching=Batching(max_rows=8, max_wait_s=1.0))

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def tiers(stranger: Tier = STRICT, **auth: Any) -> Access:
    """These tiers, and Alice's and Bob's keys."""
    keys = {record.id: record for record in (RECORD, NARROW)}
    return Access(1, {"anonymous": stranger, "premium": WIDE}, AuthConfig(**auth), keys)


async def test_the_turn_of_a_caller_pays_for_what_its_answer_cost(tmp_path: Path) -> None:
    config = ModelConfig(cost=Cost(per="rows"))
    opened = open_house(tmp_path, "a", access=tiers(Tier()), config=config)
    async with opened as house, client(house) as http:
        await http.post(PREDICT, json=BODY)
        queue = house.plane.router._queues["affine", 1].waiting
        assert queue._debts == {}
        await http.post(PREDICT, json={"instances": [[1.0, 2.0, 3.0, 4.0]] * 5})
        assert queue._debts == {"ip:127.0.0.1": 4.0}


@pytest.mark.parametrize(("proxies", "callers"), [((), 1), (("127.0.0.1",), 2)])
async def test_a_forwarded_address_is_believed_from_trusted_proxies_alone(
    tmp_path: Path, proxies: tuple[str, ...], callers: int
) -> None:
    """By predictions and by all else."""
    access = tiers(trusted_proxies=proxies)
    async with open_house(tmp_path, "a", access=access) as house, client(house) as http:
        headers = {"x-forwarded-for": "203.0.113.7"}
        found = await http.get("/v2/models/affine", headers=headers)
        predicted = await http.post(PREDICT, json=BODY, headers={"x-forwarded-for": "203.0.113.8"})
        assert (found.status_code, predicted.status_code) == (200, 200)
        assert len(house.admission.limiter) == callers


async def test_a_burst_is_answered_and_the_rest_told_when_to_come_back(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", access=tiers()) as house, client(house) as http:
        answers = [await http.post(PREDICT, json=BODY) for _ in range(7)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
        refusal = answers[-1]
        assert "rate limit of tier 'anonymous'" in refusal.json()["error"]
        assert "a credential may give a higher limit" in refusal.json()["error"]
        assert refusal.headers["retry-after"] in ("1", "2")
        assert refusal.headers["ratelimit-policy"] == '"rate";q=5;w=5'
        assert refusal.headers["ratelimit"].startswith('"rate";r=0;t=')
        assert answers[0].headers["ratelimit"].startswith('"rate";r=4;')
        await asyncio.sleep(int(refusal.headers["retry-after"]))
        assert (await http.post(PREDICT, json=BODY)).status_code == 200
        assert house.recorder.snapshot().samples[REFUSALS.name] == {("anonymous", "rate"): (2,)}


async def test_a_refused_connection_stays_open(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", access=tiers()) as house, client(house) as http:
        for _ in range(9):
            await http.post(PREDICT, json=BODY)
        assert len(house.door.connections) == 1
        assert house.admission.memory.used_bytes == 0


async def test_a_large_refused_body_is_not_read(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", access=tiers(Tier(max_body_bytes=100))) as house:
        reader, writer = await asyncio.open_connection(*house.http.address.split(":"))
        writer.write(
            b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n" % PREDICT.encode()
        )
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"over 100 bytes" in answer
        writer.close()


async def test_two_run_two_wait_and_the_fifth_is_refused(tmp_path: Path) -> None:
    quick = STRICT.model_copy(update={"rate": None, "burst": None})
    place = open_house(tmp_path, "a", config=SLOW, access=tiers(quick))
    async with place as house, client(house) as http:
        sent = [asyncio.create_task(http.post(PREDICT, json=BODY)) for _ in range(4)]
        await until(lambda: len(house.plane.router) == 2)
        await until(lambda: waiting(house) == 2)
        fifth = await http.post(PREDICT, json=BODY)
        assert fifth.status_code == 429
        assert "2 requests in flight and 2 waiting" in fifth.json()["error"]
        assert [(await each).status_code for each in sent] == [200] * 4


async def test_a_client_that_leaves_the_queue_frees_its_place(tmp_path: Path) -> None:
    quick = STRICT.model_copy(update={"rate": None, "burst": None})
    place = open_house(tmp_path, "a", config=SLOW, access=tiers(quick))
    async with place as house, client(house) as http:
        sent = [asyncio.create_task(http.post(PREDICT, json=BODY)) for _ in range(4)]
        await until(lambda: waiting(house) == 2)
        for task in sent[2:]:
            task.cancel()
        await until(lambda: waiting(house) == 0)
        assert (await http.post(PREDICT, json=BODY)).status_code == 200


def waiting(house: House) -> int:
    return sum(len(each.waiting) for each in house.admission.limiter._accounts.values())


@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
async def test_a_key_lifts_the_limits_of_strangers(tmp_path: Path, header: str) -> None:
    value = KEY if header == "X-API-Key" else f"Bearer {KEY}"
    async with open_house(tmp_path, "a", access=tiers()) as house, client(house) as http:
        for _ in range(20):
            answer = await http.post(PREDICT, json=BODY, headers={header: value})
            assert answer.status_code == 200
        assert "ratelimit" not in answer.headers
        by_tier = {labels[-1] for labels in house.recorder.snapshot().samples[REQUESTS.name]}
        assert by_tier == {"premium"}


@pytest.mark.parametrize("path", [PREDICT, "/v1/models/affine", "/v2/models/affine"])
async def test_a_wrong_key_is_never_anonymous(tmp_path: Path, path: str) -> None:
    wrong = KEY[:-3] + "abc"
    async with open_house(tmp_path, "a", access=tiers()) as house, client(house) as http:
        method = "POST" if path == PREDICT else "GET"
        answer = await http.request(method, path, content=b"{}", headers={"X-API-Key": wrong})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert wrong not in answer.text and wrong[12:] not in answer.text


async def test_a_stream_of_wrong_keys_is_told_to_wait_and_a_good_one_never(tmp_path: Path) -> None:
    wrong, good = {"X-API-Key": KEY[:-3] + "abc"}, {"X-API-Key": KEY}
    async with open_house(tmp_path, "a", access=tiers()) as house, client(house) as http:
        answers = [await http.post(PREDICT, json=BODY, headers=wrong) for _ in range(9)]
        answers += [await http.get("/v2/models/affine", headers=wrong)]
        statuses = [answer.status_code for answer in answers]
        paid = statuses.count(401)
        assert 5 <= paid <= 6  # the burst, and one on credit before the store has answered
        assert statuses == [401] * paid + [429] * (10 - paid)
        for refusal in answers[paid:]:
            assert "the credential is refused" in refusal.json()["error"]
            assert refusal.headers["retry-after"] in ("1", "2", "3")
            assert refusal.headers["ratelimit"].startswith('"rate";r=0;t=')
        assert (await http.post(PREDICT, json=BODY, headers=good)).status_code == 200
        async with grpc.aio.insecure_channel(house.grpc.address) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            metadata = (("x-api-key", wrong["X-API-Key"]),)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(b"\x0a\x06affine", timeout=10, metadata=metadata)
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing = dict(error.value.trailing_metadata())
        assert 0 < retry_s(trailing["grpc-status-details-bin"]) < 2.1
        assert trailing["ratelimit-policy"] == '"rate";q=5;w=5'
        refusals = house.recorder.snapshot().samples[REFUSALS.name]
        assert refusals["none", "credential"] == (paid,) and refusals["none", "rate"][0] >= 4


async def test_a_key_for_other_models_is_denied(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", access=tiers()) as house, client(house) as http:
        answer = await http.post(PREDICT, json=BODY, headers={"X-API-Key": NARROW_KEY})
        assert answer.status_code == 403
        assert "may not be used for model 'affine'" in answer.json()["error"]


async def test_probes_meet_no_limit(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", access=tiers()) as house, client(house) as http:
        for _ in range(20):
            assert (await http.get("/v2/health/live")).status_code == 200
            assert (await http.get("/")).status_code == 200
        statuses = [(await http.get("/v2/models/affine")).status_code for _ in range(8)]
        assert statuses.count(429) >= 1


async def test_without_anonymous_every_request_needs_a_credential(tmp_path: Path) -> None:
    access = tiers(anonymous=False)
    async with open_house(tmp_path, "a", access=access) as house, client(house) as http:
        assert (await http.post(PREDICT, json=BODY)).status_code == 401
        answer = await http.post(PREDICT, json=BODY, headers={"X-API-Key": KEY})
        assert answer.status_code == 200


async def test_each_forwarded_address_has_its_own_budget(tmp_path: Path) -> None:
    access = tiers(trusted_proxies=("127.0.0.1",))
    async with open_house(tmp_path, "a", access=access) as house, client(house) as http:
        for number in range(12):
            forwarded = {"X-Forwarded-For": f"10.0.0.{number}"}
            answer = await http.post(PREDICT, json=BODY, headers=forwarded)
            assert answer.status_code == 200


async def test_an_address_may_open_so_many_connections(tmp_path: Path) -> None:
    limits = Limits(max_body_bytes=MAX_BODY_BYTES, connections_per_address=2)
    audit = AuditLog(Audit(), tmp_path / "audit", "gateway")
    with capture_logs() as lines:
        await too_many_connections(tmp_path, limits, audit)
    audit.close()
    told = [line for line in lines if line["event"] == "connections_refused"]
    assert [(line["address"], line["reason"], line["protocol"]) for line in told] == [
        ("127.0.0.1", "connections", "http")
    ]
    (written,) = [
        orjson.loads(line)
        for file in (tmp_path / "audit").iterdir()
        for line in file.read_bytes().splitlines()
    ]
    assert (written["address"], written["reason"], written["code"]) == (
        *("127.0.0.1", "connections"),
        429,
    )


async def too_many_connections(tmp_path: Path, limits: Limits, audit: AuditLog) -> None:
    """Two stay, a third is told why not."""
    async with open_house(tmp_path, "a", limits=limits, audit=audit) as house:
        opened = [await asyncio.open_connection(*house.http.address.split(":")) for _ in range(2)]
        await until(lambda: len(house.door.connections) == 2)
        reader, writer = await asyncio.open_connection(*house.http.address.split(":"))
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"connections_per_address" in answer
        for _, each in (*opened, (reader, writer)):
            each.close()
        await until(lambda: not house.door.connections)
        assert not house.door.addresses


async def test_memory_for_bodies_is_bounded_and_comes_back(tmp_path: Path) -> None:
    limits = Limits(max_body_bytes=MAX_BODY_BYTES, max_buffered_bytes=MAX_BODY_BYTES)
    async with open_house(tmp_path, "a", limits=limits) as house, client(house) as http:
        _, writer = await asyncio.open_connection(*house.http.address.split(":"))
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (PREDICT.encode(), MAX_BODY_BYTES - 10))
        await until(lambda: house.admission.memory.used_bytes > 0)
        refused = await http.post(PREDICT, json=BODY)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        writer.close()
        await until(lambda: house.admission.memory.used_bytes == 0)
        assert (await http.post(PREDICT, json=BODY)).status_code == 200


async def test_grpc_is_limited_by_the_same_budget_and_told_when_to_retry(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", access=tiers()) as house:
        channel = grpc.aio.insecure_channel(house.grpc.address)
        async with channel, client(house) as http:
            for _ in range(5):
                assert (await http.post(PREDICT, json=BODY)).status_code == 200
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await call(b"\x0a\x06affine", timeout=10)
            error = refusal.value
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            trailing = dict(error.trailing_metadata())
            assert 0 < retry_s(trailing["grpc-status-details-bin"]) < 1.1
            assert trailing["ratelimit-policy"] == '"rate";q=5;w=5'


def retry_s(status: bytes) -> float:
    """The delay of the RetryInfo in a google.rpc.Status, found by its nesting."""
    at = status.index(b"google.rpc.RetryInfo") + len(b"google.rpc.RetryInfo")
    value = status[at + 2 :]  # the key and length of Any.value
    assert value[0] == 0x0A and value[1] == len(value) - 2
    duration = duration_pb2.Duration.FromString(value[2:])
    return float(duration.seconds + duration.nanos / 1e9)


async def test_tritonclient_brings_its_key_over_both_protocols(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", access=tiers(Tier(models=()))) as house:
        headers = {"x-api-key": KEY}
        async with tritonclient.grpc.aio.InferenceServerClient(house.grpc.address) as over_grpc:
            answer = await over_grpc.infer("affine", rows(), headers=headers)
            assert answer.as_numpy("y").tolist() == (ROW * 2 + 1).tolist()
            with pytest.raises(InferenceServerException, match="may not use model"):
                await over_grpc.infer("affine", rows())
            bearer = {"authorization": f"Bearer {KEY[:-3]}abc"}
            with pytest.raises(InferenceServerException) as refusal:
                await over_grpc.get_model_metadata("affine", headers=bearer)
            assert refusal.value.status() == "StatusCode.UNAUTHENTICATED"
        over_http = tritonclient.http.aio.InferenceServerClient(house.http.address)
        async with over_http:
            tensor = tritonclient.http.InferInput("x", [1, 4], "FP32")
            tensor.set_data_from_numpy(ROW)
            answer = await over_http.infer("affine", [tensor], headers=headers)
            assert answer.as_numpy("y").tolist() == (ROW * 2 + 1).tolist()


async def test_a_stream_says_which_request_met_the_limit(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", access=tiers()) as house:
        turn = asyncio.Semaphore(1)  # One at a time, or the limit of those in flight is met.

        async def requests() -> Any:
            for _ in range(7):
                await turn.acquire()
                yield {"model_name": "affine", "inputs": rows()}

        async with tritonclient.grpc.aio.InferenceServerClient(house.grpc.address) as over_grpc:
            errors = []
            async for result, error in over_grpc.stream_infer(requests()):
                turn.release()
                errors.append(error)
                assert (result is None) == (error is not None)
            refused = [str(error) for error in errors if error is not None]
            assert refused and all("rate limit" in error for error in refused)


def client(house: House) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=house.url, timeout=20, verify=False)


async def test_a_key_that_is_revoked_ends_on_a_connection_that_used_it(tmp_path: Path) -> None:
    """What a connection remembers of its caller goes with the rules that it was found by."""
    async with open_house(tmp_path, "a", access=tiers()) as house, client(house) as http:
        headers = {"X-API-Key": KEY}
        for _ in range(3):
            assert (await http.post(PREDICT, json=BODY, headers=headers)).status_code == 200
        assert len(house.door.connections) == 1
        house.admission.apply(replace(tiers(), keys={}))
        assert (await http.post(PREDICT, json=BODY, headers=headers)).status_code == 401
        house.admission.apply(tiers())
        assert (await http.post(PREDICT, json=BODY, headers=headers)).status_code == 200
        assert len(house.door.connections) == 1


async def test_a_key_that_expires_ends_on_a_connection_that_used_it(tmp_path: Path) -> None:
    brief = replace(tiers(), keys={RECORD.id: replace(RECORD, expires_s=time.time() + 1.0)})
    async with open_house(tmp_path, "a", access=brief) as house, client(house) as http:
        headers = {"X-API-Key": KEY}
        assert (await http.post(PREDICT, json=BODY, headers=headers)).status_code == 200
        await asyncio.sleep(1.1)
        answer = await http.post(PREDICT, json=BODY, headers=headers)
        assert (answer.status_code, len(house.door.connections)) == (401, 1)


async def test_an_account_that_is_forgotten_is_opened_anew_for_its_connection(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path, "a", access=tiers()) as house, client(house) as http:
        limiter = house.admission.limiter
        await http.post(PREDICT, json=BODY, headers={"X-API-Key": KEY})
        (before,) = limiter._accounts.values()
        limiter.sweep(time.monotonic() + 10_000, 10)
        assert before.forgotten and not limiter._accounts
        await http.post(PREDICT, json=BODY, headers={"X-API-Key": KEY})
        (after,) = limiter._accounts.values()
        assert after is not before and after.allowed == 1
