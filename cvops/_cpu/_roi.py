"""RoI operators: tables of what each bin reads (see `_roi_tables`), then sixteen channels at a time.

All of them but roi_pool are linear. roi_align, ps_roi_align and ps_roi_pool differ in their tables alone and share the
kernels `_forward_range` and `_backward_range`; a level of a pyramid is one more map.

An item of work is an image and 16 of its channels, which lie side by side in the lanes of a vector. For that the map is
transposed into a block of pixels by 16 channels, where RoIs read it. Position-sensitive operators take each bin from
channels of its own, so there an item is also one bin, called the group of these channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _roi_tables, _threads
from ._jit import jit
from ._memory import Array, cast, contiguous, empty
from ._roi_tables import ALIGN, ALIGN_CENTRES, AVERAGE, MAXIMUM
from ._simd import WIDTH, full, keep_first_maximum, load, madd, maximum, store, transpose

Shape = tuple[int, int, int, int]

_UNIT = 4  # taps along x that `_forward_range` takes at a time
_PLANE_PIXELS = 1 << 16  # of the planes that an item of `_maximum_backward_range` is about


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
    *places, windows = _windows(rois, features.shape, spatial_scale, AVERAGE, output_size)
    taps = _roi_tables.averaged(windows, rois, features.shape[3], *output_size, _UNIT, True)
    return _forward([features], len(rois), (*places, *taps), output_size, math.prod(output_size))


def ps_roi_pool_backward(grad: Array, rois: Array, input_shape: Shape, spatial_scale: float) -> Array:
    rois, bins = _in_working_precision(rois, grad), grad.shape[2:]
    order, starts, _, _, windows = _windows(rois, input_shape, spatial_scale, AVERAGE, bins)
    taps = _roi_tables.averaged(windows, rois, input_shape[3], *bins, 1, False)
    return _backward(grad, (order, starts, *taps), [input_shape], math.prod(bins))[0]


def roi_pool(
    features: Array, rois: Array, output_size: tuple[int, int], spatial_scale: float, return_argmax: bool
) -> Array | tuple[Array, Array]:
    rois = _in_working_precision(rois, features)
    tables = _windows(rois, features.shape, spatial_scale, MAXIMUM, output_size)
    storage, (images, channels, *_) = _storage(features), features.shape
    shape = (len(rois), channels, *output_size)
    pooled, argmax = empty(shape, storage), empty(shape if return_argmax else (0,), "i")
    flat, strides = _flat(features, storage)
    _threads.run(
        _maximum_range,
        images * -(-channels // WIDTH),
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
        _maximum_backward_range,
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
    shapes = [array.shape for array in features]
    tables = _sampled(rois, shapes, scales, area_limits, kind, bins, ratio, _UNIT, True)
    return _forward(features, len(rois), tables, bins, groups)


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
    order, starts, _, _, *taps = _sampled(rois, shapes, scales, area_limits, kind, grad.shape[2:], ratio, 1, False)
    return _backward(grad, (order, starts, *taps), shapes, groups)


def _sampled(
    rois: Array,
    shapes: Sequence[tuple[int, ...]],
    scales: Sequence[float],
    area_limits: Sequence[float],
    kind: int,
    bins: tuple[int, ...],
    ratio: int,
    unit: int,
    show: bool,
) -> list[Array]:
    images, levels, limits = shapes[0][0], _levels(shapes, scales), np.array(area_limits, "d")
    tiles = max(math.prod(shape[2:]) for shape in shapes) // WIDTH + 1
    tables: list[Array]
    bad, *tables = _roi_tables.sampled(rois, images, levels, limits, tiles, kind, *bins, ratio, unit, show)
    _check_images(bad, rois, images)
    return tables


def _windows(rois: Array, shape: tuple[int, ...], scale: float, kind: int, bins: tuple[int, ...]) -> list[Array]:
    tiles = math.prod(shape[2:]) // WIDTH + 1
    tables: list[Array]
    bad, *tables = _roi_tables.windows(rois, shape[0], _levels([shape], [scale]), tiles, kind, *bins)
    _check_images(bad, rois, shape[0])
    return tables


def _forward(
    features: Sequence[Array], rois: int, tables: Sequence[Array], bins: tuple[int, int], groups: int
) -> Array:
    """Pool `rois` RoIs of maps that all have one number of images and channels, by their tables."""
    storage, (images, channels, *_) = _storage(features[0]), features[0].shape
    pooled = empty((rois, channels // groups, *bins), storage)
    of_level = []
    for level, array in enumerate(features):
        flat, strides = _flat(array, storage)
        of_level.append((array.shape, groups, level * images, strides, flat, *tables, bins, pooled.reshape(-1)))
    items = images * groups * -(-channels // groups // WIDTH)
    _run_levels(_forward_range, items, of_level, nanoseconds=0.5 * pooled.size)
    return cast(pooled, features[0].dtype.char)


def _backward(grad: Array, tables: Sequence[Array], shapes: Sequence[Shape], groups: int) -> list[Array]:
    storage, (images, channels, *_) = _storage(grad), shapes[0]
    flat, results = contiguous(grad, storage).reshape(-1), [empty(shape, storage) for shape in shapes]
    of_level = [
        (shape, groups, level * images, flat, *tables, grad.shape[2:], result.reshape(-1))
        for level, (shape, result) in enumerate(zip(shapes, results, strict=True))
    ]
    items = images * groups * -(-channels // groups // WIDTH)
    _run_levels(_backward_range, items, of_level, nanoseconds=grad.size + 0.2 * sum(r.size for r in results))
    return [cast(result, grad.dtype.char) for result in results]


def _run_levels(kernel: Callable[..., None], items: int, of_level: Sequence[Any], nanoseconds: float) -> None:
    """Run the kernel over `items` items of each level, all of them shared out at once."""

    def run(begin: int, end: int) -> None:
        for level, arguments in enumerate(of_level):
            first = level * items
            if begin < first + items and end > first:
                kernel(max(begin - first, 0), min(end - first, items), *arguments)

    _threads.run(run, items * len(of_level), nanoseconds=nanoseconds)


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


# ------------------------------------------------------------------------------------------------------------- blocks


@jit
def _turn(source, i, step, rows, columns, target, j, pace):
    """target[j + c * pace + r] = source[i + r * step + c] for r < rows and c < columns."""
    if rows < WIDTH or columns < WIDTH:
        for r in range(rows):
            for c in range(columns):
                target[j + c * pace + r] = source[i + r * step + c]
        return
    # The last tile of a side that is no multiple of 16 overlaps the one before.
    for r in range(0, rows, WIDTH):
        r = min(r, rows - WIDTH)
        for c in range(0, columns, WIDTH):
            c = min(c, columns - WIDTH)
            transpose(source, i + r * step + c, step, target, j + c * pace + r, pace)


@jit
def _lines(vectors, like):
    """An uninitialised array of `vectors` times 16 elements. A vector that lay on two cache lines would cost twice."""
    memory = np.empty((vectors + 1) * WIDTH, like.dtype)
    start = -memory.ctypes.data % 64 // like.itemsize
    return memory[start : start + vectors * WIDTH]


@jit
def _gather(flat, start, plane, pixel, lanes, tiles, begin, end, block):
    """Bring the listed tiles of up to 16 planes into the block."""
    pixels = len(block) // WIDTH
    for i in range(begin, end):
        p = max(min(tiles[i] * WIDTH, pixels - WIDTH), 0)
        count = min(pixels - p, WIDTH)
        if lanes < WIDTH:  # what happens to be in memory may be slow to calculate with
            for q in range(p, p + count):
                store(block, q * WIDTH, full(block.dtype.type(0)))
        if pixel == 1:
            _turn(flat, start + p, plane, lanes, count, block, p * WIDTH, WIDTH)
        elif plane == 1 and lanes == WIDTH:
            for q in range(p, p + count):
                store(block, q * WIDTH, load(flat, start + q * pixel))
        else:
            for q in range(p, p + count):
                for c in range(lanes):
                    block[q * WIDTH + c] = flat[start + q * pixel + c * plane]


@jit
def _item(item, images, channels, groups):
    """What the item is about: (image, bin whose channels they are or 0, first channel of the output, channels)."""
    blocks = -(-channels // WIDTH)
    # The last block of channels overlaps the one before: the same work twice, with the same result.
    channel = max(min(item % blocks * WIDTH, channels - WIDTH), 0)
    return item // blocks // groups, item // blocks % groups, channel, min(channels, WIDTH)


@jit
def _bins_of(group, groups, rows, columns):
    """The bins of an item as they count in the table of first taps: (range of rows, range of columns)."""
    if groups == 1:
        return (0, rows), (rows + 1, rows + 1 + columns)
    p, q = group // columns, rows + 1 + group % columns
    return (p, p + 1), (q, q + 1)


@jit(contract=True)
def _forward_range(
    begin,
    end,
    shape,
    groups,
    first_map,
    strides,
    flat,
    order,
    starts,
    tiles,
    tile_starts,
    first,
    offset,
    weight,
    bins,
    pooled,
):
    images, channels, height, width = shape
    plane, pixel = strides
    rows, columns = bins
    channels //= groups
    zero = weight.dtype.type(0)
    block = _lines(height * width, weight)
    values = _lines(rows * columns, weight)
    for item in range(begin, end):
        image, group, channel, lanes = _item(item, images, channels, groups)
        m = first_map + image
        start = image * channels * groups * height * width + (channel * groups + group) * plane
        _gather(flat, start, plane * groups, pixel, lanes, tiles, tile_starts[m], tile_starts[m + 1], block)
        y_bins, x_bins = _bins_of(group, groups, rows, columns)
        count = rows * columns // groups
        for r in range(starts[m], starts[m + 1]):
            f = r * (rows + columns + 2)
            for q in range(x_bins[0], x_bins[1]):
                x_begin, x_end = first[f + q], first[f + q + 1]
                if x_begin == x_end:
                    for at in range((q - x_bins[0]) * WIDTH, count * WIDTH, columns * WIDTH):
                        store(values, at, full(zero))
                for x in range(x_begin, x_end, _UNIT):
                    x0, x1, x2, x3 = offset[x], offset[x + 1], offset[x + 2], offset[x + 3]
                    w0, w1, w2, w3 = weight[x], weight[x + 1], weight[x + 2], weight[x + 3]
                    at = (q - x_bins[0]) * WIDTH
                    y_end = first[f + y_bins[0]]
                    for p in range(y_bins[0], y_bins[1]):
                        total = full(zero)
                        if x > x_begin:
                            total = load(values, at)
                        y_begin, y_end = y_end, first[f + p + 1]
                        for y in range(y_begin, y_end):
                            i = offset[y]
                            row = madd(w0, load(block, i + x0), full(zero))
                            row = madd(w1, load(block, i + x1), row)
                            row = madd(w2, load(block, i + x2), row)
                            row = madd(w3, load(block, i + x3), row)
                            total = madd(weight[y], row, total)
                        store(values, at, total)
                        at += columns * WIDTH
            to = (order[r] * channels + channel) * groups * count + group
            _turn(values, 0, WIDTH, count, lanes, pooled, to, groups * count)


@jit(contract=True)
def _backward_range(
    begin,
    end,
    shape,
    groups,
    first_map,
    grad,
    order,
    starts,
    first,
    offset,
    weight,
    bins,
    result,
):
    images, channels, height, width = shape
    rows, columns = bins
    channels //= groups
    zero = weight.dtype.type(0)
    block = _lines(height * width, weight)
    values = _lines(rows * columns, weight)
    values[:] = 0
    for item in range(begin, end):
        image, group, channel, lanes = _item(item, images, channels, groups)
        y_bins, x_bins = _bins_of(group, groups, rows, columns)
        count = rows * columns // groups
        block[:] = 0
        for r in range(starts[first_map + image], starts[first_map + image + 1]):
            f = r * (rows + columns + 2)
            at = (order[r] * channels + channel) * groups * count + group
            _turn(grad, at, groups * count, lanes, count, values, 0, WIDTH)
            at = 0
            for p in range(y_bins[0], y_bins[1]):
                for q in range(x_bins[0], x_bins[1]):
                    value = load(values, at)
                    at += WIDTH
                    for y in range(first[f + p], first[f + p + 1]):
                        row = madd(weight[y], value, full(zero))
                        for x in range(first[f + q], first[f + q + 1]):
                            cell = offset[y] + offset[x]
                            store(block, cell, madd(weight[x], row, load(block, cell)))
        pixels = height * width
        to = (image * channels * groups + channel * groups + group) * pixels
        _turn(block, 0, WIDTH, pixels, lanes, result, to, groups * pixels)


# ----------------------------------------------------------------------------------------------------------- roi_pool


@jit
def _maximum_range(begin, end, shape, strides, flat, order, starts, tiles, tile_starts, windows, bins, pooled, argmax):
    images, channels, height, width = shape
    plane, pixel = strides
    rows, columns = bins
    count = rows * columns
    block = _lines(height * width, pooled)
    values = _lines(count, pooled)
    pixels = _lines(count, argmax)
    for item in range(begin, end):
        m, _, channel, lanes = _item(item, images, channels, 1)
        start = m * channels * height * width + channel * plane
        _gather(flat, start, plane, pixel, lanes, tiles, tile_starts[m], tile_starts[m + 1], block)
        for r in range(starts[m], starts[m + 1]):
            at = 0
            for p in range(rows):
                top, bottom = windows[r, p, 0], windows[r, p, 1]
                for q in range(rows, rows + columns):
                    left, right = windows[r, q, 0], windows[r, q, 1]
                    if bottom <= top or right <= left:
                        nothing = 0 if top <= bottom else np.nan
                        store(values, at, full(pooled.dtype.type(nothing)))
                        store(pixels, at, full(np.int32(-1)))
                    elif argmax.size == 0:
                        best = load(block, (top * width + left) * WIDTH)
                        for y in range(top, bottom):
                            for x in range(y * width + left, y * width + right):
                                best = maximum(best, load(block, x * WIDTH))
                        store(values, at, best)
                    else:
                        best = load(block, (top * width + left) * WIDTH)
                        where = full(np.int32(top * width + left))
                        for y in range(top, bottom):
                            for x in range(y * width + left, y * width + right):
                                value = load(block, x * WIDTH)
                                where = keep_first_maximum(best, value, where, full(np.int32(x)))
                                best = maximum(best, value)
                        store(values, at, best)
                        store(pixels, at, where)
                    at += WIDTH
            to = (order[r] * channels + channel) * count
            _turn(values, 0, WIDTH, count, lanes, pooled, to, count)
            if argmax.size:
                _turn(pixels, 0, WIDTH, count, lanes, argmax, to, count)


@jit
def _maximum_backward_range(begin, end, planes, shape, bins, grad, argmax, order, starts, result):
    _, channels, height, width = shape
    pixels = height * width
    blocks = -(-channels // planes)
    for item in range(begin, end):
        image, channel = item // blocks, item % blocks * planes
        last = min(channel + planes, channels)
        result[(image * channels + channel) * pixels : (image * channels + last) * pixels] = 0
        for r in range(starts[image], starts[image + 1]):
            at = (order[r] * channels + channel) * bins
            for c in range(channel, last):
                plane = result[(image * channels + c) * pixels :]
                values, where = grad[at : at + bins], argmax[at : at + bins]
                for p in range(bins):
                    if 0 <= where[p] < pixels:
                        plane[where[p]] += values[p]
                at += bins
