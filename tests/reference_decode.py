"""Deltas, distances, points and anchors: slow loops written from the definitions, importing nothing from cvops.

Everything is computed in working precision. `test_decode.py` checks this file against values computed by hand.
"""

from __future__ import annotations

import math

import numpy as np

from tests.reference import working

CLIP = math.log(1000 / 16)
_quiet = np.errstate(all="ignore")


def _result(array, shape):
    """An empty array for results that keep the dtype of `array` if it is a float."""
    dtype = array.dtype if array.dtype.kind == "f" else working(array)[0].dtype
    return np.empty(shape, dtype)


@_quiet
def decode_boxes(deltas, anchors, weights=(1, 1, 1, 1), *, clip=CLIP):
    """Centre moved by sizes of the anchor, sizes multiplied by exponentials."""
    shape = np.broadcast_shapes(deltas.shape, anchors.shape)
    result = _result(deltas, shape)
    deltas, anchors = (np.broadcast_to(array, shape) for array in working(deltas, anchors))
    real = deltas.dtype.type
    for i in np.ndindex(shape[:-1]):
        (dx, dy, dw, dh), (x1, y1, x2, y2) = deltas[i], anchors[i]
        corners = []
        for shift, growth, low, high, k in ((dx, dw, x1, x2, 0), (dy, dh, y1, y2, 1)):
            size = high - low
            growth = growth / real(weights[k + 2])
            if clip is not None and growth > real(clip):
                growth = real(clip)
            centre = shift / real(weights[k]) * size + (low + real(0.5) * size)
            half = real(0.5) * (np.exp(growth) * size)
            corners.append((centre - half, centre + half))
        result[i] = corners[0][0], corners[1][0], corners[0][1], corners[1][1]
    return result


@_quiet
def encode_boxes(boxes, anchors, weights=(1, 1, 1, 1)):
    """What `decode_boxes` turns back into the boxes."""
    shape = np.broadcast_shapes(boxes.shape, anchors.shape)
    result = _result(boxes, shape)
    boxes, anchors = (np.broadcast_to(array, shape) for array in working(boxes, anchors))
    real = boxes.dtype.type
    for i in np.ndindex(shape[:-1]):
        shifts, growths = [], []
        for k in (0, 1):
            low, high, first, last = boxes[i][k], boxes[i][k + 2], anchors[i][k], anchors[i][k + 2]
            centre, of_anchor = low + real(0.5) * (high - low), first + real(0.5) * (last - first)
            shifts.append(real(weights[k]) * (centre - of_anchor) / (last - first))
            growths.append(real(weights[k + 2]) * np.log((high - low) / (last - first)))
        result[i] = *shifts, *growths
    return result


@_quiet
def distance_to_boxes(points, distances):
    """x - left, y - top, x + right, y + bottom."""
    result = _result(distances, distances.shape)
    points, distances = working(points, distances)
    for *i, k in np.ndindex(distances.shape[:-1]):
        (x, y), (left, top, right, bottom) = points[k], distances[(*i, k)]
        result[(*i, k)] = x - left, y - top, x + right, y + bottom
    return result


@_quiet
def scale_boxes(boxes, from_size, to_size, *, letterbox=False):
    """(box - padding) / gain."""
    gain = [one / other for one, other in zip(from_size, to_size, strict=True)]
    if letterbox:
        gain = [min(gain), min(gain)]
    padding = [0.0, 0.0]
    if letterbox in (True, "center"):
        padding = [(one - other * min(gain)) / 2 for one, other in zip(from_size, to_size, strict=True)]
    result = _result(boxes, boxes.shape)
    (boxes,) = working(boxes)
    real = boxes.dtype.type
    for *i, k in np.ndindex(boxes.shape):
        axis = 1 - k % 2  # sizes are (height, width)
        result[(*i, k)] = (boxes[(*i, k)] - real(padding[axis])) / real(gain[axis])
    return result


def _strides(stride):
    return stride if isinstance(stride, tuple) else (stride, stride)


def make_points(sizes, strides, *, offset=0.5, dtype=np.float32):
    """Cell by cell, row by row, map by map."""
    real = working(np.zeros(0, dtype))[0].dtype.type
    points = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = map(real, _strides(stride))
        points += [
            ((real(j) + real(offset)) * x, (real(i) + real(offset)) * y) for i in range(height) for j in range(width)
        ]
    return np.array(points, dtype).reshape(-1, 2)


@_quiet
def make_anchors(sizes, strides, *, scales, ratios, dtype=np.float32):
    """At each cell ratio by ratio, for each ratio the scales: rounded corners around the cell's own."""
    real = working(np.zeros(0, dtype))[0].dtype.type
    anchors = []
    for n, ((height, width), stride) in enumerate(zip(sizes, strides, strict=True)):
        of_map = [values[n] if values and isinstance(values[0], tuple) else values for values in (scales, ratios)]
        y, x = map(real, _strides(stride))
        base = []
        for ratio in of_map[1]:
            root = np.sqrt(real(ratio))
            for scale in of_map[0]:
                half_width, half_height = real(1) / root * real(scale) / real(2), root * real(scale) / real(2)
                base.append([np.rint(each) for each in (-half_width, -half_height, half_width, half_height)])
        for i in range(height):
            for j in range(width):
                anchors += [(x * real(j) + a, y * real(i) + b, x * real(j) + c, y * real(i) + d) for a, b, c, d in base]
    return np.array(anchors, dtype).reshape(-1, 4)
