"""Postprocessors, which read the findings of a part from a model's outputs.

A user's own stands in the config as `module:name`, for example

    def best(outputs, part_size, labels):
        row = outputs["scores"][0]
        return [TagScore(labels[row.argmax()], float(row.max()))]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ConfigError, InternalError
from sharding.boxes import suppress
from sharding.parts import Box, TagScore
from sharding.preprocess import make

FLOOR = 0.05
"""Least score of a box; a request's own threshold applies later, at the merge."""
TAG_FLOOR = 0.01
"""Least score of a tag; of a thousand classes only few score more in a frame."""
MAX_BOXES = 1000
_STRIDE = 4
"""Pixels of a cell of CenterFace's outputs, both ways."""
_IOU = 0.3

Outputs = Mapping[str, NDArray[Any]]
Findings = list[Box] | list[TagScore]


class Postprocessor(Protocol):
    """Reads one row of a model's outputs; every array has a first axis of 1.

    `part_size` is (width, height) in pixels of the part without padding, and boxes count from its
    corner. `labels` are the model's own by class, perhaps none. It must give the same for the same
    outputs, as results are kept by the part's content, and is called from several threads.
    """

    def __call__(
        self, outputs: Outputs, part_size: tuple[int, int], labels: Sequence[str]
    ) -> Findings: ...


class ClassScores:
    """`scores` float [1, classes] -> the tags from `TAG_FLOOR` on, best first."""

    def __call__(
        self, outputs: Outputs, part_size: tuple[int, int], labels: Sequence[str]
    ) -> list[TagScore]:
        scores = _row(outputs, "scores", 1)
        above = np.flatnonzero(scores >= TAG_FLOOR)
        best = above[np.argsort(-scores[above], kind="stable")]
        return [TagScore(_label(labels, int(each)), float(scores[each])) for each in best]


class CentreNetBoxes:
    """`boxes` float [1, n, 4] x1 y1 x2 y2, `scores` float [1, n], `classes` int [1, n]."""

    def __call__(
        self, outputs: Outputs, part_size: tuple[int, int], labels: Sequence[str]
    ) -> list[Box]:
        boxes, scores = _row(outputs, "boxes", 2), _row(outputs, "scores", 1)
        classes = _row(outputs, "classes", 1)
        names = [_label(labels, int(each)) for each in classes]
        return _boxes(boxes, scores, classes, names, part_size)


class CentreFaceBoxes:
    """CenterFace (Xu et al. 2019): `heatmap` [1, 1, h, w], `size` and `offset` [1, 2, h, w].

    A cell of 4 x 4 pixels holds the score of a face whose middle lies there, the logarithm of its
    height and width in cells, and the middle's row and column within the cell. Faces that overlap
    a better one by an IoU above 0.3 are left out.
    """

    def __call__(
        self, outputs: Outputs, part_size: tuple[int, int], labels: Sequence[str]
    ) -> list[Box]:
        heat = _row(outputs, "heatmap", 3)[0]
        size, offset = _row(outputs, "size", 3), _row(outputs, "offset", 3)
        rows, columns = np.nonzero(heat >= FLOOR)
        scores = heat[rows, columns]
        best = np.argsort(-scores, kind="stable")[:MAX_BOXES]
        rows, columns, scores = rows[best], columns[best], scores[best]
        height, width = np.exp(size[:, rows, columns]) * _STRIDE
        middle_y = (rows + offset[0, rows, columns] + 0.5) * _STRIDE
        middle_x = (columns + offset[1, rows, columns] + 0.5) * _STRIDE
        half_w, half_h = width / 2, height / 2
        boxes = np.stack(
            [middle_x - half_w, middle_y - half_h, middle_x + half_w, middle_y + half_h], axis=1
        )
        kept = suppress(boxes.astype(np.float64), _IOU)
        name = _label(labels, 0) if labels else "face"
        faces = np.zeros(len(kept), np.int64)
        return _boxes(boxes[kept], scores[kept], faces, [name] * len(kept), part_size)


POSTPROCESSORS: Mapping[str, type[Postprocessor]] = {
    "class-scores": ClassScores,
    "centernet": CentreNetBoxes,
    "centerface": CentreFaceBoxes,
}
"""By the name that stands in the config."""


def load_postprocessor(name: str) -> Postprocessor:
    """A built-in, or what `module:name` leads to; raises `ConfigError`."""
    found = make(name, POSTPROCESSORS)
    if not callable(found):
        raise ConfigError(f"`postprocess: {name}` cannot be called")
    return found


def _row(outputs: Outputs, name: str, axes: int) -> NDArray[Any]:
    """The only row of an output, which has `axes` axes besides."""
    found = outputs.get(name)
    if found is None or found.ndim != axes + 1 or len(found) != 1:
        shape = "missing" if found is None else f"of the shape {list(found.shape)}"
        raise InternalError(f"the output {name!r} is {shape}: it does not fit this `postprocess`")
    row: NDArray[Any] = found[0]
    return row


def _label(labels: Sequence[str], class_id: int) -> str:
    return labels[class_id] if 0 <= class_id < len(labels) else str(class_id)


def _boxes(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    classes: NDArray[Any],
    names: Sequence[str],
    part_size: tuple[int, int],
) -> list[Box]:
    """Boxes cut to the part, best first; what lies in the padding, or has no area, is left out."""
    right, bottom = part_size
    cut = boxes.astype(np.float64).clip(0, [right, bottom, right, bottom])
    whole = (scores >= FLOOR) & (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
    best = np.flatnonzero(whole)
    best = best[np.argsort(-scores[best], kind="stable")][:MAX_BOXES]
    found = []
    for each in best.tolist():
        x1, y1, x2, y2 = cut[each].tolist()
        found.append(Box(x1, y1, x2, y2, float(scores[each]), int(classes[each]), names[each]))
    return found
