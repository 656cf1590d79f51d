"""What a load request may say."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.view import read_load_parameters
from headrace.errors import FilesRefused, InvalidArgument


@pytest.mark.parametrize(
    ("parameters", "document"),
    [
        ({}, None),
        ({"config": ""}, None),
        ({"config": "{}"}, {}),
        ({"config": '{"max_batch_size": 3}'}, {"max_batch_size": 3}),
        ({"config": {"max_batch_size": 3}}, {"max_batch_size": 3}),
    ],
)
def test_the_config_is_json_text_or_an_object(parameters: dict[str, Any], document: Any) -> None:
    assert read_load_parameters(parameters) == document


@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        (
            {"file:1/model.onnx": "AAAA"},
            FilesRefused,
            "failed to poll from model repository: .* store",
        ),
        ({"confg": "{}"}, InvalidArgument, "no parameter 'confg'; it takes 'config'"),
        ({"config": "{"}, InvalidArgument, "must be the JSON text"),
        ({"config": "[]"}, InvalidArgument, "must be the JSON text"),
        ({"config": []}, InvalidArgument, "must be the JSON text"),
        ({"config": 0}, InvalidArgument, "must be the JSON text"),
    ],
)
def test_refuses(parameters: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_load_parameters(parameters)
