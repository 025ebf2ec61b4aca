"""roi_pool: one launch, no workspace. Its gradient: one launch, or two for large maps. Nothing waits for the device."""

from __future__ import annotations

import math

from ._device import Array, contiguous, converted, dtype_code, empty, launch, zeros
from ._roi_inputs import in_working_precision

# As in kernels/roi_pool.cu.
_THREADS, _TOGETHER = 448, 4
_SUMS, _WARPS, _WARP = {"d": 5880, "f": 11760, "e": 11760, "E": 11760}, 8, 32
_BLOCKS = 1024  # are enough to share out evenly
_MOST_PASSES = 16


def roi_pool(
    features: Array, rois: Array, output_size: tuple[int, int], spatial_scale: float, return_argmax: bool
) -> Array | tuple[Array, Array]:
    maps, rois = in_working_precision(features, rois)
    (images, channels, *sides), size, bins = maps.shape, len(rois), math.prod(output_size)
    shape = (size, channels, *output_size)
    pooled, argmax = empty(shape, maps.dtype), empty(shape, "int32") if return_argmax else None
    if pooled.size:
        at_once = max(_THREADS // bins, 1)
        threads = min(math.ceil(at_once * bins / _WARP) * _WARP, _THREADS)
        # Channels of a block: whole passes of it, if the blocks are enough then.
        of_pass, run = at_once * _TOGETHER, size * channels // _BLOCKS
        run = max(run // _TOGETHER, 1) * _TOGETHER if run < of_pass else min(run // of_pass, _MOST_PASSES) * of_pass
        launch(
            "roi_pool",
            "roi_pool",
            maps.dtype.char,
            size * math.ceil(channels / run),
            threads,
            maps,
            rois,
            dtype_code(rois),
            size,
            images,
            channels,
            *sides,
            *output_size,
            spatial_scale,
            run,
            pooled,
            argmax,
        )
    pooled = converted(pooled, features.dtype)
    return pooled if argmax is None else (pooled, argmax)


def roi_pool_backward(
    grad: Array, rois: Array, argmax: Array, input_shape: tuple[int, int, int, int], spatial_scale: float
) -> Array:
    """Two launches if a plane has more than 2940 pixels, 1470 in float64, with a workspace of 8 bytes for each RoI."""
    values, rois = in_working_precision(grad, rois)
    (images, channels, *sides), size, bins = input_shape, len(rois), math.prod(grad.shape[2:])
    if size == 0:
        return zeros(input_shape, grad.dtype)
    gradient = empty(input_shape, values.dtype)
    if gradient.size:
        pixels, sums = math.prod(sides), _SUMS[values.dtype.char]
        # Tiles small enough for four warps with sums of their own.
        tiles = math.ceil(pixels / (sums // 4))
        tile, places, extents = math.ceil(pixels / tiles), contiguous(argmax), None
        if tiles > 1:
            extents = empty((size, 2), "int32")
            threads, dtype = _WARPS * _WARP, values.dtype.char
            launch("roi_pool", "roi_pool_extents", dtype, size, threads, places, channels * bins, pixels, extents)
        launch(
            "roi_pool",
            "roi_pool_gradients",
            values.dtype.char,
            images * channels * math.ceil(pixels / tile),
            min(sums // tile, _WARPS) * _WARP,
            values,
            places,
            rois,
            dtype_code(rois),
            size,
            images,
            channels,
            pixels,
            bins,
            tile,
            extents,
            gradient,
        )
    return converted(gradient, grad.dtype)
