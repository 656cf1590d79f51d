"""Boxes as their tiles saw them, put into the picture's pixels and into columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sharding.boxes import Indices, Mask, Numbers
from sharding.parts import Box, PartResult, Tile

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

    `places` [n, 4] are their corners, `tiles` [n] the row of each one's tile in `seen_by`, `gaps`
    [n, 4] what `Tiles.gaps` says of them.
    """

    boxes: tuple[Box, ...]
    places: Numbers
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
        places = np.array([(box.x1, box.y1, box.x2, box.y2) for box, _ in found])
        rows = np.array([row for _, row in found], np.intp)
        seen_by = Tiles.of(tiles)
        return cls(
            boxes=tuple(box for box, _ in found),
            places=places,
            classes=np.array([box.class_id for box, _ in found], np.intp),
            tiles=rows,
            gaps=seen_by.gaps(places, rows),
            seen_by=seen_by,
        )


def order(box: Box) -> tuple[float, int, float, float, float, float, str]:
    """A key that sorts the best score first, and never leaves two different boxes equal."""
    return (-box.score, box.class_id, box.x1, box.y1, box.x2, box.y2, box.label)


def _place(box: Box, tile: Tile, width: int, height: int) -> Box | None:
    """Move a tile's box to the picture and cut it there; None where nothing is left."""
    x1, x2 = ((tile.x + x) / tile.scale for x in (box.x1, box.x2))
    y1, y2 = ((tile.y + y) / tile.scale for y in (box.y1, box.y2))
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    # What is not a number fails this too.
    if not (x1 < x2 and y1 < y2):
        return None
    return replace(box, x1=x1, y1=y1, x2=x2, y2=y2)
