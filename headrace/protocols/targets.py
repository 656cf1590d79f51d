"""The request targets of predictions, and one spelling for the paths of everything else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from headrace.errors import InvalidArgument, quoted

_CACHED_PATHS = 4096
_CACHED_PATH_BYTES = 512
"""Longer targets are not worth their place in the cache: names have at most 128 characters."""

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


@dataclass(frozen=True, slots=True)
class InferPath:
    """Where a prediction goes. `protocol` is `tfserving` or `openinference`."""

    protocol: str
    method: str
    model: str
    version: int | None = None
    label: str | None = None


def parse_infer_path(path: bytes) -> InferPath | None:
    """Reads the target of a POST; None if it is no prediction.

    A query is ignored, and so is a base path before `/v2`. Raises `InvalidArgument` if the version
    is no number of 64 bits. As in TensorFlow Serving the method is the one word of `/v1` that must
    be lower case.
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
    """Whether this, in its canonical spelling, is where a picture or video is sent to."""
    return method == "POST" and _UPLOAD.fullmatch(path) is not None


def parse_version(text: str) -> int:
    """A model version; raises `InvalidArgument` unless it is a number of digits."""
    if is_version(text):
        return int(text)
    raise InvalidArgument(f"the model version must be a number, not {quoted(text)}")


def parse_serving_version(digits: str) -> int:
    """A version, refused in TensorFlow Serving's words: `InvalidArgument` if it is too large."""
    if is_version(digits):
        return int(digits)
    raise InvalidArgument(f"Failed to convert version: {quoted(digits)} to numeric.")


def is_version(text: str) -> bool:
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
