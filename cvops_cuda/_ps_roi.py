"""ps_roi_align, ps_roi_pool and their gradients: one launch each, no workspace. Nothing waits for the device."""

from __future__ import annotations

import math

from ._device import Array, converted, dtype_code, empty, launch, zeros
from ._roi_inputs import in_working_precision

# As in kernels/ps_roi.cu.
_THREADS, _WARP, _TOGETHER, _ROIS = 256, 32, 4, 1024
_SUMS = {"d": 4608, "f": 10240, "e": 10240, "E": 10240}


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
        launch(
            "ps_roi",
            kernel,
            maps.dtype.char,
            max(images, 1) * _blocks(channels, bins) * math.ceil(size / _ROIS),
            min(math.ceil(size / _WARP) * _WARP, _THREADS),
            maps,
            rois,
            dtype_code(rois),
            size,
            images,
            channels,
            height,
            width,
            *bins,
            scale,
            ratio,
            pooled,
        )
    return converted(pooled, features.dtype)


def _spread(kernel: str, grad: Array, rois: Array, shape: tuple[int, int, int, int], scale: float, ratio: int) -> Array:
    values, rois = in_working_precision(grad, rois)
    size, channels, *bins = values.shape
    if size == 0:
        return zeros(shape, grad.dtype)
    images, _, height, width = shape
    gradient = empty(shape, values.dtype)
    if gradient.size:
        room = _SUMS[values.dtype.char] // min(channels, _TOGETHER)
        tile_width = min(width, room)
        tile_height = min(height, room // tile_width)
        launch(
            "ps_roi",
            kernel,
            values.dtype.char,
            images * _blocks(channels, bins) * math.ceil(height / tile_height) * math.ceil(width / tile_width),
            _THREADS,
            values,
            rois,
            dtype_code(rois),
            size,
            images,
            channels,
            height,
            width,
            *bins,
            scale,
            ratio,
            tile_height,
            tile_width,
            gradient,
        )
    return converted(gradient, grad.dtype)


def _blocks(channels: int, bins: tuple[int, ...] | list[int]) -> int:
    """Of an image: one for each bin and some channels."""
    return math.prod(bins) * math.ceil(channels / _TOGETHER)
