"""Warm-up of a model with recorded or synthetic requests, before the first real one.

Recorded requests lie in the version folder:
`warmup/*.json` are bodies of TensorFlow Serving's predict or of the Open Inference Protocol;
`assets.extra/tf_serving_warmup_requests` is TensorFlow Serving's own record of PredictionLogs.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from headrace.errors import HeadraceError, InvalidArgument, ModelLoadError
from headrace.protocols.calls import CALLS, call_number
from headrace.protocols.codecs import codecs
from headrace.protocols.json_bodies import read_object
from headrace.protocols.targets import SERVING, multi_inference_tasks
from headrace.protocols.tensors import Call, InferenceRequest
from headrace.protocols.wire import read_delimited
from headrace.spec import BYTES, ModelSpec, Signature, Tensor
from replicas.runtime import Runtime

JSON_FOLDER = "warmup"
RECORDS = "assets.extra/tf_serving_warmup_requests"
MAX_FILES = 100
MAX_RECORDS = 1000
"""TensorFlow Serving's own limit."""
MAX_BYTES = 64 * 1024 * 1024
"""Cap on the recorded requests of a version together."""

_LENGTH = struct.Struct("<Q4x")
_CRC_BYTES = 4
# The fields of a PredictionLog; in each of them field 1 is the request.
_METHODS = {2: "classify", 3: "regress", 6: "predict"}
_MULTI_INFERENCE = 4
_HIGHEST = 7

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request as it was sent; `where` names its file, `call` is its number on the link."""

    where: str
    call: int
    body: bytes

    def decode(self, model: ModelSpec) -> InferenceRequest:
        """The request decoded; raises `ModelLoadError` if the model does not take it."""
        try:
            codec = codecs()[self.call]
            return codec.decode(self.body, Call(CALLS[self.call].method), model)
        except HeadraceError as error:
            raise ModelLoadError(f"warm-up request {self.where}: {error.message}") from error
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            # Errors that the engine, too, takes for a codec's own mistake.
            log.exception("decode_failed", where=self.where)
            reason = f"internal error ({type(error).__name__})"
            raise ModelLoadError(f"warm-up request {self.where}: {reason}") from error


def recorded_requests(folder: Path) -> Iterator[Recorded]:
    """The recorded requests of a version folder; raises `ModelLoadError` for a broken file."""
    files = sorted((folder / JSON_FOLDER).glob("*.json"))
    records = folder / RECORDS
    present = [*files, records] if records.is_file() else files
    if len(files) > MAX_FILES:
        raise ModelLoadError(
            f"{JSON_FOLDER} holds {len(files)} requests; at most {MAX_FILES} are run, remove some"
        )
    total_bytes = sum(file.stat().st_size for file in present)
    if total_bytes > MAX_BYTES:
        raise ModelLoadError(
            f"the warm-up requests have {total_bytes} bytes; at most {MAX_BYTES} are run"
        )
    for file in files:
        yield _of_json(f"{JSON_FOLDER}/{file.name}", file.read_bytes())
    if records.is_file():
        for number, record in enumerate(read_records(records.read_bytes()), 1):
            if number > MAX_RECORDS:
                raise ModelLoadError(
                    f"{RECORDS} holds more than {MAX_RECORDS} requests, remove some"
                )
            where = f"{RECORDS}, record {number}"
            try:
                yield from _of_log(where, record)
            except InvalidArgument as error:
                raise ModelLoadError(f"warm-up request {where}: {error.message}") from error


def _of_json(where: str, body: bytes) -> Recorded:
    try:
        inputs = read_object(body).get("inputs")
    except InvalidArgument as error:
        raise ModelLoadError(f"warm-up request {where}: {error.message}") from error
    tensors = isinstance(inputs, list) and all(
        isinstance(each, dict) and "datatype" in each for each in inputs
    )
    if tensors and inputs:
        return Recorded(where, call_number("openinference", "infer"), body)
    return Recorded(where, call_number("tfserving", "predict"), body)


def _of_log(where: str, record: bytes) -> Iterator[Recorded]:
    for field, entry in read_delimited(record, _HIGHEST).items():
        request = read_delimited(entry, 1).get(1, b"") if field > 1 else b""
        if field in _METHODS:
            yield Recorded(where, call_number(SERVING, _METHODS[field]), request)
        elif field == _MULTI_INFERENCE:
            for path, body in multi_inference_tasks(request):
                yield Recorded(where, call_number(SERVING, path.method), body)
        elif field > 1:
            log.warning("warm_up_request_left_out", where=where, reason="its kind is not served")


def read_records(content: bytes) -> Iterator[bytes]:
    """The records of a TFRecord file: a length and its checksum, then data and its checksum.

    Checksums are not checked: SHA256SUMS covers the file.
    """
    at = 0
    while at < len(content):
        start = at + _LENGTH.size
        length = _LENGTH.unpack_from(content, at)[0] if start <= len(content) else len(content)
        at = start + length + _CRC_BYTES
        if at > len(content):
            raise ModelLoadError(f"{RECORDS} is not a TFRecord file, or it is cut short")
        yield content[start : start + length]


# Convolutional models halve a picture up to five times, so its sides must be multiples of 32.
_SIDE = 64
_CHANNELS = (1, 3, 4)
_PICTURE_NAME = re.compile(r"image|picture|photo|frame|bytes|png|jpe?g", re.IGNORECASE)

PICTURE_PNG = base64.b64decode(
    b"iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mP8z4AdMDEMKQkAzUEBD7t4"
    b"NqoAAAAASUVORK5CYII="
)
"""A red picture of 8x8 pixels, for string inputs that take an encoded picture."""


def warm_up(runtime: Runtime, folder: Path | None = None) -> None:
    """Run the recorded requests of the version folder; without any, each signature once.

    Raises `ModelLoadError` for a recorded request that is refused, else what `run` raises.
    """
    count = 0
    for recorded in recorded_requests(folder) if folder is not None else ():
        _run_recorded(runtime, recorded)
        count += 1
    if count:
        name, version = runtime.spec.name, runtime.spec.version
        log.info("warmed_up", model=name, version=version, recorded_requests=count)
    else:
        _run_synthetic(runtime)


def _run_recorded(runtime: Runtime, recorded: Recorded) -> None:
    request = recorded.decode(runtime.spec)
    inputs, most = request.inputs, runtime.spec.max_rows
    if request.rows is not None and 0 < most < request.rows:
        # More rows than a batch holds: requests of callers are cut into several.
        inputs = {name: tensor[:most] for name, tensor in inputs.items()}
    try:
        runtime.run(request.signature.name, inputs, request.output_names())
    except HeadraceError as error:
        raise ModelLoadError(f"warm-up request {recorded.where}: {error.message}") from error


def _run_synthetic(runtime: Runtime) -> None:
    """Run each signature on zeros; a refusal is only logged, since real requests may still pass."""
    for name, signature in runtime.spec.signatures.items():
        inputs = synthetic_inputs(signature, rows=1)
        label = f"{runtime.spec.name}/{runtime.spec.version} {name}"
        if inputs is None:
            log.info("not_warmed_up", signature=label, reason="an input has no known rank")
            continue
        try:
            runtime.run(name, inputs, [output.name for output in signature.outputs])
        except InvalidArgument as error:
            log.info("warm_up_refused", signature=label, reason=str(error))


def synthetic_inputs(signature: Signature, rows: int) -> dict[str, Tensor] | None:
    """Zeros for each input (`[rows, ...]`), pictures for string inputs that are named so.

    None where an input's rank is unknown.
    """
    tensors = {}
    for spec in signature.required:
        shape = spec.shape
        if shape is None:
            return None
        # [N, H, W, C] or [N, C, H, W].
        picture = len(shape) == 4 and (shape[1] in _CHANNELS or shape[3] in _CHANNELS)
        sizes = [(_SIDE if picture else 1) if size is None else size for size in shape]
        if shape and shape[0] is None:
            sizes[0] = rows
        if spec.dtype == BYTES:
            text = PICTURE_PNG if _PICTURE_NAME.search(spec.name) else b""
            tensors[spec.name] = np.full(sizes, text, dtype=object)
        else:
            tensors[spec.name] = np.zeros(sizes, spec.dtype)
    return tensors
