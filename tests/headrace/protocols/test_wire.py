"""The top-level fields of a message, read without parsing it."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc_tools
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_tools import protoc
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from headrace.errors import InvalidArgument
from headrace.protocols.wire import (
    DESCRIPTORS,
    MAX_FIELDS,
    POOL,
    delimited,
    message,
    read_delimited,
    scan_delimited,
    varint,
)

NUMBERS = st.integers(1, 40)
FIELDS = st.one_of(
    st.tuples(NUMBERS, st.just(2), st.binary(max_size=200).map(lambda b: varint(len(b)) + b)),
    st.tuples(NUMBERS, st.just(0), st.integers(0, 2**64 - 1).map(varint)),
    st.tuples(NUMBERS, st.just(1), st.binary(min_size=8, max_size=8)),
    st.tuples(NUMBERS, st.just(5), st.binary(min_size=4, max_size=4)),
)


@given(st.lists(FIELDS, max_size=12), NUMBERS)
def test_finds_the_last_of_each_among_all_wire_types(
    fields: list[tuple[int, int, bytes]], highest: int
) -> None:
    body = b"".join(varint(number << 3 | kind) + rest for number, kind, rest in fields)
    wanted = {
        number: rest[1:] if len(rest) < 129 else rest[2:]
        for number, kind, rest in fields
        if kind == 2 and number <= highest
    }
    assert read_delimited(body, highest) == wanted


@given(st.lists(FIELDS, max_size=12), NUMBERS, st.randoms(use_true_random=False))
def test_only_what_was_looked_at_decides(
    fields: list[tuple[int, int, bytes]], highest: int, rng: random.Random
) -> None:
    body = b"".join(varint(number << 3 | kind) + rest for number, kind, rest in fields)
    found, seen = scan_delimited(body, highest)
    other = body[:seen] + rng.randbytes(len(body) - seen)
    assert scan_delimited(other, highest) == (found, seen)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"\x0a", "middle of a field"),
        (b"\x0a\x05abc", "middle of a field"),
        (b"\x0a\xff", "middle of a field"),
        (b"\x88", "middle of a field"),
        (b"\x09\x00", "middle of a field"),
        (b"\x0d\x00", "middle of a field"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "middle of a field"),
        (b"\x0a" + b"\xff" * 11, "more than 64 bits"),
        (b"\x0b", "wire type 3"),
        (b"\x0f", "wire type 7"),
    ],
)
def test_refuses_broken_messages(body: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        read_delimited(body, 3)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        found = read_delimited(body, 3)
    except InvalidArgument:
        return
    assert all(number <= 3 for number in found)


def test_stops_after_so_many_fields() -> None:
    padding = b"\x20\x01" * (MAX_FIELDS - 1)
    assert read_delimited(padding + delimited(1, b"m"), 3) == {1: b"m"}
    assert read_delimited(padding + b"\x20\x01" + delimited(1, b"m"), 3) == {}


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
