"""ps_roi_align, ps_roi_pool and their gradients. Nothing waits for the device."""

from __future__ import annotations

import math
from typing import NamedTuple

from ._constants import PS_ROI, WARP, working_size
from ._device import Array, converted, dtype_code, empty, launch, zeros
from ._roi_inputs import in_working_precision


class PsRoi(NamedTuple):
    maps: Array
    boxes: Array
    boxes_dtype: int
    size: int
    images: int
    channels: int
    height: int
    width: int
    rows: int
    columns: int
    scale: float
    ratio: int
    pooled: Array


class PsRoiGradients(NamedTuple):
    grad: Array
    boxes: Array
    boxes_dtype: int
    size: int
    images: int
    channels: int
    height: int
    width: int
    rows: int
    columns: int
    scale: float
    ratio: int
    tile_height: int
    tile_width: int
    gradients: Array


def ps_roi_align(
    features: Array, rois: Array, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int
) -> Array:
    return _pool("ps_roi_align", features, rois, output_size, spatial_scale, sampling_ratio)


def ps_roi_pool(features: Array, rois: Array, output_size: tuple[int, int], spatial_scale: float) -> Array:
    return _pool("ps_roi_pool", features, rois, output_size, spatial_scale, 0)


def ps_roi_align_backward(
    grad: Array, rois: Array, input_shape: tuple[int, int, int, int], spatial_scale: float, sampling_ratio: int
) -> Array:
    return _spread("ps_roi_align_gradients", grad, rois, input_shape, spatial_scale, sampling_ratio)


def ps_roi_pool_backward(
    grad: Array, rois: Array, input_shape: tuple[int, int, int, int], spatial_scale: float
) -> Array:
    return _spread("ps_roi_pool_gradients", grad, rois, input_shape, spatial_scale, 0)


def _pool(kernel: str, features: Array, rois: Array, bins: tuple[int, int], scale: float, ratio: int) -> Array:
    maps, rois = in_working_precision(features, rois)
    images, planes, height, width = maps.shape
    channels, size = planes // math.prod(bins), len(rois)
    pooled = empty((size, channels, *bins), maps.dtype)
    if pooled.size:
        record = PsRoi(maps, rois, dtype_code(rois), size, images, channels, height, width, *bins, scale, ratio, pooled)
        blocks = max(images, 1) * _blocks(channels, bins) * math.ceil(size / PS_ROI.ROIS)
        threads = min(math.ceil(size / WARP) * WARP, PS_ROI.THREADS)
        launch("ps_roi", kernel, maps.dtype.char, blocks, threads, record)
    return converted(pooled, features.dtype)


def _spread(kernel: str, grad: Array, rois: Array, shape: tuple[int, int, int, int], scale: float, ratio: int) -> Array:
    values, rois = in_working_precision(grad, rois)
    size, channels, rows, columns = values.shape
    bins = rows, columns
    if size == 0:
        return zeros(shape, grad.dtype)
    images, _, height, width = shape
    gradient = empty(shape, values.dtype)
    if gradient.size:
        room = PS_ROI.SUMS[working_size(values.dtype.char)] // min(channels, PS_ROI.CHANNELS)
        tile_width = min(width, room)
        tile_height = min(height, room // tile_width)
        record = PsRoiGradients(
            values, rois, dtype_code(rois), size, images, channels, height, width, rows, columns, scale, ratio,
            tile_height, tile_width, gradient,
        )  # fmt: skip
        tiles = math.ceil(height / tile_height) * math.ceil(width / tile_width)
        blocks = images * _blocks(channels, bins) * tiles
        launch("ps_roi", kernel, values.dtype.char, blocks, PS_ROI.THREADS, record)
    return converted(gradient, grad.dtype)


def _blocks(channels: int, bins: tuple[int, int]) -> int:
    """How many blocks an image has: one for each bin and each few channels."""
    groups: int = math.ceil(channels / PS_ROI.CHANNELS)
    return math.prod(bins) * groups
