"""faces: CenterFace with dynamic batch, height and width, and readable names.

images float32 [B, 3, H, W] RGB 0..255, H and W multiples of 32 -> per cell of 4 x 4 pixels:
heatmap [B, 1, h, w], size [B, 2, h, w] (log of height and width in cells), offset [B, 2, h, w]
(row, column), landmarks [B, 10, h, w].
"""

from typing import Any

import onnx
from catalog import Job

_NAMES = {
    "input.1": ("images", ("B", 3, "H", "W")),
    "537": ("heatmap", ("B", 1, "h", "w")),
    "538": ("size", ("B", 2, "h", "w")),
    "539": ("offset", ("B", 2, "h", "w")),
    "540": ("landmarks", ("B", 10, "h", "w")),
}


def build(job: Job) -> None:
    job.say("renaming inputs and outputs")
    model = onnx.load(str(job.files["centerface.onnx"]))
    graph = model.graph
    # This exporter lists every weight as an input too, and shapes of one fixed size.
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:], graph.value_info[:]
    graph.input.extend(inputs)
    for value in [*graph.input, *graph.output]:
        value.name, shape = _NAMES[value.name]
        _set_shape(value, shape)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [_NAMES[name][0] if name in _NAMES else name for name in names]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(job.folder / "model.onnx"))


def _set_shape(value: Any, shape: tuple[int | str, ...]) -> None:
    for dimension, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        if isinstance(size, str):
            dimension.dim_param = size
        else:
            dimension.dim_value = size
