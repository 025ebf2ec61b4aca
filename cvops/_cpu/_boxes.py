"""Pairwise box measures: one pass over the pairs, nothing stored but the result and some of the boxes at a time."""

from __future__ import annotations

import itertools
import math

import numpy as np

from .._boxes import COMPLETE, DISTANCE, GENERALIZED, IOU, corners_and_area
from .._checks import working_dtype
from . import _threads
from ._jit import jit
from ._memory import Array, contiguous, empty, parts, with_axes

# Boxes of either set whose corners and areas are in memory at a time: 30 MB at most.
_BOXES = 1 << 17


def box_iou(boxes1: Array, boxes2: Array, fmt: str) -> Array:
    return _measure(IOU, boxes1, boxes2, fmt, 0.0)


def generalized_box_iou(boxes1: Array, boxes2: Array, fmt: str) -> Array:
    return _measure(GENERALIZED, boxes1, boxes2, fmt, 0.0)


def distance_box_iou(boxes1: Array, boxes2: Array, fmt: str, eps: float) -> Array:
    return _measure(DISTANCE, boxes1, boxes2, fmt, eps)


def complete_box_iou(boxes1: Array, boxes2: Array, fmt: str, eps: float) -> Array:
    return _measure(COMPLETE, boxes1, boxes2, fmt, eps)


def _measure(measure: int, boxes1: Array, boxes2: Array, fmt: str, eps: float) -> Array:
    """Boxes (..., N, 4) and (..., M, 4) -> (..., N, M) in working precision."""
    batch = np.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    n, m, dtype = boxes1.shape[-2], boxes2.shape[-2], working_dtype(boxes1, boxes2)
    result = empty((*batch, n, m), dtype)
    flat = result.reshape(math.prod(batch), n, m)
    if len(flat) * (n + m) <= _BOXES:
        _measure_some(measure, boxes1, boxes2, fmt, batch, eps, (0, 0, 0), flat)
        return result
    sets = with_axes(boxes1, len(batch) + 2), with_axes(boxes2, len(batch) + 2)
    for begin, shape, (some1, some2) in parts(batch, sets, max(_BOXES // max(n + m, 1), 1)):
        for row, column in itertools.product(range(0, n, _BOXES), range(0, m, _BOXES)):
            rows, columns = some1[..., row : row + _BOXES, :], some2[..., column : column + _BOXES, :]
            _measure_some(measure, rows, columns, fmt, shape, eps, (begin, row, column), flat)
    return result


def _measure_some(
    measure: int,
    rows: Array,
    columns: Array,
    fmt: str,
    batch: tuple[int, ...],
    eps: float,
    origin: tuple[int, int, int],
    result: Array,
) -> None:
    """Write the pairs of these boxes into `result` (number of batches, N, M), the first of them at `origin`."""
    number, dtype = math.prod(batch) * rows.shape[-2], result.dtype.char
    with np.errstate(all="ignore"):
        sets = *_corners_and_area(rows, fmt, dtype, batch), *_corners_and_area(columns, fmt, dtype, batch)
    terms = measure == GENERALIZED, measure == COMPLETE, measure >= DISTANCE
    _threads.run(_pairs, number, terms, *sets, eps, origin, result, nanoseconds=0.15 * number * columns.shape[-2])


def _corners_and_area(boxes: Array, fmt: str, dtype: str, batch: tuple[int, ...]) -> tuple[Array, Array]:
    """Corners and area of each box, of all batches, as kernels take them."""
    corners, area = corners_and_area(boxes, fmt, dtype, np)
    length = boxes.shape[-2]
    return _of_batches(corners, batch, (length, 4)), _of_batches(area, batch, (length,))


def _of_batches(array: Array, batch: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """`array` as (number of batches, *shape), contiguous."""
    if batch:
        array = np.broadcast_to(array, batch + shape)
    return contiguous(array, array.dtype.char).reshape(math.prod(batch), *shape)


# Boxes of the second set that lie coordinate by coordinate at a time.
_COLUMNS = 1024


@jit
def _pairs(begin, end, terms, boxes1, area1, boxes2, area2, epsilon, origin, result):
    """Measure rows [begin, end) of the pairs; row batch * N + i is box i of a batch. The first pair is at `origin`.

    terms: whether to subtract, from IoU, the terms of the hull, of the angles and of the distance of centres. Each term
    has a loop over some columns, without a branch and in this very function: LLVM makes vector code of no others.
    """
    hull_counts, angles_count, distance_counts = terms
    zero, one, two = result.dtype.type(0), result.dtype.type(1), result.dtype.type(2)
    eps, n = result.dtype.type(epsilon), boxes1.shape[1]
    some = np.empty((6, _COLUMNS), result.dtype)
    X1, Y1, X2, Y2, areas, angles = some[0], some[1], some[2], some[3], some[4], some[5]
    row = begin
    while row < end:
        batch, first = row // n, row % n
        last = min(n, first + end - row)
        row += last - first
        for left in range(0, boxes2.shape[1], _COLUMNS):
            width = min(_COLUMNS, boxes2.shape[1] - left)
            for j in range(width):
                X1[j], Y1[j] = boxes2[batch, left + j, 0], boxes2[batch, left + j, 1]
                X2[j], Y2[j] = boxes2[batch, left + j, 2], boxes2[batch, left + j, 3]
                areas[j] = area2[batch, left + j]
                if angles_count:
                    angles[j] = math.atan2(X2[j] - X1[j], Y2[j] - Y1[j])
            for i in range(first, last):
                x1, y1, x2, y2 = boxes1[batch, i, 0], boxes1[batch, i, 1], boxes1[batch, i, 2], boxes1[batch, i, 3]
                area = area1[batch, i]
                at = origin[2] + left
                out = result[origin[0] + batch, origin[1] + i, at : at + width]
                for j in range(width):
                    inter = max(min(x2, X2[j]) - max(x1, X1[j]), zero) * max(min(y2, Y2[j]) - max(y1, Y1[j]), zero)
                    out[j] = inter / ((area + areas[j]) - inter)
                if hull_counts:
                    for j in range(width):
                        inter = max(min(x2, X2[j]) - max(x1, X1[j]), zero) * max(min(y2, Y2[j]) - max(y1, Y1[j]), zero)
                        union = (area + areas[j]) - inter
                        hull = max(max(x2, X2[j]) - min(x1, X1[j]), zero) * max(max(y2, Y2[j]) - min(y1, Y1[j]), zero)
                        out[j] -= (hull - union) / hull
                if angles_count:
                    angle, scale = math.atan2(x2 - x1, y2 - y1), result.dtype.type(4 / math.pi**2)
                    for j in range(width):
                        v = scale * (angle - angles[j]) * (angle - angles[j])
                        out[j] -= v / (one - out[j] + v + eps) * v
                if distance_counts:
                    for j in range(width):
                        hull_width = max(max(x2, X2[j]) - min(x1, X1[j]), zero)
                        hull_height = max(max(y2, Y2[j]) - min(y1, Y1[j]), zero)
                        dx = (x1 + x2) / two - (X1[j] + X2[j]) / two
                        dy = (y1 + y2) / two - (Y1[j] + Y2[j]) / two
                        out[j] -= (dx * dx + dy * dy) / (hull_width * hull_width + hull_height * hull_height + eps)
