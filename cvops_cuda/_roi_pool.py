"""roi_pool and its gradient. Nothing waits for the device."""

from __future__ import annotations

import math
from typing import NamedTuple

from ._constants import ROI_POOL, WARP, working_size
from ._device import Array, contiguous, converted, dtype_code, empty, launch, zeros
from ._roi_inputs import in_working_precision

_BLOCKS = 1024  # with so many, all multiprocessors have about the same work
_MOST_PASSES = 16


class RoiPool(NamedTuple):
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
    run: int
    pooled: Array
    argmax: Array


class RoiPoolExtents(NamedTuple):
    argmax: Array
    length: int
    pixels: int
    extents: Array


class RoiPoolGradients(NamedTuple):
    grad: Array
    argmax: Array
    boxes: Array
    boxes_dtype: int
    size: int
    images: int
    channels: int
    pixels: int
    bins: int
    tile: int
    extents: Array
    gradients: Array


def roi_pool(
    features: Array, rois: Array, output_size: tuple[int, int], spatial_scale: float, return_argmax: bool
) -> Array | tuple[Array, Array]:
    maps, rois = in_working_precision(features, rois)
    (images, channels, height, width), size, bins = maps.shape, len(rois), math.prod(output_size)
    shape = (size, channels, *output_size)
    pooled, argmax = empty(shape, maps.dtype), empty(shape, "int32") if return_argmax else None
    if pooled.size:
        of_thread = ROI_POOL.CHANNELS[working_size(maps.dtype.char)]
        planes_at_once = max(ROI_POOL.THREADS // bins, 1)
        threads = min(math.ceil(planes_at_once * bins / WARP) * WARP, ROI_POOL.THREADS)
        # Channels of a block: those of whole passes of its threads, unless there would be too few blocks.
        of_pass, run = planes_at_once * of_thread, size * channels // _BLOCKS
        run = max(run // of_thread, 1) * of_thread if run < of_pass else min(run // of_pass, _MOST_PASSES) * of_pass
        record = RoiPool(
            maps, rois, dtype_code(rois), size, images, channels, height, width, *output_size, spatial_scale, run,
            pooled, argmax,
        )  # fmt: skip
        launch("roi_pool", "roi_pool", maps.dtype.char, size * math.ceil(channels / run), threads, record)
    pooled = converted(pooled, features.dtype)
    return pooled if argmax is None else (pooled, argmax)


def roi_pool_backward(
    grad: Array, rois: Array, argmax: Array, input_shape: tuple[int, int, int, int], spatial_scale: float
) -> Array:
    values, rois = in_working_precision(grad, rois)
    (images, channels, *sides), size, bins = input_shape, len(rois), math.prod(grad.shape[2:])
    if size == 0:
        return zeros(input_shape, grad.dtype)
    gradient = empty(input_shape, values.dtype)
    if gradient.size:
        pixels, code = math.prod(sides), values.dtype.char
        sums = ROI_POOL.SUMS[working_size(code)]
        # Tiles so small that a block has memory for the sums of four warps.
        tiles = math.ceil(pixels / (sums // 4))
        tile, argmax, extents = math.ceil(pixels / tiles), contiguous(argmax), None
        if tiles > 1:
            extents = empty((size, 2), "int32")
            of_rois = RoiPoolExtents(argmax, channels * bins, pixels, extents)
            launch("roi_pool", "roi_pool_extents", code, size, ROI_POOL.WARPS * WARP, of_rois)
        record = RoiPoolGradients(
            values, argmax, rois, dtype_code(rois), size, images, channels, pixels, bins, tile, extents, gradient
        )
        threads = min(sums // tile, ROI_POOL.WARPS) * WARP
        launch(
            "roi_pool", "roi_pool_gradients", code, images * channels * math.ceil(pixels / tile), threads, record
        )  # fmt: skip
    return converted(gradient, grad.dtype)
