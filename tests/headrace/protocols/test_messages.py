"""The messages of our own: what they are compiled from, and that they are what others speak."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc_tools
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_tools import protoc
from tritonclient.grpc import model_config_pb2, service_pb2

from headrace.protocols.wire import DESCRIPTORS, POOL, message

SOURCES = ("inference.proto", "media.proto", "tensorflow.proto", "tensorflow_serving.proto")
TENSORFLOW = {"tensorflow.TensorProto", "tensorflow.Example", "tensorflow.SignatureDef"}


def compiled(data: bytes) -> dict[str, Any]:
    """The file descriptors by their names."""
    return {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(data).file}


def nested(messages: Any) -> Iterator[Any]:
    """These message descriptors and all inside of them."""
    for each in messages:
        yield each
        yield from nested(each.nested_types)


def ours(source: str) -> list[Any]:
    """Every message of one of our files."""
    file = POOL.FindFileByName(source)
    return list(nested(file.message_types_by_name.values()))


def shape(field: Any) -> tuple[Any, ...]:
    """What decides how a field travels."""
    return (
        field.number,
        field.type,
        field.is_repeated,
        field.is_packed,
        bool(field.containing_oneof),
    )


def test_descriptors_are_what_the_sources_say(tmp_path: Path) -> None:
    proto, out = DESCRIPTORS.parent, tmp_path / "out.binpb"
    standard = Path(inspect.getfile(grpc_tools)).with_name("_proto")
    arguments = [f"-I{proto}", f"-I{standard}", "--include_imports", f"--descriptor_set_out={out}"]
    assert protoc.main(["protoc", *arguments, *SOURCES]) == 0
    now, stored = compiled(out.read_bytes()), compiled(DESCRIPTORS.read_bytes())
    assert now.keys() == stored.keys(), "run `make protos`"
    for source in SOURCES:
        assert now[source] == stored[source], "run `make protos`"


def test_fields_are_those_of_tritonclient() -> None:
    assert service_pb2.DESCRIPTOR.package == model_config_pb2.DESCRIPTOR.package == "inference"
    theirs = descriptor_pool.Default()
    checked = 0
    for mine in ours("inference.proto"):
        other = theirs.FindMessageTypeByName(mine.full_name)
        for field in mine.fields:
            assert shape(field) == shape(other.fields_by_name[field.name]), field.full_name
            checked += 1
    assert checked > 100
    types = theirs.FindEnumTypeByName("inference.DataType").values_by_name
    for value in POOL.FindEnumTypeByName("inference.DataType").values:
        assert types[value.name].number == value.number


def test_methods_are_those_of_tritonclient() -> None:
    name = "inference.GRPCInferenceService"
    theirs = descriptor_pool.Default().FindServiceByName(name).methods_by_name
    for mine in POOL.FindServiceByName(name).methods:
        other = theirs[mine.name]
        assert mine.input_type.full_name == other.input_type.full_name
        assert mine.output_type.full_name == other.output_type.full_name
        assert mine.client_streaming == other.client_streaming
        assert mine.server_streaming == other.server_streaming


@pytest.mark.tensorflow
def test_fields_are_those_of_tensorflow_in_the_same_process() -> None:
    import tensorflow as tf

    theirs = descriptor_pool.Default()
    names = {mine.full_name for mine in ours("tensorflow.proto")}
    assert names > TENSORFLOW
    for mine in ours("tensorflow.proto"):
        other = theirs.FindMessageTypeByName(mine.full_name)
        for field in mine.fields:
            assert shape(field) == shape(other.fields_by_name[field.name]), field.full_name
    types = theirs.FindEnumTypeByName("tensorflow.DataType").values_by_name
    for value in POOL.FindEnumTypeByName("tensorflow.DataType").values:
        assert types[value.name].number == value.number
    made = tf.make_tensor_proto(np.arange(6, dtype=np.int16).reshape(2, 3))
    again = message("tensorflow.TensorProto").FromString(made.SerializeToString())
    assert again.SerializeToString() == made.SerializeToString()
    assert type(again) is not type(made)


def test_lives_beside_tritonclients_messages() -> None:
    theirs = service_pb2.ModelInferRequest(model_name="m", id="7")
    mine = message("inference.ModelInferRequest").FromString(theirs.SerializeToString())
    assert (mine.model_name, mine.id) == ("m", "7")
    assert type(mine) is not type(theirs)
    assert message("inference.ModelInferRequest") is type(mine)


def test_unknown_message_is_an_error() -> None:
    with pytest.raises(KeyError, match="Nothing"):
        message("inference.Nothing")
