"""The numbers of calls on the link."""

from __future__ import annotations

import pytest

from headrace.protocols.calls import CALLS, call_number, call_of, form_of, headers_of
from headrace.protocols.codecs import codecs
from headrace.protocols.openinference_json import OpenInferenceCodec
from headrace.protocols.openinference_proto import OpenInferenceProtoCodec
from headrace.protocols.tfserving_json import ExamplesCodec, PredictCodec
from headrace.protocols.tfserving_proto import ExamplesProtoCodec, PredictProtoCodec


def test_every_call_has_its_codec() -> None:
    found = {
        (kind.protocol, kind.method): type(codec)
        for kind, codec in zip(CALLS, codecs(), strict=False)
    }
    # What the slot itself answers comes last, since the codecs here do not know of it.
    assert [kind.protocol for kind in CALLS[len(codecs()) :]] == ["media"]
    assert found == {
        ("tfserving", "predict"): PredictCodec,
        ("tfserving", "classify"): ExamplesCodec,
        ("tfserving", "regress"): ExamplesCodec,
        ("openinference", "infer"): OpenInferenceCodec,
        ("openinference_grpc", "infer"): OpenInferenceProtoCodec,
        ("tfserving_grpc", "predict"): PredictProtoCodec,
        ("tfserving_grpc", "classify"): ExamplesProtoCodec,
        ("tfserving_grpc", "regress"): ExamplesProtoCodec,
    }


def test_numbers_stay_as_they_are() -> None:
    assert call_number("openinference_grpc", "infer") == 4
    assert call_number("tfserving_grpc", "regress") == 7
    assert call_of(7, None, 0).method == "regress"


@pytest.mark.parametrize("coding", ["", "gzip", "deflate"])
@pytest.mark.parametrize("kind", ["application/json", "application/grpc"])
def test_form_of_an_answer_round_trips(kind: str, coding: str) -> None:
    assert headers_of(form_of(kind, coding)) == (kind, coding)
