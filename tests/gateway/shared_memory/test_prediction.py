"""Tensors in shared memory, used by the unmodified tritonclient and abused in every way."""

from __future__ import annotations

import asyncio
import os
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import orjson
import pytest
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto, helper
from tritonclient.utils import serialize_byte_tensor

from gateway.shared_memory.regions import Region, Regions
from headrace.config.args import Limits, ModelConfig, SharedMemory
from headrace.protocols.targets import parse
from headrace.protocols.wire import message
from sharding.upload import MediaJob, Tell
from tests.gateway.http.test_shared_memory_api import both, refusal, triton
from tests.gateway.media.test_inference import BOX
from tests.gateway.media_house import open_scripted, png
from tests.gateway.shared_memory.region_house import (
    ROWS,
    Memory,
    module,
    register,
    sharing,
    tensor,
    x,
    y,
)
from tests.house import client, grpc_channel, open_house, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
INFER = "/inference.GRPCInferenceService/ModelInfer"


@both
async def test_tensors_come_from_regions_and_go_to_them(
    tmp_path: Path, memory: Memory, protocol: str
) -> None:
    key, result_key = memory(40, bytes(8) + ROWS.tobytes()), memory(80)
    async with sharing(tmp_path) as house, triton(house, protocol) as c:
        await c.register_system_shared_memory("in", key, 36, offset=4)
        await c.register_system_shared_memory("out", result_key, 80)
        inputs, outputs = [x(protocol, "in", 32, 4)], [y(protocol, "out", 64, 16)]
        result = await c.infer("affine", inputs, outputs=outputs)
        mixed = await c.infer("affine", inputs)
    assert memory.read(result_key) == bytes(16) + (2 * ROWS + 1).tobytes() + bytes(32)
    found = result.get_output("y")
    shape = found["shape"] if protocol == "http" else found.shape
    assert list(shape) == [2, 4]
    if protocol == "http":
        assert found == {"name": "y", "datatype": "FP32", "shape": [2, 4]}
    else:
        assert list(result.get_response().raw_output_contents) == [b""]
    np.testing.assert_array_equal(mixed.as_numpy("y"), 2 * ROWS + 1)


def string_model(path: Path) -> None:
    """Write an ONNX model that gives its strings back."""
    both_ends = [
        helper.make_tensor_value_info(name, TensorProto.STRING, ["rows", 2]) for name in "xy"
    ]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "echo", both_ends[:1], both_ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path))


@both
async def test_strings_lie_in_regions_too(tmp_path: Path, memory: Memory, protocol: str) -> None:
    string_model(tmp_path / "store" / "echo" / "1" / "model.onnx")
    strings = np.array([["one", "two"], ["", "four"]], dtype=object)
    raw = serialize_byte_tensor(strings).item()
    key, result_key = memory(len(raw), raw), memory(100)
    async with sharing(tmp_path) as house, triton(house, protocol) as c:
        await house.add_slot("b")
        await house.place("b", "echo", 1, ModelConfig())
        await c.register_system_shared_memory("in", key, len(raw))
        await c.register_system_shared_memory("out", result_key, 100)
        given = tensor(module(protocol).InferInput("x", [2, 2], "BYTES"), "in", len(raw))
        await c.infer("echo", [given], outputs=[y(protocol, "out", 100)])
    assert memory.read(result_key) == raw.ljust(100, b"\0")


@both
async def test_more_than_a_part_of_the_link_goes_through_regions(
    tmp_path: Path, memory: Memory, protocol: str
) -> None:
    rows = np.arange(40_000, dtype=np.float32).reshape(10_000, 4)
    key, result_key = memory(rows.nbytes, rows.tobytes()), memory(rows.nbytes)
    async with sharing(tmp_path) as house, triton(house, protocol) as c:
        await c.register_system_shared_memory("in", key, rows.nbytes)
        await c.register_system_shared_memory("out", result_key, rows.nbytes)
        given = x(protocol, "in", rows.nbytes, rows=10_000)
        await c.infer("affine", [given], outputs=[y(protocol, "out", rows.nbytes)])
        assert house.admission.memory.used_bytes == 0
    np.testing.assert_array_equal(
        np.frombuffer(memory.read(result_key), np.float32), (2 * rows + 1).reshape(-1)
    )


async def test_a_stream_uses_regions(tmp_path: Path, memory: Memory) -> None:
    key, result_key = memory(32, ROWS.tobytes()), memory(32)
    stream = "/inference.GRPCInferenceService/ModelStreamInfer"
    async with sharing(tmp_path) as house, triton(house, "grpc") as c, grpc_channel(house) as g:
        await c.register_system_shared_memory("in", key, 32)
        await c.register_system_shared_memory("out", result_key, 32)
        good = proto({"region": "in", "byte_size": 32}, {"region": "out", "byte_size": 32})
        bad = proto({"region": "nobody's", "byte_size": 32})
        answers = [
            parse("inference.ModelStreamInferResponse", each)
            async for each in g.stream_stream(stream)(iter([good, bad]))
        ]
    assert answers[0].infer_response.outputs[0].name == "y"
    assert answers[1].error_message == "Unable to find shared memory region: 'nobody's'"
    assert memory.read(result_key) == (2 * ROWS + 1).tobytes()


def proto(given: dict[str, Any], wanted: dict[str, Any] | None = None) -> bytes:
    """A ModelInferRequest for `affine` with these parameters of its input and output."""
    request = message("inference.ModelInferRequest")(model_name="affine")
    each = request.inputs.add(name="x", datatype="FP32", shape=[2, 4])
    pairs = [(each, given)]
    if wanted is not None:
        pairs.append((request.outputs.add(name="y"), wanted))
    for holder, parameters in pairs:
        for name, value in parameters.items():
            parameter = holder.parameters[f"shared_memory_{name}"]
            if isinstance(value, str):
                parameter.string_param = value
            else:
                parameter.int64_param = value
    encoded: bytes = request.SerializeToString()
    return encoded


async def test_inputs_in_regions_stand_between_others(tmp_path: Path, memory: Memory) -> None:
    """Of three inputs the one in the middle lies in a region, the others in the body."""
    names = ("a", "b", "c")
    shape = ["rows", 2]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in (*names, "y")]
    node = helper.make_node("Concat", list(names), ["y"], axis=0)
    graph = helper.make_graph([node], "join", infos[:3], infos[3:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path = tmp_path / "store" / "join" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path))
    rows = [np.full((1, 2), value, np.float32) for value in (1, 2, 3)]
    key = memory(8, rows[1].tobytes())
    region = {"shared_memory_region": "b", "shared_memory_byte_size": 8}
    entries = [{"name": n, "datatype": "FP32", "shape": [1, 2]} for n in names]
    raw = {"binary_data_size": 8}
    text = orjson.dumps(
        {
            "inputs": [
                entries[0] | {"parameters": raw},
                entries[1] | {"parameters": region},
                entries[2] | {"parameters": raw},
            ]
        }
    )
    text_only = orjson.dumps(
        {
            "inputs": [
                entries[0] | {"data": [1.0, 1.0]},
                entries[1] | {"parameters": region},
                entries[2] | {"data": [3.0, 3.0]},
            ]
        }
    )
    async with sharing(tmp_path) as house, client(house) as http, grpc_channel(house) as g:
        await house.add_slot("b")
        await house.place("b", "join", 1, ModelConfig())
        await register(http, "b", key, 8)
        answers = [
            await http.post(
                "/v2/models/join/infer",
                content=text + rows[0].tobytes() + rows[2].tobytes(),
                headers={"Inference-Header-Content-Length": str(len(text))},
            ),
            await http.post(
                "/v2/models/join/infer",
                content=zlib.compress(text_only),
                headers={"Content-Encoding": "deflate"},
            ),
        ]
        raws = []
        for typed in (False, True):
            request = message("inference.ModelInferRequest")(model_name="join")
            for index, name in enumerate(names):
                each = request.inputs.add(name=name, datatype="FP32", shape=[1, 2])
                if name == "b":
                    each.parameters["shared_memory_region"].string_param = "b"
                    each.parameters["shared_memory_byte_size"].int64_param = 8
                elif typed:
                    each.contents.fp32_contents.extend(rows[index].reshape(-1).tolist())
                else:
                    request.raw_input_contents.append(rows[index].tobytes())
            answer = await g.unary_unary(INFER)(request.SerializeToString())
            raws += parse("inference.ModelInferResponse", answer).raw_output_contents
    expected = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert [each.json()["outputs"][0]["data"] for each in answers] == [expected, expected]
    assert [np.frombuffer(each, np.float32).tolist() for each in raws] == [expected, expected]


PARTS: list[tuple[dict[str, Any], str]] = [
    ({"region": "none", "byte_size": 32}, "Unable to find shared memory region: 'none'"),
    ({"region": "in"}, "'shared_memory_byte_size' must be specified along with"),
    ({"byte_size": 32}, "'shared_memory_byte_size' can not be specified without"),
    ({"offset": 0}, "'shared_memory_offset' can not be specified without"),
    ({"region": 5, "byte_size": 32}, "invalid value type for 'shared_memory_region'"),
    ({"region": "in", "byte_size": "32"}, "'shared_memory_byte_size' of tensor 'x' must be"),
    ({"region": "in", "byte_size": -1}, "'shared_memory_byte_size' of tensor 'x' must be"),
    (
        {"region": "in", "byte_size": 32, "offset": -1},
        "'shared_memory_offset' of tensor 'x' must be",
    ),
    ({"region": "in", "byte_size": 32, "offset": 64}, "Invalid offset for shared memory region"),
    (
        {"region": "in", "byte_size": 33, "offset": 32},
        "Invalid offset + byte size for shared memory region: 'in'",
    ),
    ({"region": "in", "byte_size": 2**63 - 1, "offset": 1}, "`max_body_bytes`"),
    ({"region": "in", "byte_size": 28}, "needs 32 bytes for its shape [2, 4], not 28"),
]


async def test_a_tensor_lies_within_its_region(tmp_path: Path, memory: Memory) -> None:
    key = memory(64)
    async with sharing(tmp_path) as house, client(house) as http, grpc_channel(house) as g:
        await register(http, "in", key, 64)
        for given, says in PARTS:
            parameters = {f"shared_memory_{name}": value for name, value in given.items()}
            entry = {"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": parameters}
            answer = await http.post("/v2/models/affine/infer", json={"inputs": [entry]})
            assert answer.status_code in (400, 404, 413)
            assert says in answer.json()["error"]
            with pytest.raises(grpc.RpcError) as caught:
                await g.unary_unary(INFER)(proto(given))
            assert says in str(caught.value)
            assert house.admission.memory.used_bytes == 0


@both
async def test_an_output_that_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, memory: Memory, protocol: str
) -> None:
    key, result_key = memory(32, ROWS.tobytes()), memory(64)
    async with sharing(tmp_path) as house, triton(house, protocol) as c:
        await c.register_system_shared_memory("in", key, 32)
        await c.register_system_shared_memory("out", result_key, 64)
        outputs = [y(protocol, "out", 31)]
        found = await refusal(c.infer("affine", [x(protocol, "in", 32)], outputs=outputs))
    assert found[1] == (
        "shared memory size specified with the request for output 'y' (31 bytes) should be at "
        "least 32 bytes to hold the results"
    )
    assert memory.read(result_key) == bytes(64)


@both
async def test_an_object_that_is_cut_off_or_gone_is_told(
    tmp_path: Path, memory: Memory, protocol: str
) -> None:
    key, result_key = memory(32, ROWS.tobytes()), memory(32)
    async with sharing(tmp_path) as house, triton(house, protocol) as c:
        await c.register_system_shared_memory("in", key, 32)
        await c.register_system_shared_memory("out", result_key, 32)
        request = [x(protocol, "in", 32)], [y(protocol, "out", 32)]
        os.truncate(Path("/dev/shm") / result_key[1:], 31)
        short_output = await refusal(c.infer("affine", request[0], outputs=request[1]))
        os.truncate(Path("/dev/shm") / key[1:], 0)
        short = await refusal(c.infer("affine", request[0]))
        (Path("/dev/shm") / key[1:]).unlink()
        gone = await refusal(c.infer("affine", request[0]))
    for found in (short_output, short):
        assert "is smaller than 0 + 32 bytes" in found[1]
    assert gone[1].startswith(f"Unable to open shared memory region: '{key}'")
    assert len(memory.read(result_key)) == 31


async def test_what_is_read_counts_as_the_body(tmp_path: Path, memory: Memory) -> None:
    """A file without blocks costs its maker nothing, and would cost us its whole size."""
    key = memory(0)
    os.truncate(Path("/dev/shm") / key[1:], 2**40)
    region = {"shared_memory_region": "in", "shared_memory_byte_size": 1024 * 1024}
    entry = {"name": "x", "datatype": "FP32", "shape": [65536, 4], "parameters": region}
    full = Limits(max_body_bytes=1024 * 1024)
    async with sharing(tmp_path, limits=full) as house, client(house) as http:
        await register(http, "in", key, 2**40)
        answer = await http.post("/v2/models/affine/infer", json={"inputs": [entry]})
        assert house.admission.memory.used_bytes == 0
    assert answer.status_code == 413
    assert answer.json()["error"] == "the body is over 1048576 bytes (`max_body_bytes`)"


PLACES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"data": [0] * 8}, {}, "Input must set only one of the following fields"),
    ({"parameters": {"binary_data_size": 32}}, {}, "Input must set only one of"),
    ({}, {"binary_data": True}, "can't set both 'shared_memory_region' and 'binary_data'"),
    ({}, {"classification": 1}, "can't set both 'shared_memory_region' and 'classification'"),
]


async def test_a_tensor_has_one_place(tmp_path: Path, memory: Memory) -> None:
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 32}
    async with sharing(tmp_path) as house, client(house) as http:
        await register(http, "r", memory(32), 32)
        for given, wanted, says in PLACES:
            entry = {"name": "x", "datatype": "FP32", "shape": [2, 4], **given}
            entry["parameters"] = region | entry.get("parameters", {})
            output = {"name": "y", "parameters": region | wanted}
            body = {"inputs": [entry], "outputs": [output]}
            answer = await http.post("/v2/models/affine/infer", json=body)
            assert answer.status_code == 400
            assert says in answer.json()["error"]


async def test_raw_contents_and_regions_have_one_tensor_each(
    tmp_path: Path, memory: Memory
) -> None:
    request = parse("inference.ModelInferRequest", proto({"region": "r", "byte_size": 32}))
    typed = parse("inference.ModelInferRequest", request.SerializeToString())
    request.raw_input_contents.append(bytes(32))
    typed.inputs[0].contents.fp32_contents.extend([0.0] * 8)
    async with sharing(tmp_path) as house, grpc_channel(house) as g:
        for each, says in (
            (request, "1 of raw_input_contents belong to no input"),
            (typed, "unexpected 'content' provided when using shared memory for input tensor 'x'"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                await g.unary_unary(INFER)(each.SerializeToString())
            assert says in str(caught.value)


async def test_a_caller_behind_a_proxy_is_not_here(tmp_path: Path, memory: Memory) -> None:
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 32}
    entry = {"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": region}
    key = memory(32)
    async with sharing(tmp_path) as house, client(house) as http:
        await register(http, "r", key, 32)
        http.headers["X-Forwarded-For"] = "10.0.0.9"
        answers = [
            await register(http, "s", key, 32),
            await http.post("/v2/models/affine/infer", json={"inputs": [entry]}),
        ]
    assert [each.status_code for each in answers] == [403, 403]
    assert "on the gateway's own machine" in answers[1].json()["error"]


async def test_requests_without_regions_pass_as_they_are(tmp_path: Path) -> None:
    """Also those that are looked into: long and compressed ones, and such as cannot be read."""
    values = [float(n) for n in range(40_000)]
    entry = {"name": "x", "datatype": "FP32", "shape": [10_000, 4], "data": values}
    body = orjson.dumps({"inputs": [entry]})
    async with sharing(tmp_path) as house, client(house) as http:
        plain = await http.post("/v2/models/affine/infer", content=body)
        packed = await http.post(
            "/v2/models/affine/infer",
            content=zlib.compress(body),
            headers={"Content-Encoding": "deflate"},
        )
        broken = await http.post(
            "/v2/models/affine/infer", content=b"?", headers={"Content-Encoding": "gzip"}
        )
        odd = await http.post("/v2/models/affine/infer", content=b'{"shared_memory_x": [')
    assert plain.json()["outputs"][0]["data"] == [2 * v + 1 for v in values]
    assert packed.json() == plain.json()
    assert (broken.status_code, odd.status_code) == (400, 400)


async def test_a_caller_that_leaves_frees_its_place(tmp_path: Path, memory: Memory) -> None:
    key = memory(32, ROWS.tobytes())
    async with sharing(tmp_path) as house, client(house) as http, grpc_channel(house) as g:
        await register(http, "in", key, 32)
        await house.hold("a")
        call = g.unary_unary(INFER)(proto({"region": "in", "byte_size": 32}))
        await until(lambda: len(house.plane.router))
        call.cancel()
        await until(lambda: not len(house.plane.router) and not house.admission.memory.used_bytes)
    assert memory.read(key) == ROWS.tobytes()


class SlowRegions(Regions):
    """Reads and writes wait until they may go on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(SharedMemory(), folder)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def read(self, region: Region) -> bytearray:
        return self._wait(super().read(region))

    def write(self, region: Region, content: Any) -> None:
        self._wait(bytearray())
        super().write(region, content)

    def _wait(self, result: bytearray) -> bytearray:
        self.begun.set()
        assert self.go_on.wait(30)
        return result


@pytest.mark.parametrize("step", ["reading", "writing"])
@both
async def test_a_caller_that_leaves_while_a_region_is_copied(
    tmp_path: Path, memory: Memory, step: str, protocol: str
) -> None:
    rows = np.ones((20_000, 4), np.float32)
    key = memory(rows.nbytes, rows.tobytes())
    regions = SlowRegions(tmp_path / "regions")
    async with open_house(tmp_path, "a", regions=regions) as house, triton(house, protocol) as c:
        await c.register_system_shared_memory("r", key, rows.nbytes)
        given, outputs = x(protocol, rows=20_000), None
        if step == "reading":
            given.set_shared_memory("r", rows.nbytes)
        else:
            given.set_data_from_numpy(rows)
            outputs = [y(protocol, "r", rows.nbytes)]
        asking = asyncio.create_task(c.infer("affine", [given], outputs=outputs))
        await until(regions.begun.is_set)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: not house.admission.memory.used_bytes)
        regions.go_on.set()
        again = await c.infer("affine", [given], outputs=outputs)
        assert not len(house.plane.router)
    assert again.get_output("y") is not None


async def test_a_picture_in_a_region_is_split(tmp_path: Path, memory: Memory) -> None:
    async def find(job: MediaJob, tell: Tell) -> Mapping[str, Any]:
        result = {"model": "affine", "version": 1, "boxes": [BOX], "shards": []}
        return result

    picture = png()
    raw = serialize_byte_tensor(np.array([picture], dtype=object)).item()
    key, result_key = memory(len(raw), raw), memory(16)
    regions = Regions(SharedMemory(), tmp_path / "regions")
    async with open_scripted(tmp_path, find, regions=regions) as house, triton(house, "http") as c:
        await c.register_system_shared_memory("in", key, len(raw))
        await c.register_system_shared_memory("out", result_key, 16)
        image = tensor(tritonclient.http.InferInput("image", [1], "BYTES"), "in", len(raw))
        boxes = tensor(tritonclient.http.InferRequestedOutput("boxes"), "out", 16)
        await c.infer("affine", [image], outputs=[boxes])
        assert house.local.seen[0][1] == picture
    assert np.frombuffer(memory.read(result_key), np.float32).tolist() == BOX["box"]
