"""Suppression on one uniform grid, for boxes of like sizes: a candidate looks in one cell.

A kept box is entered in every cell in which the centre of a box that it suppresses can lie. Along x, with a kept box of
width v, a candidate of width w whose centre is at c, and an IoU above t:

        x1        v        x2
        |==================|                    They have more than t w in common, and w is less than v / t:
                     |=======c=======|              c - w / 2 + t w < x2
                     |- t w -|                      c < x2 + (1/2 - t) w, that is
                             w                      c < x2 + (1/2 - t) / t v, and c < x2 where t is 1/2 or more

and likewise to the left and along y. The geometry is in float64, where rounding is monotone: a centre within the bounds
has its cell within the cells of the bounds. It takes a threshold that is a little lower, so that rounding in working
precision hides no pair; the true division decides. Cells at the edge also hold what lies beyond it.

Large boxes among small ones would be entered in very many cells, and crowded cells take long to search. So there is a
budget of work, after which the search gives up: what is near-linear for any boxes is `_nms_hash`.
"""

from __future__ import annotations

import numpy as np

from ._jit import jit
from ._nms_all import LANES, lowered, overlaps, put

# Below this threshold a box is entered in too many cells.
LEAST_THRESHOLD = 0.3
_SAMPLE = 2048  # boxes that say where the others lie and how large they are
_WORK_PER_BOX = 8  # blocks searched and cells entered, on the average; clustered boxes take 2 to 4


@jit
def search_grid_range(begin, end, segments, ranked, starts, iou_threshold, limit, kept, finished):
    """Set `kept` and `finished` of the segments[begin:end]."""
    threshold = lowered(iou_threshold, ranked)
    for i in range(begin, end):
        s = segments[i]
        segment = slice(starts[s], starts[s + 1])
        finished[i] = _search_grid(ranked[segment], threshold, iou_threshold * (1 - 1e-5), limit, kept[segment])


@jit
def _cell(position, cells):
    """The cell of a position in units of cells: an end cell for what lies beyond."""
    return np.int64(min(max(position, 0.0), np.float64(cells - 1)))


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
    cells = np.int64(min(max(spread * count / sizes, 1.0), 4096.0))  # as large as the mean box
    return origin + mean - spread, cells, cells / max(2 * spread, 1e-300)


@jit
def _search_grid(boxes, threshold, t, limit, kept):
    """Suppress `boxes`, which are in rank order; returns False, with `kept` unfinished, if the grid does not suit."""
    zero, infinity = boxes.dtype.type(0), boxes.dtype.type(np.inf)
    # Where an area may underflow, the rounded IoU says nothing about geometry.
    least_area = boxes.dtype.type(np.finfo(boxes.dtype).tiny * 2.0**34)
    step = max(len(boxes) // _SAMPLE, 1)
    left, columns, per_x = _axis(boxes, 0, step)
    top, rows, per_y = _axis(boxes, 1, step)
    if columns == 0 or rows == 0:
        return False
    while columns * rows > max(len(boxes) // 2, 64):
        columns, rows, per_x, per_y = (columns + 1) // 2, (rows + 1) // 2, per_x / 2, per_y / 2
    reach = max(0.5 - t, 0.0) / t + 1e-4  # of suppressed centres beyond the kept box, in its sizes
    work = _WORK_PER_BOX * len(boxes) + 4096
    capacity = columns * rows + work // LANES  # of blocks: one of each cell may not be full
    heads = np.full(columns * rows, -1, np.int32)  # newest block of each cell
    blocks = np.empty((capacity, 5, LANES), boxes.dtype)
    older, filled = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    used = total = 0
    for i in range(len(boxes)):
        kept[i] = False
        if total == limit:
            continue
        x1, y1, x2, y2 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        width, height = x2 - x1, y2 - y1
        area = width * height
        if width > zero and height > zero and zero < area < infinity:
            if area < least_area:
                return False
            column = _cell((np.float64(x1) + np.float64(x2) - left) * per_x, columns)
            row = _cell((np.float64(y1) + np.float64(y2) - top) * per_y, rows)
            block = heads[row * columns + column]
            while block >= 0:
                work -= 1
                if overlaps(blocks[block], x1, y1, x2, y2, area, threshold):
                    break
                block = older[block]
            if block >= 0:
                continue
            beyond_x, beyond_y = reach * np.float64(width), reach * np.float64(height)
            first_column = _cell((2 * (np.float64(x1) - beyond_x) - left) * per_x, columns)
            last_column = _cell((2 * (np.float64(x2) + beyond_x) - left) * per_x, columns)
            first_row = _cell((2 * (np.float64(y1) - beyond_y) - top) * per_y, rows)
            last_row = _cell((2 * (np.float64(y2) + beyond_y) - top) * per_y, rows)
            work -= (last_column - first_column + 1) * (last_row - first_row + 1)
            if work < 0:
                return False
            for row in range(first_row, last_row + 1):
                for column in range(first_column, last_column + 1):
                    cell = row * columns + column
                    block = heads[cell]
                    if block < 0 or filled[block] == LANES:
                        older[used], heads[cell], filled[used] = block, used, 0
                        block = used
                        used += 1
                    put(blocks[block], filled[block], x1, y1, x2, y2, area)
                    filled[block] += 1
        kept[i] = True
        total += 1
    return True
