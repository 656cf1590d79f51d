"""The Open Inference Protocol's gRPC codec: ModelInferRequest in, ModelInferResponse out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gateway.errors import InvalidArgument
from gateway.protocols.datatypes import check_supported, datatype_name, dtype_of
from gateway.protocols.grpc_targets import parse
from gateway.protocols.messages import message
from gateway.protocols.openinference_json import shape_of
from gateway.protocols.openinference_parameters import (
    refuse_unsupported,
    signature_of,
    timeout_s_of,
)
from gateway.protocols.quoting import quoted
from gateway.protocols.raw_tensors import decode_raw, encode_raw
from gateway.protocols.request_checks import check_inputs, find_output, wanted_names
from gateway.protocols.tensors import (
    Call,
    Encoded,
    InferenceRequest,
    ModelSpec,
    Signature,
    Tensor,
)
from gateway.protocols.typed_lists import read_list

_REQUEST = "inference.ModelInferRequest"
_RESPONSE = "inference.ModelInferResponse"

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """How to answer: the request's id, and whether a final answer is to be marked as such."""

    id: str
    final: bool


class OpenInferenceProtoCodec:
    """The codec of ModelInfer. Answers are raw, since clients read nothing else."""

    def decode(self, body: bytes | memoryview, call: Call, model: ModelSpec) -> InferenceRequest:
        """Read a request; raises `InvalidArgument` or `Unimplemented`."""
        request = parse(_REQUEST, body)
        parameters = _parameters(request.parameters)
        signature = signature_of(model, parameters, [each.name for each in request.inputs])
        inputs = _decode_inputs(request)
        rows = check_inputs(signature, inputs)
        reply = Reply(request.id, bool(parameters.get("triton_enable_empty_final_response")))
        timeout_s = timeout_s_of(parameters)
        return InferenceRequest(
            signature, inputs, rows, _wanted(request, signature), timeout_s, reply
        )

    def encode(
        self, request: InferenceRequest, outputs: Mapping[str, Tensor], model: ModelSpec
    ) -> Encoded:
        """Write the answer of one request."""
        reply: Reply = request.reply
        answer = message(_RESPONSE)(
            model_name=model.name, model_version=str(model.version), id=reply.id
        )
        if reply.final:
            answer.parameters["triton_final_response"].bool_param = True
        for name in wanted_names(request.signature, request.outputs):
            tensor = np.asarray(outputs[name], order="C")
            check_supported(tensor.dtype)
            answer.outputs.add(name=name, datatype=datatype_name(tensor.dtype), shape=tensor.shape)
            answer.raw_output_contents.append(encode_raw(tensor))
        return Encoded(answer.SerializeToString(), "application/grpc")


def _parameters(entries: Any) -> dict[str, Any]:
    """Plain values of a map of InferParameter; one that is not set counts as absent."""
    found = {}
    for name, parameter in entries.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            found[name] = getattr(parameter, kind)
    return found


def _decode_inputs(request: Any) -> dict[str, Tensor]:
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise InvalidArgument(
            f"raw_input_contents holds {len(raws)} tensors, but there are "
            f"{len(request.inputs)} inputs; it needs one for each, in their order"
        )
    inputs: dict[str, Tensor] = {}
    for index, each in enumerate(request.inputs):
        if each.name in inputs:
            raise InvalidArgument(f"'inputs' names {quoted(each.name)} twice")
        where = f"input {quoted(each.name)}"
        if each.parameters:
            refuse_unsupported(_parameters(each.parameters), where)
        dtype = dtype_of(each.datatype)
        shape = shape_of(list(each.shape), where)
        if not raws:
            inputs[each.name] = _typed(each, dtype, shape, where)
        elif each.HasField("contents"):
            raise InvalidArgument(
                f"{where}: 'contents' must not be set when raw_input_contents is used"
            )
        else:
            inputs[each.name] = decode_raw(memoryview(raws[index]), dtype, shape, where)
    return inputs


def _typed(each: Any, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> Tensor:
    """A tensor of the contents field of its datatype."""
    field = _CONTENTS.get(each.datatype)
    if field is None:
        raise InvalidArgument(f"{where}: {each.datatype} has no typed contents; send it raw")
    for other, _ in each.contents.ListFields():
        if other.name != field:
            raise InvalidArgument(
                f"{where} has values in {other.name!r}, but {each.datatype} takes {field!r}"
            )
    count = len(getattr(each.contents, field))
    if count != math.prod(shape):
        raise InvalidArgument(
            f"{where} needs {math.prod(shape)} values in '{field}' for its shape {list(shape)}, "
            f"not {count}"
        )
    return read_list(each.contents, field, dtype, where).reshape(shape)


def _wanted(request: Any, signature: Signature) -> tuple[str, ...] | None:
    """The names of the wanted outputs; None: all."""
    if not request.outputs:
        return None
    names: list[str] = []
    for each in request.outputs:
        find_output(signature, each.name)
        if each.name in names:
            raise InvalidArgument(f"'outputs' names {quoted(each.name)} twice")
        if each.parameters:
            refuse_unsupported(_parameters(each.parameters), f"output {quoted(each.name)}")
        names.append(each.name)
    return tuple(names)
