"""Large pictures over HTTP: every way to send one, every kind of answer, and what is refused."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from gateway.access.audit import AuditLog
from gateway.media.desk import MediaDesk
from gateway.media.upload import Declared, paced, take
from headrace.access import Access
from headrace.config.args import Audit, Cost, Limits, ModelConfig
from headrace.config.tiers import Tier
from headrace.errors import Unavailable
from headrace.files import write_all
from headrace.keys import new_key
from headrace.metrics import REQUESTS
from sharding import spool
from sharding.job_store import decode_job
from sharding.upload import MediaJob, Tell
from tests.gateway.http.test_admin import TOKEN, Desk, admin_app
from tests.gateway.media_house import (
    PICTURE,
    RESULT,
    UPLOAD_BYTES,
    MediaHouse,
    astronauts,
    open_faces,
    open_scripted,
    png,
)
from tests.house import PEPPER, client, open_house, until
from tests.sharding.media_files import clip
from tests.sharding.stage_house import TAGGER

PROCESS = "/v1/models/affine:process"
SMALL = png()
NOISE = png(900, 900, noise=True)
PLAN = {"event": "plan", "parts": 2, "kind": "image-tiles", "shards": 1}


async def empty(house: MediaHouse) -> None:
    """Nothing stays in the folder of uploads, and no place stays taken."""
    await until(lambda: not house.left() and not house.admission.memory.used_bytes)


async def in_pieces(content: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def hang(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
    await tell(PLAN)
    await asyncio.Event().wait()
    return {}


async def test_a_picture_is_split_and_answered_in_its_own_pixels(tmp_path: Path) -> None:
    async with open_faces(tmp_path, "a") as house, client(house) as http:
        answer = await http.post(
            "/v1/models/faces:process?tile=512&overlap=128&threshold=0.6",
            content=astronauts(),
            headers={"content-type": "image/png", "x-request-id": "mine"},
        )
        await empty(house)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"] == "mine"
    found = answer.json()
    assert len(found["boxes"]) == 2 and len(found["shards"]) > 1
    assert (found["width"], found["height"]) == (1536, 1024)


async def test_lines_tell_of_every_part_and_then_the_whole(tmp_path: Path) -> None:
    async with open_faces(tmp_path, "a") as house, client(house) as http:
        answer = await http.post(
            "/v1/models/faces:process?tile=512&overlap=128",
            content=astronauts(),
            headers={"accept": "application/x-ndjson"},
        )
    assert answer.headers["content-type"] == "application/x-ndjson"
    events = [json.loads(line) for line in answer.text.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds == ["plan", *["part"] * events[0]["parts"], "result"]
    assert events[-1]["result"]["boxes"]


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/v1/models/affine:process", None),
        ("/v1/models/affine/versions/1:process", 1),
        ("/v1/models/affine/labels/stable:process", 1),
        ("/V1/Models/affine/Versions/1:process", 1),
    ],
)
async def test_the_paths_of_tensorflow_serving(
    tmp_path: Path, path: str, version: int | None
) -> None:
    config = PICTURE.model_copy(update={"labels": {"stable": 1}})
    async with open_scripted(tmp_path, config=config) as house, client(house) as http:
        answer = await http.post(path, content=SMALL)
        assert (answer.status_code, answer.json()) == (200, RESULT)
        job, content = house.local.seen[0]
    assert (job.model, job.version, content) == ("affine", version, SMALL)


@pytest.mark.parametrize("declared", [None, "image/png", "image/*", "application/octet-stream"])
async def test_a_raw_body_comes_as_it_is(tmp_path: Path, declared: str | None) -> None:
    headers = {} if declared is None else {"content-type": declared}
    async with open_scripted(tmp_path) as house, client(house) as http:
        answer = await http.post(PROCESS, content=in_pieces(NOISE), headers=headers)
        await empty(house)
        job, content = house.local.seen[0]
    assert answer.status_code == 200 and content == NOISE
    assert job.upload.length == len(NOISE) and len(job.upload.digest) == 64


@pytest.mark.parametrize("declared", ["image/jpeg", "video/mp4", "text/html", "application/json"])
async def test_a_wrong_content_type_is_read_by_the_bytes_and_refused_where_asked(
    tmp_path: Path, declared: str
) -> None:
    headers = {"content-type": declared}
    async with open_scripted(tmp_path) as house, client(house) as http:
        answer = await http.post(PROCESS, content=NOISE, headers=headers)
        assert answer.status_code == 200 and house.local.seen[0][1] == NOISE
        assert house.local.seen[0][0].upload.content_type == declared
        # In a form the option may come after the file.
        for strict in ({"strict_type": (None, b"true")}, {"options": (None, b'{"strict_type":1}')}):
            form: dict[str, Any] = {"file": ("cat.png", NOISE, declared), **strict}
            refused = await http.post(PROCESS, files=form)
            assert refused.status_code == 415 and "but the bytes are PNG" in refused.text
        await empty(house)
    assert len(house.local.seen) == 1


async def test_a_model_may_want_true_content_types(tmp_path: Path) -> None:
    assert PICTURE.sharding is not None
    sharding = PICTURE.sharding.model_copy(update={"strict_type": True})
    config = PICTURE.model_copy(update={"sharding": sharding})
    headers = {"content-type": "image/jpeg"}
    async with open_scripted(tmp_path, config=config) as house, client(house) as http:
        refused = await http.post(PROCESS, content=NOISE, headers=headers)
        asked = await http.post(PROCESS + "?strict_type=false", content=NOISE, headers=headers)
    assert (refused.status_code, asked.status_code) == (415, 200)


@pytest.mark.parametrize(
    "text",
    ["[1,0.5]", "1,0.5", " [1.0, 0.5] ", '["1", 0.5]'],
    ids=["json", "commas", "wide", "text"],
)
async def test_scales_are_read_in_any_form(tmp_path: Path, text: str) -> None:
    file = ("file", ("cat.png", SMALL, "image/png"))
    async with open_scripted(tmp_path) as house, client(house) as http:
        await http.post(PROCESS, params={"scales": text}, content=SMALL)
        await http.post(PROCESS, files=[("scales", (None, text.encode())), file])
        await http.post(PROCESS, files=[file, ("options", (None, orjson.dumps({"scales": text})))])
        await http.post(PROCESS, files=[file, *(("scales", (None, b)) for b in (b"1", b"0.5"))])
        found = [job.options.scales for job, _ in house.local.seen]
    assert found == [(1.0, 0.5)] * 4


@pytest.mark.parametrize("first", ["file", "options"])
async def test_a_form_in_either_order(tmp_path: Path, first: str) -> None:
    file = ("file", ("cat.png", NOISE, "image/png"))
    options = ("options", (None, b'{"threshold": 0.7, "classes": ["cat", 3]}', "application/json"))
    parts = [file, options] if first == "file" else [options, file]
    async with open_scripted(tmp_path) as house, client(house) as http:
        answer = await http.post(PROCESS, files=parts)
        await empty(house)
        job, content = house.local.seen[0]
    assert answer.status_code == 200 and content == NOISE
    assert (job.upload.name, job.upload.content_type) == ("cat.png", "image/png")
    assert job.options.threshold == 0.7 and job.options.classes == ("cat", 3)


async def test_a_client_that_asks_first_is_told_to_go_on(tmp_path: Path) -> None:
    async with open_scripted(tmp_path) as house:
        reader, writer = await asyncio.open_connection(*house.http.address.split(":"))
        head = f"POST {PROCESS} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(SMALL)}\r\n"
        writer.write(head.encode() + b"expect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(SMALL)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_options_come_in_the_query_and_in_a_header(tmp_path: Path) -> None:
    headers = {"x-headrace-options": '{"top_k": 5, "partial": "allow"}'}
    query = "?threshold=0.25&tile=512&overlap=64&scales=1,0.5&classes=cat,3&top_k=7"
    async with open_scripted(tmp_path) as house, client(house) as http:
        await http.post(PROCESS + query, content=SMALL, headers=headers)
        options = house.local.seen[0][0].options
    assert (options.threshold, options.tile, options.overlap) == (0.25, 512, 64)
    assert (options.scales, options.classes, options.top_k) == ((1.0, 0.5), ("cat", 3), 5)
    assert options.partial == "allow"


async def test_the_deadline_and_the_trace_go_along(tmp_path: Path) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    headers = {"x-request-timeout-seconds": "7", "traceparent": trace, "x-request-id": "mine"}
    async with open_scripted(tmp_path) as house, client(house) as http:
        await http.post(PROCESS, content=SMALL, headers=headers)
        job = house.local.seen[0][0]
    assert (job.timeout_s, job.traceparent, job.request_id) == (7.0, trace, "mine")


BOUNDARY = {"content-type": "multipart/form-data; boundary=xx"}


BAD: list[tuple[str, bytes, dict[str, str], int, str]] = [
    ("", b"", {}, 400, "the body is empty"),
    ("", b"%PDF-1.7 ...", {}, 415, "PDF"),
    (
        "?strict_type=true",
        b"GIF89a" + b"\0" * 99,
        {"content-type": "image/png"},
        415,
        "says image/png, but the bytes are GIF",
    ),
    ("", b"\0\0\1\xba" + b"\0" * 99, {}, 415, "wants a picture"),
    ("?strict_type=1", SMALL, {"content-type": "text/html"}, 415, "'text/html' is neither image"),
    ("", b"<html>", {"content-type": "text/html"}, 415, "a kind unknown here"),
    ("?scales=[1,0.5", SMALL, {}, 400, "'scales' should be a valid number"),
    ("?scales=[1,[2]]", SMALL, {}, 400, "'scales' should be a valid number"),
    ("", SMALL, {"content-encoding": "gzip"}, 415, "Content-Encoding 'gzip'"),
    ("", SMALL, {"x-request-timeout-seconds": "soon"}, 400, "positive number of seconds"),
    ("?threshold=2", SMALL, {}, 400, "'threshold' should be less than or equal to 1"),
    ("?tile=100", SMALL, {}, 400, "'tile' should be a multiple of 32"),
    ("?tile=64&overlap=64", SMALL, {}, 400, "`overlap` should be below `tile`"),
    ("?overlap=2048", SMALL, {}, 400, "`overlap` (2048) should be below `tile` (1024)"),
    ("?partial=maybe", SMALL, {}, 400, "'partial' should be 'allow' or 'refuse'"),
    ("?colour=red", SMALL, {}, 400, "no option 'colour'; these are known: threshold"),
    ("?fps=1&fps=2", SMALL, {}, 400, "'fps' is given twice"),
    ("", SMALL, {"x-headrace-options": "{"}, 400, "x-headrace-options is not valid JSON"),
    ("", SMALL, {"x-headrace-options": "[]"}, 400, "should be a JSON object"),
    ("", SMALL, {"content-type": "multipart/form-data"}, 400, "names no boundary"),
    ("", b"junk", BOUNDARY, 400, "multipart body is malformed"),
    ("", b"--xx\r\n", BOUNDARY, 400, "ends before its last boundary"),
    (
        "",
        b'--xx\r\nContent-Disposition: form-data; name="other"\r\n\r\n1\r\n--xx--\r\n',
        BOUNDARY,
        400,
        "a part 'other'; it takes 'file', 'options' and parts named as an option is",
    ),
    (
        "",
        b'--xx\r\nContent-Disposition: form-data; name="options"\r\n\r\n{"overlap": 2048}\r\n'
        b'--xx\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + SMALL + b"\r\n--xx--\r\n",
        {**BOUNDARY, "prefer": "respond-async"},
        400,
        "`overlap` (2048) should be below `tile` (1024)",
    ),
    (
        "",
        b'--xx\r\nContent-Disposition: form-data; name="options"\r\n\r\n{}\r\n--xx--\r\n',
        BOUNDARY,
        400,
        "no part 'file'",
    ),
    (
        "",
        b'--xx\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + SMALL[:40],
        BOUNDARY,
        400,
        "ends before its last boundary",
    ),
]


async def test_bad_input_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async with open_scripted(tmp_path) as house, client(house) as http:
        for query, body, headers, status, words in BAD:
            answer = await http.post(PROCESS + query, content=body, headers=headers)
            assert answer.status_code == status and words in answer.json()["error"], answer.text
            assert answer.headers["x-request-id"]
            await empty(house)
        assert house.local.seen == []
        assert (await http.post(PROCESS, content=SMALL)).status_code == 200


async def test_models_that_are_not_there_or_split_nothing(tmp_path: Path) -> None:
    async with open_scripted(tmp_path, config=ModelConfig()) as house, client(house) as http:
        other = await http.post("/v1/models/other:process", content=SMALL)
        number = await http.post("/v1/models/affine/versions/9:process", content=SMALL)
        label = await http.post("/v1/models/affine/labels/new:process", content=SMALL)
        word = await http.post("/v1/models/affine/versions/nine:process", content=SMALL)
        plain_model = await http.post(PROCESS, content=SMALL)
        get = await http.get(PROCESS)
    assert other.status_code == number.status_code == label.status_code == 404
    assert other.json()["error"] == "Servable not found for request: Latest(other)"
    assert number.json()["error"] == "Servable not found for request: Specific(affine, 9)"
    assert label.json()["error"] == "Unrecognized servable version label: new"
    assert word.status_code == 400 and "must be a number" in word.json()["error"]
    assert plain_model.status_code == 400 and "no `sharding`" in plain_model.json()["error"]
    assert get.status_code == 400


async def test_without_a_stage_nothing_is_split(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        answers = [await http.post(PROCESS, content=SMALL), await http.get("/v1/jobs")]
    assert [each.status_code for each in answers] == [501, 501]


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_the_limit_gets_413_with_the_limit(
    tmp_path: Path, declared: bool
) -> None:
    content = NOISE * 3
    body: Any = content if declared else in_pieces(content)
    async with open_scripted(tmp_path) as house, client(house) as http:
        answer = await http.post(PROCESS, content=body)
        await empty(house)
    assert len(content) > UPLOAD_BYTES and answer.status_code == 413
    assert f"{UPLOAD_BYTES} bytes" in answer.json()["error"]
    assert answer.headers["connection"] == "close"


async def test_a_form_over_the_limit_gets_413(tmp_path: Path) -> None:
    async with open_scripted(tmp_path) as house, client(house) as http:
        answer = await http.post(PROCESS, files={"file": ("x.png", NOISE * 3, "image/png")})
        await empty(house)
    assert answer.status_code == 413


async def test_an_upload_cut_off_half_way_leaves_nothing(tmp_path: Path) -> None:
    async with open_scripted(tmp_path) as house:
        _, writer = await asyncio.open_connection(*house.http.address.split(":"))
        head = f"POST {PROCESS} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(NOISE)}\r\n\r\n"
        writer.write(head.encode() + NOISE[: len(NOISE) // 2])
        await until(lambda: house.left())
        writer.close()
        await empty(house)
        assert house.local.seen == []


async def test_an_upload_that_stops_gets_408(tmp_path: Path) -> None:
    limits = Limits(body_timeout_s=0.2)
    async with open_scripted(tmp_path, limits=limits) as house:
        reader, writer = await asyncio.open_connection(*house.http.address.split(":"))
        head = f"POST {PROCESS} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(NOISE)}\r\n\r\n"
        writer.write(head.encode() + NOISE[:1000])
        answer = await reader.readuntil(b"}")
        writer.close()
        await empty(house)
    assert answer.startswith(b"HTTP/1.1 408") and b"the body took too long" in answer


async def test_a_slow_but_steady_upload_is_not_cut_off(tmp_path: Path) -> None:
    async def slow() -> AsyncIterator[bytes]:
        for piece in (NOISE[:200_000], NOISE[200_000:]):
            yield piece
            await asyncio.sleep(0.15)

    limits = Limits(body_timeout_s=0.1)
    async with open_scripted(tmp_path, limits=limits) as house, client(house) as http:
        answer = await http.post(PROCESS, content=slow())
    assert answer.status_code == 200


async def test_the_sweep_of_other_bodies_leaves_uploads_alone(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def in_two() -> AsyncIterator[bytes]:
        yield NOISE[:-10]
        await gate.wait()
        yield NOISE[-10:]

    async with open_scripted(tmp_path) as house, client(house) as http:
        answer = asyncio.create_task(http.post(PROCESS, content=in_two()))
        await until(house.left)
        for connection in tuple(house.door.connections):
            connection.check_time(asyncio.get_running_loop().time() + 1000)
        gate.set()
        assert (await answer).status_code == 200


async def test_nothing_is_read_while_the_disk_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, taken = threading.Event(), 0
    write = write_all

    def slow(*content: Any) -> None:
        gate.wait()
        write(*content)

    async def read() -> bytes | None:
        nonlocal taken
        taken += 1
        if taken > 100:
            return None
        return SMALL[:100] if taken == 1 else bytes(65_536)

    monkeypatch.setattr(spool, "write_all", slow)
    async with spool.Spool(10**8, 0, tmp_path) as kept:
        declared = Declared("", "", None)
        taking = asyncio.create_task(take(paced(read, 60.0), kept, declared, "image", False))
        await until(lambda: kept._job is not None)
        for _ in range(100):
            await asyncio.sleep(0)
        assert taken < 20  # a batch of the spool, of what would be 100 pieces
        gate.set()
        upload, _, _ = await taking
    assert upload.length == 100 + 99 * 65_536


async def test_a_full_disk_gets_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    async with open_scripted(tmp_path) as house, client(house) as http:
        with monkeypatch.context() as patch:
            patch.setattr(spool, "write_all", full)
            answer = await http.post(PROCESS, content=NOISE)
        await empty(house)
        again = await http.post(PROCESS, content=NOISE)
    assert answer.status_code == 503 and "no room left on the disk" in answer.json()["error"]
    assert again.status_code == 200


async def test_a_large_upload_is_written_as_it_comes(tmp_path: Path) -> None:
    """The body is longer than memory and sockets hold: it must be on disk before its end comes."""
    content = NOISE
    gate = asyncio.Event()

    async def in_two() -> AsyncIterator[bytes]:
        yield content[:-10]
        await gate.wait()
        yield content[-10:]

    async with open_scripted(tmp_path) as house, client(house) as http:
        answer = asyncio.create_task(http.post(PROCESS, content=in_two()))
        folder = tmp_path / "spool"
        await until(lambda: sum(path.stat().st_size for path in folder.glob("*")) > 1_000_000)
        gate.set()
        assert (await answer).status_code == 200


async def test_an_error_of_the_stage_keeps_its_status(tmp_path: Path) -> None:
    async def fail(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        await tell(PLAN)
        raise Unavailable("a shard is gone", retry_after_s=3)

    async with open_scripted(tmp_path, fail) as house, client(house) as http:
        answer = await http.post(PROCESS, content=SMALL)
        lines = await http.post(PROCESS, content=SMALL, headers={"accept": "application/x-ndjson"})
        await empty(house)
    assert answer.status_code == 503 and answer.json() == {"error": "a shard is gone"}
    assert answer.headers["retry-after"] == "4"
    events = [json.loads(line) for line in lines.text.splitlines()]
    assert lines.status_code == 200
    assert events == [PLAN, {"event": "error", "status": 503, "error": "a shard is gone"}]


async def test_an_error_before_the_first_line_has_its_own_status(tmp_path: Path) -> None:
    async def fail(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        raise Unavailable("no shard")

    async with open_scripted(tmp_path, fail) as house, client(house) as http:
        lines = await http.post(PROCESS, content=SMALL, headers={"accept": "application/x-ndjson"})
    assert lines.status_code == 503


async def test_what_is_unexpected_is_an_internal_error(tmp_path: Path) -> None:
    async def fail(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        raise RuntimeError("secret")

    async with open_scripted(tmp_path, fail) as house, client(house) as http:
        answer = await http.post(PROCESS, content=SMALL)
        await empty(house)
    assert answer.status_code == 500 and answer.json() == {"error": "internal error"}


async def test_the_deadline_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.media.desk.GRACE_S", 0.0)
    headers = {"x-request-timeout-seconds": "0.1"}
    async with open_scripted(tmp_path, hang) as house, client(house) as http:
        answer = await http.post(PROCESS, content=SMALL, headers=headers)
        await empty(house)
        assert house.local.closed == 1
    assert answer.status_code == 504


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
async def test_a_client_that_leaves_stops_the_work(tmp_path: Path, accept: str) -> None:
    async with open_scripted(tmp_path, hang) as house:
        async with client(house) as http:
            headers = {"accept": accept}
            asking = asyncio.create_task(http.post(PROCESS, content=SMALL, headers=headers))
            await until(lambda: house.local.seen)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: house.local.closed)
        await empty(house)
        assert len(house.local.seen) == house.local.closed == 1


async def test_a_client_that_leaves_takes_its_parts_from_the_shards(tmp_path: Path) -> None:
    async with open_faces(tmp_path, "a") as house, client(house) as http:
        plane = house.plane_of_stage
        url = "/v1/models/faces:process?tile=64&overlap=0"
        asking = asyncio.create_task(http.post(url, content=astronauts()))
        await until(lambda: plane.router.in_flight().get("faces"))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: house.local.closed and not plane.router.in_flight().get("faces"))
        await empty(house)
        assert len(house.local.seen) == house.local.closed == 1


def tiers(**anonymous: Any) -> Access:
    return Access(1, {"anonymous": Tier.model_validate(anonymous)})


async def test_a_refused_caller_is_told_before_its_body_comes(tmp_path: Path) -> None:
    async with open_scripted(tmp_path, access=tiers(models=[])) as house:
        reader, writer = await asyncio.open_connection(*house.http.address.split(":"))
        head = f"POST {PROCESS} HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999\r\n"
        writer.write(head.encode() + b"expect: 100-continue\r\n\r\n")
        answer = await reader.readuntil(b"}")
        writer.close()
        assert house.left() == []
    assert answer.startswith(b"HTTP/1.1 403") and b"may not use model" in answer
    assert b"connection: close" in answer


async def test_places_are_taken_and_given_back(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def wait(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        await gate.wait()
        return RESULT

    access = tiers(concurrency=1, queue={"size": 1})
    async with open_scripted(tmp_path, wait, access=access) as house, client(house) as http:
        first = asyncio.create_task(http.post(PROCESS, content=SMALL))
        await until(lambda: house.local.seen)
        second = asyncio.create_task(http.post(PROCESS, content=SMALL))
        await until(lambda: house.admission._queued)
        account = next(iter(house.admission._queued))
        third = await http.post(PROCESS, content=SMALL)
        assert third.status_code == 429 and len(house.local.seen) == 1
        gate.set()
        assert [(await each).status_code for each in (first, second)] == [200, 200]
        assert account.running == 0 and not account.waiting


async def test_the_cost_goes_by_megapixels(tmp_path: Path) -> None:
    cost = Cost(per="megapixels", amount=3)
    config = PICTURE.model_copy(update={"cost": cost})
    access = tiers(rate="100/s", burst=100, quota={"per_day": 100, "of": "cost"})
    async with open_scripted(tmp_path, config=config, access=access) as house:
        async with client(house) as http:
            answer = await http.post(PROCESS, content=SMALL)
        assert answer.headers["ratelimit-policy"].startswith('"rate"')
        used = [a.used + a.used_before for a in house.admission.limiter._accounts.values()]
    assert used == [6.0]  # 2000 x 1000 pixels


async def test_the_tier_limits_the_body(tmp_path: Path) -> None:
    access = tiers(max_body_bytes=2048)
    async with open_scripted(tmp_path, access=access) as house, client(house) as http:
        answer = await http.post(PROCESS, content=NOISE)
    assert answer.status_code == 413 and "2048 bytes" in answer.json()["error"]


async def test_the_audit_log_tells_of_it(tmp_path: Path) -> None:
    audit = AuditLog(Audit(sample=1.0), tmp_path / "audit", "gateway")
    more: dict[str, Any] = {"audit": audit, "access": tiers()}
    async with open_scripted(tmp_path, **more) as house, client(house) as http:
        await http.post(PROCESS, content=SMALL, headers={"x-request-id": "good"})
        await http.post(PROCESS, content=b"", headers={"x-request-id": "bad"})
    audit.close()
    text = "".join(path.read_text() for path in (tmp_path / "audit").rglob("*") if path.is_file())
    records = {each["request_id"]: each for each in map(json.loads, text.splitlines())}
    good, bad = records["good"], records["bad"]
    assert (good["decision"], good["model"], good["protocol"]) == ("allowed", "affine", "media")
    assert good["bytes_in"] == len(SMALL) and bad["decision"] == "failed"


async def test_a_result_is_recorded_for_the_version_that_gave_it(tmp_path: Path) -> None:
    async def newer(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        return RESULT | {"version": 2}

    async with open_scripted(tmp_path, newer) as house, client(house) as http:
        answer = await http.post(PROCESS, content=SMALL)
        assert answer.json()["version"] == 2
        counted = house.recorder.snapshot().samples[REQUESTS.name]
    assert [labels[:2] for labels in counted] == [("affine", 2)]


LATER = {"prefer": "respond-async, wait=5"}


async def ended(
    house: MediaHouse, http: httpx.AsyncClient, url: str, **more: Any
) -> dict[str, Any]:
    """The document of a job once it has ended."""
    await house.local.runner.over[url.removeprefix("/v1/jobs/")].wait()
    document: dict[str, Any] = (await http.get(url, **more)).json()
    return document


async def test_a_job_is_made_worked_on_and_read(tmp_path: Path) -> None:
    async with open_faces(tmp_path, "a") as house, client(house) as http:
        url = "/v1/models/faces:process?tile=512&overlap=128"
        taken = await http.post(url, content=astronauts(), headers=LATER)
        assert taken.status_code == 202, taken.text
        assert taken.headers["preference-applied"] == "respond-async"
        await empty(house)
        document = await ended(house, http, taken.headers["location"])
    assert document["id"] == taken.json()["id"] and document["state"] == "done"
    assert document["progress"]["done"] == document["progress"]["parts"] > 1
    assert len(document["result"]["boxes"]) == 2


async def test_a_job_with_a_video_is_decoded_by_its_shards(tmp_path: Path) -> None:
    content = clip(tmp_path / "clip.mp4", frames=50).read_bytes()
    open_ = open_faces(tmp_path, "a", model="tagger", config=TAGGER)
    async with open_ as house, client(house) as http:
        url = "/v1/models/tagger:process?fps=2&threshold=0"
        taken = await http.post(url, content=content, headers=LATER)
        document = await ended(house, http, taken.headers["location"])
        await empty(house)
    assert document["state"] == "done", document
    assert document["result"]["duration_s"] == 2.0


async def test_a_job_is_cancelled(tmp_path: Path) -> None:
    async with open_scripted(tmp_path, hang) as house, client(house) as http:
        taken = await http.post(PROCESS, content=SMALL, headers=LATER)
        url = taken.headers["location"]
        answer = await http.delete(url)
        assert answer.json()["state"] == "cancelled"
        assert (await http.get(url)).json()["state"] == "cancelled"
        missing = await http.get("/v1/jobs/unknown")
        nobody = await http.get("/v1/jobs")
    assert missing.status_code == 404 and "no job" in missing.json()["error"]
    assert nobody.json() == {"jobs": []}


async def test_the_deadline_of_a_job_is_its_own(tmp_path: Path) -> None:
    async with open_scripted(tmp_path) as house, client(house) as http:
        taken = await http.post(PROCESS, content=SMALL, headers=LATER)
        await ended(house, http, taken.headers["location"])
        given = LATER | {"x-request-timeout-seconds": "90000"}
        await http.post(PROCESS, content=SMALL, headers=given)
        store = house.local.runner._store
        jobs = [decode_job(row["job"]) for row in store._all("SELECT job FROM jobs")]
    assert [job.timeout_s for job in jobs] == pytest.approx([3600.0, 3600.0])


async def test_only_its_caller_sees_a_job(tmp_path: Path) -> None:
    keys = {
        name: new_key(PEPPER, name=name, tier="full", now_s=time.time()) for name in ("one", "two")
    }
    records = {record.id: record for _, record in keys.values()}
    access = Access(1, {"anonymous": Tier(), "full": Tier()}, keys=records)
    async with open_scripted(tmp_path, access=access) as house, client(house) as http:
        one, two = ({"x-api-key": keys[name][0]} for name in ("one", "two"))
        taken = await http.post(PROCESS, content=SMALL, headers=LATER | one)
        url = taken.headers["location"]
        assert (await ended(house, http, url, headers=one))["state"] == "done"
        assert (await http.get(url, headers=two)).status_code == 404
        assert (await http.delete(url)).status_code == 404
        mine = (await http.get("/v1/jobs", headers=one)).json()["jobs"]
        assert [each["id"] for each in mine] == [taken.json()["id"]]
        assert (await http.get("/v1/jobs", headers=two)).json() == {"jobs": []}


async def test_an_operator_sees_and_cancels_every_job(tmp_path: Path) -> None:
    async with open_scripted(tmp_path, hang) as house, client(house) as http:
        taken = await http.post(PROCESS, content=SMALL, headers=LATER)
        desk = MediaDesk(house.predictions, house.local, tmp_path)
        admin = httpx.ASGITransport(admin_app(Desk(metrics_folder=tmp_path), desk))
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=admin, base_url="http://x", headers=headers) as op:
            listed = (await op.get("/v1/jobs")).json()["jobs"]
            assert [each["id"] for each in listed] == [taken.json()["id"]]
            assert (await op.delete(taken.headers["location"])).json()["state"] == "cancelled"
            assert (await op.get("/v1/jobs", headers={"authorization": ""})).status_code == 401
