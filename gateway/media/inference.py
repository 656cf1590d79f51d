"""Open Inference requests whose one BYTES element is a whole picture or video.

The shard stage answers them for models that split their input; otherwise they are like any
prediction. The answer's tensors are `boxes` FP32 [n, 4], `scores` FP32 [n], `classes` INT64 [n] and
`labels` BYTES [n]; or `labels`, `scores`, `start_s` and `end_s` (FP64 [n]). `shards`, BYTES [1], is
JSON and only sent if it is asked for by name.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import orjson

from gateway.access.visit import Destination
from gateway.door import outcome
from gateway.media.desk import IncomingUpload, MediaDesk, sharding_of
from gateway.media.options import parameter_options, read_options
from gateway.media.upload import Declared
from headrace.config.args import Limits
from headrace.errors import DeadlineExceeded, InvalidArgument, quoted
from headrace.link.frames import Body, Reply, pieces
from headrace.link.queue import Request
from headrace.protocols.calls import CALLS, call_of, form_of
from headrace.protocols.checks import find_output
from headrace.protocols.compression import inflate
from headrace.protocols.elements import check_json
from headrace.protocols.json_bodies import decode_base64, read_object
from headrace.protocols.openinference_json import (
    OpenInferenceCodec,
    OpenInferenceForm,
    id_of,
    named_entries,
    parameters_of,
    refuse_unsupported,
    split_body,
    wanted_outputs,
)
from headrace.protocols.openinference_proto import OpenInferenceProtoCodec
from headrace.protocols.raw_tensors import RawTail, decode_raw, shape_of
from headrace.protocols.targets import InferPath, parse
from headrace.protocols.tensors import Call, Encoded, InferenceRequest
from headrace.spec import BYTES, ModelSpec, Signature, Tensor, TensorSpec

FindingKind = Literal["boxes", "tags"]
PROTOCOLS = {"openinference": b'"BYTES"', "openinference_grpc": b"BYTES"}
"""The datatype BYTES as it stands in a request, by protocol."""
SIGHT_BYTES = 4096
"""Bytes searched at both ends of a body: a tensor's data may stand before its datatype."""

_FP32, _FP64, _INT64 = (np.dtype(each) for each in (np.float32, np.float64, np.int64))
_SHARDS = TensorSpec("shards", BYTES, (1,))
_OUTPUTS: Mapping[FindingKind, tuple[TensorSpec, ...]] = {
    "boxes": (
        TensorSpec("boxes", _FP32, (None, 4)),
        TensorSpec("scores", _FP32, (None,)),
        TensorSpec("classes", _INT64, (None,)),
        TensorSpec("labels", BYTES, (None,)),
    ),
    "tags": (
        TensorSpec("labels", BYTES, (None,)),
        TensorSpec("scores", _FP32, (None,)),
        TensorSpec("start_s", _FP64, (None,)),
        TensorSpec("end_s", _FP64, (None,)),
    ),
}


@dataclass(frozen=True, slots=True)
class MediaInput:
    """A decoded request: the file, the parameters, and how to answer."""

    content: bytes
    parameters: Mapping[str, Any]
    request: InferenceRequest


def may_hold_media(protocol: str, body: Body) -> bool:
    """Whether a request may have an input of BYTES, by a search in its two ends."""
    mark = PROTOCOLS.get(protocol)
    if mark is None:
        return False
    parts = pieces(body)
    return mark in bytes(parts[0][:SIGHT_BYTES]) or mark in bytes(parts[-1][-SIGHT_BYTES:])


def decode_media(
    protocol: str, body: bytes, call: Call, findings: FindingKind, limits: Limits
) -> MediaInput:
    """The file in a request; in JSON it is base64.

    Raises `InvalidArgument` or `PayloadTooLarge`.
    """
    if protocol == "openinference_grpc":
        return _decode_proto(body, findings, limits.max_elements)
    return _decode_json(body, call, findings, limits)


def encode_findings(
    protocol: str, given: MediaInput, result: Mapping[str, Any], findings: FindingKind
) -> Encoded:
    """The answer, from the stage's result."""
    codec = OpenInferenceProtoCodec() if protocol == "openinference_grpc" else OpenInferenceCodec()
    model = ModelSpec(str(result["model"]), int(result["version"]), "", {})
    return codec.encode(given.request, _tensors(result, findings), model)


def _decode_json(body: bytes, call: Call, findings: FindingKind, limits: Limits) -> MediaInput:
    plain = inflate(body, call.content_encoding, limits.max_body_bytes)
    text, raw = split_body(plain, call.json_length)
    check_json(text, limits.max_elements)
    document = read_object(text)
    parameters = parameters_of(document, "the request")
    entries = named_entries(document, "inputs")
    name, entry = _only(list(entries.items()))
    where = f"input {quoted(name)}"
    own = parameters_of(entry, where)
    refuse_unsupported(own, where)
    _check_element(entry.get("datatype"), shape_of(entry.get("shape"), where), where)
    tail = RawTail(raw)
    if "binary_data_size" in own:
        content = decode_raw(tail.take(own["binary_data_size"], where), BYTES, (1,), where)[0]
    else:
        content = _from_base64(entry.get("data"), where)
    tail.check_end()
    signature = _signature(name, findings)
    names, binary, classes = wanted_outputs(document, parameters, signature)
    form = OpenInferenceForm(id_of(document), classes, binary, call.reply_encoding)
    request = InferenceRequest(signature, {}, 1, names or _usual(findings), encoding=form)
    return MediaInput(content, parameters, request)


def _decode_proto(body: bytes, findings: FindingKind, max_elements: int) -> MediaInput:
    message = parse("inference.ModelInferRequest", body, max_elements)
    name, entry = _only([(each.name, each) for each in message.inputs])
    where = f"input {quoted(name)}"
    _check_element(entry.datatype, tuple(entry.shape), where)
    if message.raw_input_contents:
        if len(message.raw_input_contents) != 1:
            raise InvalidArgument(
                "raw_input_contents should hold one tensor, as there is one input"
            )
        content = decode_raw(memoryview(message.raw_input_contents[0]), BYTES, (1,), where)[0]
    elif len(entry.contents.bytes_contents) == 1:
        content = entry.contents.bytes_contents[0]
    else:
        raise InvalidArgument(f"{where} needs one element in 'bytes_contents'")
    signature = _signature(name, findings)
    names = tuple(each.name for each in message.outputs)
    for each in names:
        find_output(signature, each)
    parameters = {
        key: getattr(value, kind)
        for key, value in message.parameters.items()
        if (kind := value.WhichOneof("parameter_choice")) is not None
    }
    final = bool(parameters.get("triton_enable_empty_final_response"))
    form = OpenInferenceForm(message.id, final=final)
    request = InferenceRequest(signature, {}, 1, names or _usual(findings), encoding=form)
    return MediaInput(content, parameters, request)


def _only(inputs: list[tuple[str, Any]]) -> tuple[str, Any]:
    if len(inputs) != 1:
        raise InvalidArgument(
            f"a picture or video comes as the only input, but there are {len(inputs)}"
        )
    return inputs[0]


def _check_element(datatype: object, shape: tuple[int, ...], where: str) -> None:
    if datatype != "BYTES" or math.prod(shape) != 1 or not shape:
        raise InvalidArgument(
            f"{where} should be one element of BYTES, shape [1], that holds the file; it is "
            f"{quoted(datatype)} with the shape {list(shape)}"
        )


def _from_base64(data: Any, where: str) -> bytes:
    while isinstance(data, list) and len(data) == 1:
        data = data[0]
    if not isinstance(data, str):
        raise InvalidArgument(f"{where}: 'data' should hold one string, the file in base64")
    try:
        return decode_base64(data)
    except ValueError:
        raise InvalidArgument(
            f"{where}: the string is not base64; bytes as they are go behind the JSON part, with "
            "'binary_data_size'"
        ) from None


def _signature(name: str, findings: FindingKind) -> Signature:
    given = (TensorSpec(name, BYTES, (1,)),)
    return Signature("serving_default", given, (*_OUTPUTS[findings], _SHARDS))


def _usual(findings: FindingKind) -> tuple[str, ...]:
    return tuple(spec.name for spec in _OUTPUTS[findings])


def _tensors(result: Mapping[str, Any], findings: FindingKind) -> dict[str, Tensor]:
    found = result[findings]
    tensors: dict[str, Tensor] = {
        "scores": np.array([each["score"] for each in found], np.float32),
        "labels": _texts([str(each.get("label") or "").encode() for each in found]),
        "shards": _texts([orjson.dumps(result.get("shards", []))]),
    }
    if findings == "boxes":
        tensors["boxes"] = np.array([each["box"] for each in found], np.float32).reshape(-1, 4)
        tensors["classes"] = np.array([each["class"] for each in found], np.int64)
    else:
        for name in ("start_s", "end_s"):
            tensors[name] = np.array([each[name] for each in found], np.float64)
    return tensors


def _texts(texts: list[bytes]) -> Tensor:
    tensor = np.empty(len(texts), BYTES)
    tensor[:] = texts
    return tensor


class MediaInference:
    """The `Destination` of requests whose one input is a whole picture or video."""

    def __init__(self, desk: MediaDesk) -> None:
        self._desk, self._plane = desk, desk.predictions.plane
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def destination(self, path: InferPath, body: Body) -> Destination | None:
        """Itself if the body may hold a picture or video that the model cannot read; else None."""
        view = self._plane.snapshot.models.get(path.model)
        if view is None or view.config.sharding is None:
            return None
        if not may_hold_media(path.protocol, body):
            return None
        found = view.version(path.version)
        signatures = found.spec.signatures.values() if found is not None and found.spec else ()
        reads = any(spec.dtype == BYTES for each in signatures for spec in each.inputs)
        return None if reads else self

    def submit(self, request: Request) -> None:
        request.sent_s = self._plane.now_s()
        task = self._tasks[request.id] = asyncio.create_task(self._run(request))
        # A callback, because a task may be cancelled before it begins.
        task.add_done_callback(lambda _: self._tasks.pop(request.id, None))

    def cancel(self, request: Request) -> None:
        task = self._tasks.get(request.id)
        if task is not None and not request.finished:
            request.finished = True
            self._desk.predictions.recorder.cancellation(request.key[0])
            task.cancel()

    async def _run(self, request: Request) -> None:
        request_id = request.meta.partition(b"\n")[0].decode("latin-1")
        answer = await outcome(self._answer(request), request_id=request_id)
        if not request.finished:
            request.finished = True
            request.done(request, answer)

    async def _answer(self, request: Request) -> Reply:
        desk = self._desk
        sharding = sharding_of(self._plane, request.key[0])
        findings: FindingKind = "boxes" if sharding.kind == "image-tiles" else "tags"
        protocol = CALLS[request.call].protocol
        call = call_of(request.call, request.json_length, request.encodings)
        body, limits = b"".join(pieces(request.body)), desk.predictions.limits
        # Decoded in a thread, because the file may be large.
        given = await asyncio.to_thread(decode_media, protocol, body, call, findings, limits)
        options = read_options(parameter_options(given.parameters))

        async def whole() -> AsyncIterator[bytes]:
            yield given.content

        incoming = IncomingUpload(whole(), Declared("", "", None), options)
        async with desk.job(request, sharding, incoming) as job:
            left_s = request.deadline_s - self._plane.now_s()
            if left_s <= 0:
                raise DeadlineExceeded("the deadline passed before the stage was asked")
            result = await desk.process(replace(job, timeout_s=left_s))
        encoded = await asyncio.to_thread(encode_findings, protocol, given, result, findings)
        return replace(
            desk.reply(request, len(encoded.body), result),
            body=encoded.body,
            form=form_of(encoded.content_type, encoded.content_encoding),
            json_length=encoded.json_length,
        )
