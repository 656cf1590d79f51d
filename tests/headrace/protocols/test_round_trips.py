"""A tensor that came in by any protocol goes out by any other as the same tensor."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from headrace.protocols.datatypes import datatype_name, dtype_of, tensorflow_name
from headrace.protocols.openinference_json import OpenInferenceCodec
from headrace.protocols.openinference_proto import OpenInferenceProtoCodec
from headrace.protocols.targets import parse
from headrace.protocols.tensors import Call, Codec, Encoded
from headrace.protocols.tfserving_json import PredictCodec
from headrace.protocols.tfserving_proto import PredictProtoCodec
from headrace.protocols.wire import message
from headrace.spec import BYTES, ModelSpec, Tensor, TensorSpec
from tests.headrace.protocols.specs import model, signature

DATATYPES = (
    *("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    *("FP16", "FP32", "FP64", "BYTES"),
)
CONTENTS = {
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    **{"BOOL": "bool_contents", "INT64": "int64_contents", "UINT64": "uint64_contents"},
    **{"FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents"},
}
LISTS = {
    **dict.fromkeys(("INT8", "INT16", "INT32", "UINT8", "UINT16"), "int_val"),
    **{"BOOL": "bool_val", "INT64": "int64_val", "UINT32": "uint32_val", "UINT64": "uint64_val"},
    **{"FP32": "float_val", "FP64": "double_val", "BYTES": "string_val", "FP16": "half_val"},
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a protocol cannot carry."""

    half: bool = True
    arbitrary_bytes: bool = True
    empty_in_front: bool = True


class Client(Protocol):
    """Writes requests for the input `x` and reads the output `y_bytes`, by the client's rules."""

    codec: Codec
    method: str
    limits: Limits

    def request(self, tensor: Tensor, *, typed: bool) -> tuple[bytes, int | None]:
        """A body and the length of its JSON part; `typed` asks for a protocol's second form."""
        ...

    def answer(self, encoded: Encoded, dtype: np.dtype[Any]) -> Tensor:
        """The output; its dtype is read from the answer where that tells it."""
        ...


@dataclass(slots=True)
class ServingJson:
    """TensorFlow Serving over HTTP: shapes are those of the nesting."""

    codec: Codec = field(default_factory=PredictCodec)
    method: str = "predict"
    limits: Limits = Limits(empty_in_front=False)

    def request(self, tensor: Tensor, *, typed: bool) -> tuple[bytes, int | None]:
        values = nested(tensor, lambda each: {"b64": base64.b64encode(each).decode()})
        return json.dumps({"inputs": {"x": values} if typed else values}).encode(), None

    def answer(self, encoded: Encoded, dtype: np.dtype[Any]) -> Tensor:
        values = json.loads(encoded.body)["outputs"]
        return unnested(values, dtype, lambda each: base64.b64decode(each["b64"]))


@dataclass(slots=True)
class ServingProto:
    """TensorFlow Serving over gRPC, with `tensor_content` or typed lists."""

    codec: Codec = field(default_factory=PredictProtoCodec)
    method: str = "predict"
    limits: Limits = Limits()

    def request(self, tensor: Tensor, *, typed: bool) -> tuple[bytes, int | None]:
        request = message("tensorflow.serving.PredictRequest")()
        proto = request.inputs["x"]
        proto.MergeFrom(
            message("tensorflow.TensorProto")(
                dtype=tensorflow_name(tensor.dtype),
                tensor_shape={"dim": [{"size": size} for size in tensor.shape]},
            )
        )
        name = datatype_name(tensor.dtype)
        if typed or name == "BYTES":
            flat = tensor.view(np.uint16) if name == "FP16" else tensor
            getattr(proto, LISTS[name]).extend(flat.reshape(-1).tolist())
        else:
            proto.tensor_content = tensor.tobytes()
        return request.SerializeToString(), None

    def answer(self, encoded: Encoded, dtype: np.dtype[Any]) -> Tensor:
        proto = parse("tensorflow.serving.PredictResponse", encoded.body).outputs["y_bytes"]
        types = proto.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_name
        assert proto.dtype == types[tensorflow_name(dtype)].number
        values = list(getattr(proto, LISTS[datatype_name(dtype)]))
        shape = [each.size for each in proto.tensor_shape.dim]
        if datatype_name(dtype) == "FP16":
            return np.array(values, np.uint16).view(np.float16).reshape(shape)
        return np.array(values, dtype).reshape(shape)


@dataclass(slots=True)
class InferenceJson:
    """The Open Inference Protocol over HTTP in JSON, flat or nested."""

    codec: Codec = field(default_factory=OpenInferenceCodec)
    method: str = "infer"
    limits: Limits = Limits(half=False, arbitrary_bytes=False)

    def request(self, tensor: Tensor, *, typed: bool) -> tuple[bytes, int | None]:
        shown = tensor if typed and tensor.ndim and tensor.size else tensor.reshape(-1)
        given = {"name": "x", "datatype": datatype_name(tensor.dtype), "shape": tensor.shape}
        data = nested(shown, bytes.decode)
        return json.dumps({"inputs": [given | {"data": data}]}).encode(), None

    def answer(self, encoded: Encoded, dtype: np.dtype[Any]) -> Tensor:
        [output] = json.loads(encoded.body)["outputs"]
        assert dtype_of(output["datatype"]) == dtype
        return unnested(output["data"], dtype, str.encode).reshape(output["shape"])


@dataclass(slots=True)
class InferenceBinary:
    """The Open Inference Protocol over HTTP with raw tensors, by tritonclient."""

    codec: Codec = field(default_factory=OpenInferenceCodec)
    method: str = "infer"
    limits: Limits = Limits()

    def request(self, tensor: Tensor, *, typed: bool) -> tuple[bytes, int | None]:
        given = tritonclient.http.InferInput("x", list(tensor.shape), triton_name(tensor))
        given.set_data_from_numpy(tensor, binary_data=True)
        body, length = tritonclient.http.InferenceServerClient.generate_request_body([given])
        return body, length

    def answer(self, encoded: Encoded, dtype: np.dtype[Any]) -> Tensor:
        result = tritonclient.http.InferResult.from_response_body(
            encoded.body, header_length=encoded.json_length
        )
        return from_triton(result)


@dataclass(slots=True)
class InferenceProto:
    """The Open Inference Protocol over gRPC, raw or with typed contents."""

    codec: Codec = field(default_factory=OpenInferenceProtoCodec)
    method: str = "infer"
    limits: Limits = Limits()

    def request(self, tensor: Tensor, *, typed: bool) -> tuple[bytes, int | None]:
        name = datatype_name(tensor.dtype)
        request = service_pb2.ModelInferRequest()
        given = request.inputs.add(name="x", datatype=name, shape=tensor.shape)
        if typed and name in CONTENTS:
            getattr(given.contents, CONTENTS[name]).extend(tensor.reshape(-1).tolist())
        else:
            request.raw_input_contents.append(raw(tensor))
        return request.SerializeToString(), None

    def answer(self, encoded: Encoded, dtype: np.dtype[Any]) -> Tensor:
        response = service_pb2.ModelInferResponse.FromString(encoded.body)
        return from_triton(tritonclient.grpc.InferResult(response))


CLIENTS: tuple[Client, ...] = (
    ServingJson(),
    ServingProto(),
    InferenceJson(),
    InferenceBinary(),
    InferenceProto(),
)


def nested(tensor: Tensor, written: Any) -> Any:
    """Nested lists for JSON; `written` makes JSON of an element of bytes."""
    if tensor.dtype != BYTES:
        return tensor.tolist()
    if not tensor.ndim:
        return written(tensor.item())
    return [nested(np.asarray(row, dtype=BYTES), written) for row in tensor]


def unnested(values: Any, dtype: np.dtype[Any], read: Any) -> Tensor:
    """The tensor of nested lists."""
    if dtype != BYTES:
        return np.array(values, dtype)
    shape, flat = [], [values]
    while flat and isinstance(flat[0], list):
        shape.append(len(flat[0]))
        flat = [each for row in flat for each in row]
    tensor = np.empty(len(flat), dtype=BYTES)
    tensor[:] = [read(each) for each in flat]
    return tensor.reshape(shape)


def raw(tensor: Tensor) -> bytes:
    """Raw bytes by tritonclient's rules."""
    if tensor.dtype != BYTES:
        return tensor.tobytes()
    packed = serialize_byte_tensor(tensor)
    return bytes(packed.item()) if packed.size else b""


def triton_name(tensor: Tensor) -> str:
    name: str = np_to_triton_dtype(tensor.dtype)
    return name


def from_triton(result: Any) -> Tensor:
    tensor: Tensor = result.as_numpy("y_bytes")
    return tensor


@st.composite
def tensors(draw: st.DrawFn, limits: Limits) -> Tensor:
    """Any tensor of ranks 0 to 4 within the limits."""
    allowed = DATATYPES if limits.half else [name for name in DATATYPES if name != "FP16"]
    dtype = dtype_of(draw(st.sampled_from(allowed)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
    if not limits.empty_in_front:
        shape = (*(size or 1 for size in shape[:-1]), *shape[-1:])
    if dtype != BYTES:
        return draw(hnp.arrays(dtype, shape))
    text = st.text(max_size=5).map(str.encode)
    element = st.binary(max_size=9) if limits.arbitrary_bytes else text
    count = int(np.prod(shape))
    flat = np.empty(count, dtype=BYTES)
    flat[:] = draw(st.lists(element, min_size=count, max_size=count))
    return flat.reshape(shape)


def both(one: Limits, other: Limits) -> Limits:
    """What neither of two protocols can carry is left out."""
    return Limits(
        one.half and other.half,
        one.arbitrary_bytes and other.arbitrary_bytes,
        one.empty_in_front and other.empty_in_front,
    )


def echo(dtype: np.dtype[Any]) -> ModelSpec:
    """A model of any rank."""
    return model(signature([TensorSpec("x", dtype, None)], [TensorSpec("y_bytes", dtype, None)]))


def assert_same(found: Tensor, tensor: Tensor) -> None:
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    if tensor.dtype == BYTES:
        assert found.tolist() == tensor.tolist()
    else:
        np.testing.assert_array_equal(found, tensor)
        numbers = tensor == tensor  # NaN has no sign in JSON
        np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(tensor[numbers]))


@pytest.mark.parametrize("target", CLIENTS, ids=lambda client: type(client).__name__)
@pytest.mark.parametrize("source", CLIENTS, ids=lambda client: type(client).__name__)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), typed=st.booleans())
def test_a_tensor_stays_the_same(
    source: Client, target: Client, data: st.DataObject, typed: bool
) -> None:
    tensor = data.draw(tensors(both(source.limits, target.limits)))
    model_ = echo(tensor.dtype)
    body, length = source.request(tensor, typed=typed)
    came = source.codec.decode(body, Call(source.method, length), model_)
    assert came.inputs.keys() == {"x"}
    assert_same(came.inputs["x"], tensor)
    body, length = target.request(tensor, typed=typed)
    asked = target.codec.decode(body, Call(target.method, length), model_)
    encoded = target.codec.encode(asked, {"y_bytes": came.inputs["x"]}, model_)
    assert_same(target.answer(encoded, tensor.dtype), tensor)
