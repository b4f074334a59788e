"""What the tiles of a large image have found -> the image's detections.

Suppression alone leaves a defect that a tile's border cuts as two halves, or as a half beside the whole. The border
says what to do: *a box that ends at its tile's border goes on behind it*. The neighbouring tile sees the other side of
that line, so its box of the same class that covers the line at the same place is the same defect, and the two become
their union (:func:`merge_tiles`). Two defects side by side stay two: neither of their whole boxes covers the line that
cuts the other, and of parallel ones each is joined with the partner that fits it best, if that choice is mutual.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.geometry import box_iou, nms

Boxes = NDArray[np.float32]
Bools = NDArray[np.bool_]
Window = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels of the image."""
Found = tuple[Boxes, NDArray[np.float32], NDArray[np.int64]]
"""Boxes (N, 4) xyxy, scores (N,) and labels (N,), best first."""

SLACK = 0.02
"""A box ends at a border when it comes as near as this share of the tile's side, and at least two pixels."""
ALONG = 0.5
"""Along the seam two pieces share at least this part of what a straight line through both would share."""
TOLERANCE = 2.0
"""Pixels by which boxes of thin scratches may miss each other along the seam."""
WEAKER = 0.25
"""The weaker piece has at least this share of the stronger one's score: noise must not stretch a good box."""
COVERED = 0.7
"""A piece that found no partner is dropped where this share of it lies in a better box of its class."""
SAME = 0.5
"""Two tiles see a thing a little differently: boxes that no tile has seen side by side are one from this IoU on, or
from that of the suppression where it is smaller."""


def merge_tiles(found: Sequence[Found], windows: Sequence[Window], image_size: tuple[int, int], iou: float) -> Found:
    """Makes one list of what an image's tiles have found: pieces joined, remnants and doubles dropped.

    Args:
        found: of every tile, in pixels of the image.
        windows: where the tiles lie; one may be the whole image.
        image_size: (height, width) in pixels.
        iou: of boxes of one class that overlap by more than this the best stays; see also :data:`SAME`.

    Returns:
        The detections, best first; a joined one has the score of its best piece.
    """
    counts = [len(scores) for _, scores, _ in found]
    boxes, scores, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    if len(windows) == 1 or not len(boxes):
        best = nms(boxes, scores, labels, iou)
        return boxes[best], scores[best], labels[best]
    owner = np.repeat(np.arange(len(windows)), counts)
    open_ = _ends_at_border(boxes, owner, np.array(windows, np.float32), image_size)
    group, closed = _join(boxes, scores, labels, owner, open_, windows)
    seen = np.zeros((int(group.max()) + 1, len(windows)), bool)
    seen[group, owner] = True
    boxes, scores, labels, still_open = _unite(boxes, scores, labels, open_ & ~closed, group)
    kept = np.flatnonzero(~_covered(boxes, scores, labels, still_open))
    kept = kept[_suppress(boxes[kept], scores[kept], labels[kept], seen[np.unique(group)[kept]], iou)]
    return boxes[kept], scores[kept], labels[kept]


_OPPOSITE = (2, 3, 0, 1)
"""Of the sides x1, y1, x2, y2."""


def _ends_at_border(boxes: Boxes, owner: NDArray[np.intp], windows: Boxes, image_size: tuple[int, int]) -> Bools:
    """(N, 4) whether the sides x1, y1, x2, y2 of a box lie at a border of its tile that is none of the image."""
    borders = windows[owner][:, [1, 0, 3, 2]]
    sides = (borders[:, 2:] - borders[:, :2])[:, [0, 1, 0, 1]]
    inner: Bools = borders != np.array([0, 0, image_size[1], image_size[0]], np.float32)
    near: Bools = np.abs(boxes - borders) <= np.maximum(SLACK * sides, 2.0)
    return near & inner


def _join(
    boxes: Boxes,
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    owner: NDArray[np.intp],
    open_: Bools,
    windows: Sequence[Window],
) -> tuple[NDArray[np.intp], Bools]:
    """Finds the pieces of one defect.

    Returns:
        (N,) the number of each box's group, and (N, 4) which of its sides have found what lies behind the border.
    """
    members = [np.flatnonzero(owner == tile) for tile in range(len(windows))]
    cut = [own[open_[own].any(1)] for own in members]
    closed = np.zeros_like(open_)
    parent = np.arange(len(boxes))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    edges = np.array(windows)
    for a, first in enumerate(windows):
        for b in _neighbours(edges, a) if len(members[a]) else ():
            second = windows[b]
            if not (len(members[b]) and (len(cut[a]) or len(cut[b]))):
                continue
            zone = (max(first[1], second[1]), max(first[0], second[0]),
                    min(first[3], second[3]), min(first[2], second[2]))  # fmt: skip
            choice: dict[tuple[int, int], int] = {}
            for own, other in ((a, b), (b, a)):
                for side in range(4):
                    line = windows[own][(1, 0, 3, 2)[side]]
                    if not _inside(line, side, windows[other]):
                        continue
                    for index in members[own][open_[members[own], side]]:
                        best = _partner(int(index), members[other], side, line, zone, boxes, scores, labels)
                        if best is not None:
                            choice[int(index), side] = best
            for (index, side), best in choice.items():
                # Mutual, where the partner is cut on the other side of the zone and has a choice, too.
                back = choice.get((best, _OPPOSITE[side]))
                reaches = _reaches(boxes[index], _OPPOSITE[side], windows[int(owner[best])])
                if back is not None and back != index and reaches:
                    continue
                closed[index, side] = True
                parent[root(index)] = root(best)
    return np.array([root(index) for index in range(len(boxes))], np.intp), closed


def _neighbours(windows: NDArray[np.int64], number: int) -> list[int]:
    """The later windows (all (T, 4)) that have a seam with one: they share pixels or a border in its row or column.

    Of one row or column only: what crosses a corner is in one of them, too, and of neighbouring lines the corner shows
    too little to tell which goes on as which. The whole image has no seam with a tile of it; see _covered.
    """
    one, others = windows[number], windows[number + 1 :]
    touches = (others[:, :2] <= one[2:]).all(1) & (others[:, 2:] >= one[:2]).all(1)
    in_line = (others[:, 0::2] == one[0::2]).all(1) | (others[:, 1::2] == one[1::2]).all(1)
    inside = (others[:, :2] >= one[:2]).all(1) & (others[:, 2:] <= one[2:]).all(1)
    around = (others[:, :2] <= one[:2]).all(1) & (others[:, 2:] >= one[2:]).all(1)
    found: list[int] = (np.flatnonzero(touches & in_line & ~inside & ~around) + number + 1).tolist()
    return found


def _inside(line: float, side: int, window: Window) -> bool:
    """Whether a window shows what lies behind a border: the line itself, and pixels on the far side of it."""
    low, high = (window[1], window[3]) if side % 2 == 0 else (window[0], window[2])
    return low < line <= high if side < 2 else low <= line < high


def _reaches(box: Boxes, side: int, window: Window) -> bool:
    """Whether a box covers the line of a window's border on that side."""
    line, axis = window[(1, 0, 3, 2)[side]], side % 2
    length = window[3] - window[1] if axis == 0 else window[2] - window[0]
    slack = max(SLACK * length, 2.0)
    return bool(box[axis] <= line + slack and box[axis + 2] >= line - slack)


def _partner(
    index: int,
    others: NDArray[np.intp],
    side: int,
    line: float,
    zone: tuple[int, int, int, int],
    boxes: Boxes,
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> int | None:
    """The box of another tile that goes on behind the line where a box is cut; ``None`` where there is none."""
    axis = side % 2
    along = 1 - axis
    own, theirs = boxes[index], boxes[others]
    length = max(zone[2] - zone[0], zone[3] - zone[1])
    slack = max(SLACK * length, 2.0)
    fits = (labels[others] == labels[index]) & (theirs[:, axis] <= line + slack) & (theirs[:, axis + 2] >= line - slack)
    low, high = np.minimum(scores[others], scores[index]), np.maximum(scores[others], scores[index])
    fits &= low >= WEAKER * high
    # Extents along the seam, as far as both tiles see it.
    start, stop = max(own[along], zone[along]), min(own[along + 2], zone[along + 2])
    starts, stops = np.maximum(theirs[:, along], zone[along]), np.minimum(theirs[:, along + 2], zone[along + 2])
    common = np.minimum(stop, stops) - np.maximum(start, starts)
    # A slanting line moves on along the seam while it crosses the zone, by its slope times the zone's width.
    width = zone[axis + 2] - zone[axis] + slack
    slanting = np.minimum(
        (stop - start) * min(1.0, width / max(own[axis + 2] - own[axis], 1.0)),
        (stops - starts) * np.minimum(1.0, width / np.maximum(theirs[:, axis + 2] - theirs[:, axis], 1.0)),
    )
    common += TOLERANCE
    fits &= (common > 0) & (common >= ALONG * slanting)
    if not fits.any():
        return None
    # How well it fits: as the same extent, or nearly as well as the rest of a slanting line.
    hull = np.maximum(stop, stops) - np.minimum(start, starts)
    same = common / np.maximum(hull, 1e-6)
    slant = np.minimum(common, slanting) / np.maximum(np.maximum(common, slanting), 1e-6)
    # Across the seam, both tiles see how far it reaches into the zone that they share.
    ends = [np.clip(box, zone[axis], zone[axis + 2]) for box in (own[axis::2], theirs[:, axis::2])]
    both = np.minimum(ends[0][1], ends[1][:, 1]) - np.maximum(ends[0][0], ends[1][:, 0]) + slack
    across = both / (np.maximum(ends[0][1], ends[1][:, 1]) - np.minimum(ends[0][0], ends[1][:, 0]) + slack)
    rank = np.where(fits, np.maximum(same, 0.8 * slant) * across, -1.0)
    return int(others[int(np.argmax(rank))])


def _unite(
    boxes: Boxes, scores: NDArray[np.float32], labels: NDArray[np.int64], still_open: Bools, group: NDArray[np.intp]
) -> tuple[Boxes, NDArray[np.float32], NDArray[np.int64], Bools]:
    """The union, the best score and the label of every group, and whether a side of it still ends at a border."""
    heads, number = np.unique(group, return_inverse=True)
    united = np.empty((len(heads), 4), np.float32)
    united[:, :2], united[:, 2:] = np.inf, -np.inf
    np.minimum.at(united[:, 0], number, boxes[:, 0])
    np.minimum.at(united[:, 1], number, boxes[:, 1])
    np.maximum.at(united[:, 2], number, boxes[:, 2])
    np.maximum.at(united[:, 3], number, boxes[:, 3])
    best = np.zeros(len(heads), np.float32)
    np.maximum.at(best, number, scores)
    # A piece inside the union has nothing behind its border that the union does not hold.
    outermost = np.abs(boxes - united[number]) <= 1e-3
    is_open = np.zeros(len(heads), bool)
    np.logical_or.at(is_open, number, (still_open & outermost).any(1))
    return united, best, labels[heads], is_open


def _covered(boxes: Boxes, scores: NDArray[np.float32], labels: NDArray[np.int64], is_open: Bools) -> Bools:
    """(N,) which boxes are remnants: still cut by a border, and mostly inside a larger box of their class."""
    dropped = np.zeros(len(boxes), bool)
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    for index in np.flatnonzero(is_open):
        rivals = np.flatnonzero((labels == labels[index]) & (area > area[index]) & (scores >= WEAKER * scores[index]))
        sides = np.minimum(boxes[rivals, 2:], boxes[index, 2:]) - np.maximum(boxes[rivals, :2], boxes[index, :2])
        shared = np.prod(np.clip(sides, 0, None), axis=1)
        dropped[index] = bool((shared >= COVERED * area[index]).any())
    return dropped


def _suppress(
    boxes: Boxes, scores: NDArray[np.float32], labels: NDArray[np.int64], seen: Bools, iou: float
) -> NDArray[np.intp]:
    """Class-wise suppression, stricter between boxes that come from different tiles; ``seen`` (N, tiles) says which."""
    order = np.argsort(-scores, kind="stable")
    kept = []
    for label in np.unique(labels):
        rest = order[labels[order] == label]
        while len(rest):
            best, rest = rest[0], rest[1:]
            kept.append(best)
            overlap = box_iou(boxes[best][None], boxes[rest])[0]
            doubles = overlap > iou
            close = np.flatnonzero(~doubles & (overlap > SAME))  # few: who has seen them is asked of these only
            doubles[close] = ~(seen[rest[close]] & seen[best]).any(1)
            rest = rest[~doubles]
    answer = np.array(kept, np.intp)
    best_first: NDArray[np.intp] = answer[np.argsort(-scores[answer], kind="stable")]
    return best_first
