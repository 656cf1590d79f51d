"""Error bodies and the texts for what is not there."""

from __future__ import annotations

import pytest

from headrace.errors import InvalidArgument, NotFound
from headrace.protocols.targets import encode_error, model_not_found, servable_not_found


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
