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
from ._memory import Array
from ._roi import CHUNK_BYTES
from ._roi_kernels import FEW_CHANNELS
from ._roi_tables import ALIGN, ALIGN_CENTRES, MAXIMUM
from ._simd import WIDTH
from ._xywh import looks_like_xywh

# Values of a result up to which one dispatch takes the call: workers would not pay yet.
_MOST_VALUES = 30_000

_FLOAT32 = np.dtype(np.float32)
_ndarray = np.ndarray
_MAPS = types.Array(types.float32, 4, "C", readonly=True)
_ROIS = types.Array(types.float32, 2, "C", readonly=True)


def lean_roi_align(
    input: Any, boxes: Any, output_size: Any, spatial_scale: Any, sampling_ratio: Any, aligned: Any
) -> Array | None:
    """The result of `roi_align`, or None if the call must go the general way."""
    size = (output_size, output_size) if type(output_size) is int else output_size
    if (
        not _fits_kernels(input, boxes, size, spatial_scale)
        or type(sampling_ratio) is not int
        or type(aligned) is not bool
    ):
        return None
    if sampling_ratio > 1 << 16:
        return None
    layout = ALIGN_CENTRES if aligned else ALIGN
    samples = sampling_ratio if sampling_ratio > 0 else 0
    pooled: Array | None = align_few(input, boxes, *size, spatial_scale, samples, layout)
    return pooled


def lean_roi_pool(input: Any, boxes: Any, output_size: Any, spatial_scale: Any) -> Array | None:
    """The result of `roi_pool` without argmax, or None if the call must go the general way."""
    size = (output_size, output_size) if type(output_size) is int else output_size
    if not _fits_kernels(input, boxes, size, spatial_scale):
        return None
    pooled: Array | None = pool_few(input, boxes, *size, spatial_scale)
    return pooled


def _fits_kernels(input: Any, boxes: Any, size: Any, spatial_scale: Any) -> bool:
    """Whether kernels take arguments of these types and layouts; they look at the rest, which costs them less."""
    return bool(
        type(input) is type(boxes) is _ndarray
        and input.dtype is boxes.dtype is _FLOAT32
        and type(spatial_scale) is float
        and type(size) is tuple
        and len(size) == 2
        and type(size[0]) is type(size[1]) is int
        and 0 < size[0] <= _MOST_VALUES >= size[1] > 0
        and input.ndim == 4
        and boxes.ndim == 2
        and input.flags.c_contiguous
        and boxes.flags.c_contiguous
    )


@jit
def _is_simple(features, rois, rows, columns, scale):
    """Whether the arguments are valid and aligned, little work, and RoIs do not look like xywh."""
    return (
        0.0 < scale < 1e30
        and rois.shape[1] == 5
        and features.size > 0
        and 0.0 < np.float64(len(rois)) * features.shape[1] * rows * columns <= _MOST_VALUES
        and (features.ctypes.data | rois.ctypes.data) % features.itemsize == 0
        and not looks_like_xywh(rois, 1)
    )


@jit
def _level(height, width, scale):
    levels = np.empty((1, 3), np.float64)
    levels[0, 0], levels[0, 1], levels[0, 2] = height, width, scale
    return levels


@jit_for(_MAPS, _ROIS, types.int64, types.int64, types.float64, types.int64, types.int64)
def align_few(features, rois, rows, columns, scale, ratio, layout):
    """The result of roi_align, or None if a value is wrong, RoIs look like xywh, or there are several chunks."""
    if not _is_simple(features, rois, rows, columns, scale):
        return None
    images, channels, height, width = features.shape
    none, few, one = np.int64(0), channels < FEW_CHANNELS, np.int64(1)
    runs_of_map = none if few else height * width // WIDTH + 1
    multiple_of = one if few else np.int64(_roi_kernels.UNIT)
    nothing = np.empty(0, np.int64)
    bad, _, _, chunk = _roi_tables.table_of_samples(
        rois, images, _level(height, width, scale), np.empty(0), none, np.int64(len(rois)) + 1, nothing, nothing,
        np.int64(CHUNK_BYTES), none, runs_of_map, layout, rows, columns, ratio, multiple_of, True,
    )  # fmt: skip
    order, starts, runs, run_starts, first, offset, weight = chunk
    if bad >= 0 or len(order) < len(rois):
        return None
    pooled = _roi_kernels.lines(-(-len(rois) * channels * rows * columns // WIDTH), weight)
    strides, bins = (height * width, one), (rows, columns)
    flat = features.reshape(-1)
    if few:
        _roi_kernels.forward_direct(
            none, len(rois), features.shape, one, none, strides, flat,
            order, starts, runs, run_starts, first, offset, weight, bins, pooled,
        )  # fmt: skip
    else:
        _roi_kernels.forward(
            none, images * -(-channels // WIDTH), features.shape, one, none, strides, flat,
            order, starts, runs, run_starts, first, offset, weight, bins, pooled,
        )  # fmt: skip
    return pooled[: len(rois) * channels * rows * columns].reshape((len(rois), channels, rows, columns))


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
    flat = features.reshape(-1)
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
    return pooled[: len(rois) * channels * rows * columns].reshape((len(rois), channels, rows, columns))
