"""Predictions through the whole path in one process: answers, errors, deaths, deadlines."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.access.audit import AuditLog
from headrace.config.args import Audit, Batching, Limits, ModelConfig
from headrace.config.scaling import Routing
from headrace.link.tls import LinkTls
from headrace.metrics import REQUESTS
from tests.house import affine_model, client, open_house, until
from tests.link_ends import MAX_BODY_BYTES, SECRET, shared_bodies

ROW = [1.0, 2.0, 3.0, 4.0]
DOUBLED = [3.0, 5.0, 7.0, 9.0]
PREDICT = "/v1/models/affine:predict"
INFER = "/v2/models/affine/infer"


def infer_body(rows: int = 1) -> dict[str, Any]:
    data = ROW * rows
    return {"inputs": [{"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": data}]}


WAYS: dict[str, dict[str, Any]] = {
    "unix": {},
    "tcp": {"force_tcp": True},
    "tls": {"force_tcp": True, "tls": LinkTls(SECRET)},
}
"""The link's transports, and what makes a house use each."""


@pytest.mark.parametrize("way", WAYS)
async def test_both_protocols_answer(tmp_path: Path, way: str) -> None:
    async with open_house(tmp_path, "a", **WAYS[way]) as house, client(house) as http:
        rows = await http.post(PREDICT, json={"instances": [ROW, ROW]})
        infer = await http.post(INFER, json=infer_body() | {"id": "mine"})
        content, no_json = np.array(ROW, "<f4").tobytes(), {"Inference-Header-Content-Length": "0"}
        raw = await http.post(INFER, content=content, headers=no_json)
        assert house.plane.links() == {"a": way}
    assert rows.status_code == 200 and rows.json() == {"predictions": [DOUBLED, DOUBLED]}
    answer = infer.json()
    assert answer["id"] == "mine" and answer["model_version"] == "1"
    assert answer["outputs"][0]["data"] == DOUBLED
    at = int(raw.headers["inference-header-content-length"])
    assert np.frombuffer(raw.content[at:], "<f4").tolist() == DOUBLED


def scaled_model(path: Path) -> None:
    """Write `y = x * w` with float32 `x` [rows, 4] and an optional `w` [4], by default 2."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "scaled",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4]),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [numpy_helper.from_array(np.full(4, 2, np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path))


async def test_requests_with_and_without_an_optional_input_do_not_share_a_batch(
    tmp_path: Path,
) -> None:
    scaled_model(tmp_path / "store" / "scaled" / "1" / "model.onnx")
    plain = infer_body()["inputs"]
    bodies = [
        {"inputs": [*plain, {"name": "w", "shape": [4], "datatype": "FP32", "data": [scale] * 4}]}
        if scale
        else {"inputs": plain}
        for scale in (0, 3, 0, 5, 0, 7)
    ]
    config = ModelConfig(batching=Batching(max_rows=3, max_wait_s=20))
    async with open_house(tmp_path, "a") as house, client(house) as http:
        await house.place("a", "scaled", 1, config)
        sent = [http.post("/v2/models/scaled/infer", json=body) for body in bodies]
        answers = await asyncio.gather(*sent)
        described = (await http.get("/v2/models/scaled/config")).json()["input"]
        batches = house.services["a"]._recorder.snapshot().samples["headrace_batch_rows"]
    data = [answer.json()["outputs"][0]["data"] for answer in answers]
    assert data == [[each * scale for each in ROW] for scale in (2, 3, 2, 5, 2, 7)]
    assert [(each["name"], each["optional"]) for each in described] == [("x", False), ("w", True)]
    ((*counts, rows),) = batches.values()
    assert (rows, sum(counts)) == (6, 4)


async def test_request_ids_are_kept_or_made(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        kept = await http.post(
            PREDICT, json={"instances": [ROW]}, headers={"X-Request-Id": "my-id"}
        )
        made = await http.post(PREDICT, json={"instances": [ROW]})
    assert kept.headers["x-request-id"] == "my-id"
    assert len(made.headers["x-request-id"]) >= 16


@pytest.mark.parametrize(
    ("path", "content", "status", "text"),
    [
        (PREDICT, b"{not json", 400, ""),
        (PREDICT, b"", 400, ""),
        (PREDICT, b'{"instances": [[1, 2], [3]]}', 400, ""),
        (PREDICT, b'{"instances": [["a", "b", "c", "d"]]}', 400, ""),
        (PREDICT, b'{"signature_name": "other", "instances": [[1, 2, 3, 4]]}', 400, "other"),
        (PREDICT, b'{"instances": [[1, 2, 3, 4]], "inputs": []}', 400, ""),
        (INFER, b'{"inputs": [{"name": "z", "shape": [1, 4], "datatype": "FP32"}]}', 400, "z"),
        (INFER, b'{"inputs": []}', 400, "x"),
        ("/v1/models/nobody:predict", b"{}", 404, "Servable not found"),
        ("/v2/models/nobody/infer", b"{}", 404, "nobody"),
        ("/v1/models/affine/versions/9:predict", b"{}", 404, "9"),
        ("/v1/models/affine/versions/x:predict", b"{}", 400, ""),
        ("/v1/models/affine/labels/stable:predict", b"{}", 404, "stable"),
        ("/v1/models/affine:guess", b"{}", 400, "Malformed request"),
    ],
)
async def test_bad_requests_get_a_clear_error_and_disturb_nothing(
    tmp_path: Path, path: str, content: bytes, status: int, text: str
) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        good, bad = await asyncio.gather(
            http.post(PREDICT, json={"instances": [ROW]}), http.post(path, content=content)
        )
        after = await http.post(PREDICT, json={"instances": [ROW]})
    assert bad.status_code == status and text in bad.json()["error"]
    assert good.status_code == after.status_code == 200


async def test_nan_tokens_pass_through_the_tensorflow_serving_protocol(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        answer = await http.post(PREDICT, content=b'{"instances": [[NaN, Infinity, 1, 2]]}')
    assert answer.status_code == 200
    assert answer.text.replace(" ", "") == '{"predictions":[[NaN,Infinity,3.0,5.0]]}'


async def test_compressed_bodies_and_answers(tmp_path: Path) -> None:
    plain = json.dumps(infer_body(300)).encode()
    async with open_house(tmp_path, "a") as house, client(house) as http:
        for coding, body in (
            ("gzip", gzip.compress(plain)),
            ("X-GZip", gzip.compress(plain)),
            ("gzip", gzip.compress(plain[:99]) + gzip.compress(plain[99:])),
        ):
            headers = {"Content-Encoding": coding, "Accept-Encoding": "gzip"}
            answer = await http.post(INFER, content=body, headers=headers)
            assert answer.json()["outputs"][0]["data"] == DOUBLED * 300
            assert answer.headers["content-encoding"] == "gzip"
            assert answer.headers["vary"] == "accept-encoding"
        index = await http.post(
            "/v2/repository/index",
            content=gzip.compress(b'{"ready": true}'),
            headers={"Content-Encoding": "gzip"},
        )
        assert [row["name"] for row in index.json()] == ["affine"]
        for path in (INFER, PREDICT, "/v2/repository/index"):
            refused = await http.post(path, content=plain, headers={"Content-Encoding": "br"})
            assert refused.status_code == 415 and "gzip or deflate" in refused.json()["error"]
            assert refused.headers["accept-encoding"] == "gzip, deflate"


async def test_a_request_larger_than_a_batch_is_cut_and_joined(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        answer = await http.post(PREDICT, json={"instances": [ROW] * 21})
    assert answer.json() == {"predictions": [DOUBLED] * 21}


async def test_many_requests_share_batches(tmp_path: Path) -> None:
    config = ModelConfig(batching=Batching(max_rows=8, max_wait_s=0.05))
    async with open_house(tmp_path, "a", config=config) as house, client(house) as http:
        posts = [http.post(PREDICT, json={"instances": [[float(n)] * 4]}) for n in range(24)]
        answers = await asyncio.gather(*posts)
        runs = house.services["a"]._recorder.snapshot().samples["headrace_batch_rows"]
    assert [a.json()["predictions"][0][0] for a in answers] == [2.0 * n + 1 for n in range(24)]
    ((*counts, rows),) = runs.values()
    assert rows == 24 and sum(counts) < 24


async def test_one_bad_request_in_a_batch_does_not_fail_its_neighbours(tmp_path: Path) -> None:
    config = ModelConfig(batching=Batching(max_rows=8, max_wait_s=0.05))
    async with open_house(tmp_path, "a", config=config) as house, client(house) as http:
        good = [http.post(PREDICT, json={"instances": [ROW]}) for _ in range(5)]
        bad = http.post(PREDICT, json={"instances": [[1.0, 2.0]]})
        *answers, refused = await asyncio.gather(*good, bad)
    assert all(answer.status_code == 200 for answer in answers)
    assert refused.status_code == 400


async def test_a_deadline_that_passes_is_504(tmp_path: Path) -> None:
    config = ModelConfig(batching=Batching(max_rows=8, max_wait_s=5))
    async with open_house(tmp_path, "a", config=config) as house, client(house) as http:
        await house.hold("a")
        answer = await http.post(
            PREDICT, json={"instances": [ROW]}, headers={"X-Request-Timeout-Seconds": "0.05"}
        )
        wrong = await http.post(
            PREDICT, json={"instances": [ROW]}, headers={"X-Request-Timeout-Seconds": "soon"}
        )
    assert answer.status_code == 504 and "deadline" in answer.json()["error"]
    assert wrong.status_code == 400


async def test_a_waiting_request_is_answered_when_a_slot_comes(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        await http.post(PREDICT, json={"instances": [ROW]})
        await house.kill_slot("a")
        waiting = asyncio.create_task(http.post(PREDICT, json={"instances": [ROW]}))
        await until(lambda: house.plane.router.waiting()["affine"])
        await house.add_slot("b")
        await house.place("b", "affine", 1, ModelConfig())
        answer = await waiting
    assert answer.status_code == 200


async def test_no_request_is_lost_when_a_slot_dies_under_load(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a", "b") as house, client(house) as http:
        posts = [
            asyncio.create_task(http.post(PREDICT, json={"instances": [[float(n)] * 4]}))
            for n in range(60)
        ]
        await until(house.plane.router.in_flight)
        await house.kill_slot("a")
        answers = await asyncio.gather(*posts)
    assert [a.status_code for a in answers] == [200] * 60
    assert [a.json()["predictions"][0][0] for a in answers] == [2.0 * n + 1 for n in range(60)]


async def test_a_body_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        reader, writer = await asyncio.open_connection(*house.http.address.split(":"))
        size = MAX_BODY_BYTES + 1
        writer.write(
            f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ") and b"max_body_bytes" in answer


async def test_a_chunked_body_over_the_limit_is_refused(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield bytes(64 * 1024)

        answer = await http.post(PREDICT, content=chunks())
        small = await http.post(PREDICT, json={"instances": [ROW]})
    assert answer.status_code == 413 and small.status_code == 200


async def test_slow_headers_and_bodies_are_cut_off(tmp_path: Path) -> None:
    limits = Limits(header_timeout_s=0.1, body_timeout_s=0.1)
    async with open_house(tmp_path, "a", limits=limits) as house:
        answers = []
        for start in (
            "POST /v1/mod",
            f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nabc",
        ):
            reader, writer = await asyncio.open_connection(*house.http.address.split(":"))
            writer.write(start.encode())
            answers.append(await asyncio.wait_for(reader.read(), 10))
            writer.close()
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        reader, writer = await asyncio.open_connection(*house.http.address.split(":"))
        for n in range(5):
            body = json.dumps({"instances": [[float(n)] * 4]})
            head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write((head + body).encode())
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        text = (await asyncio.wait_for(reader.read(), 10)).decode()
        writer.close()
    assert text.count("HTTP/1.1 200") == 11
    numbers = [line for line in text.split("\r\n") if line.startswith('{"predictions"')]
    assert [json.loads(n[: n.index("}") + 1])["predictions"][0][0] for n in numbers] == [
        2.0 * n + 1 for n in range(5)
    ]


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n"
        + b"".join(b"X-%d: y\r\n" % n for n in range(300))
        + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + bytes(70_000).replace(b"\0", b"y"),
    ],
    ids=["no http", "negative length", "many headers", "long header"],
)
async def test_broken_http_gets_a_json_error(tmp_path: Path, sent: bytes) -> None:
    async with open_house(tmp_path, "a") as house:
        reader, writer = await asyncio.open_connection(*house.http.address.split(":"))
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431")
    assert "error" in json.loads(answer.split(b"\r\n\r\n", 1)[1])


async def test_a_client_that_leaves_frees_its_place(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        await house.hold("a")
        task = asyncio.create_task(http.post(PREDICT, json={"instances": [ROW]}))
        await until(lambda: len(house.plane.router))
        task.cancel()
        await until(lambda: not len(house.plane.router))
        counted = house.recorder.snapshot().samples["headrace_cancellations_total"]
    assert counted == {("affine",): (1,)}


async def test_a_model_that_cannot_be_loaded_says_why_and_the_rest_serves(tmp_path: Path) -> None:
    broken = tmp_path / "store" / "broken" / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a model")
    async with open_house(tmp_path, "a") as house, client(house) as http:
        await house.place("a", "broken", 1, ModelConfig())
        failed = await http.post("/v2/models/broken/infer", json=infer_body())
        ready = await http.get("/v2/models/broken/ready")
        fine = await http.post(PREDICT, json={"instances": [ROW]})
    assert failed.status_code == 503 and "model.onnx" in failed.json()["error"]
    assert ready.status_code != 200 and fine.status_code == 200


def binary_infer(rows: int) -> tuple[bytes, dict[str, str]]:
    """A v2 request of `rows` rows as raw float32, and its headers."""
    size = rows * 16
    entry = {"name": "x", "shape": [rows, 4], "datatype": "FP32"}
    text = json.dumps(
        {
            "inputs": [entry | {"parameters": {"binary_data_size": size}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    tensor = np.tile(np.array(ROW, np.float32), rows).tobytes()
    return text + tensor, {"Inference-Header-Content-Length": str(len(text))}


@pytest.mark.parametrize("way", WAYS)
async def test_a_body_of_60_megabytes_passes(tmp_path: Path, way: str) -> None:
    rows = 3_750_000
    config = ModelConfig(batching=Batching(max_rows=65_536))
    limits = Limits(max_body_bytes=128 * 1024 * 1024)
    more = {"config": config, "limits": limits, **WAYS[way]}
    content, headers = binary_infer(rows)
    async with open_house(tmp_path, "a", **more) as house, client(house) as http:
        answer = await http.post(INFER, content=content, headers=headers)
    assert answer.status_code == 200
    start = int(answer.headers["inference-header-content-length"])
    values = np.frombuffer(answer.content[start:], np.float32).reshape(rows, 4)
    assert (values == np.array(DOUBLED, np.float32)).all()
    assert not shared_bodies()


async def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    limits = Limits(write_timeout_s=0.1, max_body_bytes=64 * 1024 * 1024)
    content, headers = binary_infer(1_000_000)
    name, value = next(iter(headers.items()))
    config = ModelConfig(batching=Batching(max_rows=65_536))
    async with open_house(tmp_path, "a", config=config, limits=limits) as house:
        reader, writer = await asyncio.open_connection(*house.http.address.split(":"), limit=1024)
        head = (
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
            f"{name}: {value}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        await until(lambda: house.door.connections)
        await asyncio.wait_for(until(lambda: not house.door.connections), 20)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(16_000_000)
        writer.close()


async def test_an_expected_100_continue_is_given(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        reader, writer = await asyncio.open_connection(*house.http.address.split(":"))
        body = json.dumps({"instances": [ROW]}).encode()
        writer.write(
            f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            "Expect: 100-continue\r\nConnection: close\r\n\r\n".encode()
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ") and b"predictions" in answer


async def test_a_draining_gateway_closes_connections_after_their_answers(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        open_answer = await http.post(PREDICT, json={"instances": [ROW]})
        house.door.draining = True
        last_answer = await http.post(PREDICT, json={"instances": [ROW]})
    assert "connection" not in open_answer.headers
    assert last_answer.status_code == 200 and last_answer.headers["connection"] == "close"


async def test_hash_routing_keeps_a_key_on_its_slot(tmp_path: Path) -> None:
    routing = Routing(policy="hash", header="X-User")
    config = ModelConfig(batching=Batching(max_rows=8), routing=routing)
    async with open_house(tmp_path, "a", "b", config=config) as house, client(house) as http:
        for _ in range(12):
            headers = {"X-User": "somebody"}
            await http.post(PREDICT, json={"instances": [ROW]}, headers=headers)
        runs = [
            len(service._recorder.snapshot().samples["headrace_batch_rows"])
            for service in house.services.values()
        ]
    assert sorted(runs) == [0, 1]


async def test_phases_are_measured(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house, client(house) as http:
        await http.post(PREDICT, json={"instances": [ROW]})
        phases = house.recorder.snapshot().samples["headrace_stage_seconds"]
    names = {labels[2] for labels in phases}
    assert names == {"queue", "link", "batch_wait", "compute", "encode"}
    assert all(numbers[-1] >= 0 for numbers in phases.values())


async def test_an_answer_after_a_roll_out_is_recorded_for_the_version_that_gave_it(
    tmp_path: Path,
) -> None:
    config = ModelConfig(batching=Batching(max_rows=2, max_wait_s=20))
    affine_model(tmp_path / "store" / "affine" / "2" / "model.onnx", factor=3)
    audit = AuditLog(Audit(sample=1.0), tmp_path / "audit", "gateway")
    opened = open_house(tmp_path, "a", config=config, audit=audit)
    async with opened as house, client(house) as http:
        engine = house.services["a"]._placements.engine(1)
        assert engine is not None
        early = asyncio.create_task(http.post(INFER, json=infer_body()))
        await until(lambda: len(engine))
        await house.place("a", "affine", 2, config)
        late = asyncio.create_task(http.post(INFER, json=infer_body()))
        await until(lambda: house.plane.router.in_flight()["affine"] == 2)
        filled = await http.post("/v2/models/affine/versions/1/infer", json=infer_body())
        assert (await early).json()["model_version"] == filled.json()["model_version"] == "1"
        await http.post("/v2/models/affine/versions/2/infer", json=infer_body())
        assert (await late).json()["model_version"] == "2"
        counted = house.recorder.snapshot().samples[REQUESTS.name]
    audit.close()
    (file,) = (tmp_path / "audit").iterdir()
    recorded = [json.loads(line)["version"] for line in file.read_text().splitlines()]
    assert sorted(recorded) == [1, 1, 2, 2]
    assert {labels[1]: count for labels, (count,) in counted.items()} == {1: 2, 2: 2}


async def test_a_slots_refusal_is_audited_without_an_answer(tmp_path: Path) -> None:
    audit = AuditLog(Audit(sample=1.0), tmp_path / "audit", "gateway")
    async with open_house(tmp_path, "a", audit=audit) as house, client(house) as http:
        good = await http.post(PREDICT, json={"instances": [ROW]})
        await http.post(PREDICT, json={"instances": [[1.0]]})
    audit.close()
    (file,) = (tmp_path / "audit").iterdir()
    answered, refused = map(json.loads, file.read_text().splitlines())
    assert (answered["code"], answered["bytes_out"]) == (200, len(good.content))
    assert (refused["code"], refused["bytes_out"], refused["decision"]) == (400, 0, "failed")


async def test_a_client_that_leaves_is_cancelled_in_the_slot(tmp_path: Path) -> None:
    config = ModelConfig(batching=Batching(max_rows=8, max_wait_s=20))
    async with open_house(tmp_path, "a", config=config) as house, client(house) as http:
        engine = house.services["a"]._placements.engine(1)
        assert engine is not None
        task = asyncio.create_task(http.post(PREDICT, json={"instances": [ROW]}))
        await until(lambda: len(engine))
        task.cancel()
        await until(lambda: not len(engine))
        counted = house.services["a"]._recorder.snapshot().samples["headrace_cancellations_total"]
    assert counted == {("affine",): (1,)}


async def test_a_body_that_is_too_large_once_inflated_is_refused(tmp_path: Path) -> None:
    content = gzip.compress(bytes(2 * MAX_BODY_BYTES))
    async with open_house(tmp_path, "a") as house, client(house) as http:
        answer = await http.post(INFER, content=content, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 413 and "decompressed" in answer.json()["error"]


async def test_an_unloaded_model_answers_what_it_holds_and_leaves(tmp_path: Path) -> None:
    config = ModelConfig(batching=Batching(max_rows=8, max_wait_s=0.2))
    async with open_house(tmp_path, "a", config=config) as house, client(house) as http:
        engine = house.services["a"]._placements.engine(1)
        assert engine is not None
        task = asyncio.create_task(http.post(PREDICT, json={"instances": [ROW]}))
        await until(lambda: len(engine))
        await house.controls["a"].call("unload", placement_id=1)
        answer = await task
        await until(lambda: house.facts["a", 1]["state"] == "END")
        assert house.services["a"]._placements.engine(1) is None
    assert answer.status_code == 200


async def test_a_model_that_is_unloaded_while_it_loads_stays_gone(tmp_path: Path) -> None:
    async with open_house(tmp_path, "a") as house:
        affine_model(tmp_path / "store" / "second" / "1" / "model.onnx")
        batching = Batching().model_dump()
        control = house.controls["a"]
        order = {"model": "second", "version": 1, "runtime": None, "batching": batching}
        facts = await control.call("load", **order)
        await control.call("unload", placement_id=facts["placement_id"])
        await until(lambda: house.facts["a", facts["placement_id"]]["state"] == "END")
        placements = house.services["a"]._placements
        await until(lambda: not placements._tasks)
        assert house.facts["a", facts["placement_id"]]["state"] == "END"
        assert placements.engine(facts["placement_id"]) is None
