"""tagger: EfficientNet-Lite0 as ONNX, normalisation inside.

images uint8 [N, 224, 224, 3] RGB -> scores float32 [N, 1000] (softmax), features float32 [N, 1280].
"""

import json
from pathlib import Path

from catalog import Job
from efficientnet import CLASSES, FEATURES, MEAN, SCALE, SIZE, Convolution, Network, read_network
from onnx_graph import Graph

WEIGHTS = "efficientnet-lite0-57934424.pth"
LABELS = "imagenet1k_label_to_names.json"


def build(job: Job) -> None:
    job.say("reading the weights")
    network = read_network(job.files[WEIGHTS])
    job.say("writing the ONNX graph")
    write_onnx(network, job.folder / "model.onnx")
    write_labels(job.files[LABELS], job.folder / "labels.txt")


def write_labels(names: Path, path: Path) -> None:
    """Write one label a line, in class order: the first of the synonyms."""
    by_class: dict[str, str] = json.loads(names.read_text(encoding="utf-8"))
    labels = [by_class[str(index)].split(",")[0].strip() for index in range(CLASSES)]
    path.write_text("\n".join(labels) + "\n", encoding="utf-8")


def write_onnx(network: Network, path: Path) -> None:
    graph = Graph()
    shifted = graph.add("Sub", graph.images("images"), graph.constant(MEAN))
    value = graph.add("Div", shifted, graph.constant(SCALE))
    six = graph.constant(6.0)
    zero = graph.constant(0.0)
    size, opened = SIZE, value
    for layer in network.convolutions:
        if layer.opens:
            opened = value
        value = _convolve(graph, value, layer, size)
        size = -(-size // layer.stride)
        if layer.relu6:
            value = graph.add("Clip", value, zero, six)
        if layer.closes:
            value = graph.add("Add", value, opened)
    features = graph.add("Flatten", graph.add("GlobalAveragePool", value), name="features")
    weight, bias = graph.constant(network.dense_weight), graph.constant(network.dense_bias)
    logits = graph.add("Gemm", features, weight, bias, transB=1)
    graph.add("Softmax", logits, axis=-1, name="scores")
    graph.save(
        path,
        "efficientnet_lite0",
        {"images": ("UINT8", ["N", SIZE, SIZE, 3])},
        {"scores": ("FLOAT", ["N", CLASSES]), "features": ("FLOAT", ["N", FEATURES])},
    )


def _convolve(graph: Graph, value: str, layer: Convolution, size: int) -> str:
    """SAME padding for an input of `size`: what is odd goes to the end."""
    steps = -(-size // layer.stride)
    total = max((steps - 1) * layer.stride + layer.kernel - size, 0)
    before, after = total // 2, total - total // 2
    return graph.add(
        "Conv",
        value,
        graph.constant(layer.weight),
        graph.constant(layer.bias),
        kernel_shape=[layer.kernel] * 2,
        strides=[layer.stride] * 2,
        pads=[before, before, after, after],
        group=layer.groups,
    )
