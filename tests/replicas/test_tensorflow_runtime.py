"""The TensorFlow runtime, with the real library and a SavedModel of three functions."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from structlog.testing import capture_logs

from headrace.errors import InvalidArgument, ModelLoadError, NotFound
from headrace.spec import BFLOAT16, BYTES
from replicas.runtime import Runtime, RuntimeSettings
from replicas.warmup import warm_up

pytestmark = pytest.mark.tensorflow

Load = Callable[..., Runtime]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    # Imported here, so that tests which are deselected cost no seconds.
    from replicas import tensorflow_runtime

    # The first load sets the thread pools, also when it fails; the fixtures below start them.
    with pytest.raises(ModelLoadError):
        tensorflow_runtime.load(tmp_path_factory.mktemp("empty"), "demo", 1, RuntimeSettings())
    return tensorflow_runtime.load


@pytest.fixture(scope="module")
def saved(load: Load, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signatures: `serving_default` (x @ w), `pictures` (decodes) and `total` (a scalar)."""
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable([[1.0], [10.0]])

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])  # type: ignore[untyped-decorator]
    def multiply(x: Any) -> Any:
        return {"y": x @ module.w}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])  # type: ignore[untyped-decorator]
    def pictures(image_bytes: Any) -> Any:
        def red(picture: Any) -> Any:
            pixels = tf.io.decode_image(picture, 3, expand_animations=False)
            return tf.reduce_mean(tf.cast(pixels[..., 0], tf.float32))

        means = tf.map_fn(red, image_bytes, fn_output_signature=tf.float32)
        return {"red": means, "echo": image_bytes}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)])  # type: ignore[untyped-decorator]
    def total(values: Any) -> Any:
        return {"sum": tf.reduce_sum(values), "name": tf.constant(b"sum")}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.bfloat16)])  # type: ignore[untyped-decorator]
    def halves(x: Any) -> Any:
        return {"y": x + x}

    path = tmp_path_factory.mktemp("saved") / "1"
    signatures = {
        "serving_default": multiply,
        "pictures": pictures,
        "total": total,
        "halves": halves,
    }
    tf.saved_model.save(module, str(path), signatures=signatures)
    return path


@pytest.fixture(scope="module")
def runtime(load: Load, saved: Path) -> Runtime:
    return load(saved, "demo", 3, RuntimeSettings())


def copied(saved: Path, folder: Path) -> Path:
    return Path(shutil.copytree(saved, folder / "1"))


def edited(saved: Path, folder: Path, edit: Callable[[Any], None]) -> Path:
    """A copy of the SavedModel whose one graph was changed by `edit`."""
    from tensorflow.core.protobuf import saved_model_pb2

    path = copied(saved, folder)
    model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    edit(model.meta_graphs[0])
    (path / "saved_model.pb").write_bytes(model.SerializeToString())
    return path


def picture(red: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def test_spec_lists_the_signatures_for_callers(runtime: Runtime) -> None:
    spec = runtime.spec
    assert (spec.name, spec.version, spec.platform) == ("demo", 3, "tensorflow_savedmodel")
    assert sorted(spec.signatures) == ["halves", "pictures", "serving_default", "total"]
    pictures = spec.signatures["pictures"]
    assert [(each.name, each.dtype, each.shape) for each in pictures.inputs] == [
        ("image_bytes", BYTES, (None,))
    ]
    assert [each.name for each in pictures.outputs] == ["echo", "red"]
    assert spec.signatures["total"].outputs[1].shape == ()
    assert pictures.method == "tensorflow/serving/predict"


def test_run_gives_the_named_outputs_in_order(runtime: Runtime) -> None:
    x = np.array([[1, 2], [3, 4]], np.float32)
    assert runtime.run("serving_default", {"x": x}, ["y"])["y"].tolist() == [[21.0], [43.0]]
    batch = np.array([picture(200), picture(10)], dtype=object)
    answer = runtime.run("pictures", {"image_bytes": batch}, ["red", "echo"])
    assert list(answer) == ["red", "echo"]
    assert answer["red"].tolist() == [200.0, 10.0]


def test_run_takes_and_gives_bytes_for_strings(runtime: Runtime) -> None:
    batch = np.array([picture(1), picture(2)], dtype=object)
    answer = runtime.run("pictures", {"image_bytes": batch}, ["echo"])["echo"]
    assert answer.dtype == BYTES
    assert answer.tolist() == batch.tolist()
    scalar = runtime.run("total", {"values": np.array([1, 2])}, ["sum", "name"])
    assert (scalar["sum"].item(), scalar["name"].item()) == (3, b"sum")
    assert (scalar["name"].dtype, scalar["name"].shape) == (BYTES, ())


def test_run_of_no_rows_gives_no_rows(runtime: Runtime) -> None:
    answer = runtime.run("pictures", {"image_bytes": np.array([], dtype=object)}, ["red", "echo"])
    assert (answer["red"].shape, answer["echo"].shape) == ((0,), (0,))


def test_run_says_in_one_line_that_bytes_are_no_picture(runtime: Runtime) -> None:
    with pytest.raises(InvalidArgument, match="Unknown image file format") as caught:
        runtime.run("pictures", {"image_bytes": np.array([b"no picture"], object)}, ["red"])
    assert "\n" not in caught.value.message
    assert "Op:" not in caught.value.message
    assert "node" not in caught.value.message


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ({"x": np.zeros((1, 3), np.float32)}, ["y"], "Matrix size-incompatible"),
        ({"x": np.zeros((1, 2), np.float64)}, ["y"], "expected to be a float tensor"),
        ({}, ["y"], r"takes the inputs \['x'\], not \[\]"),
        ({"x": np.zeros((1, 2), np.float32), "z": np.zeros(1)}, ["y"], r"not \['x', 'z'\]"),
        ({"x": np.zeros((1, 2), np.float32)}, ["z"], "no output 'z'"),
    ],
)
def test_run_refuses_wrong_inputs(
    runtime: Runtime, inputs: dict[str, Any], outputs: list[str], said: str
) -> None:
    with pytest.raises(InvalidArgument, match=said):
        runtime.run("serving_default", inputs, outputs)


def test_run_names_the_signatures_when_one_is_unknown(runtime: Runtime) -> None:
    with pytest.raises(NotFound, match="it has 'halves', 'pictures', 'serving_default', 'total'"):
        runtime.run("other", {}, [])


def test_warm_up_satisfies_all_signatures(runtime: Runtime) -> None:
    with capture_logs() as said:
        warm_up(runtime)
    assert said == []


def test_max_rows_needs_free_rows_in_all_signatures(
    load: Load, runtime: Runtime, saved: Path, tmp_path: Path
) -> None:
    path = edited(saved, tmp_path, lambda graph: graph.signature_def.pop("total"))
    batchable = load(path, "demo", 1, RuntimeSettings(max_rows=8)).spec
    assert (runtime.spec.max_rows, batchable.max_rows) == (0, 8)
    assert sorted(batchable.signatures) == ["halves", "pictures", "serving_default"]


def test_method_names_come_from_the_file(load: Load, saved: Path, tmp_path: Path) -> None:
    def classify(graph: Any) -> None:
        graph.signature_def["pictures"].method_name = "tensorflow/serving/classify"

    loaded = load(edited(saved, tmp_path, classify), "demo", 1, RuntimeSettings())
    assert loaded.spec.signatures["pictures"].method == "tensorflow/serving/classify"


def test_load_refuses_a_dtype_that_numpy_lacks(load: Load, saved: Path, tmp_path: Path) -> None:
    def float8(graph: Any) -> None:
        graph.signature_def["total"].outputs["sum"].dtype = 24

    with pytest.raises(ModelLoadError, match="signature total has sum of float8"):
        load(edited(saved, tmp_path, float8), "demo", 1, RuntimeSettings())


def test_bfloat16_passes(runtime: Runtime) -> None:
    x = np.array([0.5, -3], BFLOAT16)
    doubled = runtime.run("halves", {"x": x}, ["y"])["y"]
    assert doubled.dtype == BFLOAT16 and doubled.tolist() == [1, -6]


def test_load_refuses_a_graph_that_is_not_for_serving(
    load: Load, saved: Path, tmp_path: Path
) -> None:
    path = edited(saved, tmp_path, lambda graph: graph.meta_info_def.tags.__delitem__(0))
    with pytest.raises(ModelLoadError, match="no graph tagged 'serve'"):
        load(path, "demo", 1, RuntimeSettings())


@pytest.mark.parametrize("content", [None, b"", b"hello world"])
def test_load_refuses_what_is_no_saved_model(
    load: Load, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "saved_model.pb").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"^model demo version 1: saved_model\.pb "):
        load(tmp_path, "demo", 1, RuntimeSettings())


def test_load_refuses_truncated_files(load: Load, saved: Path, tmp_path: Path) -> None:
    path = copied(saved, tmp_path)
    variables = next((path / "variables").glob("*.data-*"))
    variables.write_bytes(variables.read_bytes()[:-4])
    with pytest.raises(ModelLoadError, match="SavedModel is damaged, incomplete"):
        load(path, "demo", 1, RuntimeSettings())
    variables.unlink()
    with pytest.raises(ModelLoadError, match="No such file") as caught:
        load(path, "demo", 1, RuntimeSettings())
    assert str(tmp_path) not in caught.value.message
    graph = path / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="truncated or not a SavedModel"):
        load(path, "demo", 1, RuntimeSettings())


def test_load_on_cuda_says_what_is_missing(load: Load, saved: Path) -> None:
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow sees a GPU")
    with pytest.raises(ModelLoadError, match=r"^device 'cuda' needs the package tensorflow"):
        load(saved, "demo", 1, RuntimeSettings(device="cuda"))


FIRST_LOAD = """
import sys
from pathlib import Path
from replicas.runtime import RuntimeSettings
from replicas.tensorflow_runtime import load, tf
for cores in (1.0, 2.0):
    load(Path(sys.argv[1]), "demo", 1, RuntimeSettings(cores=cores))
sys.stdout.write(str(tf.config.threading.get_intra_op_parallelism_threads()))
"""


def test_thread_pools_follow_the_first_model(saved: Path) -> None:
    # In a process of its own: here other tests have used TensorFlow before.
    result = subprocess.run(
        [sys.executable, "-c", FIRST_LOAD, str(saved)], capture_output=True, text=True, check=True
    )
    assert result.stdout.endswith("\n1") and "tensorflow_runs_already" in result.stdout


def test_close_ends_the_runtime(load: Load, saved: Path) -> None:
    closed = load(saved, "demo", 1, RuntimeSettings())
    closed.close()
    with pytest.raises(NotFound):
        closed.run("total", {"values": np.array([1])}, ["sum"])
