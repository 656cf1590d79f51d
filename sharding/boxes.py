"""Geometry of boxes as arrays [n, 4] of x1, y1, x2, y2: overlap, and greedy suppression by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sharding.parts import Box, PartResult, Tile

Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]

COVERED = 0.6
"""Fraction of a box's area inside another box from which on it counts as a piece of that one."""


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
    union_ratio, own_ratio = overlap(box, others)
    return (union_ratio > iou) | (own_ratio >= COVERED)


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
    """Indices of the boxes [n, 4] that stay: greedy, each removes later ones that it `beats`."""
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


_INWARD = np.array([1, 1, -1, -1])


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles that answered, as columns: `edges` [t, 4] in the picture's pixels, `inner` [t, 4]."""

    edges: Numbers
    inner: Mask
    scales: Numbers

    @classmethod
    def of(cls, tiles: Sequence[Tile]) -> Tiles:
        sides = (tile.inner for tile in tiles)
        return cls(
            edges=np.array([tile.region for tile in tiles]),
            inner=np.array([(side.left, side.top, side.right, side.bottom) for side in sides]),
            scales=np.array([tile.scale for tile in tiles]),
        )

    def gaps(self, boxes: Numbers, rows: Indices) -> Numbers:
        """From each side of the boxes [n, 4] to that edge of the tiles in `rows` [n]: [n, 4].

        In pixels of the scaled picture, negative outside the tile, infinite where the edge is the
        picture's own. One box [4] goes with any number of rows.
        """
        inward = (boxes - self.edges[rows]) * _INWARD * self.scales[rows, None]
        return np.where(self.inner[rows], inward, np.inf)


@dataclass(frozen=True, slots=True)
class Views:
    """Boxes cut at the picture's border, the best score first; only the boxes decide the order.

    `corners` [n, 4] are their corners, `tiles` [n] the row of each one's tile in `seen_by`, `gaps`
    [n, 4] what `Tiles.gaps` says of them.
    """

    boxes: tuple[Box, ...]
    corners: Numbers
    classes: Indices
    tiles: Indices
    gaps: Numbers
    seen_by: Tiles

    @classmethod
    def gather(
        cls,
        results: Iterable[PartResult],
        width: int,
        height: int,
        wanted: Callable[[Box], bool],
    ) -> Views | None:
        """The wanted boxes of a `width` x `height` picture; None where there are none."""
        by_tile: dict[Tile, set[Box]] = {}
        for result in results:
            if isinstance(result.part, Tile):
                by_tile.setdefault(result.part, set()).update(filter(wanted, result.boxes))
        tiles = sorted(by_tile, key=lambda tile: (tile.scale, tile.y, tile.x, tile.index))
        found = [
            (placed, row)
            for row, tile in enumerate(tiles)
            for box in by_tile[tile]
            if (placed := _place(box, tile, width, height)) is not None
        ]
        if not found:
            return None
        found.sort(key=lambda each: (order(each[0]), each[1]))
        corners = np.array([(box.x1, box.y1, box.x2, box.y2) for box, _ in found])
        rows = np.array([row for _, row in found], np.intp)
        seen_by = Tiles.of(tiles)
        return cls(
            boxes=tuple(box for box, _ in found),
            corners=corners,
            classes=np.array([box.class_id for box, _ in found], np.intp),
            tiles=rows,
            gaps=seen_by.gaps(corners, rows),
            seen_by=seen_by,
        )


def order(box: Box) -> tuple[float, int, float, float, float, float, str]:
    """Sort key: best score first, different boxes never equal."""
    return (-box.score, box.class_id, box.x1, box.y1, box.x2, box.y2, box.label)


def moved(box: Box, tile: Tile) -> Box:
    """A box of a tile, in the picture's pixels."""
    x1, x2 = ((tile.x + x) / tile.scale for x in (box.x1, box.x2))
    y1, y2 = ((tile.y + y) / tile.scale for y in (box.y1, box.y2))
    return replace(box, x1=x1, y1=y1, x2=x2, y2=y2)


def _place(box: Box, tile: Tile, width: int, height: int) -> Box | None:
    """Move a tile's box to the picture and cut it there; None where nothing is left."""
    box = moved(box, tile)
    x1, y1 = max(box.x1, 0.0), max(box.y1, 0.0)
    x2, y2 = min(box.x2, float(width)), min(box.y2, float(height))
    # NaN fails this comparison too.
    return replace(box, x1=x1, y1=y1, x2=x2, y2=y2) if x1 < x2 and y1 < y2 else None
