"""Where a prediction over gRPC goes, read from the message without decoding its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from google.protobuf.message import DecodeError

from headrace.errors import InvalidArgument, PayloadTooLarge, listed, quoted
from headrace.protocols.compression import MAX_INFLATED_BYTES
from headrace.protocols.elements import MAX_ELEMENTS, check_message
from headrace.protocols.messages import message
from headrace.protocols.targets import InferPath, parse_version
from headrace.protocols.wire import delimited, read_delimited

INFER = "openinference_grpc"
SERVING = "tfserving_grpc"

_METHODS = {"tensorflow/serving/classify": "classify", "tensorflow/serving/regress": "regress"}
_RESULTS = {"classify": "classification_result", "regress": "regression_result"}
_RESPONSES = {"classify": "ClassificationResponse", "regress": "RegressionResponse"}
_CACHED_TARGETS = 4096
_CACHED_TARGET_BYTES = 512
"""Longer names are not worth their place in the cache: theirs have at most 128 characters."""
_MAX_TASKS = 16
"""Each task gets the whole input, so their number multiplies what a request takes in memory."""


@dataclass(frozen=True, slots=True)
class InferTarget:
    """The target of a ModelInferRequest and the id that its answer carries."""

    path: InferPath
    id: str


def infer_target(body: bytes) -> InferTarget:
    """Reads a ModelInferRequest; raises `InvalidArgument`."""
    found = read_delimited(body, 3)
    name, version = found.get(1, b""), found.get(2, b"")
    cached = len(name) + len(version) <= _CACHED_TARGET_BYTES
    path = (_infer_path_cached if cached else _infer_path)(name, version)
    return InferTarget(path, _text(found.get(3, b""), "id"))


def _infer_path(name: bytes, version: bytes) -> InferPath:
    model = _text(name, "model_name")
    if not model:
        raise InvalidArgument("the request names no model")
    number = parse_version(_text(version, "model_version")) if version else None
    return InferPath(INFER, "infer", model, number)


_infer_path_cached = lru_cache(_CACHED_TARGETS)(_infer_path)


def serving_target(body: bytes, method: str) -> InferPath:
    """Reads the model_spec (field 1) of a request of TensorFlow Serving's PredictionService."""
    spec = read_delimited(body, 1).get(1, b"")
    cached = len(spec) <= _CACHED_TARGET_BYTES
    return (_serving_path_cached if cached else _serving_path)(spec, method)


def _serving_path(spec_bytes: bytes, method: str) -> InferPath:
    both = read_delimited(spec_bytes, 4)
    if 2 in both and 4 in both:
        raise InvalidArgument("give a version or a version_label, not both")
    spec = parse("tensorflow.serving.ModelSpec", spec_bytes)
    if not spec.name:
        raise InvalidArgument("the request names no model in its model_spec")
    version = spec.version.value if spec.HasField("version") else None
    if version is not None and version < 0:
        raise InvalidArgument(f"version must be at least 0, not {version}")
    label = spec.version_label if spec.HasField("version_label") else None
    return InferPath(SERVING, method, spec.name, version, label)


_serving_path_cached = lru_cache(_CACHED_TARGETS)(_serving_path)


def multi_inference_tasks(
    body: bytes, max_bytes: int = MAX_INFLATED_BYTES, max_elements: int = MAX_ELEMENTS
) -> tuple[tuple[InferPath, bytes], ...]:
    """The tasks of a MultiInferenceRequest, each as a Classification- or RegressionRequest.

    Raises `InvalidArgument` unless all tasks name one model, and `PayloadTooLarge` if the inputs of
    all of them are together larger than one may be.
    """
    request = parse("tensorflow.serving.MultiInferenceRequest", body, max_elements)
    if not 0 < len(request.tasks) <= _MAX_TASKS:
        raise InvalidArgument(
            f"the request has {len(request.tasks)} tasks; it may have 1 to {_MAX_TASKS}"
        )
    given, copies = request.input.SerializeToString(), len(request.tasks)
    if len(given) * copies > max_bytes:
        raise PayloadTooLarge(
            f"an input of {len(given)} bytes for each of {copies} tasks is more than {max_bytes} "
            "bytes (`max_body_bytes`)"
        )
    check_message(given, "tensorflow.serving.Input", max_elements, copies)
    shared = delimited(2, given)
    tasks = []
    for task in request.tasks:
        method = _METHODS.get(task.method_name)
        if method is None:
            raise InvalidArgument(
                f"method_name must be one of {listed(_METHODS)}, not {quoted(task.method_name)}"
            )
        spec = task.model_spec.SerializeToString()
        path = _serving_path(spec, method)
        tasks.append((path, delimited(1, spec) + shared))
    if len({(path.model, path.version, path.label) for path, _ in tasks}) > 1:
        raise InvalidArgument("all tasks of a request must name the same model and version")
    return tuple(tasks)


def multi_inference_answer(parts: Sequence[tuple[str, bytes]]) -> bytes:
    """The MultiInferenceResponse of the tasks' (method, response), in their order."""
    answer = message("tensorflow.serving.MultiInferenceResponse")()
    for method, body in parts:
        response = parse(f"tensorflow.serving.{_RESPONSES[method]}", body)
        result = answer.results.add()
        result.model_spec.CopyFrom(response.model_spec)
        getattr(result, _RESULTS[method]).CopyFrom(response.result)
    encoded: bytes = answer.SerializeToString()
    return encoded


def parse(full_name: str, body: bytes | memoryview, max_elements: int = MAX_ELEMENTS) -> Any:
    """A whole message; raises `InvalidArgument` when the bytes are not one.

    With more than `max_elements` elements it is a `PayloadTooLarge`.
    """
    plain = bytes(body)
    check_message(plain, full_name, max_elements)
    try:
        return message(full_name).FromString(plain)
    except DecodeError:
        name = full_name.rpartition(".")[2]
        raise InvalidArgument(f"the message is not a {name}") from None


def _text(raw: bytes, field: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"'{field}' must be UTF-8 text") from None
