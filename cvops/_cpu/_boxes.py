"""Pairwise box measures: one pass over the pairs, nothing stored but the result and a tile of 128 columns."""

from __future__ import annotations

import math

import numpy as np

from . import _threads
from ._jit import jit
from ._memory import Array, contiguous, empty

# Which measure `_pairs` computes.
_IOU, _GENERALIZED, _DISTANCE, _COMPLETE = range(4)


def box_iou(boxes1: Array, area1: Array, boxes2: Array, area2: Array) -> Array:
    return _measure(_IOU, boxes1, area1, boxes2, area2, 0.0)


def generalized_box_iou(boxes1: Array, area1: Array, boxes2: Array, area2: Array) -> Array:
    return _measure(_GENERALIZED, boxes1, area1, boxes2, area2, 0.0)


def distance_box_iou(boxes1: Array, area1: Array, boxes2: Array, area2: Array, eps: float) -> Array:
    return _measure(_DISTANCE, boxes1, area1, boxes2, area2, eps)


def complete_box_iou(boxes1: Array, area1: Array, boxes2: Array, area2: Array, eps: float) -> Array:
    return _measure(_COMPLETE, boxes1, area1, boxes2, area2, eps)


def _measure(kind: int, boxes1: Array, area1: Array, boxes2: Array, area2: Array, eps: float) -> Array:
    """Corners (..., N, 4) and (..., M, 4) and areas (..., N) and (..., M) of one dtype -> (..., N, M)."""
    dtype = boxes1.dtype.char
    batch = np.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    n, m, size = boxes1.shape[-2], boxes2.shape[-2], math.prod(batch)
    result = empty((*batch, n, m), dtype)
    _threads.run(
        _pairs_range,
        size * n,
        kind,
        contiguous(np.broadcast_to(boxes1, (*batch, n, 4)), dtype).reshape(size, n, 4),
        contiguous(np.broadcast_to(area1, (*batch, n)), dtype).reshape(size, n),
        contiguous(np.broadcast_to(boxes2, (*batch, m, 4)), dtype).reshape(size, m, 4),
        contiguous(np.broadcast_to(area2, (*batch, m)), dtype).reshape(size, m),
        boxes1.dtype.type(eps),
        result.reshape(size, n, m),
        nanoseconds=0.2 * size * n * m,
    )
    return result


_TILE = 128


@jit
def _pairs_range(begin, end, kind, boxes1, area1, boxes2, area2, eps, result):
    """Rows [begin, end) of the result, all batches counted through."""
    n = boxes1.shape[1]
    tile = np.empty((6, _TILE), result.dtype)  # x1, y1, x2, y2, area, angle of the diagonal
    row = begin
    while row < end:
        batch, first = row // n, row % n
        last = min(n, first + end - row)
        for left in range(0, boxes2.shape[1], _TILE):
            width = min(_TILE, boxes2.shape[1] - left)
            _load(tile, boxes2[batch, left : left + width], area2[batch, left : left + width], kind)
            for i in range(first, last):
                _pairs(kind, boxes1[batch, i], area1[batch, i], tile, eps, result[batch, i, left : left + width])
        row += last - first


@jit
def _load(tile, boxes, areas, kind):
    for j in range(len(boxes)):
        for k in range(4):
            tile[k, j] = boxes[j, k]
        tile[4, j] = areas[j]
        if kind == _COMPLETE:
            tile[5, j] = math.atan((tile[2, j] - tile[0, j]) / (tile[3, j] - tile[1, j]))


@jit
def _pairs(kind, box, area, tile, eps, result):
    """One box with each box of the tile. The loops are apart because a branch inside would keep them scalar."""
    zero, two = result.dtype.type(0), result.dtype.type(2)
    x1, y1, x2, y2 = box[0], box[1], box[2], box[3]
    X1, Y1, X2, Y2, areas, angles = tile[0], tile[1], tile[2], tile[3], tile[4], tile[5]
    for j in range(len(result)):
        inter = max(min(x2, X2[j]) - max(x1, X1[j]), zero) * max(min(y2, Y2[j]) - max(y1, Y1[j]), zero)
        result[j] = inter / ((area + areas[j]) - inter)
    if kind == _GENERALIZED:
        for j in range(len(result)):
            inter = max(min(x2, X2[j]) - max(x1, X1[j]), zero) * max(min(y2, Y2[j]) - max(y1, Y1[j]), zero)
            union = (area + areas[j]) - inter
            hull = max(max(x2, X2[j]) - min(x1, X1[j]), zero) * max(max(y2, Y2[j]) - min(y1, Y1[j]), zero)
            result[j] -= (hull - union) / hull
        return
    if kind == _COMPLETE:
        angle = math.atan((x2 - x1) / (y2 - y1))
        one, scale = result.dtype.type(1), result.dtype.type(4 / math.pi**2)
        for j in range(len(result)):
            v = scale * (angle - angles[j]) * (angle - angles[j])
            result[j] -= v / (one - result[j] + v + eps) * v
    if kind >= _DISTANCE:
        for j in range(len(result)):
            hull_width = max(max(x2, X2[j]) - min(x1, X1[j]), zero)
            hull_height = max(max(y2, Y2[j]) - min(y1, Y1[j]), zero)
            dx = (x1 + x2) / two - (X1[j] + X2[j]) / two
            dy = (y1 + y2) / two - (Y1[j] + Y2[j]) / two
            result[j] -= (dx * dx + dy * dy) / (hull_width * hull_width + hull_height * hull_height + eps)
