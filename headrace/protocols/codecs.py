"""The codec of each call."""

from __future__ import annotations

from headrace.protocols.compression import MAX_INFLATED_BYTES
from headrace.protocols.elements import MAX_ELEMENTS
from headrace.protocols.openinference_json import OpenInferenceCodec
from headrace.protocols.openinference_proto import OpenInferenceProtoCodec
from headrace.protocols.tensors import Codec
from headrace.protocols.tfserving_json import ExamplesCodec, PredictCodec
from headrace.protocols.tfserving_proto import ExamplesProtoCodec, PredictProtoCodec


def codecs(
    max_bytes: int = MAX_INFLATED_BYTES, max_elements: int = MAX_ELEMENTS
) -> tuple[Codec, ...]:
    """The codec of each call but `media`, by its number (`calls.CALLS`).

    Limits: bytes of an inflated body, and its elements as `elements` counts them.
    """
    examples = ExamplesCodec(max_bytes, max_elements)
    predict = PredictCodec(max_bytes, max_elements)
    examples_proto = ExamplesProtoCodec(max_bytes, max_elements)
    return (
        *(predict, examples, examples, OpenInferenceCodec(max_bytes, max_elements)),
        *(OpenInferenceProtoCodec(max_elements), PredictProtoCodec(max_bytes, max_elements)),
        *(examples_proto, examples_proto),
    )
