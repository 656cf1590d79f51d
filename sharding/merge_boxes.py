"""Merge of boxes: one box for each object, whichever tiles it was found in.

A box near an inner edge of its tile is suspect of being cut, and a cut box may outscore the whole
one. So suspects never compete with whole boxes: they go where another tile saw the object whole,
are joined where no tile did, and go where a tile that saw all of the place found nothing there.
Of two whole views of an object the one deepest in its tile wins, because there the network saw
most around it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sharding.boxes import (
    Indices,
    Mask,
    Numbers,
    Views,
    alike,
    around,
    is_apart,
    is_part,
    order,
    suppress,
)
from sharding.parts import Box, PartResult

ALIKE = 0.6
"""Pieces of one object have extents along the cut with at least this intersection over union."""
CLEAR = 3.0
"""Margins from the edges of a tile; what lies further inside, the tile sees well."""
WITNESS = 0.5
"""Fraction of the threshold from which a box that is not in the answer still shows an object."""


@dataclass(frozen=True, slots=True)
class BoxRules:
    """What a merge keeps: boxes scoring at least `threshold`, the best `top_k` (None: all).

    Above the intersection over union `iou` two boxes of a class are one object. `classes` (None:
    all) names class ids or labels. A box is suspect within `margin` pixels of the scaled picture.
    """

    threshold: float = 0.3
    iou: float = 0.5
    top_k: int | None = None
    classes: Collection[int | str] | None = None
    margin: float = 16.0

    def wants(self, box: Box) -> bool:
        """Whether a box takes part; NaN scores do not."""
        if self.classes is not None and not {box.class_id, box.label} & set(self.classes):
            return False
        return box.score >= self.threshold * WITNESS


def merge_boxes(
    results: Iterable[PartResult], width: int, height: int, rules: BoxRules
) -> list[Box]:
    """The objects of a `width` x `height` picture, in its pixels, the best scores first.

    `results` hold boxes in their tiles' pixels. The order of results and boxes does not matter,
    and merging what was merged changes nothing.
    """
    views = Views.gather(results, width, height, rules.wants)
    if views is None:
        return []
    boxes: list[Box] = []
    for class_id in np.unique(views.classes):
        of_class = np.flatnonzero(views.classes == class_id)
        for i, place in _settle(views, of_class, rules):
            x1, y1, x2, y2 = map(float, place)
            boxes.append(replace(views.boxes[i], x1=x1, y1=y1, x2=x2, y2=y2))
    return sorted(boxes, key=order)[: rules.top_k]


def _settle(views: Views, of_class: Indices, rules: BoxRules) -> list[tuple[int, Numbers]]:
    """Views of one class that survive suppression, best first, each with its merged box [4]."""
    corners, depth = views.corners, views.gaps.min(axis=1)
    # In each tile as the detector would without tiles …
    strong = of_class[[views.boxes[i].score >= rules.threshold for i in of_class]]
    alone = _suppress_groups(corners, strong, views.tiles, rules.iou)
    is_suspect = depth[alone] < rules.margin
    # … between the tiles of a scale by depth, and between scales by score again.
    whole = alone[~is_suspect]
    whole = whole[np.argsort(-depth[whole], kind="stable")]
    scales = views.seen_by.scales[views.tiles]
    whole = np.sort(_suppress_groups(corners, whole, scales, rules.iou))
    whole = whole[suppress(corners[whole], rules.iou)]
    suspects = alone[is_suspect]
    suspects = suspects[is_apart(corners[suspects], corners[whole], rules.iou)]
    found = [(int(i), corners[i]) for i in whole]
    return found + _settle_suspects(views, suspects, of_class, corners[whole], rules)


def _settle_suspects(
    views: Views, suspects: Indices, witnesses: Indices, whole: Numbers, rules: BoxRules
) -> list[tuple[int, Numbers]]:
    """The suspects that stay, joined where they are pieces of one object."""
    groups = [
        group
        for group in _join_pieces(views, suspects, rules.margin)
        if len(group) > 1 or not _is_denied(views, group[0], witnesses, rules.margin)
    ]
    if not groups:
        return []
    boxes = np.array([around(views.corners[group]) for group in groups])
    cuts = [_cut_sides(views, group, rules.margin) for group in groups]
    # Least cut first, then largest: other views of the object are parts of it.
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    best_first = np.lexsort((-areas, cuts))
    groups, boxes = [groups[i] for i in best_first], boxes[best_first]
    new = np.flatnonzero(is_apart(boxes, whole, rules.iou))
    stays = new[suppress(boxes[new], rules.iou, is_part)]
    return [(groups[i][0], boxes[i]) for i in stays]


def _cut_sides(views: Views, group: list[int], margin: float) -> int:
    """The number of sides of the group's common box at which no piece shows the object's end."""
    outward = views.corners[group] * (-1, -1, 1, 1)
    reach = margin / views.seen_by.scales[views.tiles[group[0]]]
    at_end = outward >= outward.max(axis=0) - reach
    shows_end = (at_end & (views.gaps[group] >= margin)).any(axis=0)
    return int(4 - np.count_nonzero(shows_end))


def _join_pieces(views: Views, pieces: Indices, margin: float) -> list[list[int]]:
    """Group the pieces of objects that no tile sees whole; a group's best score comes first."""
    group = {int(i): [int(i)] for i in pieces}
    for axis in (0, 1):
        cut_after = pieces[views.gaps[pieces, axis + 2] < margin]
        cut_before = pieces[views.gaps[pieces, axis] < margin]
        for i in cut_after:
            for j in cut_before[_goes_on(views, i, cut_before, axis, margin)]:
                _unite(group, int(i), int(j))
    unique = {id(members): sorted(members) for members in group.values()}
    return sorted(unique.values())


def _goes_on(views: Views, piece: int, others: Indices, axis: int, margin: float) -> Mask:
    """Which of `others`, cut where their tile begins, continue a piece cut where its tile ends.

    Two tiles share a band (or a line). An object that both cut goes through all of it, so each
    piece must reach the far side of the band, and both must have about the same extent along it.
    """
    seen_by, corners, tile, tiles = views.seen_by, views.corners, views.tiles[piece], views.tiles
    begins, ends = seen_by.edges[tiles[others], axis], seen_by.edges[tile, axis + 2]
    reach = margin / seen_by.scales[tile]
    goes_on: Mask = (
        (seen_by.scales[tiles[others]] == seen_by.scales[tile])
        & (seen_by.edges[tile, axis] < begins)
        & (begins <= ends)
        & (corners[piece, axis] <= begins + reach)
        & (corners[others, axis + 2] >= ends - reach)
        & (alike(corners[piece], corners[others], 1 - axis) >= ALIKE)
    )
    return goes_on


def _unite(group: dict[int, list[int]], one: int, other: int) -> None:
    """Join the groups of two members: `group` then has the same list for all of them."""
    if group[one] is not group[other]:
        group[one].extend(group[other])
        for member in group[other]:
            group[member] = group[one]


def _is_denied(views: Views, suspect: int, witnesses: Indices, margin: float) -> bool:
    """Whether the tile that sees a suspect's place best, and well, found nothing of it there."""
    box, tile = views.corners[suspect], views.tiles[suspect]
    rows = np.flatnonzero(views.seen_by.scales == views.seen_by.scales[tile])
    # Edges of the picture do not limit the depth, but a tile must hold the box, bar a fraction of
    # a pixel.
    edges = views.seen_by.edges[rows]
    inside = np.hstack([edges[:, :2] <= box[:2] + 1, edges[:, 2:] >= box[2:] - 1]).all(axis=1)
    depths = np.where(inside, views.seen_by.gaps(box, rows).min(axis=1), -np.inf)
    best = int(np.argmax(depths))
    if rows[best] == tile or depths[best] < CLEAR * margin:
        return False
    there = witnesses[views.tiles[witnesses] == rows[best]]
    return not is_part(box, views.corners[there], 0.0).any()


def _suppress_groups(
    corners: Numbers, ordered: Indices, column: NDArray[np.generic], iou: float
) -> Indices:
    """Greedy suppression among views with the same value in `column`; the earlier one wins."""
    values = column[ordered]
    stays = np.zeros(len(ordered), bool)
    for value in np.unique(values):
        group = np.flatnonzero(values == value)
        stays[group[suppress(corners[ordered[group]], iou)]] = True
    return ordered[stays]
