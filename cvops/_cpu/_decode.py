"""From what a head predicts to boxes and back: one pass over the rows, sixteen at a time.

The formulas are those of cvops/_box_formulas.py, in the same order of operations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .._box_formulas import Fit
from .._checks import working_dtype
from .._decode import result_dtype
from . import _threads
from ._jit import jit
from ._memory import Array, contiguous, empty, parts, with_axes
from ._simd import WIDTH, full, load, load_every_fourth, store, store_every_fourth
from ._simd_math import add, at_most, divide, exp, log, multiply, subtract

# Rows that are copied at a time where kernels cannot read or write the caller's: 50 MB at most.
_ROWS = 1 << 19


def decode_boxes(deltas: Array, anchors: Array, weights: list[float], clip: float | None) -> Array:
    return _by_anchors(_decode, deltas, anchors, weights, math.inf if clip is None else clip)


def encode_boxes(boxes: Array, anchors: Array, weights: list[float]) -> Array:
    return _by_anchors(_encode, boxes, anchors, weights, math.inf)


def _by_anchors(kernel: Callable[..., None], values: Array, anchors: Array, weights: list[float], clip: float) -> Array:
    dtype = working_dtype(values, anchors)
    shape = values.shape if values.shape == anchors.shape else np.broadcast_shapes(values.shape, anchors.shape)
    numbers = _as_array((*weights, clip), dtype)
    if values.shape != shape:
        values = np.broadcast_to(values, shape)
    places = _rows_and_repeats(anchors.shape[:-1], shape[:-1])
    if places[0] is None:
        anchors, places = np.broadcast_to(anchors, shape), (math.prod(shape[:-1]), 1)
    anchors = with_axes(anchors, len(shape))

    def compute(length: int, some_values: Array, some_anchors: Array, result: Array) -> None:
        whole = some_values is values
        of_some = places if whole else _rows_and_repeats(some_anchors.shape[:-1], some_values.shape[:-1])
        flat = _flat(some_values, dtype), _flat(some_anchors, dtype)
        _threads.run(kernel, length, *flat, *of_some, numbers, result, nanoseconds=4 * length)

    return _computed(compute, shape, (values, anchors), dtype, result_dtype(values))


@functools.lru_cache(64)  # making it takes longer than decoding ten boxes
def _as_array(numbers: tuple[float, ...], dtype: str) -> Array:
    with np.errstate(all="ignore"):  # weights and clips beyond float32 become infinite
        array = np.array(numbers, dtype)
    array.setflags(write=False)
    return array


def _computed(
    compute: Callable[..., None], shape: tuple[int, ...], arrays: tuple[Array, ...], dtype: str, of_result: Any
) -> Array:
    """What compute(rows, *arrays, result) writes into `result`, flat and of type code `dtype`, as boxes of `of_result`.

    Rows are computed in parts where they have to be copied before or after.
    """
    result = empty(shape, np.dtype(of_result).char)
    flat, same = result.reshape(-1), result.dtype.char == dtype
    rows = math.prod(shape[:-1])
    if same and all(array.flags.c_contiguous and array.dtype.char == dtype for array in arrays):
        compute(rows, *arrays, flat)
        return result
    for begin, some_shape, some in parts(shape[:-1], arrays, _ROWS):
        length = math.prod(some_shape)
        into = flat[4 * begin : 4 * (begin + length)]
        values = into if same else np.empty(len(into), dtype)
        compute(length, *some, values)
        if not same:
            with np.errstate(all="ignore"):  # what is too large for float16 becomes infinite
                into[:] = values
    return result


def _flat(array: Array, dtype: str) -> Array:
    return contiguous(array, dtype).reshape(-1)


def _rows_and_repeats(of_anchors: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int | None, int]:
    """(n, r) if the anchor of row i of the result is number i // r % n of all; (None, 1) where it is not so."""
    padded = (1,) * (len(shape) - len(of_anchors)) + of_anchors
    own = [axis for axis, size in enumerate(padded) if size != 1]
    begin, end = (own[0], own[-1] + 1) if own else (0, 0)
    if padded[begin:end] != shape[begin:end]:
        return None, 1
    return math.prod(shape[begin:end]), math.prod(shape[end:])


@jit
def _decode(begin, end, deltas, anchors, rows, repeats, numbers, boxes):
    some_deltas, some_anchors = np.empty(4 * WIDTH, boxes.dtype), np.empty(4 * WIDTH, boxes.dtype)
    some_boxes, half = np.empty(4 * WIDTH, boxes.dtype), full(boxes.dtype.type(0.5))
    for row in range(begin, end, WIDTH):
        width = min(WIDTH, end - row)
        x1, y1, x2, y2 = _anchors_of(row, width, anchors, rows, repeats, some_anchors)
        dx, dy, dw, dh = _rows_from(row, width, deltas, some_deltas)
        left, right = _side(half, x1, x2, dx, dw, full(numbers[0]), full(numbers[2]), full(numbers[4]))
        top, bottom = _side(half, y1, y2, dy, dh, full(numbers[1]), full(numbers[3]), full(numbers[4]))
        _rows_to(row, width, boxes, some_boxes, left, top, right, bottom)


@jit
def _side(half, first, last, shift, growth, shift_weight, growth_weight, clip):
    """Both ends along an axis."""
    size = subtract(last, first)
    growth = at_most(divide(growth, growth_weight), clip)
    centre = add(multiply(divide(shift, shift_weight), size), add(first, multiply(half, size)))
    reach = multiply(half, multiply(exp(growth), size))
    return subtract(centre, reach), add(centre, reach)


@jit
def _encode(begin, end, boxes, anchors, rows, repeats, numbers, deltas):
    some_boxes, some_anchors = np.empty(4 * WIDTH, deltas.dtype), np.empty(4 * WIDTH, deltas.dtype)
    some_deltas, half = np.empty(4 * WIDTH, deltas.dtype), full(deltas.dtype.type(0.5))
    for row in range(begin, end, WIDTH):
        width = min(WIDTH, end - row)
        x1, y1, x2, y2 = _anchors_of(row, width, anchors, rows, repeats, some_anchors)
        left, top, right, bottom = _rows_from(row, width, boxes, some_boxes)
        dx, dw = _change(half, left, right, x1, x2, full(numbers[0]), full(numbers[2]))
        dy, dh = _change(half, top, bottom, y1, y2, full(numbers[1]), full(numbers[3]))
        _rows_to(row, width, deltas, some_deltas, dx, dy, dw, dh)


@jit
def _change(half, first, last, anchor_first, anchor_last, shift_weight, growth_weight):
    """The two deltas along an axis."""
    size, of_anchor = subtract(last, first), subtract(anchor_last, anchor_first)
    centre = add(first, multiply(half, size))
    moved = subtract(centre, add(anchor_first, multiply(half, of_anchor)))
    return (
        divide(multiply(shift_weight, moved), of_anchor),
        multiply(growth_weight, log(divide(size, of_anchor))),
    )


@jit
def _rows_from(row, width, values, some):
    """The four columns of the sixteen rows from `row` on, of which there may be fewer."""
    if width == WIDTH:
        return load_every_fourth(values, 4 * row)
    some[:] = 0
    some[: 4 * width] = values[4 * row : 4 * (row + width)]
    return load_every_fourth(some, 0)


@jit
def _rows_to(row, width, values, some, a, b, c, d):
    """Write the four columns of those rows."""
    if width == WIDTH:
        store_every_fourth(values, 4 * row, a, b, c, d)
    else:
        store_every_fourth(some, 0, a, b, c, d)
        values[4 * row : 4 * (row + width)] = some[: 4 * width]


@jit
def _anchors_of(row, width, anchors, rows, repeats, some):
    """As `_rows_from`, the anchors that go with those rows."""
    first = row // repeats % rows
    if repeats == 1 and width == WIDTH and first + WIDTH <= rows:
        return load_every_fourth(anchors, 4 * first)
    some[:] = 0
    left = repeats - row % repeats
    for k in range(width):
        for corner in range(4):
            some[4 * k + corner] = anchors[4 * first + corner]
        left -= 1
        if left == 0:
            left = repeats
            first += 1
            if first == rows:
                first = 0
    return load_every_fourth(some, 0)


def distance_to_boxes(points: Array, distances: Array) -> Array:
    dtype = working_dtype(points, distances)

    def compute(length: int, some_points: Array, some_distances: Array, result: Array) -> None:
        of_points, of_distances = _flat(some_points, dtype), _flat(some_distances, dtype)
        rows = len(of_points) // 2
        _threads.run(_around, length, of_points, of_distances, rows, result, nanoseconds=2 * length)

    arrays = with_axes(points, distances.ndim), distances
    return _computed(compute, distances.shape, arrays, dtype, result_dtype(distances))


@jit
def _around(begin, end, points, distances, rows, boxes):
    point = begin % rows if rows else 0
    for row in range(begin, end):
        x, y = points[2 * point], points[2 * point + 1]
        boxes[4 * row] = x - distances[4 * row]
        boxes[4 * row + 1] = y - distances[4 * row + 1]
        boxes[4 * row + 2] = x + distances[4 * row + 2]
        boxes[4 * row + 3] = y + distances[4 * row + 3]
        point = point + 1 if point + 1 < rows else 0


def scale_boxes(boxes: Array, fit: Fit) -> Array:
    dtype = working_dtype(boxes)
    paddings, gains = (_as_array((*pair[::-1],) * (WIDTH // 2), dtype) for pair in (fit.padding, fit.gain))

    def compute(length: int, some: Array, result: Array) -> None:
        _threads.run(_move, length, _flat(some, dtype), paddings, gains, result, nanoseconds=2 * length)

    return _computed(compute, boxes.shape, (boxes,), dtype, result_dtype(boxes))


@jit
def _move(begin, end, boxes, paddings, gains, scaled):
    padding, gain = load(paddings, 0), load(gains, 0)
    whole = 4 * begin + (4 * end - 4 * begin) // WIDTH * WIDTH
    for i in range(4 * begin, whole, WIDTH):
        store(scaled, i, divide(subtract(load(boxes, i), padding), gain))
    for i in range(whole, 4 * end):
        scaled[i] = (boxes[i] - paddings[i % 4]) / gains[i % 4]
