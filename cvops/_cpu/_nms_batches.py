"""Suppression where thresholds are too low for sizes to say anything, and many boxes are kept: with all threads.

The candidates come in batches, in rank order. Threads first compare a batch with the boxes kept before it; then those
left are compared with each other, one after the other:

    kept before    |  batch          threads: candidates a, b, c, d against what is near them on the left
    ############## |  a b c d        then a is kept, b against a, c against a and b if kept, ...

What a batch adds is sorted by place, so that the boxes of a block lie together. A candidate that does not touch the
bounds of a block touches none of its boxes, and the bounds of 16 blocks are looked at in one go, as 16 boxes are.
"""

from __future__ import annotations

import math

import numpy as np

from . import _threads
from ._jit import jit
from ._memory import Array
from ._nms_all import LANES, lowered, overlaps, overlaps_any, put

_BATCH = 1024  # candidates


def search_in_batches(boxes: Array, iou_threshold: float, limit: int, kept: Array) -> None:
    """Set `kept` for all boxes, which are in rank order."""
    capacity = len(boxes) // LANES + len(boxes) // _BATCH + 2  # the last block of each batch may not be full
    blocks = np.empty((capacity, 5, LANES), boxes.dtype)
    bounds = np.empty((capacity // LANES + 1, 5, LANES), boxes.dtype)
    suppressed, overlapping = np.empty(_BATCH, np.bool_), np.empty(len(boxes), np.bool_)
    used = total = count = sorted_together = 0
    for begin in range(0, len(boxes), _BATCH):
        batch = slice(begin, min(begin + _BATCH, len(boxes)))
        candidates = boxes[batch]
        work = 100 * len(candidates) + len(candidates) * used / 2  # nanoseconds
        _threads.run(
            _compare_range,
            len(candidates),
            candidates,
            blocks,
            bounds,
            used,
            iou_threshold,
            suppressed,
            nanoseconds=work,
        )
        total = _settle(candidates, iou_threshold, limit, total, suppressed, overlapping[batch], kept[batch])
        added = candidates[overlapping[batch]]
        count += len(added)
        if count >= 2 * sorted_together:  # again all in one order: then a candidate has fewer blocks near it
            added, used, sorted_together = boxes[: batch.stop][overlapping[: batch.stop]], 0, count
        used = _add(added[_by_place(added)], blocks, bounds, used)


def _by_place(boxes: Array) -> Array:
    """The order of boxes in strips along x, and along y within a strip: as many strips as there are blocks in each."""
    strips = max(math.isqrt(len(boxes) // LANES), 1)
    strip = np.empty(len(boxes), np.int64)
    strip[np.argsort(boxes[:, 0])] = np.arange(len(boxes)) * strips // max(len(boxes), 1)
    order: Array = np.lexsort((boxes[:, 1], strip))
    return order


@jit
def _compare_range(begin, end, batch, blocks, bounds, used, iou_threshold, suppressed):
    """Set suppressed[begin:end]: whether candidates overlap a box of the first `used` blocks by more than that."""
    threshold = lowered(iou_threshold, batch)
    for i in range(begin, end):
        x1, y1, x2, y2 = batch[i, 0], batch[i, 1], batch[i, 2], batch[i, 3]
        suppressed[i] = _overlaps_near(blocks, bounds, used, x1, y1, x2, y2, threshold)


@jit
def _overlaps_near(blocks, bounds, used, x1, y1, x2, y2, threshold):
    area = (x2 - x1) * (y2 - y1)
    for group in range((used + LANES - 1) // LANES):
        bound = bounds[group]
        if _touches_some(bound, x1, y1, x2, y2):
            for k in range(LANES):
                touches_x = (x1 < bound[2, k]) & (bound[0, k] < x2)
                touches_y = (y1 < bound[3, k]) & (bound[1, k] < y2)
                touches = touches_x & touches_y  # one branch, which is foretold more often than four
                if touches and overlaps(blocks[group * LANES + k], x1, y1, x2, y2, area, threshold):
                    return True
    return False


@jit
def _touches_some(bound, x1, y1, x2, y2):
    """Whether the candidate has some area in common with the bounds of one of 16 blocks."""
    zero = bound.dtype.type(0)
    hit = False
    for k in range(LANES):
        width = min(x2, bound[2, k]) - max(x1, bound[0, k])
        height = min(y2, bound[3, k]) - max(y1, bound[1, k])
        hit |= min(width, height) > zero
    return hit


@jit
def _settle(batch, iou_threshold, limit, total, suppressed, overlapping, kept):
    """Set `kept` of the batch, and `overlapping` where a box is kept that may suppress others; the new total."""
    threshold = lowered(iou_threshold, batch)
    zero, infinity = batch.dtype.type(0), batch.dtype.type(np.inf)
    blocks = np.empty((len(batch) // LANES + 1, 5, LANES), batch.dtype)
    held = np.int64(0)
    for i in range(len(batch)):
        kept[i] = overlapping[i] = False
        x1, y1, x2, y2 = batch[i, 0], batch[i, 1], batch[i, 2], batch[i, 3]
        width, height = x2 - x1, y2 - y1
        area = width * height
        if suppressed[i] or total == limit:
            continue
        if width > zero and height > zero and zero < area < infinity:
            if overlaps_any(blocks, held, x1, y1, x2, y2, area, threshold):
                continue
            put(blocks, held // LANES, held % LANES, x1, y1, x2, y2, area)
            held += 1
            overlapping[i] = True
        kept[i] = True
        total += 1
    return total


@jit
def _add(boxes, blocks, bounds, used):
    """Put the boxes into new blocks behind the first `used`, and the bounds of these into `bounds`; the new `used`."""
    for begin in range(0, len(boxes), LANES):
        x1, y1, x2, y2 = boxes[begin, 0], boxes[begin, 1], boxes[begin, 2], boxes[begin, 3]
        for i in range(begin, min(begin + LANES, len(boxes))):
            area = (boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1])
            put(blocks, used, i - begin, boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3], area)
            x1, y1 = min(x1, boxes[i, 0]), min(y1, boxes[i, 1])
            x2, y2 = max(x2, boxes[i, 2]), max(y2, boxes[i, 3])
        put(bounds, used // LANES, used % LANES, x1, y1, x2, y2, boxes.dtype.type(0))
        used += 1
    return used
