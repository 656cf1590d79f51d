"""The ugliest errors of each runtime, as callers get them: one sentence, and no place of a file."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from structlog.testing import capture_logs

from headrace.config.args import ModelConfig
from headrace.errors import ModelLoadError
from headrace.protocols.wire import message
from headrace.snapshot import State
from replicas.repository import Repository
from replicas.runtime import said_by
from tests.house import House, client, grpc_channel, open_house

pytestmark = [pytest.mark.tensorflow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PREDICT = "/tensorflow.serving.PredictionService/Predict"
PLACE = re.compile(
    r"(?<![\w)\]}])~?/[\w.]|\.(?:cc|cpp|h|py)\b|\n|\bFile \"|most recent call|Traceback|running on"
)
GONE = "/srv/secret folder/weights.bin"
RUNS: Mapping[str, tuple[list[Any], str]] = {
    "gather": ([9.0], "indices[0] = 9 is not in [0, 2)"),
    "loop": ([0.0, 9.0], "indices = 9 is not in [0, 2)"),
    "check": ([-1.0], "assertion failed: [x must be positive]"),
    "script": ([1.0], "ValueError: gone are "),
    "read": (["/etc/none/key.txt"], "key.txt; No such file or directory"),
    "parse": (["abc"], "Could not parse example input, value: 'abc'"),
}
"""By signature of both SavedModels: what is sent, and what of the error is useful."""
ONNX_RUNS: Mapping[str, tuple[list[Any], str]] = {
    "reshape": ([1.0, 2.0], "cannot be reshaped to the requested shape. Input shape:{2}"),
    "gathered": ([9], "indices element out of data bounds, idx=9"),
    "added": ([1.0, 2.0], "Attempting to broadcast an axis by a dimension other than 1. 2 by 3"),
    "multiplied": ([1.0, 2.0], "MatMul dimension mismatch"),
}
LOADS: Mapping[str, str] = {
    "unknown_op": "Op type not registered 'NoSuchOp'. Make sure the Op",
    "unknown_op_session": "Op type not registered 'NoSuchOp'. Make sure the Op",
    "no_variables": "Failed to find any matching files for variables/variables",
    "no_vocabulary": "assets/words.txt; No such file or directory",
    "no_function": "the SavedModel is damaged, incomplete or not supported: ",
    "cut_off": "Protobuf parsing failed",
    "no_weights": "external data 'weights.bin' is missing",
    "short_weights": "size to read: 1200 given file_length: 3 are out of bounds",
    "no_operator": "my.domain:NoSuch(-1) is not a registered function/op",
    "far_opset": "Opset 99 is under development",
    "link": "model link is a link that leaves the store",
    "hollow": "hollow/1 must hold one of model.onnx, ",
    "absent": "model absent version 1 is not in the store",
}


def check(text: str, useful: str) -> None:
    assert useful in text
    assert not PLACE.search(text), text
    assert f" {socket.gethostname()}." not in text


def functions() -> dict[str, Any]:
    """Of one input each: float32 `x`, or strings for `read` and `parse`."""
    import tensorflow as tf

    def gather(x: Any) -> Any:
        return tf.gather([1.0, 2.0], tf.cast(x, tf.int32))

    def positive(x: Any) -> Any:
        checked = tf.debugging.assert_greater(x, 0.0, message="x must be positive")
        with tf.control_dependencies([checked] if checked is not None else []):
            return tf.identity(x)

    def script(x: Any) -> Any:
        raise ValueError(f"gone are {GONE}")

    features = {"x": tf.io.FixedLenFeature([1], tf.float32)}
    return {
        "gather": gather,
        "loop": lambda x: tf.map_fn(gather, x),
        "check": positive,
        "script": lambda x: tf.py_function(script, [x], tf.float32),
        "read": lambda x: tf.cond(tf.equal(x[0], ""), lambda: x[0], lambda: tf.io.read_file(x[0])),
        "parse": lambda x: tf.io.parse_example(x, features)["x"],
    }


def dtype_of(name: str) -> Any:
    import tensorflow as tf

    return tf.string if name in ("read", "parse") else tf.float32


def signature_of(name: str, compute: Callable[[Any], Any]) -> Any:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None], dtype_of(name))])  # type: ignore[untyped-decorator]
    def signature(x: Any) -> Any:
        return {"y": compute(x)}

    return signature


def save_functions(path: Path) -> Any:
    """Gives what holds the script, which no file does."""
    import tensorflow as tf

    signatures = {name: signature_of(name, compute) for name, compute in functions().items()}
    tf.saved_model.save(tf.Module(), str(path), signatures=signatures)
    return signatures


def save_session(path: Path) -> Any:
    """Gives what holds the script."""
    import tensorflow as tf

    v1 = tf.compat.v1
    info, definition = v1.saved_model.build_tensor_info, v1.saved_model.build_signature_def
    with tf.Graph().as_default(), v1.Session() as session:
        signatures = {}
        for name, compute in functions().items():
            x = v1.placeholder(dtype_of(name), [None])
            ends = {"x": info(x)}, {"y": info(compute(x))}
            signatures[name] = definition(*ends, "tensorflow/serving/predict")
        builder = v1.saved_model.builder.SavedModelBuilder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
        return session.graph


def save_objects(path: Path) -> None:
    """A variable and a vocabulary."""
    import tensorflow as tf

    words = path.parent / "words.txt"
    words.parent.mkdir(parents=True)
    words.write_text("one\ntwo\n")
    module = tf.Module()
    module.weights = tf.Variable([1.0] * 100)
    lines = tf.lookup.TextFileInitializer(
        str(words),
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
    )
    module.table = tf.lookup.StaticHashTable(lines, -1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])  # type: ignore[untyped-decorator]
    def look_up(x: Any) -> Any:
        return {"y": tf.gather(module.weights, module.table.lookup(x))}

    tf.saved_model.save(module, str(path), signatures=look_up)
    words.unlink()


def edited(source: Path, path: Path, edit: Callable[[Any], None]) -> None:
    """A copy of a SavedModel whose one graph was changed by `edit`."""
    from tensorflow.core.protobuf import saved_model_pb2

    shutil.copytree(source, path)
    file = path / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    edit(model.meta_graphs[0])
    file.write_bytes(model.SerializeToString())


def unknown_op(nodes: Any) -> None:
    next(node for node in nodes if node.op == "Identity").op = "NoSuchOp"


def save_onnx(
    path: Path,
    operator: str = "Add",
    constant: Any = None,
    *,
    swapped: bool = False,
    dtype: int = TensorProto.FLOAT,
    domain: str = "",
    opset: int = 17,
) -> None:
    """An ONNX model of one operator on `x`, of any shape, and a constant, which `swapped` is first.

    Without one the constant lies in `weights.bin`, 1200 bytes.
    """
    if constant is None:
        tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[300])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "weights.bin", "offset": "0", "length": "1200"}.items():
            tensor.external_data.add(key=key, value=value)
    else:
        tensor = numpy_helper.from_array(np.array(constant), "c")
    names = ["c", "x"] if swapped else ["x", "c"]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["y"], domain=domain)],
        "ugly",
        [helper.make_tensor_value_info("x", dtype, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [tensor],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("my.domain", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 9
    path.mkdir(parents=True)
    (path / "model.onnx").write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What runs and fails (`objects`, `session` and ONNX_RUNS), and what does not load (LOADS)."""
    # The runtime first: it sets what can be set only before TensorFlow computes.
    from replicas import tensorflow_runtime
    from replicas.runtime import RuntimeSettings

    store = tmp_path_factory.mktemp("ugly") / "store"
    tensorflow_runtime._configure_process(RuntimeSettings())
    scripts = (save_functions(store / "objects" / "1"), save_session(store / "session" / "1"))
    save_objects(store / "whole" / "1")
    one = np.float32(1)
    save_onnx(store / "reshape" / "1", "Reshape", [7, -1])
    save_onnx(store / "gathered" / "1", "Gather", [one, one], swapped=True, dtype=TensorProto.INT64)
    save_onnx(store / "added" / "1", "Add", [one, one, one])
    save_onnx(store / "multiplied" / "1", "MatMul", np.ones((3, 4), np.float32))

    edited(
        store / "objects" / "1",
        store / "unknown_op" / "1",
        lambda graph: unknown_op(
            node for each in graph.graph_def.library.function for node in each.node_def
        ),
    )
    edited(
        store / "session" / "1",
        store / "unknown_op_session" / "1",
        lambda graph: unknown_op(graph.graph_def.node),
    )
    edited(
        store / "whole" / "1",
        store / "no_function" / "1",
        lambda graph: graph.graph_def.library.ClearField("function"),
    )
    for name, folder in (("no_variables", "variables"), ("no_vocabulary", "assets")):
        shutil.copytree(store / "whole" / "1", store / name / "1")
        shutil.rmtree(store / name / "1" / folder)
    save_onnx(store / "cut_off" / "1", "Add", np.ones(300, np.float32))
    file = store / "cut_off" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-700])
    save_onnx(store / "no_weights" / "1")
    save_onnx(store / "short_weights" / "1")
    (store / "short_weights" / "1" / "weights.bin").write_bytes(b"123")
    save_onnx(store / "no_operator" / "1", "NoSuch", [one], domain="my.domain")
    save_onnx(store / "far_opset" / "1", "Add", [one], opset=99)
    (store / "hollow" / "1").mkdir(parents=True)
    (store / "link").symlink_to(store.parent)
    yield store
    del scripts


async def over_grpc(house: House, model: str, signature: str, values: list[Any]) -> str:
    """What a Predict that must fail says."""
    request = message("tensorflow.serving.PredictRequest")()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    tensor = request.inputs["x"]
    tensor.tensor_shape.dim.add(size=len(values))
    if isinstance(values[0], str):
        tensor.dtype = 7
        tensor.string_val.extend(value.encode() for value in values)
    elif isinstance(values[0], int):
        tensor.dtype = 9
        tensor.int64_val.extend(values)
    else:
        tensor.dtype = 1
        tensor.float_val.extend(values)
    async with grpc_channel(house) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(PREDICT)(request.SerializeToString())
    return caught.value.details() or ""


async def test_a_run_that_fails_tells_why_and_shows_no_file(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store", symlinks=True)
    with capture_logs() as logs:
        async with open_house(tmp_path, "a") as house, client(house) as http:
            cases = [
                (model, name, *RUNS[name]) for model in ("objects", "session") for name in RUNS
            ]
            cases += [(name, "serving_default", *ONNX_RUNS[name]) for name in ONNX_RUNS]
            for model in ("objects", "session", *ONNX_RUNS):
                state = await house.place("a", model, 1, ModelConfig())
                assert state is State.READY, house.snapshot.models[model].versions
            for model, signature, values, useful in cases:
                body = {"signature_name": signature, "inputs": values}
                answer = await http.post(f"/v1/models/{model}:predict", json=body)
                assert answer.status_code in (400, 500)
                check(answer.json()["error"], useful)
                check(await over_grpc(house, model, signature, values), useful)
    # The first of each model: what follows within a second is not told.
    said = {each["model"]: each["said"] for each in reversed(logs) if each["event"] == "run_failed"}
    assert "Detected at node GatherV2" in said["objects"]
    assert "/onnxruntime_src/" in said["reshape"]


async def test_a_model_that_does_not_load_tells_why_and_shows_no_file(
    store: Path, tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "store", symlinks=True)
    with capture_logs() as logs:
        async with open_house(tmp_path, "a") as house, client(house) as http:
            for model, useful in LOADS.items():
                assert await house.place("a", model, 1, ModelConfig()) is State.FAILED
                status = (await http.get(f"/v1/models/{model}")).json()
                [version] = status["model_version_status"]
                check(version["status"]["error_message"], useful)
                check((await http.get(f"/v2/models/{model}/ready")).json()["error"], useful)
                answer = await http.post(f"/v1/models/{model}:predict", json={"inputs": [1]})
                assert answer.status_code == 503
                check(answer.json()["error"], useful)
                check(await over_grpc(house, model, "", [1.0]), useful)
    said = {each["model"]: each["said"] for each in logs if each["event"] == "load_failed"}
    assert str(tmp_path) in said["no_vocabulary"] and "model.onnx" in said["cut_off"]


def test_of_a_file_that_cannot_be_read_only_its_last_name_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "my secret, (old) store"
    with pytest.raises(OSError, match="secret") as caught:
        (folder / "a").read_bytes()
    assert said_by(caught.value) == "No such file or directory: 'a'"
    assert said_by(ValueError("as it is")) == "as it is"
    folder.mkdir()
    file = folder / "model"
    file.write_text("no folder")
    repository = Repository(str(folder), tmp_path)
    with pytest.raises(ModelLoadError, match="NotADir") as refused, repository._store_errors():
        os.listdir(file)
    assert "secret" not in refused.value.message and "old" not in refused.value.message


def test_a_list_of_where_nodes_are_defined_is_left_out(store: Path) -> None:
    import tensorflow as tf

    from replicas.tensorflow_runtime import _reason

    function = signature_of("loop", functions()["loop"])
    with pytest.raises(tf.errors.InvalidArgumentError, match='File "') as eager:
        function(tf.constant([9.0]))
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None])
        y = functions()["gather"](x)
        with pytest.raises(tf.errors.InvalidArgumentError, match='File "') as graph:
            session.run(y, {x: [9.0]})
    for caught in (eager, graph):
        check(_reason(caught.value, store), "= 9 is not in [0, 2)")
    huge = signature_of("huge", lambda x: x + tf.zeros([10**6, 10**6, 100]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="\n}") as braces:
        huge(tf.constant([1.0]))
    check(_reason(braces.value, store), "Cannot parse tensor from proto")
