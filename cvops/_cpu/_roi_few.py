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
_MAPS = types.Array(types.float32, 4, "C", readonly=True)
_ROIS = types.Array(types.float32, 2, "C", readonly=True)


def lean_roi_align(
    input: Any, boxes: Any, output_size: Any, spatial_scale: Any, sampling_ratio: Any, aligned: Any
) -> Array | None:
    """The result of `roi_align`, or None if the call must go the general way."""
    size = (output_size, output_size) if type(output_size) is int else output_size
    if (
        not _is_simple(input, boxes, size, spatial_scale)
        or type(sampling_ratio) is not int
        or type(aligned) is not bool
    ):
        return None
    if sampling_ratio > 1 << 16:
        return None
    layout = ALIGN_CENTRES if aligned else ALIGN
    pooled: Array | None = align_few(input, boxes, *size, spatial_scale, max(sampling_ratio, 0), layout)
    return pooled


def lean_roi_pool(input: Any, boxes: Any, output_size: Any, spatial_scale: Any) -> Array | None:
    """The result of `roi_pool` without argmax, or None if the call must go the general way."""
    size = (output_size, output_size) if type(output_size) is int else output_size
    if not _is_simple(input, boxes, size, spatial_scale):
        return None
    pooled: Array | None = pool_few(input, boxes, *size, spatial_scale)
    return pooled


def _is_simple(input: Any, boxes: Any, size: Any, spatial_scale: Any) -> bool:
    """Whether these arguments are valid, of the types that kernels take, and little work."""
    if not (
        type(input) is np.ndarray
        and type(boxes) is np.ndarray
        and input.dtype is _FLOAT32
        and boxes.dtype is _FLOAT32
        and type(spatial_scale) is float
        and 0.0 < spatial_scale < 1e30
        and type(size) is tuple
        and len(size) == 2
        and type(size[0]) is type(size[1]) is int
        and size[0] > 0 < size[1]
    ):
        return False
    shape, rois = input.shape, boxes.shape
    if len(shape) != 4 or 0 in shape or len(rois) != 2 or rois[0] == 0 or rois[1] != 5:
        return False
    if rois[0] * shape[1] * size[0] * size[1] > _MOST_VALUES:
        return False
    maps_flags, rois_flags = input.flags, boxes.flags
    return bool(maps_flags.c_contiguous and maps_flags.aligned and rois_flags.c_contiguous and rois_flags.aligned)


@jit
def _level(height, width, scale):
    levels = np.empty((1, 3), np.float64)
    levels[0, 0], levels[0, 1], levels[0, 2] = height, width, scale
    return levels


@jit_for(_MAPS, _ROIS, types.int64, types.int64, types.float64, types.int64, types.int64)
def align_few(features, rois, rows, columns, scale, ratio, layout):
    """The result of roi_align, or None if an image index is wrong, RoIs look like xywh, or there are several chunks."""
    if looks_like_xywh(rois, 1):
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
    """The result of roi_pool, or None if an image index is wrong, RoIs look like xywh, or there are several chunks."""
    if looks_like_xywh(rois, 1):
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
