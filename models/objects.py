"""objects: CenterNet (Zhou et al. 2019) on MobileNetV3, translated from TensorFlow.js to ONNX.

images uint8 [N, H, W, 3] RGB, H and W multiples of 32 -> boxes float32 [N, 100, 4] (x1, y1, x2, y2
in pixels of the input), scores float32 [N, 100], classes int64 [N, 100]. Peaks are local maxima;
overlapping boxes of a class are the caller's to suppress.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from catalog import Job
from numpy.typing import NDArray
from onnx_graph import Graph
from sources import BuildError
from tfjs import Node, read_model

CLASSES = 80
BOXES = 100
# Pixels of the input for one cell of the output.
STRIDE = 4.0
LABELS = Path(__file__).with_name("coco_labels.txt")

_CONVOLUTIONS = {"_FusedConv2D", "Conv2D", "FusedDepthwiseConv2dNative", "DepthwiseConv2dNative"}


def build(job: Job) -> None:
    job.say("reading the TensorFlow.js model")
    nodes, weights = read_model(job.files["centernet.json"])
    job.say("translating the graph")
    graph = Graph()
    translation = Translation(graph, nodes, weights, graph.images("images"))
    heatmap = translation.value("tower_0/keypoints")
    distances = translation.value("tower_0/wh")
    _decode(graph, heatmap, distances)
    graph.save(
        job.folder / "model.onnx",
        "centernet",
        {"images": ("UINT8", ["N", "H", "W", 3])},
        {
            "boxes": ("FLOAT", ["N", BOXES, 4]),
            "scores": ("FLOAT", ["N", BOXES]),
            "classes": ("INT64", ["N", BOXES]),
        },
    )
    shutil.copyfile(LABELS, job.folder / "labels.txt")


class Translation:
    """Adds the ONNX form of TensorFlow.js nodes (layout NHWC) to a graph (layout NCHW)."""

    def __init__(
        self, graph: Graph, nodes: dict[str, Node], weights: dict[str, NDArray[Any]], images: str
    ) -> None:
        self._graph = graph
        self._nodes = nodes
        self._weights = weights
        self._images = images
        self._done: dict[str, str] = {}

    def value(self, name: str) -> str:
        """The ONNX name of what the node `name` computes; adds what it needs, deepest first."""
        waiting = [name]
        while waiting:
            node = self._nodes[waiting[-1]]
            if missing := [i for i in self._operands(node) if i not in self._done]:
                waiting.extend(missing)
            else:
                current = waiting.pop()
                if current not in self._done:
                    self._done[current] = self._translate(current, node)
        return self._done[name]

    def _operands(self, node: Node) -> tuple[str, ...]:
        """Inputs that are values; the others are weights, which become part of the node."""
        if node.operator in _CONVOLUTIONS or node.operator in ("Mean", "ResizeBilinear"):
            return node.inputs[:1]
        return node.inputs[:-1] if node.operator == "ConcatV2" else node.inputs

    def _translate(self, name: str, node: Node) -> str:
        operands = [self._done[name] for name in self._operands(node)]
        match node.operator:
            case "Placeholder":
                return self._images
            case "Identity":
                return operands[0]
            case "Const":
                return self._constant(self._weights[name])
            case "Mul" | "Add" | "Sub" | "Sigmoid" | "Relu":
                return self._graph.add(node.operator, *operands)
            case "Relu6":
                return self._activate(operands[0], "Relu6")
            case "Mean":  # over height and width: the squeeze of squeeze-and-excite
                return self._graph.add("GlobalAveragePool", *operands)
            case "ConcatV2":
                return self._graph.add("Concat", *operands, axis=1)
            case "ResizeBilinear":
                return self._double(operands[0])
            case operator if operator in _CONVOLUTIONS:
                return self._convolve(operands[0], node)
        raise BuildError(
            f"centernet.json holds the operation {node.operator}, which models/objects.py does not "
            "translate: use the exact package version of models/catalog.py."
        )

    def _constant(self, value: NDArray[Any]) -> str:
        return self._graph.constant(value if value.size == 1 else value.reshape(1, -1, 1, 1))

    def _double(self, value: str) -> str:
        scales = self._graph.constant([1, 1, 2, 2])
        mode = {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}
        return self._graph.add("Resize", value, "", scales, **mode)

    def _activate(self, value: str, name: str) -> str:
        if name == "Relu6":
            return self._graph.add(
                "Clip", value, self._graph.constant(0.0), self._graph.constant(6.0)
            )
        return self._graph.add(name, value)

    def _convolve(self, value: str, node: Node) -> str:
        kernel = self._weights[node.inputs[1]]
        depthwise = "epthwise" in node.operator
        # [k, k, channels, 1] where depthwise, else [k, k, in, out].
        weight = kernel.transpose(2, 3, 0, 1) if depthwise else kernel.transpose(3, 2, 0, 1)
        fused = node.texts("fused_ops")
        inputs = [value, self._graph.constant(weight)]
        if "BiasAdd" in fused:
            inputs.append(self._graph.constant(self._weights[node.inputs[2]].reshape(-1)))
        stride = node.integers("strides")[1]
        result = self._graph.add(
            "Conv",
            *inputs,
            kernel_shape=list(kernel.shape[:2]),
            strides=[stride, stride],
            group=kernel.shape[2] if depthwise else 1,
            pads=_same_padding(kernel.shape[:2], stride, node.text("padding")),
        )
        for name in fused:
            if name != "BiasAdd":
                result = self._activate(result, name)
        return result


def _same_padding(kernel: tuple[int, ...], stride: int, padding: str) -> list[int]:
    """Sides are multiples of 32, so every layer pads by kernel - stride whatever the size."""
    if padding != "SAME":
        return [0, 0, 0, 0]
    totals = [max(size - stride, 0) for size in kernel]
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]


def _decode(graph: Graph, heatmap: str, distances: str) -> None:
    """Turn heatmap [N, 80, h, w] and distances to the four sides [N, 4, h, w] into boxes."""
    highest = graph.add("MaxPool", heatmap, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
    is_peak = graph.to_float(graph.add("Equal", heatmap, highest))
    peaks = graph.add("Transpose", graph.add("Mul", heatmap, is_peak), perm=[0, 2, 3, 1])
    width = graph.add("Gather", graph.add("Shape", peaks), graph.integers(2), axis=0)
    scores, index = graph.add_top_k(graph.add("Reshape", peaks, graph.integers(0, -1)), BOXES)
    classes = graph.integers(CLASSES)
    cell = graph.add("Div", index, classes)
    row, column = graph.add("Div", cell, width), graph.add("Mod", cell, width)
    by_cell = graph.add(
        "Reshape", graph.add("Transpose", distances, perm=[0, 2, 3, 1]), graph.integers(0, -1, 4)
    )
    at = graph.add("Unsqueeze", cell, graph.integers(2))
    at = graph.add("Expand", at, graph.integers(1, 1, 4))
    sides = graph.add("GatherElements", by_cell, at, axis=1)
    stride = graph.constant(STRIDE)
    x, y = (
        graph.add("Unsqueeze", graph.add("Mul", graph.to_float(part), stride), graph.integers(2))
        for part in (column, row)
    )
    centres = graph.add("Concat", x, y, x, y, axis=2)
    signs = graph.constant(np.array([-1, -1, 1, 1]))
    graph.add("Add", centres, graph.add("Mul", sides, signs), name="boxes")
    graph.add("Identity", scores, name="scores")
    graph.add("Mod", index, classes, name="classes")
