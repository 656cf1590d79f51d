"""Request targets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgument, NotFound
from headrace.protocols.targets import (
    InferPath,
    canonical_path,
    encode_error,
    model_not_found,
    parse_infer_path,
    servable_not_found,
)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/v1/models/m:predict", InferPath("tfserving", "predict", "m")),
        (b"/v1/models/m:classify?a=/b", InferPath("tfserving", "classify", "m")),
        (b"/v1/models/m/versions/12:regress", InferPath("tfserving", "regress", "m", 12)),
        (
            b"/V1/Models/M/Labels/St%C3%A9:predict",
            InferPath("tfserving", "predict", "M", None, "Sté"),
        ),
        (b"/v2/models/m/infer", InferPath("openinference", "infer", "m")),
        (b"/v2/models/a%2Fb/versions/3/infer?x", InferPath("openinference", "infer", "a/b", 3)),
        (b"/base/path/v2/models/m/infer", InferPath("openinference", "infer", "m")),
        (b"/v2/models/v2/infer", InferPath("openinference", "infer", "v2")),
        (b"/v1/models/m", None),
        (b"/v1/models/m:other", None),
        (b"/v1/models/m:Predict", None),
        (b"/v1/models/m/versions/latest:predict", None),
        (b"/v1/models/m/versions/%31:predict", None),
        (b"/v1/models/m/versions/1/labels/x:predict", None),
        (b"/v1/models/:predict", None),
        (b"/v1/v2/models/m/infer", None),
        (b"/v2/models/m/ready", None),
        (b"/xv2/models/m/infer", None),
        (b"/v2/models/m/infer/", None),
        (b"", None),
        (b"/" + b"a/" * 1000 + b"v2/models/m/infer", InferPath("openinference", "infer", "m")),
    ],
)
def test_parse_infer_path(path: bytes, expected: InferPath | None) -> None:
    assert parse_infer_path(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/models/m/versions/9223372036854775808:predict",
        b"/v2/models/m/versions/9223372036854775808/infer",
        b"/v2/models/m/versions/-1/infer",
        b"/v2/models/m/versions/12345678901234567890/infer",
        "/v2/models/m/versions/\N{ARABIC-INDIC DIGIT ONE}/infer".encode(),
        b"/v2/models/%ff/infer",
    ],
)
def test_parse_infer_path_refuses(path: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_infer_path(path)


@given(st.binary(max_size=60))
def test_parse_infer_path_raises_nothing_else(tail: bytes) -> None:
    for prefix in (b"", b"/v1/models/", b"/v2/models/"):
        for suffix in (b"", b":predict", b"/infer"):
            try:
                found = parse_infer_path(prefix + tail + suffix)
            except InvalidArgument:
                continue
            assert found is None or found.model


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/V1/MODELS/Name/VERSIONS/1/Metadata", "/v1/models/Name/versions/1/metadata"),
        ("/V1/models/Name", "/v1/models/Name"),
        ("/V1/Other", "/v1/Other"),
        ("/v1/models/v2", "/v1/models/v2"),
        ("/base/v2/health/live", "/v2/health/live"),
        ("/base/v2", "/v2"),
        ("/v2/models/v2/ready", "/v2/models/v2/ready"),
        ("/healthz", "/healthz"),
    ],
)
def test_canonical_path(path: str, expected: str) -> None:
    assert canonical_path(path) == expected


def test_encode_error_has_one_key() -> None:
    encoded = encode_error(InvalidArgument('a "b" \ud800'))
    assert encoded.body == b'{"error":"a \\"b\\" ?"}'
    assert encoded.content_type == "application/json"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (servable_not_found("m"), "Servable not found for request: Latest(m)"),
        (servable_not_found("m", 7), "Servable not found for request: Specific(m, 7)"),
        (servable_not_found("m", label="new"), "Unrecognized servable version label: new"),
        (model_not_found("m"), "Request for unknown model: 'm' is not found"),
        (model_not_found("m", 7), "Request for unknown model: 'm' version 7 is not found"),
    ],
)
def test_not_found_texts(error: NotFound, text: str) -> None:
    assert error.message == text
    assert error.http_status == 404
