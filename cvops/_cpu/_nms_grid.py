"""Suppression on one uniform grid, for boxes of like sizes: a candidate looks in one cell.

A kept box is entered in every cell in which the centre of a box that it suppresses can lie. Along x, with a kept box of
width v, a candidate of width w whose centre is at c, and an IoU above t:

        x1        v        x2
        |==================|                    They have more than t w in common, and w is less than v / t:
                     |=======c=======|              c - w / 2 + t w < x2
                     |- t w -|                      c < x2 + (1/2 - t) w, that is
                             w                      c < x2 + (1/2 - t) / t v, and c < x2 where t is 1/2 or more

and likewise to the left and along y. The geometry is in float64, where rounding is monotone: a centre within the bounds
has its cell within the cells of the bounds. The true division decides. Cells at the edge also hold what lies beyond it.

A cell is larger than the mean box, so that a box is in two cells on the average, and the blocks of a million boxes lie
in a cache; with much larger ones a candidate would look through more than one block.

Large boxes among small ones would be entered in very many cells, and crowded cells take long to search. So there is a
budget of work, after which the search gives up: what is near-linear for any boxes is `_nms_hash`.
"""

from __future__ import annotations

import numpy as np

from ._jit import jit
from ._nms_all import LANES, lowered
from ._nms_chains import append, fetch, look_through, make_chains

# Below this threshold a box is entered in too many cells.
LEAST_THRESHOLD = 0.3
_SIDE = 1.75  # of a cell, in mean boxes; measured
_AHEAD = 16  # candidates whose cells are being read meanwhile
_SAMPLE = 2048  # boxes that say where the others lie and how large they are
_WORK_PER_BOX = 8  # blocks searched and cells entered, on the average; clustered boxes take 2 to 4


@jit
def search_grid_range(begin, end, segments, ranked, starts, iou_threshold, limit, kept, settled):
    """Set `kept` of the segments[begin:end] for what is not settled, and `settled` where the search ends."""
    threshold = lowered(iou_threshold, ranked)
    for i in range(begin, end):
        s = segments[i]
        segment = slice(starts[s], starts[s + 1])
        settled[s] = search_grid(ranked[segment], threshold, geometric(iou_threshold), limit, kept[segment], settled[s])


@jit(inline=True)
def geometric(iou_threshold):
    """A threshold for the geometry that is a little lower, so that rounding in working precision hides no pair."""
    return iou_threshold * (1 - 1e-5)


@jit
def _cell(position, cells):
    """The cell of a position in units of cells: an end cell for what lies beyond, the first one for NaN."""
    return np.int64(min(position if position > 0.0 else 0.0, np.float64(cells - 1)))


@jit
def _axis(boxes, axis, step):
    """(begin, cells) of the grid along an axis, and cells in a unit of length; no cells if that cannot be told.

    Around the mean, so that a few boxes far away do not make the cells large. Positions are twice the centre's: the sum
    of both edges, which need not be rounded.
    """
    count = origin = total = squares = sizes = 0.0
    for i in range(0, len(boxes), step):
        low, high = np.float64(boxes[i, axis]), np.float64(boxes[i, axis + 2])
        if 0 < high - low < np.inf:
            if count == 0:
                origin = low + high
            position = (low + high) - origin
            count, sizes = count + 1, sizes + (high - low)
            total, squares = total + position, squares + position * position
    if count == 0 or not squares < 1e300:
        return 0.0, 0, 0.0
    mean = total / count
    spread = 1.8 * np.sqrt(max(squares / count - mean * mean, 0.0))  # half the side of a square is 1.73 of it
    cells = np.int64(min(max(spread * count / (_SIDE * sizes), 1.0), 4096.0))
    return origin + mean - spread, cells, cells / max(2 * spread, 1e-300)


@jit
def search_grid(boxes, threshold, t, limit, kept, settled):
    """Suppress `boxes`, which are in rank order and of which the first are settled; returns how many are then.

    Not all of them, if the grid does not suit.
    """
    zero, infinity = boxes.dtype.type(0), boxes.dtype.type(np.inf)
    # Where an area may underflow, the rounded IoU says nothing about geometry.
    least_area = 2.0**-92 if boxes.itemsize == 4 else 2.0**-988
    step = max(len(boxes) // _SAMPLE, 1)
    # Numba would compile `_axis` twice for two literals.
    left, columns, per_x = _axis(boxes, np.int64(0), step)
    top, rows, per_y = _axis(boxes, np.int64(1), step)
    if columns == 0 or rows == 0:
        return settled
    while columns * rows > max(len(boxes) // 4, 64):
        columns, rows, per_x, per_y = (columns + 1) // 2, (rows + 1) // 2, per_x / 2, per_y / 2
    reach = max(0.5 - t, 0.0) / t + 1e-4  # of suppressed centres beyond the kept box, in its sizes
    work = _WORK_PER_BOX * len(boxes) + 4096
    blocks, chains, after, used = make_chains(columns * rows, columns * rows + work // LANES, boxes)
    cells = np.empty(len(boxes), np.int32)
    for i in range(len(boxes)):
        column = _cell((np.float64(boxes[i, 0]) + np.float64(boxes[i, 2]) - left) * per_x, columns)
        row = _cell((np.float64(boxes[i, 1]) + np.float64(boxes[i, 3]) - top) * per_y, rows)
        cells[i] = row * columns + column
    total = 0
    for i in range(len(boxes)):
        if i + _AHEAD < len(boxes):
            fetch(blocks, np.int64(cells[i + _AHEAD]))
        if i >= settled:
            kept[i] = False
            if total == limit:
                continue
        elif not kept[i]:
            continue
        x1, y1, x2, y2 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        width, height = x2 - x1, y2 - y1
        area = width * height
        if width > zero and height > zero and zero < area < infinity:
            if area < least_area:
                return max(i, settled)
            if i >= settled:
                cell = np.int64(cells[i])
                looked_at = look_through(blocks, chains, after, cell, x1, y1, x2, y2, area, threshold)
                work -= abs(looked_at)
                if looked_at < 0:
                    continue
            beyond_x, beyond_y = reach * np.float64(width), reach * np.float64(height)
            first_column = _cell((2 * (np.float64(x1) - beyond_x) - left) * per_x, columns)
            last_column = _cell((2 * (np.float64(x2) + beyond_x) - left) * per_x, columns)
            first_row = _cell((2 * (np.float64(y1) - beyond_y) - top) * per_y, rows)
            last_row = _cell((2 * (np.float64(y2) + beyond_y) - top) * per_y, rows)
            work -= (last_column - first_column + 1) * (last_row - first_row + 1)
            if work < 0:
                return max(i, settled)
            for row in range(first_row, last_row + 1):
                for column in range(first_column, last_column + 1):
                    used = append(blocks, chains, after, used, row * columns + column, x1, y1, x2, y2, area)
        kept[i] = True
        total += 1
    return len(boxes)
