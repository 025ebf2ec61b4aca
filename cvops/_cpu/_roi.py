"""RoI operators: tables of what each bin reads (`_roi_tables`), then kernels that work from them (`_roi_kernels`).

All but roi_pool are linear. roi_align, ps_roi_align and ps_roi_pool differ in their tables alone and share the kernels
`forward` and `backward`; a level of a pyramid is one more map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _roi_kernels, _roi_tables, _threads, _xywh
from ._memory import Array, cast, contiguous, empty
from ._roi_tables import ALIGN, ALIGN_CENTRES, AVERAGE, MAXIMUM
from ._simd import WIDTH

Shape = tuple[int, int, int, int]

_FEW_CHANNELS = 4  # fewer are faster pixel by pixel
_PLANE_PIXELS = 1 << 16  # of the planes that an item of `maxima_backward` is about


def roi_align(
    features: Array,
    rois: Array,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Array:
    return multiscale_roi_align([features], rois, output_size, [spatial_scale], [], sampling_ratio, aligned)


def roi_align_backward(
    grad: Array, rois: Array, input_shape: Shape, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Array:
    return multiscale_roi_align_backward(grad, rois, [input_shape], [spatial_scale], [], sampling_ratio, aligned)[0]


def multiscale_roi_align(
    features: Sequence[Array],
    rois: Array,
    output_size: tuple[int, int],
    spatial_scales: Sequence[float],
    area_limits: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Array:
    """roi_align of each RoI on the map of the index that tells how many of the increasing limits its area reaches."""
    kind = ALIGN_CENTRES if aligned else ALIGN
    return _sample(features, rois, output_size, spatial_scales, area_limits, kind, sampling_ratio, 1)


def multiscale_roi_align_backward(
    grad: Array,
    rois: Array,
    input_shapes: Sequence[Shape],
    spatial_scales: Sequence[float],
    area_limits: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> list[Array]:
    kind = ALIGN_CENTRES if aligned else ALIGN
    return _sample_backward(grad, rois, input_shapes, spatial_scales, area_limits, kind, sampling_ratio, 1)


def ps_roi_align(
    features: Array, rois: Array, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int
) -> Array:
    groups = math.prod(output_size)
    return _sample([features], rois, output_size, [spatial_scale], [], ALIGN_CENTRES, sampling_ratio, groups)


def ps_roi_align_backward(
    grad: Array, rois: Array, input_shape: Shape, spatial_scale: float, sampling_ratio: int
) -> Array:
    groups = math.prod(grad.shape[2:])
    return _sample_backward(grad, rois, [input_shape], [spatial_scale], [], ALIGN_CENTRES, sampling_ratio, groups)[0]


def ps_roi_pool(features: Array, rois: Array, output_size: tuple[int, int], spatial_scale: float) -> Array:
    rois = _in_working_precision(rois, features)
    _xywh.check(rois, 1)
    groups = math.prod(output_size)
    direct = _reads_directly([features], len(rois), groups)
    tiles, unit = (0, 1) if direct else (_tiles(features.shape), _roi_kernels.UNIT)
    *places, windows = _windows(rois, features.shape, spatial_scale, AVERAGE, output_size, tiles)
    taps = _roi_tables.averaged(windows, rois, features.shape[3], *output_size, unit, True)
    return _forward([features], len(rois), (*places, *taps), output_size, groups, direct)


def ps_roi_pool_backward(grad: Array, rois: Array, input_shape: Shape, spatial_scale: float) -> Array:
    rois, bins = _in_working_precision(rois, grad), grad.shape[2:]
    order, starts, _, _, windows = _windows(rois, input_shape, spatial_scale, AVERAGE, bins, 0)
    taps = _roi_tables.averaged(windows, rois, input_shape[3], *bins, 1, False)
    return _backward(grad, (order, starts, *taps), [input_shape], math.prod(bins))[0]


def roi_pool(
    features: Array, rois: Array, output_size: tuple[int, int], spatial_scale: float, return_argmax: bool
) -> Array | tuple[Array, Array]:
    rois = _in_working_precision(rois, features)
    _xywh.check(rois, 1)
    storage, (images, channels, *_) = _storage(features), features.shape
    direct = channels < _FEW_CHANNELS
    tiles = 0 if direct else _tiles(features.shape)
    tables = _windows(rois, features.shape, spatial_scale, MAXIMUM, output_size, tiles)
    shape = (len(rois), channels, *output_size)
    pooled, argmax = empty(shape, storage), empty(shape if return_argmax else (0,), "i")
    flat, strides = _flat(features, storage)
    _threads.run(
        _roi_kernels.maxima_direct if direct else _roi_kernels.maxima,
        len(rois) if direct else images * -(-channels // WIDTH),
        features.shape,
        strides,
        flat,
        *tables,
        output_size,
        pooled.reshape(-1),
        argmax.reshape(-1),
        nanoseconds=pooled.size,
    )
    pooled = cast(pooled, features.dtype.char)
    return (pooled, argmax) if return_argmax else pooled


def roi_pool_backward(grad: Array, rois: Array, argmax: Array, input_shape: Shape, spatial_scale: float) -> Array:
    rois, levels = _in_working_precision(rois, grad), _levels([input_shape], [spatial_scale])
    storage, (images, channels, *sides) = _storage(grad), input_shape
    bad, order, starts, _, _ = _roi_tables.place(rois, images, levels, np.empty(0), MAXIMUM, 1, 1, 0)
    _check_images(bad, rois, images)
    result = empty(input_shape, storage)
    # Gradients are read in runs of channels: the longer the better, as long as their planes fit the cache together.
    planes = max(min(_PLANE_PIXELS // math.prod(sides), channels // 8), 4)
    _threads.run(
        _roi_kernels.maxima_backward,
        images * -(-channels // planes),
        planes,
        input_shape,
        math.prod(grad.shape[2:]),
        contiguous(grad, storage).reshape(-1),
        contiguous(argmax, "i").reshape(-1),
        order,
        starts,
        result.reshape(-1),
        nanoseconds=grad.size + 0.1 * result.size,
    )
    return cast(result, grad.dtype.char)


# ---------------------------------------------------------------------------------------------------------- launching


def _sample(
    features: Sequence[Array],
    rois: Array,
    bins: tuple[int, int],
    scales: Sequence[float],
    area_limits: Sequence[float],
    kind: int,
    ratio: int,
    groups: int,
) -> Array:
    rois = _in_working_precision(rois, features[0])
    _xywh.check(rois, 1)
    shapes, direct = [array.shape for array in features], _reads_directly(features, len(rois), groups)
    tables = _sampled(rois, shapes, scales, area_limits, kind, bins, ratio, direct, True)
    return _forward(features, len(rois), tables, bins, groups, direct)


def _sample_backward(
    grad: Array,
    rois: Array,
    shapes: Sequence[Shape],
    scales: Sequence[float],
    area_limits: Sequence[float],
    kind: int,
    ratio: int,
    groups: int,
) -> list[Array]:
    rois = _in_working_precision(rois, grad)
    order, starts, _, _, *taps = _sampled(rois, shapes, scales, area_limits, kind, grad.shape[2:], ratio, True, False)
    return _backward(grad, (order, starts, *taps), shapes, groups)


def _sampled(
    rois: Array,
    shapes: Sequence[tuple[int, ...]],
    scales: Sequence[float],
    area_limits: Sequence[float],
    kind: int,
    bins: tuple[int, ...],
    ratio: int,
    direct: bool,
    show: bool,
) -> list[Array]:
    images, levels, limits = shapes[0][0], _levels(shapes, scales), np.array(area_limits, "d")
    tiles, unit = (0, 1) if direct else (max(map(_tiles, shapes)), _roi_kernels.UNIT)
    tables: list[Array]
    bad, *tables = _roi_tables.sampled(rois, images, levels, limits, tiles, kind, *bins, ratio, unit, show)
    _check_images(bad, rois, images)
    return tables


def _windows(
    rois: Array, shape: tuple[int, ...], scale: float, kind: int, bins: tuple[int, ...], tiles: int
) -> list[Array]:
    tables: list[Array]
    bad, *tables = _roi_tables.windows(rois, shape[0], _levels([shape], [scale]), tiles, kind, *bins)
    _check_images(bad, rois, shape[0])
    return tables


def _forward(
    features: Sequence[Array],
    rois: int,
    tables: Sequence[Array],
    bins: tuple[int, int],
    groups: int,
    direct: bool,
) -> Array:
    """Pool `rois` RoIs of maps that all have one number of images and channels, by their tables."""
    storage, (images, channels, *_) = _storage(features[0]), features[0].shape
    pooled = empty((rois, channels // groups, *bins), storage)
    # With a group for each bin the channels come together, bin by bin: (rois, bins, channels).
    by_bin = groups > 1 and not direct
    result = (np.empty(pooled.size, storage) if by_bin else pooled).reshape(-1)
    of_level = []
    for level, array in enumerate(features):
        flat, strides = _flat(array, storage)
        of_level.append((array.shape, groups, level * images, strides, flat, *tables, bins, result))
    if direct:
        starts = tables[1]
        items = [int(starts[(level + 1) * images] - starts[level * images]) for level in range(len(features))]
        _run_levels(_roi_kernels.forward_direct, items, of_level, nanoseconds=8 * pooled.size)
    else:
        nanoseconds = 0.5 * pooled.size + by_bin * 0.1 * features[0].size
        _run_levels(_roi_kernels.forward, [_blocks(images, channels, groups)] * len(features), of_level, nanoseconds)
    if by_bin:
        _threads.run(
            _roi_kernels.turn_all,
            rois,
            groups,
            channels // groups,
            result,
            pooled.reshape(-1),
            nanoseconds=0.2 * pooled.size,
        )
    return cast(pooled, features[0].dtype.char)


def _backward(grad: Array, tables: Sequence[Array], shapes: Sequence[Shape], groups: int) -> list[Array]:
    storage, (images, channels, *_), rois = _storage(grad), shapes[0], len(grad)
    flat, results = contiguous(grad, storage).reshape(-1), [empty(shape, storage) for shape in shapes]
    direct = _has_few(channels, groups)
    if groups > 1:
        # Bring together what an item takes: all RoIs of a channel, or the channels of a bin.
        turned = np.empty_like(flat)
        if direct:
            _roi_kernels.turn_all(0, 1, rois, channels, flat, turned)
        else:
            _threads.run(
                _roi_kernels.turn_all, rois, channels // groups, groups, flat, turned, nanoseconds=0.2 * grad.size
            )
        turned.setflags(write=False)
        flat = turned
    of_level = [
        (shape, groups, level * images, flat, *tables, grad.shape[2:], result.reshape(-1))
        for level, (shape, result) in enumerate(zip(shapes, results, strict=True))
    ]
    kernel = _roi_kernels.backward_direct if direct else _roi_kernels.backward
    items = images * channels if direct else _blocks(images, channels, groups)
    _run_levels(kernel, [items] * len(shapes), of_level, grad.size + 0.2 * sum(result.size for result in results))
    return [cast(result, grad.dtype.char) for result in results]


def _blocks(images: int, channels: int, groups: int) -> int:
    return images * groups * -(-channels // groups // WIDTH)


def _has_few(channels: int, groups: int) -> bool:
    """Whether going pixel by pixel beats blocks because too few channels go together: lanes would be empty."""
    return channels // groups < (WIDTH if groups > 1 else _FEW_CHANNELS)


def _reads_directly(features: Sequence[Array], rois: int, groups: int) -> bool:
    """Whether the forward goes pixel by pixel: there are few channels, or few RoIs for so many groups of them."""
    images, channels, height, width = features[0].shape
    return _has_few(channels, groups) or (groups > 1 and 100 * rois < images * height * width)


def _run_levels(
    kernel: Callable[..., None], items: Sequence[int], of_level: Sequence[tuple[Any, ...]], nanoseconds: float
) -> None:
    """Run the kernel over so many items of each level, all of them shared out at once."""
    ends = list(itertools.accumulate(items))

    def run(begin: int, end: int) -> None:
        for arguments, count, last in zip(of_level, items, ends, strict=True):
            first = last - count
            if begin < last and end > first:
                kernel(max(begin - first, 0), min(end, last) - first, *arguments)

    _threads.run(run, ends[-1], nanoseconds=nanoseconds)


def _tiles(shape: tuple[int, ...]) -> int:
    return math.prod(shape[2:]) // WIDTH + 1


def _storage(images: Array) -> str:
    """Type code of what the kernels read and write."""
    return "d" if images.dtype.char == "d" else "f"


def _in_working_precision(rois: Array, images: Array) -> Array:
    return contiguous(rois, "d" if "d" in (rois.dtype.char, images.dtype.char) else "f")


def _levels(shapes: Sequence[tuple[int, ...]], scales: Sequence[float]) -> Array:
    """Height, width and scale of the maps of each level."""
    return np.array([[shape[2], shape[3], scale] for shape, scale in zip(shapes, scales, strict=True)], "d")


def _check_images(bad: int, rois: Array, images: int) -> None:
    if bad >= 0:
        text = f"`boxes` must have image indices from 0 to {images - 1} in column 0, got {rois[bad, 0]} in row {bad}"
        raise ValueError(text)


def _flat(features: Array, dtype: str) -> tuple[Array, tuple[int, int]]:
    """`features` as a flat array, and how far apart there two planes of an image and two pixels of a plane are."""
    _, channels, height, width = features.shape
    if not features.flags.c_contiguous and features.dtype.char == dtype:
        channels_last = features.transpose(0, 2, 3, 1)
        if channels_last.flags.c_contiguous:
            return channels_last.reshape(-1), (1, channels)
    return contiguous(features, dtype).reshape(-1), (height * width, 1)
