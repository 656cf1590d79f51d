"""A whole picture as the BYTES element of an Open Inference request, in all of its encodings."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import http as triton

from gateway.media.desk import MediaDesk
from gateway.media.inference import MediaInference, decode_media, encode_findings, may_hold_media
from headrace.config.args import Batching, Limits, ModelConfig
from headrace.config.sharding import ShardingConfig
from headrace.errors import InvalidArgument
from headrace.link.queue import Request
from headrace.protocols.raw_tensors import decode_raw
from headrace.protocols.tensors import Call
from headrace.protocols.wire import message
from headrace.spec import BYTES
from sharding.upload import MediaJob, Tell
from tests.gateway.media_house import astronauts, open_faces, open_scripted, png
from tests.house import client, open_house, until

INFER = "/v2/models/affine/infer"
CALL, LIMITS = Call("infer"), Limits(max_body_bytes=10**6)
SMALL = png()
BOX = {"box": [1.0, 2.0, 30.5, 40.0], "score": 0.75, "class": 3, "label": "cat"}
FOUND = {"model": "affine", "version": 1, "boxes": [BOX, BOX], "shards": [{"part": 0}]}
TAG = {"label": "beach", "score": 0.5, "start_s": 0.0, "end_s": 2.5}


def json_body(content: bytes = SMALL, **more: Any) -> dict[str, Any]:
    data = [base64.b64encode(content).decode()]
    return {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": data}], **more}


def binary_body(content: bytes, **more: Any) -> tuple[bytes, int]:
    size = len(content) + 4
    parameters = {"binary_data_size": size}
    entry = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": parameters}
    text = json.dumps({"inputs": [entry], **more}).encode()
    return text + struct.pack("<I", len(content)) + content, len(text)


async def find(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
    await tell({"event": "plan", "parts": 1})
    return FOUND


def test_json_and_binary_carry_the_same_file() -> None:
    text = json.dumps(json_body(parameters={"threshold": 0.5}, id="mine")).encode()
    body, json_length = binary_body(SMALL)
    plain = decode_media("openinference", text, CALL, "boxes", LIMITS)
    raw = decode_media("openinference", body, Call("infer", json_length), "boxes", LIMITS)
    assert plain.content == raw.content == SMALL
    lines = base64.encodebytes(SMALL).decode().rstrip("=\n")
    text = json.dumps({"inputs": [json_body()["inputs"][0] | {"data": [lines]}]}).encode()
    assert decode_media("openinference", text, CALL, "boxes", LIMITS).content == SMALL
    assert plain.parameters == {"threshold": 0.5}


def test_outputs_are_tensors() -> None:
    given = decode_media("openinference", json.dumps(json_body()).encode(), CALL, "boxes", LIMITS)
    answer = json.loads(encode_findings("openinference", given, FOUND, "boxes").body)
    outputs = {each["name"]: each for each in answer["outputs"]}
    assert list(outputs) == ["boxes", "scores", "classes", "labels"]
    assert outputs["boxes"]["shape"] == [2, 4] and outputs["boxes"]["datatype"] == "FP32"
    assert outputs["boxes"]["data"][:4] == BOX["box"]
    assert outputs["classes"] == {
        "name": "classes", "datatype": "INT64", "shape": [2], "data": [3, 3]
    }  # fmt: skip
    assert outputs["labels"]["data"] == ["cat", "cat"]


def test_no_box_is_an_empty_tensor() -> None:
    given = decode_media("openinference", json.dumps(json_body()).encode(), CALL, "boxes", LIMITS)
    answer = json.loads(
        encode_findings("openinference", given, FOUND | {"boxes": []}, "boxes").body
    )
    assert answer["outputs"][0]["shape"] == [0, 4]


def test_tags_and_the_shards_where_they_are_asked_for() -> None:
    wanted = [{"name": "labels"}, {"name": "end_s"}, {"name": "shards"}]
    text = json.dumps(json_body(outputs=wanted)).encode()
    given = decode_media("openinference", text, CALL, "tags", LIMITS)
    result = {"model": "tagger", "version": 2, "tags": [TAG], "shards": [{"part": 0}]}
    answer = json.loads(encode_findings("openinference", given, result, "tags").body)
    assert answer["model_version"] == "2"
    assert [each["name"] for each in answer["outputs"]] == ["labels", "end_s", "shards"]
    assert answer["outputs"][1] == {
        "name": "end_s",
        "datatype": "FP64",
        "shape": [1],
        "data": [2.5],
    }
    assert json.loads(answer["outputs"][2]["data"][0]) == [{"part": 0}]


@pytest.mark.parametrize("raw", [True, False])
def test_grpc_carries_it_too(raw: bool) -> None:
    request = message("inference.ModelInferRequest")(model_name="affine", id="mine")
    entry = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    if raw:
        request.raw_input_contents.append(struct.pack("<I", len(SMALL)) + SMALL)
    else:
        entry.contents.bytes_contents.append(SMALL)
    request.parameters["threshold"].double_param = 0.5
    body = request.SerializeToString()
    assert may_hold_media("openinference_grpc", body)
    given = decode_media("openinference_grpc", body, CALL, "boxes", LIMITS)
    assert given.content == SMALL and given.parameters == {"threshold": 0.5}
    encoded = encode_findings("openinference_grpc", given, FOUND, "boxes").body
    answer = message("inference.ModelInferResponse").FromString(encoded)
    assert [each.name for each in answer.outputs] == ["boxes", "scores", "classes", "labels"]
    boxes = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, 4)
    assert boxes[1].tolist() == BOX["box"]
    labels = decode_raw(memoryview(answer.raw_output_contents[3]), BYTES, (2,), "labels")
    assert labels.tolist() == [b"cat", b"cat"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": []}, "the only input, but there are 0"),
        ({"inputs": json_body()["inputs"] + [{"name": "b"}]}, "there are 2"),
        ({"inputs": [json_body()["inputs"][0] | {"shape": [2]}]}, "shape [1]"),
        ({"inputs": [json_body()["inputs"][0] | {"shape": []}]}, "shape [1]"),
        ({"inputs": [json_body()["inputs"][0] | {"data": [3]}]}, "one string"),
        ({"inputs": [json_body()["inputs"][0] | {"data": ["a", "b"]}]}, "one string"),
        ({"inputs": [json_body()["inputs"][0] | {"data": ["no base64!"]}]}, "is not base64"),
        ({"outputs": [{"name": "masks"}]}, "masks"),
    ],
)
def test_what_is_no_such_request(change: dict[str, Any], words: str) -> None:
    text = json.dumps(json_body() | change).encode()
    with pytest.raises(InvalidArgument) as caught:
        decode_media("openinference", text, CALL, "boxes", LIMITS)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("protocol", "body", "seen"),
    [
        ("openinference", b'{"inputs": [{"datatype": "BYTES"', True),
        ("openinference", b'{"data": "' + b"A" * 9000 + b'", "datatype": "BYTES"}', True),
        ("openinference", (b'{"data": "', b"A" * 9000, b'", "datatype": "BYTES"}'), True),
        ("openinference", b'{"inputs": [{"datatype": "FP32"', False),
        ("tfserving", b'{"inputs": "BYTES"}', False),
    ],
)
def test_a_look_tells_whether_it_may_be_one(protocol: str, body: Any, seen: bool) -> None:
    assert may_hold_media(protocol, body) is seen


async def test_a_real_picture_in_base64_and_as_bytes(tmp_path: Path) -> None:
    async with open_faces(tmp_path, "a") as house, client(house) as http:
        options = {"parameters": {"tile": 512, "overlap": 128, "threshold": 0.6}}
        url = "/v2/models/faces/infer"
        plain = await http.post(url, json=json_body(astronauts(), **options))
        body, length = binary_body(astronauts(), **options)
        headers = {"inference-header-content-length": str(length)}
        raw = await http.post(url, content=body, headers=headers)
        await until(lambda: not house.left() and not house.admission.memory.used_bytes)
    assert plain.status_code == 200, plain.text
    assert plain.json()["outputs"] == raw.json()["outputs"]
    assert plain.json()["outputs"][0]["shape"] == [2, 4]


async def test_tritons_client_reads_the_answer(tmp_path: Path) -> None:
    def ask(address: str) -> Any:
        given = triton.InferInput("image", [1], "BYTES")
        given.set_data_from_numpy(np.array([SMALL], dtype=object))
        wanted = [triton.InferRequestedOutput(name) for name in ("boxes", "labels")]
        with triton.InferenceServerClient(address) as server:
            return server.infer("affine", [given], outputs=wanted)

    async with open_scripted(tmp_path, find) as house:
        answer = await asyncio.to_thread(ask, house.http.address)
        assert house.local.seen[0][1] == SMALL
    assert answer.as_numpy("boxes").tolist() == [BOX["box"], BOX["box"]]
    assert answer.as_numpy("labels").tolist() == [b"cat", b"cat"]


async def test_tensors_still_go_to_the_slot(tmp_path: Path) -> None:
    entry = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    async with open_scripted(tmp_path, find) as house, client(house) as http:
        answer = await http.post(INFER, json={"inputs": [entry]})
        assert house.local.seen == []
    assert answer.json()["outputs"][0]["data"] == [3, 5, 7, 9]


async def test_a_model_that_splits_nothing_keeps_its_bytes(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        answer = await http.post(INFER, json=json_body())
    assert answer.status_code == 400 and "missing inputs" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (json_body(b"%PDF-1.7"), 415, "PDF"),
        (json_body(b""), 400, "empty"),
        (json_body(parameters={"threshold": 7}), 400, "'threshold' should be less"),
        (json_body(parameters={"overlap": 2048}), 400, "`overlap` (2048) should be below"),
        (json_body(outputs=[{"name": "masks"}]), 400, "masks"),
    ],
)
async def test_bad_input(tmp_path: Path, body: Any, status: int, words: str) -> None:
    async with open_scripted(tmp_path, find) as house, client(house) as http:
        answer = await http.post(INFER, json=body)
        await until(lambda: not house.left() and not house.admission.memory.used_bytes)
    assert answer.status_code == status and words in answer.json()["error"], answer.text


async def test_a_client_that_leaves_stops_the_work(tmp_path: Path) -> None:
    async def hang(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        await tell({"event": "plan", "parts": 1})
        await asyncio.Event().wait()
        return {}

    async with open_scripted(tmp_path, hang) as house, client(house) as http:
        asking = asyncio.create_task(http.post(INFER, json=json_body()))
        await until(lambda: house.local.seen)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: house.local.closed and not house.left())
        await until(lambda: not house.admission.memory.used_bytes)
        assert len(house.local.seen) == house.local.closed == 1


async def test_a_tagger_answers_with_tags(tmp_path: Path) -> None:
    async def tag(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        return {**FOUND, "tags": [TAG]}

    config = ModelConfig(batching=Batching(), sharding=ShardingConfig(kind="video-segments"))
    video = b"\x1a\x45\xdf\xa3" + bytes(100)
    async with open_scripted(tmp_path, tag, config=config) as house, client(house) as http:
        answer = await http.post(INFER, json=json_body(video))
    names = [each["name"] for each in answer.json()["outputs"]]
    assert names == ["labels", "scores", "start_s", "end_s"]


async def test_one_that_is_cancelled_before_it_begins_is_forgotten(tmp_path: Path) -> None:
    async with open_scripted(tmp_path) as house:
        media = MediaInference(MediaDesk(house.predictions, house.local, tmp_path))
        request = Request(
            1, 0, key=("affine", None), deadline_s=1.0, arrived_s=0.0, done=lambda *_: None
        )
        media.submit(request)
        media.cancel(request)
        await until(lambda: not media._tasks)
        assert request.finished and not house.local.seen
