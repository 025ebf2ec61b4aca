"""Suppression by looking at every kept box, 16 at a time: best while few are kept, and where no geometry helps.

Kept boxes lie in blocks that all searches share. A threshold is decided by the true division in working precision; no
kernel here may contract (see `_jit`).
"""

from __future__ import annotations

import numpy as np

from ._jit import jit

# Kept boxes lie in blocks of this many, coordinate by coordinate: x1, y1, x2, y2, area. LLVM turns a loop of just this
# length into straight vector code; 8 and 64 lanes were 10 and 3 times slower. What such a loop collects must not be
# wider than its floats, as an integer is: with AVX2 the vectors were half as long then.
LANES = 16


@jit
def overlaps(block, x1, y1, x2, y2, area, threshold):
    """Whether the candidate overlaps a box of the block by more than the threshold.

    A width below 0 makes a ratio below 0, or NaN: not above the threshold either, since the height is never below.
    """
    zero = block.dtype.type(0)
    hit = False
    for k in range(LANES):
        width = min(x2, block[2, k]) - max(x1, block[0, k])
        height = max(min(y2, block[3, k]) - max(y1, block[1, k]), zero)
        inter = width * height
        hit |= inter / ((area + block[4, k]) - inter) > threshold
    return hit


@jit
def overlaps_any(blocks, count, x1, y1, x2, y2, area, threshold):
    """Whether the candidate overlaps one of the first `count` boxes by more than the threshold."""
    for s in range((count + LANES - 1) // LANES):
        if overlaps(blocks[s], x1, y1, x2, y2, area, threshold):
            return True
    return False


@jit(inline=True)
def put(blocks, block, k, x1, y1, x2, y2, area):
    """Make the candidate the box in lane k of a block; lanes behind it overlap nothing."""
    if k == 0:
        for j in range(LANES):
            blocks[block, 0, j] = np.inf
            blocks[block, 1, j] = np.inf
            blocks[block, 2, j] = -np.inf
            blocks[block, 3, j] = -np.inf
            blocks[block, 4, j] = 0
    blocks[block, 0, k] = x1
    blocks[block, 1, k] = y1
    blocks[block, 2, k] = x2
    blocks[block, 3, k] = y2
    blocks[block, 4, k] = area


@jit
def search_all(boxes, threshold, limit, few, kept):
    """Suppress `boxes`, which are in rank order, comparing each with every kept one.

    Returns for how many boxes `kept` is set: for all, or those before more than `few` would have to be compared with.
    """
    zero, infinity = boxes.dtype.type(0), boxes.dtype.type(np.inf)
    blocks = np.empty((min(len(boxes), few) // LANES + 1, 5, LANES), boxes.dtype)
    held = total = np.int64(0)
    for i in range(len(boxes)):
        x1, y1, x2, y2 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        width, height = x2 - x1, y2 - y1
        area = width * height
        # All others (empty, inverted, infinite, NaN) have IoU 0 or NaN with everything: kept, and no suppressor.
        overlapping = width > zero and height > zero and zero < area < infinity
        suppressed = total == limit
        if overlapping and not suppressed:
            suppressed = overlaps_any(blocks, held, x1, y1, x2, y2, area, threshold)
        if overlapping and not suppressed:
            if held == few:
                return i
            put(blocks, held // LANES, held % LANES, x1, y1, x2, y2, area)
            held += 1
        kept[i] = not suppressed
        total += kept[i]
    return len(boxes)


@jit(inline=True)
def lowered(threshold, boxes):
    """The largest number of the dtype of `boxes` that is not above the threshold: both decide alike."""
    real = boxes.dtype.type(threshold)
    return np.nextafter(real, boxes.dtype.type(-1)) if np.float64(real) > threshold else real


@jit
def search_all_range(begin, end, ranked, starts, iou_threshold, limit, few, kept, settled):
    """Set `kept` and `settled` of the segments ranked[starts[s]:starts[s + 1]], for s from `begin` to `end`."""
    threshold = lowered(iou_threshold, ranked)
    for s in range(begin, end):
        segment = slice(starts[s], starts[s + 1])
        settled[s] = search_all(ranked[segment], threshold, limit, few, kept[segment])
