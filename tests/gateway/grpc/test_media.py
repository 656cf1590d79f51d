"""`headrace.v1.Media` over a real connection, in front of a stage of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import ByteSize

from gateway.grpc.media import MEDIA_SERVICE, MediaService
from gateway.media.desk import MediaDesk, StageClient
from headrace.access import Access
from headrace.config.args import Batching, Limits, MediaConfig, ModelConfig
from headrace.config.sharding import ProcessOptions, ShardingConfig, ShardingLimits
from headrace.config.tiers import Tier
from headrace.errors import HeadraceError, Unavailable
from headrace.keys import new_key
from headrace.metrics import REQUESTS
from headrace.protocols.wire import message
from sharding.upload import Event, MediaJob, Tell
from tests.house import PEPPER, House, open_house, until
from tests.sharding.media_files import PICTURES

METHOD = f"/{MEDIA_SERVICE}/Process"
PICTURE = (PICTURES / "coffee.png").read_bytes()
CUP = {"box": [1.0, 2.0, 30.5, 40.0], "score": 0.5, "class": 41, "label": "cup"}
PLACE = {"part": 0, "box": [0.0, 0.0, 600.0, 400.0], "shard": "cpu-1", "seconds": 0.1}
PLAN = {
    **{"event": "plan", "parts": 2, "kind": "image-tiles", "shards": 1, "notes": ["a note"]},
    **{"width": 600, "height": 400, "duration_s": 0.0},
}
RESULT = {
    **{"model": "affine", "version": 1, "boxes": [CUP], "notes": [], "width": 600, "height": 400},
    "shards": [{**PLACE, "cached": True}],
    "missing": [{"part": 1, "reason": "died", "box": [1.0, 2.0, 3.0, 4.0]}],
    "timing": {"split_s": 0.1, "merge_s": 0.2, "total_s": 0.5},
}
EVENTS: tuple[Event, ...] = (
    PLAN,
    {"event": "part", "done": 1, "parts": 2, **PLACE, "cached": False, "boxes": [CUP]},
    {"event": "part", "part": 1, "done": 2, "parts": 2, "error": "died"},
    {"event": "result", "result": RESULT},
)
SHARDED = ModelConfig(
    batching=Batching(max_rows=8),
    sharding=ShardingConfig(
        kind="image-tiles", limits=ShardingLimits(max_upload_bytes=len(PICTURE))
    ),
)


@dataclass
class Stage(StageClient):
    """A stage that answers every job with the same events, the last of which may be an error.

    `content` is what lay in the spool when the last job came.
    """

    events: Sequence[Event | HeadraceError] = EVENTS
    asked: list[MediaJob] = field(default_factory=list)
    content: bytes = b""
    closed: int = 0
    waits: bool = False

    async def process(self, job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        self.asked.append(job)
        self.content = await asyncio.to_thread(Path(job.upload.path).read_bytes)
        try:
            for event in self.events:
                if isinstance(event, HeadraceError):
                    raise event
                if event["event"] == "result":
                    return dict(event["result"])
                await tell(event)
                if self.waits:
                    await asyncio.Event().wait()
            raise AssertionError("a stage ends with a result or an error")
        finally:
            self.closed += 1


@asynccontextmanager
async def open_media(
    tmp_path: Path, stage: Stage | None, config: ModelConfig = SHARDED, **more: Any
) -> AsyncIterator[tuple[House, str]]:
    """A house whose gRPC listener has the service too, and its address."""
    async with open_house(tmp_path, "a", config=config, **more) as house:
        desk = None
        if stage is not None:
            media = MediaConfig(spool_memory=ByteSize(64 * 1024))
            desk = MediaDesk(house.predictions, stage, tmp_path / "spool", media)
        table = MediaService(desk).handlers()
        house.grpc._methods.update({name.encode(): method for name, method in table.items()})
        yield house, house.grpc.address


def head(model: str = "affine", **more: Any) -> bytes:
    found = message("headrace.v1.ProcessRequest")()
    found.head.model = model
    for name, value in more.items():
        setattr(found.head, name, value)
    return bytes(found.SerializeToString())


def head_with(declared: str = "", **options: Any) -> bytes:
    given = message("headrace.v1.ProcessOptions")(**options)
    kind = message("headrace.v1.ProcessHead")
    found = kind(model="affine", content_type=declared, options=given)
    return bytes(message("headrace.v1.ProcessRequest")(head=found).SerializeToString())


def chunks(content: bytes, size: int = 100_000) -> list[bytes]:
    kind = message("headrace.v1.ProcessRequest")
    return [
        kind(chunk=content[at : at + size]).SerializeToString()
        for at in range(0, len(content), size)
    ]


async def process(address: str, *messages: bytes, **more: Any) -> tuple[list[Any], Any]:
    """The events, and the call; raises what it ends with.

    By the client with threads: grpc.aio's says INTERNAL whenever it was refused while it writes.
    """
    kind = message("headrace.v1.ProcessEvent")

    def blocking() -> tuple[list[Any], Any]:
        with grpc.insecure_channel(address) as channel:
            call = channel.stream_stream(METHOD)(iter(messages), **more)
            return [kind.FromString(each) for each in call], call

    return await asyncio.to_thread(blocking)


async def refusal(address: str, *messages: bytes, **more: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        await process(address, *messages, **more)
    error: Any = caught.value
    return error.code().name, error.details()


def spooled(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "spool").glob("*"))


def counted(house: House) -> dict[Any, Any]:
    return dict(house.recorder.snapshot().samples[REQUESTS.name])


async def test_an_upload_is_spooled_and_its_events_are_answered(tmp_path: Path) -> None:
    stage = Stage()
    async with open_media(tmp_path, stage) as (house, address):
        sent = (head(content_type="image/png", name="coffee.png"), *chunks(PICTURE))
        events, call = await process(address, *sent, metadata=(("x-request-id", "mine"),))
        trailing = dict(call.trailing_metadata())
        await until(lambda: not spooled(tmp_path))
        assert counted(house) == {("affine", 1, "media_grpc", 200, "none"): (1,)}
        assert house.admission.memory.used_bytes == 0
    (job,) = stage.asked
    assert stage.content == PICTURE and stage.closed == 1
    assert (job.model, job.version, job.upload.length) == ("affine", None, len(PICTURE))
    assert (job.upload.content_type, job.upload.name) == ("image/png", "coffee.png")
    assert (job.timeout_s, job.request_id, trailing["x-request-id"]) == (60.0, "mine", "mine")
    assert [each.WhichOneof("event") for each in events] == ["plan", "part", "part", "result"]
    plan, first, failed, result = (getattr(each, each.WhichOneof("event")) for each in events)
    assert (plan.parts, plan.width, list(plan.notes)) == (2, 600, ["a note"])
    assert (first.shard.shard, first.shard.region.x2, first.boxes[0].label) == ("cpu-1", 600, "cup")
    assert (failed.error, failed.done) == ("died", 2)
    box = result.boxes[0]
    assert [box.x1, box.y1, box.x2, box.y2, box.score] == [1.0, 2.0, 30.5, 40.0, 0.5]
    assert result.shards[0].cached and result.missing[0].reason == "died"
    assert result.timing.total_s == 0.5


async def test_options_reach_the_stage(tmp_path: Path) -> None:
    stage = Stage()
    async with open_media(tmp_path, stage) as (_, address):
        first = head_with(
            threshold=0.5,
            tile=512,
            scales=[1.0, 0.5],
            allow_partial=True,
            class_ids=[3],
            labels=["cup"],
            end_s=4.0,
        )
        await process(address, first, *chunks(PICTURE), timeout=20)
    (job,) = stage.asked
    assert job.options == ProcessOptions(
        threshold=0.5,
        classes=(3, "cup"),
        tile=512,
        scales=(1.0, 0.5),
        end_s=4.0,
        partial="allow",
    )
    assert 15 < job.timeout_s < 20.2  # gRPC's client rounds what it sends up to a tenth


async def test_what_is_wrong_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    stage = Stage()
    long = b"\x89PNG\r\n\x1a\n" + bytes(len(PICTURE))
    strict = head_with("image/jpeg", strict_type=True)
    async with open_media(tmp_path, stage) as (house, address):
        found = [
            await refusal(address),
            await refusal(address, *chunks(PICTURE)),
            await refusal(address, b"\xff\xff"),
            await refusal(address, head("")),
            await refusal(address, head("nobody"), *chunks(PICTURE)),
            await refusal(address, head(version=9), *chunks(PICTURE)),
            await refusal(address, head_with(tile=65), *chunks(PICTURE)),
            # Only with the config is it known that they do not fit: told before the file comes.
            await refusal(address, head_with(overlap=2048)),
            await refusal(address, head()),
            await refusal(address, head(), head()),
            await refusal(address, head(), *chunks(b"%PDF-1.7 " + bytes(9000))),
            await refusal(address, strict, *chunks(PICTURE)),
            await refusal(address, head(content_type="multipart/form-data"), *chunks(PICTURE)),
            await refusal(address, head(), *chunks(long)),
        ]
        await until(lambda: not spooled(tmp_path) and not house.admission.memory.used_bytes)
    assert [code for code, _ in found] == [
        *["INVALID_ARGUMENT"] * 4,
        *["NOT_FOUND"] * 2,
        *["INVALID_ARGUMENT"] * 7,
        "RESOURCE_EXHAUSTED",
    ]
    assert "send a head" in found[0][1] and "should be a `head`" in found[1][1]
    assert "multiple of 32" in found[6][1] and "below `tile`" in found[7][1]
    assert "empty" in found[8][1] and "should be a `chunk`" in found[9][1]
    assert "PDF" in found[10][1] and "image/jpeg" in found[11][1]
    assert str(len(PICTURE)) in found[13][1]
    assert not stage.asked


async def test_a_model_that_splits_nothing_says_so(tmp_path: Path) -> None:
    plain = ModelConfig(batching=Batching(max_rows=8))
    async with open_media(tmp_path, Stage(), plain) as (_, address):
        code, details = await refusal(address, head(), *chunks(PICTURE))
    assert code == "INVALID_ARGUMENT" and "`sharding`" in details


async def test_without_a_stage_it_is_unimplemented(tmp_path: Path) -> None:
    async with open_media(tmp_path, None) as (_, address):
        code, _ = await refusal(address, head(), *chunks(PICTURE))
    assert code == "UNIMPLEMENTED"


async def test_an_error_of_the_stage_is_the_status(tmp_path: Path) -> None:
    stage = Stage((PLAN, Unavailable("no slot", retry_after_s=2.0)))
    async with open_media(tmp_path, stage) as (house, address):
        code, details = await refusal(address, head(), *chunks(PICTURE))
        await until(lambda: not spooled(tmp_path))
        assert counted(house) == {("affine", 1, "media_grpc", 503, "none"): (1,)}
    assert (code, details, stage.closed) == ("UNAVAILABLE", "no slot", 1)


async def test_leaving_ends_the_work_and_removes_the_upload(tmp_path: Path) -> None:
    stage = Stage(waits=True)
    async with (
        open_media(tmp_path, stage) as (house, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        call = channel.stream_stream(METHOD)(iter([head(), *chunks(PICTURE)]))
        await call.read()  # the plan: the stage is at work
        assert len(spooled(tmp_path)) == 1
        call.cancel()
        await until(lambda: stage.closed and not spooled(tmp_path))
        await until(lambda: not house.admission.memory.used_bytes)
        assert counted(house) == {}


async def test_an_upload_that_is_cut_off_is_removed(tmp_path: Path) -> None:
    stage = Stage()
    async with (
        open_media(tmp_path, stage) as (house, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        call = channel.stream_stream(METHOD)()
        await call.write(head())
        for chunk in chunks(PICTURE)[:3]:
            await call.write(chunk)
        await until(lambda: house.admission.memory.used_bytes)
        call.cancel()
        await until(lambda: not house.admission.memory.used_bytes and not spooled(tmp_path))
    assert not stage.asked


async def test_a_deadline_that_passes_ends_the_work(tmp_path: Path) -> None:
    stage = Stage(waits=True)
    async with open_media(tmp_path, stage) as (house, address):
        code, _ = await refusal(address, head(), *chunks(PICTURE), timeout=0.3)
        await until(lambda: stage.closed and not spooled(tmp_path))
        await until(lambda: counted(house))
        assert counted(house) == {("affine", 1, "media_grpc", 504, "none"): (1,)}
    assert code == "DEADLINE_EXCEEDED"


async def test_a_sender_who_stops_is_refused(tmp_path: Path) -> None:
    limits = Limits(body_timeout_s=0.1)
    async with (
        open_media(tmp_path, Stage(), limits=limits) as (_, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        call = channel.stream_stream(METHOD)()
        await call.write(head())
        with pytest.raises(grpc.aio.AioRpcError) as slow:
            await call.read()
        silent = channel.stream_stream(METHOD)()
        with pytest.raises(grpc.aio.AioRpcError) as nothing:
            await silent.read()
    assert slow.value.code() is nothing.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "too long" in slow.value.details() and "the head" in nothing.value.details()


async def test_a_caller_is_let_in_as_for_any_prediction(tmp_path: Path) -> None:
    key, record = new_key(PEPPER, name="alice", tier="paid", now_s=1.0)
    # One for the wrong key, one for the large picture.
    strict = Tier(rate="1/s", burst=2, max_body_bytes=1000)
    tiers = {"anonymous": strict, "paid": Tier(priority=7)}
    access = Access(1, tiers, keys={record.id: record})
    stage = Stage()
    async with open_media(tmp_path, stage, access=access) as (_, address):
        wrong = await refusal(address, head(), metadata=(("x-api-key", "hr_wrong"),))
        large = await refusal(address, head(), *chunks(PICTURE))
        again = await refusal(address, head(), *chunks(PICTURE))
        known = (("x-api-key", key),)
        events, _ = await process(address, head(), *chunks(PICTURE), metadata=known)
    assert wrong[0] == "UNAUTHENTICATED"
    assert large[0] == "RESOURCE_EXHAUSTED" and "1000 bytes" in large[1]
    assert again[0] == "RESOURCE_EXHAUSTED" and "rate limit" in again[1]
    assert len(events) == len(EVENTS) and [job.priority for job in stage.asked] == [7]
