"""The ONNX runtime, with the real library and models of a few bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.errors import InternalError, InvalidArgument, ModelLoadError, NotFound
from headrace.spec import BFLOAT16, BYTES
from replicas.onnx_runtime import OnnxRuntime, load
from replicas.runtime import Runtime, RuntimeSettings
from replicas.warmup import warm_up

FLOAT, STRING, INT64 = TensorProto.FLOAT, TensorProto.STRING, TensorProto.INT64
Shape = list[str | int | None] | None


def value(name: str, kind: int, shape: Shape) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def write(
    folder: Path,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    *held: Any,
    opset: int = 17,
) -> Path:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(held))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def write_identity(folder: Path, kind: int, taken: Shape, given: Shape, opset: int = 17) -> Path:
    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [value("x", kind, taken)], [value("y", kind, given)]
    return write(folder, [node], *ends, opset=opset)


def write_linear(folder: Path) -> Path:
    """y [N, 1] = x [N, 2] @ [[1], [10]] and twice [N, 2] = x + x."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Add", ["x", "x"], ["twice"]),
    ]
    outputs = [value("y", FLOAT, ["N", 1]), value("twice", FLOAT, ["N", 2])]
    weights = helper.make_tensor("w", FLOAT, [2, 1], [1.0, 10.0])
    return write(folder, nodes, [value("x", FLOAT, ["N", 2])], outputs, weights)


def opened(folder: Path, **settings: Any) -> Runtime:
    return load(folder, "demo", 3, RuntimeSettings(**settings))


def test_spec_describes_the_graph(tmp_path: Path) -> None:
    spec = opened(write_linear(tmp_path), max_rows=16).spec
    signature = spec.signatures["serving_default"]
    assert (spec.name, spec.version, spec.platform) == ("demo", 3, "onnxruntime_onnx")
    assert (spec.default_signature, spec.max_rows) == ("serving_default", 16)
    assert [(each.name, each.dtype, each.shape) for each in signature.inputs] == [
        ("x", np.dtype(np.float32), (None, 2))
    ]
    assert [each.name for each in signature.outputs] == ["y", "twice"]


def test_run_gives_the_named_outputs_in_order(tmp_path: Path) -> None:
    runtime = opened(write_linear(tmp_path))
    x = np.array([[1, 2], [3, 4]], np.float32)
    answer = runtime.run("serving_default", {"x": x}, ["twice", "y"])
    assert list(answer) == ["twice", "y"]
    assert answer["y"].tolist() == [[21.0], [43.0]]
    assert answer["twice"].tolist() == [[2.0, 4.0], [6.0, 8.0]]
    assert list(runtime.run("serving_default", {"x": x.T}, ["y"])) == ["y"]


def test_run_takes_and_gives_bytes_for_strings(tmp_path: Path) -> None:
    runtime = opened(write_identity(tmp_path, STRING, ["N", 2], ["N", 2]))
    given = np.array([["å".encode(), b""], [b"a\x00", b"end"]], dtype=object)
    answer = runtime.run("serving_default", {"x": given}, ["y"])["y"]
    assert runtime.spec.signatures["serving_default"].inputs[0].dtype == BYTES
    assert answer.dtype == BYTES
    assert answer.tolist() == given.tolist()


def write_equals(folder: Path) -> Path:
    """y [N] = whether x [N] and z [N], both strings, are equal."""
    inputs = [value("x", STRING, ["N"]), value("z", STRING, ["N"])]
    node = helper.make_node("Equal", ["x", "z"], ["y"])
    outputs = [value("y", TensorProto.BOOL, ["N"])]
    return write(folder, [node], inputs, outputs, opset=19)


@pytest.mark.parametrize(
    ("given", "others"),
    [
        ([b"\x89PNG\0", b"\xff\0\0\0\0"], [b"\x89PNG\1", b"\xff\0\0\0\1"]),
        ([b"\xff", b"", b"ab\xfe", b"abc"], [b"\xfe", b"a", b"ab\xfd", b"abd"]),
        ([b"\0\xff"], [b"\0\xfe"]),
    ],
)
def test_bytes_that_are_not_text_pass_unchanged(
    tmp_path: Path, given: list[bytes], others: list[bytes]
) -> None:
    runtime = opened(write_equals(tmp_path))
    x, z = np.array(given, object), np.array(others, object)
    assert runtime.run("serving_default", {"x": x, "z": x}, ["y"])["y"].all()
    assert not runtime.run("serving_default", {"x": x, "z": z}, ["y"])["y"].any()


@pytest.mark.parametrize("given", [[b"\xff\0", b"a"], [b"\xff" * (1 << 20), *[b""] * 20]])
def test_bytes_that_onnx_runtime_would_change_are_refused(
    tmp_path: Path, given: list[bytes]
) -> None:
    runtime = opened(write_equals(tmp_path))
    x = np.array(given, object)
    with pytest.raises(InvalidArgument, match="input x holds bytes that are not UTF-8 text; ONNX"):
        runtime.run("serving_default", {"x": x, "z": x}, ["y"])


def test_a_string_output_that_is_not_text_is_an_error_that_says_so(tmp_path: Path) -> None:
    runtime = opened(write_identity(tmp_path, STRING, ["N"], ["N"]))
    with pytest.raises(InvalidArgument, match="gave a string that is not UTF-8"):
        runtime.run("serving_default", {"x": np.array([b"\x89PNG"], dtype=object)}, ["y"])


def write_scaled(folder: Path, default: Any, shape: Shape) -> Path:
    """y [N, 2] = x [N, 2] * w, where w is optional."""
    node = helper.make_node("Mul", ["x", "w"], ["y"])
    inputs = [value("x", FLOAT, ["N", 2]), value("w", FLOAT, shape)]
    held = numpy_helper.from_array(np.array(default, np.float32), "w")
    return write(folder, [node], inputs, [value("y", FLOAT, ["N", 2])], held)


@pytest.mark.parametrize(
    ("default", "shape", "max_rows"),
    [
        (3, [], 32),
        ([3, 3], [2], 32),
        ([[3, 3]], ["N", 2], 32),
        ([3, 3], ["K"], 0),
        ([[3, 3]], [1, 2], 32),
    ],
)
def test_an_input_with_an_initializer_is_optional(
    tmp_path: Path, default: Any, shape: Shape, max_rows: int
) -> None:
    runtime = opened(write_scaled(tmp_path, default, shape))
    x = np.ones((1, 2), np.float32)
    signature = runtime.spec.signatures["serving_default"]
    assert [(each.name, each.optional) for each in signature.inputs] == [("x", False), ("w", True)]
    assert [each.name for each in signature.required] == ["x"]
    assert runtime.spec.max_rows == max_rows
    assert runtime.run("serving_default", {"x": x}, ["y"])["y"].tolist() == [[3.0, 3.0]]
    w = np.full(np.shape(default), 5, np.float32)
    assert runtime.run("serving_default", {"x": x, "w": w}, ["y"])["y"].tolist() == [[5.0, 5.0]]
    warm_up(runtime)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.bool_, np.uint8, np.int16, np.uint64])
def test_dtypes_pass_through(tmp_path: Path, dtype: type[np.generic]) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    runtime = opened(write_identity(tmp_path, kind, [None, "width"], [None, "width"]))
    given = np.ones((2, 5), dtype)
    answer = runtime.run("serving_default", {"x": given}, ["y"])["y"]
    assert answer.dtype == given.dtype
    assert answer.shape == (2, 5)
    assert runtime.spec.signatures["serving_default"].outputs[0].shape == (None, None)


@pytest.mark.parametrize(
    ("taken", "given", "max_rows"),
    [
        (["N", 2], ["N", 2], 32),
        ([None, 2], [None, 2], 32),
        ([None, 2], ["N", 2], 32),
        (["N", "M"], ["M", "N"], 0),
        ([1, 2], [1, 2], 0),
        ([], [], 0),
        (["N"], None, 32),
    ],
)
def test_max_rows_needs_one_free_leading_dimension(
    tmp_path: Path, taken: Shape, given: Shape, max_rows: int
) -> None:
    node = helper.make_node("Identity" if taken != ["N", "M"] else "Transpose", ["x"], ["y"])
    folder = write(tmp_path, [node], [value("x", FLOAT, taken)], [value("y", FLOAT, given)])
    assert opened(folder).spec.max_rows == max_rows


def test_a_rank_that_cannot_be_known_is_unknown(tmp_path: Path) -> None:
    inputs = [value("x", FLOAT, ["N"]), value("shape", INT64, ["D"])]
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    runtime = opened(write(tmp_path, [node], inputs, [value("y", FLOAT, None)]))
    assert runtime.spec.signatures["serving_default"].outputs[0].shape is None
    assert runtime.spec.max_rows == 0


def test_load_refuses_a_dtype_that_no_protocol_has(tmp_path: Path) -> None:
    folder = write_identity(tmp_path, TensorProto.FLOAT8E4M3FN, ["N"], ["N"], opset=19)
    with pytest.raises(ModelLoadError, match=r"^model demo version 3: input x is a .*float8"):
        opened(folder)


@pytest.mark.parametrize("shape", [(2, 3), (0, 3)])
def test_bfloat16_passes_beside_other_dtypes(tmp_path: Path, shape: tuple[int, int]) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Cast", ["x"], ["wide"], to=FLOAT),
        helper.make_node("Cast", ["z"], ["narrow"], to=TensorProto.BFLOAT16),
    ]
    half = TensorProto.BFLOAT16
    inputs = [value("x", half, ["N", 3]), value("z", FLOAT, ["N", 3])]
    outputs = [value("y", half, ["N", 3]), value("wide", FLOAT, ["N", 3])]
    runtime = opened(write(tmp_path, nodes, inputs, [*outputs, value("narrow", half, ["N", 3])]))
    x = np.arange(math.prod(shape)).reshape(shape[::-1]).T.astype(BFLOAT16)
    feed = {"x": x, "z": np.ones(shape, np.float32)}
    answer = runtime.run("serving_default", feed, ["y", "wide", "narrow"])
    assert [each.dtype.name for each in answer.values()] == ["bfloat16", "float32", "bfloat16"]
    assert answer["y"].tolist() == answer["wide"].tolist() == x.tolist()
    assert answer["narrow"].tolist() == np.ones(shape).tolist()
    with pytest.raises(InvalidArgument, match="Required inputs"):
        runtime.run("serving_default", {"x": x}, ["y"])
    warm_up(runtime)


def test_load_refuses_strings_beside_bfloat16(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", [x], [y]) for x, y in (("x", "y"), ("text", "same"))]
    half = TensorProto.BFLOAT16
    inputs = [value("x", half, ["N"]), value("text", STRING, ["N"])]
    outputs = [value("y", half, ["N"]), value("same", STRING, ["N"])]
    with pytest.raises(ModelLoadError, match="takes strings beside bfloat16"):
        opened(write(tmp_path, nodes, inputs, outputs))


def test_load_refuses_an_output_that_is_no_tensor(tmp_path: Path) -> None:
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    result = helper.make_tensor_sequence_value_info("y", FLOAT, ["N"])
    folder = write(tmp_path, [node], [value("x", FLOAT, ["N"])], [result])
    with pytest.raises(ModelLoadError, match=r"output y is a seq\(.*only tensors of bool"):
        opened(folder)


@pytest.mark.parametrize("content", [b"", b"hello world", bytes(100), b"\x08\x09\x3a\xff\xff\x03"])
def test_load_says_in_one_sentence_that_a_file_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"^model demo version 3: model\.onnx .*not an ONNX"):
        opened(tmp_path)


def test_load_refuses_a_truncated_model_without_naming_our_folders(tmp_path: Path) -> None:
    path = write_linear(tmp_path) / "model.onnx"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelLoadError, match=r"model\.onnx is truncated") as caught:
        opened(tmp_path)
    assert str(tmp_path) not in caught.value.message
    assert len(caught.value.message) < 200


def test_load_names_what_the_library_does_not_support(tmp_path: Path) -> None:
    node = helper.make_node("Nonsense", ["x"], ["y"])
    folder = write(tmp_path, [node], [value("x", FLOAT, ["N"])], [value("y", FLOAT, ["N"])])
    with pytest.raises(ModelLoadError, match="Nonsense"):
        opened(folder)


def test_load_refuses_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"model\.onnx is missing"):
        opened(tmp_path)


def test_load_uses_external_data_of_its_own_folder_only(tmp_path: Path) -> None:
    held = TensorProto(name="w", data_type=FLOAT, dims=[2])
    held.data_location = TensorProto.EXTERNAL
    held.external_data.add(key="location", value="weights.bin")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    ends = [value("x", FLOAT, ["N", 2])], [value("y", FLOAT, ["N", 2])]
    folder = write(tmp_path / "1", [node], *ends, held)
    (folder / "weights.bin").write_bytes(np.array([5, 6], np.float32).tobytes())
    x = np.zeros((1, 2), np.float32)
    assert opened(folder).run("serving_default", {"x": x}, ["y"])["y"].tolist() == [[5.0, 6.0]]
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(ModelLoadError, match="out of the version folder"):
        opened(folder)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"x": np.zeros((1, 3), np.float32)}, "Got: 3 Expected: 2"),
        ({"x": np.zeros(2, np.float32)}, "Invalid rank"),
        ({"x": np.zeros((1, 2), np.float64)}, "double"),
        ({"z": np.zeros((1, 2), np.float32)}, "Required inputs"),
        ({"x": np.zeros((1, 2), np.float32), "z": np.zeros(1)}, "z"),
    ],
)
def test_run_refuses_wrong_inputs(tmp_path: Path, inputs: dict[str, Any], said: str) -> None:
    runtime = opened(write_linear(tmp_path))
    with pytest.raises(InvalidArgument, match=said) as caught:
        runtime.run("serving_default", inputs, ["y"])
    assert "ONNXRuntimeError" not in caught.value.message
    assert "\n" not in caught.value.message


def write_reshape(folder: Path) -> Path:
    inputs = [value("x", FLOAT, ["N"]), value("shape", INT64, ["D"])]
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    return write(folder, [node], inputs, [value("y", FLOAT, None)])


def test_run_shortens_what_a_node_says(tmp_path: Path) -> None:
    runtime = opened(write_reshape(tmp_path))
    inputs = {"x": np.zeros(3, np.float32), "shape": np.array([2, 2])}
    with pytest.raises(InvalidArgument) as caught:
        runtime.run("serving_default", inputs, ["y"])
    assert caught.value.message == (
        "model demo version 3 refused the inputs: The input tensor cannot be reshaped to the "
        "requested shape. Input shape:{3}, requested shape:{2,2}"
    )


def test_run_calls_missing_memory_our_fault(tmp_path: Path) -> None:
    node = helper.make_node("ConstantOfShape", ["x"], ["y"])
    folder = write(tmp_path, [node], [value("x", INT64, [3])], [value("y", FLOAT, None)])
    with pytest.raises(InternalError, match="Failed to allocate memory"):
        opened(folder).run("serving_default", {"x": np.array([10**6, 10**6, 10])}, ["y"])


def test_run_knows_one_signature(tmp_path: Path) -> None:
    runtime = opened(write_linear(tmp_path))
    with pytest.raises(NotFound, match="'other'; it has 'serving_default'"):
        runtime.run("other", {"x": np.zeros((1, 2), np.float32)}, ["y"])


def test_run_of_large_inputs_answers_as_others_do(tmp_path: Path) -> None:
    runtime = opened(write_linear(tmp_path))
    x = np.ones((2 << 20, 2), np.float32)
    assert x.nbytes > 8 << 20
    assert runtime.run("serving_default", {"x": x}, ["y"])["y"].sum() == 11 * len(x)


def test_bound_run_answers_as_the_plain_one(tmp_path: Path) -> None:
    """The path of a GPU, on the processor: inputs are copied to the device, outputs come back."""
    folder = write_linear(tmp_path)
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    bound = OnnxRuntime(session, opened(folder).spec, bound_to="cpu")
    x = np.array([[1, 3], [2, 4]], np.float32).T
    assert bound.run("serving_default", {"x": x}, ["y"])["y"].tolist() == [[21.0], [43.0]]
    with pytest.raises(InvalidArgument, match="double"):
        bound.run("serving_default", {"x": x.astype(np.float64)}, ["y"])


def test_bound_run_of_strings_takes_the_plain_way(tmp_path: Path) -> None:
    folder = write_identity(tmp_path, STRING, ["N"], ["N"])
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    bound = OnnxRuntime(session, opened(folder).spec, bound_to="cpu")
    given = np.array([b"a", b"b"], dtype=object)
    assert bound.run("serving_default", {"x": given}, ["y"])["y"].tolist() == [b"a", b"b"]


@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_load_says_why_a_device_cannot_be_used(tmp_path: Path, device: str) -> None:
    if device == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this build of ONNX Runtime knows CUDA")
    with pytest.raises(ModelLoadError, match=f"^device '{device}' "):
        opened(write_linear(tmp_path), device=device)


@pytest.mark.parametrize("cores", [0.25, 1.0, 1.5, 2.0])
def test_any_share_of_cores_runs(tmp_path: Path, cores: float) -> None:
    runtime = opened(write_linear(tmp_path), cores=cores)
    answer = runtime.run("serving_default", {"x": np.ones((1, 2), np.float32)}, ["y"])
    assert answer["y"].tolist() == [[11.0]]


def test_warm_up_satisfies_a_real_session_and_close_ends_it(tmp_path: Path) -> None:
    runtime = opened(write_linear(tmp_path))
    warm_up(runtime)
    runtime.close()
    with pytest.raises(AttributeError):
        runtime.run("serving_default", {"x": np.ones((1, 2), np.float32)}, ["y"])
