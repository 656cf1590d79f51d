"""SavedModels of TensorFlow 1 and of TensorFlow 2: both load, and the graph decides on shapes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.errors import InvalidArgument, ModelLoadError, NotFound
from headrace.protocols.examples import encode_example
from headrace.spec import BYTES, decode_spec, encode_spec
from replicas.runtime import Runtime, RuntimeSettings
from tests.saved_models import ASSET, half_plus_three, half_plus_two

pytestmark = pytest.mark.tensorflow

SETTINGS = RuntimeSettings(max_rows=8)
FLAT = np.array([1.0, 2.0, 5.0], np.float32)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    # The runtime first: it sets what can be set only before TensorFlow computes.
    from replicas import tensorflow_runtime

    with pytest.raises(ModelLoadError):
        tensorflow_runtime.load(folder, "half", 1, SETTINGS)
    half_plus_two(folder / "two" / "1")
    half_plus_three(folder / "three" / "1")
    shutil.rmtree(folder / "three" / "source")
    return {name: folder / name / "1" for name in ("two", "three")}


def opened(path: Path) -> Runtime:
    from replicas import tensorflow_runtime

    return tensorflow_runtime.load(path, "half", 1, SETTINGS)


@pytest.fixture(scope="module")
def two(exports: Mapping[str, Path]) -> Runtime:
    return opened(exports["two"])


@pytest.fixture(scope="module")
def three(exports: Mapping[str, Path]) -> Runtime:
    return opened(exports["three"])


def strings(*values: bytes) -> Any:
    array = np.empty(len(values), dtype=BYTES)
    array[:] = values
    return array


def test_a_graph_with_reference_variables_runs(three: Runtime) -> None:
    column = FLAT.reshape(3, 1)
    answer = three.run("serving_default", {"x": column}, ["y"])["y"]
    assert answer.dtype == np.float32 and answer.tolist() == [[3.5], [4.0], [5.5]]
    examples = strings(encode_example({"x": [4.0]}), encode_example({"x": [0.0]}))
    assert three.run("regress_x_to_y", {"inputs": examples}, ["outputs"])["outputs"].tolist() == [
        [5.0],
        [3.0],
    ]


def test_what_initialises_a_graph_has_run(three: Runtime) -> None:
    name = three.run("asset", {"x": FLAT}, ["name"])["name"]
    assert (name.dtype, name.shape, name.item()) == (BYTES, (), ASSET.encode())


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1, 1), ()])
def test_the_graph_decides_on_shapes(two: Runtime, three: Runtime, shape: tuple[int, ...]) -> None:
    x = np.full(shape, 2.0, np.float32)
    for runtime, bias in ((two, 2.0), (three, 3.0)):
        answer = runtime.run("serving_default", {"x": x}, ["y"])["y"]
        assert answer.shape == shape and np.all(answer == 1.0 + bias)


def test_an_input_of_another_dtype_is_refused(two: Runtime, three: Runtime) -> None:
    for runtime in (two, three):
        with pytest.raises(InvalidArgument, match=r"(?i)float"):
            runtime.run("serving_default", {"x": strings(b"1")}, ["y"])


def test_unknown_outputs_and_signatures_are_named(three: Runtime) -> None:
    with pytest.raises(InvalidArgument, match="no output 'z'"):
        three.run("serving_default", {"x": FLAT}, ["z"])
    with pytest.raises(NotFound, match="no signature 'other'"):
        three.run("other", {"x": FLAT}, ["y"])


def test_tensors_have_the_names_of_the_graph(two: Runtime, three: Runtime) -> None:
    signature = three.spec.signatures["serving_default"]
    assert [each.graph_name for each in (*signature.inputs, *signature.outputs)] == ["x:0", "y:0"]
    [given] = two.spec.signatures["serving_default"].inputs
    assert given.graph_name == "serving_default_x:0" and given.shape == (None, 1)
    assert not three.spec.operations  # these keep what initialises them in a collection
    assert two.spec.operations == {"__saved_model_init_op": "NoOp"}
    assert not any(name.startswith("__") for name in (*two.spec.signatures, *three.spec.signatures))
    for runtime in (two, three):
        assert decode_spec(encode_spec(runtime.spec)) == runtime.spec


def test_a_closed_graph_runs_no_more(exports: Mapping[str, Path]) -> None:
    runtime = opened(exports["three"])
    runtime.close()
    with pytest.raises(NotFound):
        runtime.run("serving_default", {"x": FLAT}, ["y"])


def test_a_graph_without_its_asset_or_variables_does_not_load(
    exports: Mapping[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(exports["three"], tmp_path / "1"))
    next((path / "variables").glob("*.index")).unlink()
    with pytest.raises(ModelLoadError, match="damaged, incomplete or not supported: ") as caught:
        opened(path)
    assert str(tmp_path) not in caught.value.message


def test_a_signature_whose_tensor_is_not_in_the_graph_does_not_load(
    exports: Mapping[str, Path], tmp_path: Path
) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    path = Path(shutil.copytree(exports["three"], tmp_path / "1"))
    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    saved.meta_graphs[0].signature_def["asset"].outputs["name"].name = "gone:0"
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())
    with pytest.raises(ModelLoadError, match="gone"):
        opened(path)
