"""Boxes from deltas: one pass, nothing stored but the result."""

from __future__ import annotations

import math

import numpy as np

from .._checks import working_dtype
from .._decode import result_dtype
from . import _threads
from ._jit import jit
from ._memory import Array, cast, contiguous, empty

_BLOCK = 4096  # rows whose exponentials are computed at a time


def decode_boxes(deltas: Array, anchors: Array, weights: tuple[float, ...], clip: float | None) -> Array:
    dtype = working_dtype(deltas, anchors)
    result_type = np.dtype(result_dtype(deltas)).char
    shape = np.broadcast_shapes(deltas.shape, anchors.shape)
    if deltas.shape != shape:
        deltas = np.broadcast_to(deltas, shape)
    rows, repeats = _rows_and_repeats(anchors.shape[:-1], shape[:-1])
    if rows is None:
        anchors, rows, repeats = np.broadcast_to(anchors, shape), math.prod(shape[:-1]), 1
    boxes = empty(shape, dtype)
    real = boxes.dtype.type
    _threads.run(
        _decode_range,
        math.prod(shape[:-1]),
        contiguous(deltas, dtype).reshape(-1, 4),
        contiguous(anchors, dtype).reshape(-1, 4),
        rows,
        repeats,
        tuple(map(real, weights)),
        real(math.inf if clip is None else clip),
        boxes.reshape(-1, 4),
        nanoseconds=8 * math.prod(shape[:-1]),
    )
    return cast(boxes, result_type)


def _rows_and_repeats(of_anchors: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int | None, int]:
    """(n, r) if the anchor of row i of the result is number i // r % n of all; (None, 1) where it is not so."""
    padded = (1,) * (len(shape) - len(of_anchors)) + of_anchors
    own = [axis for axis, size in enumerate(padded) if size != 1]
    begin, end = (own[0], own[-1] + 1) if own else (0, 0)
    if padded[begin:end] != shape[begin:end]:
        return None, 1
    return math.prod(shape[begin:end]), math.prod(shape[end:])


def _decode_range(begin, end, deltas, anchors, rows, repeats, weights, clip, boxes):
    """Rows [begin, end) of `decoded` in cvops/_decode.py, in the same order of operations."""
    for first in range(begin, end, _BLOCK):
        last = min(first + _BLOCK, end)
        with np.errstate(all="ignore"):  # NumPy's exponentials are vectorised, those of the compiler are not
            growth = deltas[first:last, 2:] / np.array(weights[2:])
            np.exp(np.minimum(growth, clip, out=growth), out=growth)
        _decode(first, last, deltas, growth, anchors, rows, repeats, weights, boxes)


@jit
def _decode(begin, end, deltas, growth, anchors, rows, repeats, weights, boxes):
    half = boxes.dtype.type(0.5)
    a, r = begin // repeats % rows, begin % repeats
    for i in range(begin, end):
        for axis in range(2):
            first = anchors[a, axis]
            size = anchors[a, axis + 2] - first
            centre = deltas[i, axis] / weights[axis] * size + (first + half * size)
            side = half * (growth[i - begin, axis] * size)
            boxes[i, axis] = centre - side
            boxes[i, axis + 2] = centre + side
        r += 1
        if r == repeats:
            r = 0
            a += 1
            if a == rows:
                a = 0
