"""Writes ONNX graphs node by node."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
# The oldest file format that opset 17 and every runtime since 2023 agree on.
IR_VERSION = 9

Shape = Sequence[int | str]


class Graph:
    """Nodes and constants in the order in which they were added."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, value: ArrayLike, dtype: DTypeLike = np.float32) -> str:
        """Add a constant and return its name."""
        name = f"constant_{len(self._constants)}"
        array = np.ascontiguousarray(value, dtype).reshape(np.shape(value))
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, *values: int) -> str:
        """Add a constant int64 vector and return its name."""
        return self.constant(values, np.int64)

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        output = name or f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def add_top_k(self, values: str, count: int) -> tuple[str, str]:
        """Add TopK over axis 1 and return the names of the values and of their indices."""
        outputs = (f"top_{len(self._nodes)}", f"top_index_{len(self._nodes)}")
        inputs = [values, self.integers(count)]
        self._nodes.append(helper.make_node("TopK", inputs, outputs, axis=1, sorted=1))
        return outputs

    def images(self, name: str) -> str:
        """Turn the uint8 input `name` [N, H, W, 3] into float32 [N, 3, H, W]; return its name."""
        return self.add("Transpose", self.to_float(name), perm=[0, 3, 1, 2])

    def to_float(self, value: str) -> str:
        return self.add("Cast", value, to=TensorProto.FLOAT)

    def save(
        self,
        path: Path,
        title: str,
        inputs: dict[str, tuple[str, Shape]],
        outputs: dict[str, tuple[str, Shape]],
    ) -> None:
        """Check and write the model; `inputs` and `outputs` map a name to ONNX type and shape."""
        graph = helper.make_graph(
            self._nodes,
            title,
            [_tensor_info(name, *rest) for name, rest in inputs.items()],
            [_tensor_info(name, *rest) for name, rest in outputs.items()],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        model.producer_name = "headrace-models"
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))


def _tensor_info(name: str, type_name: str, shape: Shape) -> Any:
    return helper.make_tensor_value_info(name, getattr(TensorProto, type_name), list(shape))
