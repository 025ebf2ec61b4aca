"""Suppression by looking only where a suppressor can be, for boxes of any sizes and places.

IoU > t bounds how far apart the sizes and the corners of two boxes can lie, so kept boxes are hashed by size and
corner, and a few buckets are searched for each candidate. Kept boxes do not overlap each other by more than t, so a
bucket of the right size holds few of them, and the time is near-linear.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._jit import jit
from ._nms_all import LANES, lowered, overlaps_any, put
from ._nms_chains import append, look_through, make_chains


def buckets(iou_threshold: float, dtype: Any) -> tuple[float, int, float, float]:
    """What `search_near_range` takes last: (t, shift, cell_ratio, least area).

    `t` is a threshold for the geometry that is a little lower, so that rounding in working precision hides no pair. The
    bits of a size, as a float64, from bit `shift` on are its size bucket. The side of a cell is `cell_ratio` times the
    largest size of the bucket. Size buckets and cells shrink with 1 - t, as the room between two kept boxes does.
    """
    octaves = max(4 * (1 - iou_threshold), 2.0**-8)  # of size in one bucket: two of them from t = 0.5 downwards
    shift = 53 - max(0, math.floor(math.log2(2 / octaves)))
    return iou_threshold * (1 - 1e-5), shift, max(4 * (1 - iou_threshold), 1e-3), 16 * float(np.finfo(dtype).tiny)


@jit
def search_near_range(
    begin, end, segments, ranked, starts, iou_threshold, limit, kept, settled, t, shift, cell_ratio, least_area
):
    """Set `kept` of the segments[begin:end] for what is not settled."""
    threshold = lowered(iou_threshold, ranked)
    for s in segments[begin:end]:
        segment = slice(starts[s], starts[s + 1])
        _search_near(ranked[segment], threshold, limit, kept[segment], settled[s], t, shift, cell_ratio, least_area)


@jit
def _size_bucket(size, shift):
    """The leading bits of a positive float64: a logarithm that is exactly monotone."""
    return np.float64(size).view(np.int64) >> shift


@jit
def _smallest(bucket, shift):
    """The smallest size of a size bucket."""
    return np.int64(bucket << shift).view(np.float64)


@jit
def _scale(bucket, shift, cell_ratio):
    """Cells of a size bucket in a unit of length."""
    return 1 / (cell_ratio * _smallest(bucket + 1, shift))


@jit
def _cell(position):
    """The cell of a position in units of cells, within reach of integers."""
    return np.int64(math.floor(min(max(position, -(2.0**62)), 2.0**62)))


@jit
def _chain(x, y, a, c, mask):
    """Which of the mask + 1 chains holds the cell (x, y) of the size buckets a (of width) and c (of height)."""
    key = np.uint64(x) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(y) * np.uint64(0xC2B2AE3D27D4EB4F)
    key += np.uint64(a * 2053 + c) * np.uint64(0x165667B19E3779F9)
    # Every bit of the key reaches every bit of the result: the cells of a regular grid of boxes must not share chains.
    key = (key ^ (key >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return np.int64((key ^ (key >> np.uint64(32))) & mask)


@jit
def _pair(a, c):
    """Where `occupied` has the size buckets a and c, among others."""
    return (a * 67 + c) & 4095


@jit
def _search_near(boxes, threshold, limit, kept, settled, t, shift, cell_ratio, least_area):
    """Suppress `boxes` but the first, which are settled: each is compared with kept ones of like size and position."""
    zero, infinity = boxes.dtype.type(0), boxes.dtype.type(np.inf)
    number = 64
    while number < len(boxes) // 8:
        number *= 2
    mask = np.uint64(number - 1)
    blocks, chains, after, used = make_chains(number, number + len(boxes) // LANES, boxes)
    occupied = np.zeros(4096, np.bool_)  # by pair of size buckets, so that empty scales cost nothing; may err to True
    # Where an area or a size may underflow or overflow, sizes say nothing about IoU: such boxes are compared with all
    # their like, those within a factor 2^30 included, which is more than any ratio that a threshold lets through.
    least_size, largest_size = 2.0**-900, 2.0**900
    delicate = np.empty((len(boxes) // LANES + 1, 5, LANES), boxes.dtype)
    held = total = 0
    for i in range(len(boxes)):
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
            w, h = np.float64(width), np.float64(height)
            margin = min(area / least_area, min(w, h) / least_size, largest_size / max(w, h))
            a, c = _size_bucket(w, shift), _size_bucket(h, shift)
            column, row = _cell(x1 * _scale(a, shift, cell_ratio)), _cell(y1 * _scale(c, shift, cell_ratio))
            chain = _chain(column, row, a, c, mask)
            if i >= settled:
                if margin < 2.0**30 and overlaps_any(delicate, held, x1, y1, x2, y2, area, threshold):
                    continue
                # Most suppressors are in the candidate's own cell, so that one comes first.
                if margin >= 1 and (
                    look_through(blocks, chains, after, chain, x1, y1, x2, y2, area, threshold) < 0
                    or _overlaps_near(
                        blocks, chains, after, occupied, mask, x1, y1, x2, y2, area, threshold, t, shift, cell_ratio
                    )
                ):
                    continue
            if margin < 2.0**30:
                put(delicate, held // LANES, held % LANES, x1, y1, x2, y2, area)
                held += 1
            if margin >= 1:
                occupied[_pair(a, c)] = True
                used = append(blocks, chains, after, used, chain, x1, y1, x2, y2, area)
        kept[i] = True
        total += 1


@jit
def _overlaps_near(blocks, chains, after, occupied, mask, x1, y1, x2, y2, area, threshold, t, shift, cell_ratio):
    """Whether a kept box overlaps the candidate by more than the threshold.

    IoU > t means that the widths differ by less than a factor 1 / t and that the common width is at least t times the
    larger one. So a kept box of width v has its left edge in [x1 - (v - t max(w, v)), x1 + (w - t max(w, v))]; the same
    holds for heights. `floor` and rounding are monotone, so an edge in this range has its cell in the range of cells.
    """
    x, y, w, h = np.float64(x1), np.float64(y1), np.float64(x2 - x1), np.float64(y2 - y1)
    first, last = _size_bucket(h * t, shift), _size_bucket(h / t, shift)
    for a in range(_size_bucket(w * t, shift), _size_bucket(w / t, shift) + 1):
        narrowest, widest = _smallest(a, shift), _smallest(a + 1, shift)
        scale = _scale(a, shift, cell_ratio)
        widest = min(widest, w / t)
        left = _cell((x - (widest - t * max(w, widest))) * scale)
        right = _cell((x + (w - t * max(w, narrowest))) * scale)
        for c in range(first, last + 1):
            if not occupied[_pair(a, c)]:
                continue
            lowest, highest = _smallest(c, shift), _smallest(c + 1, shift)
            scale = _scale(c, shift, cell_ratio)
            highest = min(highest, h / t)
            top = _cell((y - (highest - t * max(h, highest))) * scale)
            bottom = _cell((y + (h - t * max(h, lowest))) * scale)
            for column in range(left, right + 1):
                for row in range(top, bottom + 1):
                    chain = _chain(column, row, a, c, mask)
                    if look_through(blocks, chains, after, chain, x1, y1, x2, y2, area, threshold) < 0:
                        return True
    return False
