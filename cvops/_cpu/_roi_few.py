"""roi_align and roi_pool for small calls: one dispatch computes the tables, allocates the result and pools.

`lean_roi_align` and `lean_roi_pool` answer a small call whose arguments are surely valid, and return None for any
other. The caller then goes the general way, which checks the arguments, raises for what is wrong, and gives the same
answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from . import _roi_kernels, _roi_tables
from ._jit import jit, jit_for
from ._memory import Array, result
from ._roi import CHUNK_BYTES
from ._roi_kernels import FEW_CHANNELS
from ._roi_tables import ALIGN, ALIGN_CENTRES, MAXIMUM
from ._simd import WIDTH, flattened
from ._xywh import looks_like_xywh

# Values of a result up to which one dispatch takes the call: workers would not pay yet.
_MOST_VALUES = 30_000
_MOST_SAMPLES = 1 << 16
# Pixels, of 16 channels each, that take as long as the general way takes to begin; measured.
_SOME_PIXELS = 4096

_FLOAT32 = np.dtype(np.float32)
_ndarray = np.ndarray
_TWO_INTS = [int, int]
# Of any strides, because the kernels look at them faster than Python does. Both functions below ask the same, each for
# itself: a call of a third would be felt where all takes two microseconds.
_MAPS = types.Array(types.float32, 4, "A", readonly=True)
_ROIS = types.Array(types.float32, 2, "A", readonly=True)


def lean_roi_align(
    input: Any, boxes: Any, output_size: Any, spatial_scale: Any, sampling_ratio: Any, aligned: Any
) -> Array | None:
    """The result of `roi_align`, or None if the call must go the general way."""
    if (
        type(input) is type(boxes) is _ndarray
        and input.dtype is boxes.dtype is _FLOAT32
        and input.ndim == 4
        and boxes.ndim == 2
        and type(spatial_scale) is float
        and type(sampling_ratio) is int
        and -_MOST_SAMPLES < sampling_ratio <= _MOST_SAMPLES
        and type(aligned) is bool
    ):
        if type(output_size) is int:
            rows = columns = output_size
        elif type(output_size) is tuple and list(map(type, output_size)) == _TWO_INTS:
            rows, columns = output_size
        else:
            return None
        if 0 < rows <= _MOST_VALUES >= columns > 0:
            layout = ALIGN_CENTRES if aligned else ALIGN
            pooled: Array | None = align_few(input, boxes, rows, columns, spatial_scale, sampling_ratio, layout)
            return pooled
    return None


def lean_roi_pool(input: Any, boxes: Any, output_size: Any, spatial_scale: Any) -> Array | None:
    """The result of `roi_pool` without argmax, or None if the call must go the general way."""
    if (
        type(input) is type(boxes) is _ndarray
        and input.dtype is boxes.dtype is _FLOAT32
        and input.ndim == 4
        and boxes.ndim == 2
        and type(spatial_scale) is float
    ):
        if type(output_size) is int:
            rows = columns = output_size
        elif type(output_size) is tuple and list(map(type, output_size)) == _TWO_INTS:
            rows, columns = output_size
        else:
            return None
        if 0 < rows <= _MOST_VALUES >= columns > 0:
            pooled: Array | None = pool_few(input, boxes, rows, columns, spatial_scale)
            return pooled
    return None


@jit
def _is_simple(features, rois, rows, columns, scale):
    """Whether the arguments are valid, lie as kernels want them, are little work, and RoIs do not look like xywh."""
    return (
        0.0 < scale < 1e30
        and rois.shape[1] == 5
        and features.size > 0
        and 0.0 < np.float64(len(rois)) * features.shape[1] * rows * columns <= _MOST_VALUES
        and (features.ctypes.data | rois.ctypes.data) % features.itemsize == 0
        and _is_contiguous(features)
        and _is_contiguous(rois)
        and not looks_like_xywh(rois, 1)
    )


@jit
def _is_contiguous(array):
    stride = array.itemsize
    for axis in range(array.ndim - 1, -1, -1):
        if array.strides[axis] != stride and array.shape[axis] != 1:
            return False
        stride *= array.shape[axis]
    return True


@jit
def _read_much(shape, rois, rows, columns, scale, ratio, layout):
    """Whether RoIs read the same pixels so often that transposing the maps once, as the general way does, is faster."""
    images, channels, height, width = shape
    read = np.float64(0)
    for k in range(len(rois)):
        _, x1, y1, x2, y2 = _roi_tables.roi_of(rois, k)
        y_axis = _roi_tables.axis_of(y1, y2, np.float32(scale), layout, rows, ratio)
        x_axis = _roi_tables.axis_of(x1, x2, np.float32(scale), layout, columns, ratio)
        if y_axis[2] > 0 and x_axis[2] > 0:
            row_count = min(min(abs(y_axis[1]) * rows, np.float64(2 * rows * y_axis[2])), np.float64(height))
            read += row_count * min(abs(x_axis[1]) * columns, np.float64(width))
    blocks = -(-channels // WIDTH)
    return read * blocks > 1.5 * images * height * width * blocks + _SOME_PIXELS


@jit_for(_MAPS, _ROIS, types.int64, types.int64, types.float64, types.int64, types.int64)
def align_few(features, rois, rows, columns, scale, ratio, layout):
    """The result of roi_align, or None if a value is wrong, RoIs look like xywh, or much would be read or needed."""
    if not _is_simple(features, rois, rows, columns, scale):
        return None
    images, channels, height, width = features.shape
    few, sides, bins, zero = channels < FEW_CHANNELS, (height, width), (rows, columns), np.int64(0)
    if not few and len(rois) > 1 and _read_much(features.shape, rois, rows, columns, scale, ratio, layout):
        return None
    multiple_of = np.int64(1 if few else _roi_kernels.UNIT)
    flat, values = flattened(features), channels * rows * columns
    pooled = _roi_kernels.lines(-(-len(rois) * values // WIDTH) + 1, rois)
    first = np.empty(rows + columns + 2, np.uint64)
    room = 8 * (rows + columns)
    offset, weight = np.empty(room, np.int64), np.empty(room, rois.dtype)
    for k in range(len(rois)):
        image, x1, y1, x2, y2 = _roi_tables.roi_of(rois, k)
        if not 0 <= image < images or image != np.floor(image):
            return None
        y_axis = _roi_tables.axis_of(y1, y2, np.float32(scale), layout, rows, ratio)
        x_axis = _roi_tables.axis_of(x1, x2, np.float32(scale), layout, columns, ratio)
        room = _roi_tables.room_of_taps((y_axis[2], x_axis[2]), sides, bins, multiple_of)
        if room > len(weight):
            if room * (8 + weight.itemsize) > CHUNK_BYTES:
                return None
            offset, weight = np.empty(room, np.int64), np.empty(room, rois.dtype)
        _roi_tables.taps_of(y_axis, x_axis, sides, bins, multiple_of, True, zero, first, zero, offset, weight)
        y_taps, x_taps = np.int64(first[rows]), np.int64(first[rows + 1 + columns] - first[rows + 1])
        if y_taps * max(x_taps, columns, 4) * WIDTH > CHUNK_BYTES:  # no fewer bytes than sums of rows
            return None
        start = np.int64(image) * channels * height * width
        if few:
            _roi_kernels.forward_one_direct(
                flat, start, features.shape, first, offset, weight, bins, pooled, k * values
            )  # fmt: skip
        else:
            _roi_kernels.forward_one(flat, start, features.shape, first, offset, weight, bins, pooled, k * values)
    return result(pooled[: len(rois) * values].reshape((len(rois), channels, rows, columns)))


@jit
def _level(height, width, scale):
    levels = np.empty((1, 3), np.float64)
    levels[0, 0], levels[0, 1], levels[0, 2] = height, width, scale
    return levels


@jit_for(_MAPS, _ROIS, types.int64, types.int64, types.float64)
def pool_few(features, rois, rows, columns, scale):
    """The result of roi_pool, or None if a value is wrong, RoIs look like xywh, or there are several chunks."""
    if not _is_simple(features, rois, rows, columns, scale):
        return None
    images, channels, height, width = features.shape
    none, few, one = np.int64(0), channels < FEW_CHANNELS, np.int64(1)
    runs_of_map = none if few else height * width // WIDTH + 1
    nothing = np.empty(0, np.int64)
    bad, _, _, chunk = _roi_tables.table_of_windows(
        rois, images, _level(height, width, scale), np.empty(0), none, np.int64(len(rois)) + 1, nothing, nothing,
        np.int64(CHUNK_BYTES), none, runs_of_map, MAXIMUM, rows, columns, none,
    )  # fmt: skip
    order, starts, runs, run_starts, windows = chunk
    if bad >= 0 or len(order) < len(rois):
        return None
    pooled = _roi_kernels.lines(-(-len(rois) * channels * rows * columns // WIDTH), rois)
    argmax = np.empty(0, np.int32)
    strides, bins = (height * width, one), (rows, columns)
    flat = flattened(features)
    if few:
        _roi_kernels.maxima_direct(
            none, len(rois), features.shape, strides, flat,
            order, starts, runs, run_starts, windows, bins, pooled, argmax,
        )  # fmt: skip
    else:
        _roi_kernels.maxima(
            none, images * -(-channels // WIDTH), features.shape, strides, flat,
            order, starts, runs, run_starts, windows, bins, pooled, argmax,
        )  # fmt: skip
    return result(pooled[: len(rois) * channels * rows * columns].reshape((len(rois), channels, rows, columns)))
