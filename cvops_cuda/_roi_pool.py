"""roi_pool and its gradient: one launch each, no workspace. Nothing waits for the device."""

from __future__ import annotations

import math

from ._device import Array, contiguous, dtype_code, empty, launch, zeros
from ._roi_inputs import cast, in_working_precision

# As in kernels/roi_pool.cu.
_THREADS, _TOGETHER = 448, 4
_SUMS, _WARPS, _WARP = {"d": 5632, "f": 11264, "e": 11264, "E": 11264}, 8, 32
_BLOCKS = 1024  # are enough to share out evenly; more only do again what a block begins with
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
        of_pass = at_once * _TOGETHER
        passes = min(max(size * channels // (of_pass * _BLOCKS), 1), _MOST_PASSES)
        launch(
            "roi_pool",
            "roi_pool",
            maps.dtype.char,
            size * math.ceil(channels / (of_pass * passes)),
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
            of_pass * passes,
            pooled,
            argmax,
        )
    pooled = cast(pooled, features)
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
        pixels, sums = math.prod(sides), _SUMS[values.dtype.char]
        # Tiles small enough for three warps with sums of their own.
        tile = math.ceil(pixels / math.ceil(pixels / (sums // 3)))
        launch(
            "roi_pool",
            "roi_pool_gradients",
            values.dtype.char,
            images * channels * math.ceil(pixels / tile),
            min(sums // tile, _WARPS) * _WARP,
            values,
            contiguous(argmax),
            rois,
            dtype_code(rois),
            size,
            images,
            channels,
            pixels,
            bins,
            tile,
            gradient,
        )
    return cast(gradient, grad)
