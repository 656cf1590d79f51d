"""External data: found wherever ONNX can put it, and refused outside the version folder."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from headrace.errors import InvalidArgument, ModelLoadError
from replicas.verification import (
    CONTAINERS,
    check_external_data,
    external_locations,
)

WHERE = "model demo version 1"


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph_with(location: str) -> onnx.GraphProto:
    return helper.make_graph([], "graph", [], [], [external(location)])


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("name", sorted(CONTAINERS.keys() - {"TensorProto"}))
def test_containers_name_every_field_of_onnx_that_leads_to_a_tensor(name: str) -> None:
    fields = {
        field.number: field.message_type.name
        for field in getattr(onnx, name).DESCRIPTOR.fields
        if field.message_type is not None and field.message_type.name in CONTAINERS
    }
    assert CONTAINERS[name] == fields


def test_external_locations_are_found_in_every_corner(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["a"], value=external("attribute")),
        helper.make_node("If", ["c"], ["b"], then_branch=graph_with("branch")),
    ]
    sparse = onnx.SparseTensorProto(values=external("values"), indices=external("indices"))
    graph = helper.make_graph(
        nodes, "g", [], [], [external("weights")], sparse_initializer=[sparse]
    )
    function = helper.make_function("d", "f", [], ["a"], nodes[:1], [helper.make_opsetid("", 17)])
    function.attribute_proto.append(helper.make_attribute("t", external("default")))
    model = helper.make_model(graph, functions=[function])
    model.training_info.add(initialization=graph_with("training"))
    assert external_locations(write(tmp_path / "model.onnx", model)) == {
        *("attribute", "branch", "values", "indices", "weights", "default", "training")
    }


def test_external_locations_are_empty_when_only_a_name_says_location(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["location"])
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    assert external_locations(write(tmp_path / "model.onnx", model)) == set()


def test_the_last_value_counts_when_a_location_is_given_twice(tmp_path: Path) -> None:
    model = helper.make_model(graph_with("weights.bin")).SerializeToString()
    entry = b"\x0a\x08location\x12\x0bweights.bin"
    assert entry in model
    swapped = model.replace(entry, b"\x12\x0bweights.bin\x0a\x08location")
    path = tmp_path / "model.onnx"
    path.write_bytes(swapped)
    assert external_locations(path) == {"weights.bin"}


def test_check_accepts_data_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "weights.bin").write_bytes(bytes(8))
    path = write(tmp_path / "model.onnx", helper.make_model(graph_with("data/weights.bin")))
    check_external_data(path, WHERE)
    assert external_locations(path) == {"data/weights.bin"}


@pytest.mark.parametrize("location", ["../secret.bin", "{root}/secret.bin", "link.bin", "*/memory"])
def test_check_refuses_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "1"
    (folder / "*").mkdir(parents=True)
    (folder / "*" / "memory").write_bytes(bytes(8))
    (tmp_path / "secret.bin").write_bytes(bytes(8))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    named = location.format(root=tmp_path)
    path = write(folder / "model.onnx", helper.make_model(graph_with(named)))
    with pytest.raises(
        ModelLoadError, match=r"^model demo version 1: .* out of the version folder"
    ):
        check_external_data(path, WHERE)


def test_check_names_data_that_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", helper.make_model(graph_with("weights.bin")))
    with pytest.raises(ModelLoadError, match=r"'weights\.bin' is missing"):
        check_external_data(path, WHERE)


@pytest.mark.parametrize(("location", "reason"), [("a\0b", "NUL byte"), ("x" * 300, "is missing")])
def test_check_refuses_names_that_no_file_can_have(
    tmp_path: Path, location: str, reason: str
) -> None:
    path = write(tmp_path / "model.onnx", helper.make_model(graph_with(location)))
    with pytest.raises(ModelLoadError, match=reason) as caught:
        check_external_data(path, WHERE)
    assert len(caught.value.message) < 200


def test_check_refuses_a_truncated_model(tmp_path: Path) -> None:
    model = helper.make_model(graph_with("weights.bin")).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(model[:-3])
    with pytest.raises(ModelLoadError, match="truncated or not an ONNX model"):
        check_external_data(path, WHERE)


@given(st.binary(max_size=40), st.integers(0, 200))
def test_any_bytes_are_either_walked_or_malformed(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, cut: int
) -> None:
    model = helper.make_model(graph_with("weights.bin")).SerializeToString()
    path = tmp_path_factory.getbasetemp() / "noise.onnx"
    path.write_bytes(model[:cut] + noise + model[cut:])
    try:
        found = external_locations(path)
    except InvalidArgument as error:
        assert str(error)
    else:
        assert all(isinstance(location, str) for location in found)
