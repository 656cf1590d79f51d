"""Geometry of boxes as arrays [n, 4] of x1, y1, x2, y2: overlap, and greedy suppression by it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]

COVERED = 0.6
"""A box is a piece of another when this share of its area lies in that one."""


def overlap(box: Numbers, others: Numbers) -> tuple[Numbers, Numbers]:
    """The intersection of `box` [4] with `others` [n, 4] over the union, and over theirs: [n]."""
    x1, y1, x2, y2 = others.T
    width = np.minimum(box[2], x2) - np.maximum(box[0], x1)
    height = np.minimum(box[3], y2) - np.maximum(box[1], y1)
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    areas = (x2 - x1) * (y2 - y1)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return shared / (area + areas - shared), shared / areas


def is_same(box: Numbers, others: Numbers, iou: float) -> Mask:
    """Which of `others` [n, 4] overlap `box` [4] by more than `iou` of the union."""
    return overlap(box, others)[0] > iou


def is_part(box: Numbers, others: Numbers, iou: float) -> Mask:
    """Which of `others` [n, 4] are the same as `box` [4] or a piece of it."""
    union_share, own_share = overlap(box, others)
    return (union_share > iou) | (own_share >= COVERED)


def alike(box: Numbers, others: Numbers, axis: int) -> Numbers:
    """Intersection over union of the extents along an axis (0: x, 1: y); below 0 if apart: [n]."""
    shared = np.minimum(box[axis + 2], others[:, axis + 2]) - np.maximum(box[axis], others[:, axis])
    joint = np.maximum(box[axis + 2], others[:, axis + 2]) - np.minimum(box[axis], others[:, axis])
    result: Numbers = shared / joint
    return result


def around(boxes: Numbers) -> Numbers:
    """The smallest box [4] that holds all of `boxes` [n, 4]."""
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def suppress(
    boxes: Numbers, iou: float, beats: Callable[[Numbers, Numbers, float], Mask] = is_same
) -> Indices:
    """Places of the boxes [n, 4] that stay: greedily, the earlier one wins, by `beats`."""
    waiting = np.arange(len(boxes))
    stays: list[int] = []
    while len(waiting):
        stays.append(int(waiting[0]))
        rest = waiting[1:]
        waiting = rest[~beats(boxes[waiting[0]], boxes[rest], iou)]
    return np.array(stays, np.intp)


def is_apart(boxes: Numbers, wholes: Numbers, iou: float) -> Mask:
    """Which boxes [n, 4] are no part of any of `wholes` [m, 4]."""
    apart = np.ones(len(boxes), bool)
    for whole in wholes:
        apart &= ~is_part(whole, boxes, iou)
    return apart
