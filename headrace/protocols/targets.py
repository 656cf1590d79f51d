"""The targets of predictions in every protocol, and one spelling for the paths of all others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import orjson
from google.protobuf.message import DecodeError

from headrace.errors import (
    HeadraceError,
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    listed,
    quoted,
)
from headrace.protocols.compression import MAX_INFLATED_BYTES
from headrace.protocols.elements import MAX_ELEMENTS, check_message
from headrace.protocols.tensors import Encoded
from headrace.protocols.wire import delimited, message, read_delimited, scan_delimited

_CACHED_PATHS = 4096
_CACHED_PATH_BYTES = 512
"""Longest cached target: names have at most 128 characters."""

_LARGEST_VERSION = 2**63 - 1
_VERSION_DIGITS = len(str(_LARGEST_VERSION))

_TFSERVING = re.compile(
    rb"/v1/models/(?P<model>[^/:]+)"
    rb"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
    rb":(?-i:(?P<method>predict|classify|regress))",
    re.IGNORECASE,
)
_OPENINFERENCE = re.compile(
    rb"(?:/.*?)??/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer"
)
_TFSERVING_PREFIX = re.compile(r"/v1(?=/|$)", re.IGNORECASE)
_TFSERVING_WORDS = re.compile(
    r"(?P<models>/v1/models/)(?P<name>[^/]+)(?:(?P<kind>/versions/|/labels/)(?P<value>[^/]+))?"
    r"(?P<rest>/metadata)?",
    re.IGNORECASE,
)
_UPLOAD = re.compile(r"/v1/models/[^/:]+(?:/versions/[0-9]{1,19}|/labels/[^/:]+)?:process")
_BASE_PATH = re.compile(r"(?:/.*?)??(?P<path>/v2(?:/.*)?)")


class InferPath(NamedTuple):
    """The target of a prediction. `protocol` is `tfserving` or `openinference`.

    A tuple, because each request looks up what is known of its target.
    """

    protocol: str
    method: str
    model: str
    version: int | None = None
    label: str | None = None


def parse_infer_path(path: bytes) -> InferPath | None:
    """The target of a POST; None if it is no prediction.

    A query is ignored, and a base path before `/v2`. Raises `InvalidArgument` for a version that
    is no number of 64 bits. As in TensorFlow Serving only the method of `/v1` must be lower case.
    """
    return _parse_cached(path) if len(path) <= _CACHED_PATH_BYTES else _parse(path)


def canonical_path(path: str) -> str:
    """The path in lower-case words for TensorFlow Serving, without a base path for `/v2`."""
    if _TFSERVING_PREFIX.match(path):
        found = _TFSERVING_WORDS.fullmatch(path)
        if found is None:
            return "/v1" + path[3:]
        models, name, kind, value, rest = found.groups(default="")
        return f"{models.lower()}{name}{kind.lower()}{value}{rest.lower()}"
    found = _BASE_PATH.fullmatch(path)
    return path if found is None else found["path"]


def is_upload(method: str, path: str) -> bool:
    """Whether this canonical path takes a picture or video."""
    return method == "POST" and _UPLOAD.fullmatch(path) is not None


def parse_version(text: str) -> int:
    """A model version; raises `InvalidArgument` unless it is a number of digits."""
    if is_version_number(text):
        return int(text)
    raise InvalidArgument(f"the model version must be a number, not {quoted(text)}")


def parse_serving_version(digits: str) -> int:
    """A version; raises `InvalidArgument` in TensorFlow Serving's words if it is too large."""
    if is_version_number(digits):
        return int(digits)
    raise InvalidArgument(f"Failed to convert version: {quoted(digits)} to numeric.")


def is_version_number(text: str) -> bool:
    """Whether the text is a number of digits that fits into 64 bits."""
    short = text.isascii() and text.isdigit() and len(text) <= _VERSION_DIGITS
    return short and int(text) <= _LARGEST_VERSION


def _parse(path: bytes) -> InferPath | None:
    path = path.partition(b"?")[0]
    found = _TFSERVING.fullmatch(path)
    if found is not None:
        version, label = found["version"], found["label"]
        return InferPath(
            "tfserving",
            found["method"].decode(),
            _decoded(found["model"]),
            None if version is None else parse_serving_version(version.decode()),
            None if label is None else _decoded(label),
        )
    found = _OPENINFERENCE.fullmatch(path)
    if found is None or _TFSERVING_PREFIX.match(path.decode("latin-1")):
        return None
    version = found["version"]
    return InferPath(
        "openinference",
        "infer",
        _decoded(found["model"]),
        None if version is None else parse_version(_decoded(version)),
    )


_parse_cached = lru_cache(maxsize=_CACHED_PATHS)(_parse)


def _decoded(raw: bytes) -> str:
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise InvalidArgument("the request path is not UTF-8 text") from None


INFER = "openinference_grpc"
SERVING = "tfserving_grpc"

_METHODS = {"tensorflow/serving/classify": "classify", "tensorflow/serving/regress": "regress"}
_RESULTS = {"classify": "classification_result", "regress": "regression_result"}
RESPONSES = {"classify": "ClassificationResponse", "regress": "RegressionResponse"}
_CACHED_TARGETS = 4096
_CACHED_TARGET_BYTES = 512
"""Longest cached name and version: names have at most 128 characters."""
_MAX_TASKS = 16
"""Cap on tasks: each gets a copy of the whole input."""


def infer_target(body: bytes) -> tuple[InferPath, str]:
    """The target of a ModelInferRequest and the id that its answer carries.

    Raises `InvalidArgument`.
    """
    found = read_delimited(body, 3)
    return _infer_path_of(found), _text(found.get(3, b""), "id")


def scan_infer_target(body: bytes) -> tuple[InferPath, int]:
    """The target of a ModelInferRequest, for `KnownTargets`; raises `InvalidArgument`."""
    found, seen = scan_delimited(body, 3)
    _text(found.get(3, b""), "id")
    return _infer_path_of(found), seen


def _infer_path_of(found: Mapping[int, bytes]) -> InferPath:
    name, version = found.get(1, b""), found.get(2, b"")
    cached = len(name) + len(version) <= _CACHED_TARGET_BYTES
    return (_infer_path_cached if cached else _infer_path)(name, version)


def _infer_path(name: bytes, version: bytes) -> InferPath:
    model = _text(name, "model_name")
    if not model:
        raise InvalidArgument("the request names no model")
    number = parse_version(_text(version, "model_version")) if version else None
    return InferPath(INFER, "infer", model, number)


_infer_path_cached = lru_cache(_CACHED_TARGETS)(_infer_path)


def serving_target(body: bytes, method: str) -> InferPath:
    """The model_spec (field 1) of a request of TensorFlow Serving's PredictionService."""
    return scan_serving_target(body, method)[0]


def scan_serving_target(body: bytes, method: str) -> tuple[InferPath, int]:
    """As `serving_target`, for `KnownTargets`."""
    found, seen = scan_delimited(body, 1, merged=True)
    spec = found.get(1, b"")
    cached = len(spec) <= _CACHED_TARGET_BYTES
    return (_serving_path_cached if cached else _serving_path)(spec, method), seen


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


class KnownTargets:
    """The targets of messages, each read once of all that have one beginning and one length.

    `scan` gives a message's target and how many bytes of its beginning it has looked at; it raises
    what is wrong with the message. So of a tensor only the first message's frame is read.
    """

    def __init__(self, scan: Callable[[bytes], tuple[InferPath, int]]) -> None:
        self._scan = scan
        self._known: dict[int, tuple[bytes, InferPath]] = {}

    def find(self, body: bytes) -> InferPath:
        known = self._known.get(len(body))
        if known is not None and body.startswith(known[0]):
            return known[1]
        path, seen = self._scan(body)
        if seen <= _CACHED_TARGET_BYTES:
            if len(self._known) >= _CACHED_TARGETS:
                self._known.clear()
            self._known[len(body)] = (body[:seen], path)
        return path


def multi_inference_tasks(
    body: bytes, max_bytes: int = MAX_INFLATED_BYTES, max_elements: int = MAX_ELEMENTS
) -> tuple[tuple[InferPath, bytes], ...]:
    """The tasks of a MultiInferenceRequest, each as a Classification- or RegressionRequest.

    Raises `InvalidArgument` unless all tasks name one model, and `PayloadTooLarge` if their copies
    of the input together pass the limits of one request.
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
        response = parse(f"tensorflow.serving.{RESPONSES[method]}", body)
        result = answer.results.add()
        result.model_spec.CopyFrom(response.model_spec)
        getattr(result, _RESULTS[method]).CopyFrom(response.result)
    encoded: bytes = answer.SerializeToString()
    return encoded


def parse(full_name: str, body: bytes | memoryview, max_elements: int = MAX_ELEMENTS) -> Any:
    """A whole message; raises `InvalidArgument` for other bytes.

    Raises `PayloadTooLarge` for more than `max_elements` elements.
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


def encode_error(error: HeadraceError) -> Encoded:
    """The JSON body of an error; its status is `error.http_status`."""
    text = error.message.encode(errors="replace").decode()
    return Encoded(orjson.dumps({"error": text}))


def servable_not_found(name: str, version: int | None = None, label: str | None = None) -> NotFound:
    """TensorFlow Serving's answer when no such model, version or label can be called."""
    if version is not None:
        return NotFound(f"Servable not found for request: Specific({name}, {version})")
    if label is not None:
        return NotFound(f"Unrecognized servable version label: {label}")
    return NotFound(f"Servable not found for request: Latest({name})")


def model_not_found(name: str, version: int | None = None) -> NotFound:
    """The Open Inference Protocol's answer when there is no such model or version.

    Triton's clients and examples compare its beginning.
    """
    which = quoted(name) if version is None else f"{quoted(name)} version {version}"
    return NotFound(f"Request for unknown model: {which} is not found")
