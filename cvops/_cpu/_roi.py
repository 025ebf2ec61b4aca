"""RoI operators: first a table of what every bin reads, then sixteen channels at a time.

All of them but roi_pool are linear, and separable: a bin is the sum over y of wy * (the sum over x of wx * map[y, x]).
The pairs (cell, weight) of a bin along an axis are its taps. roi_align, ps_roi_align and ps_roi_pool differ in their
taps alone, and share the kernels `_forward_range` and `_backward_range`. A level of a pyramid is one more map.

An item of work is an image and 16 of its channels, which lie side by side in the lanes of a vector. For that the map is
transposed into a block of pixels by 16 channels, tile by tile, where RoIs ask for it and just before they do. Position
sensitive operators take each bin from channels of its own, so there an item is also one bin.

Tables hold decisions, so what makes them may not contract (see `_jit`); what sums may.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _threads
from ._jit import jit
from ._memory import Array, cast, contiguous, empty
from ._simd import WIDTH, full, keep_first_maximum, load, madd, maximum, store, transpose

# How an operator lays its bins over a RoI: roi_align; roi_align with aligned=True; ps_roi_pool; roi_pool.
_ALIGN, _ALIGN_CENTRES, _AVERAGE, _MAXIMUM = range(4)
_MOST_SAMPLES = 1 << 16  # along one axis of a bin
_MOST_CELLS = 1 << 30  # of a corner from the origin


def roi_align(
    features: Array,
    rois: Array,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Array:
    kind = _ALIGN_CENTRES if aligned else _ALIGN
    return _forward([features], rois, output_size, [spatial_scale], [], kind, sampling_ratio, 1)


def roi_align_backward(
    grad: Array,
    rois: Array,
    input_shape: tuple[int, int, int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Array:
    kind = _ALIGN_CENTRES if aligned else _ALIGN
    return _backward(grad, rois, [input_shape], [spatial_scale], [], kind, sampling_ratio, 1)[0]


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
    kind = _ALIGN_CENTRES if aligned else _ALIGN
    return _forward(features, rois, output_size, spatial_scales, area_limits, kind, sampling_ratio, 1)


def multiscale_roi_align_backward(
    grad: Array,
    rois: Array,
    input_shapes: Sequence[tuple[int, int, int, int]],
    spatial_scales: Sequence[float],
    area_limits: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> list[Array]:
    kind = _ALIGN_CENTRES if aligned else _ALIGN
    return _backward(grad, rois, input_shapes, spatial_scales, area_limits, kind, sampling_ratio, 1)


def ps_roi_align(
    features: Array, rois: Array, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int
) -> Array:
    groups = math.prod(output_size)
    return _forward([features], rois, output_size, [spatial_scale], [], _ALIGN_CENTRES, sampling_ratio, groups)


def ps_roi_align_backward(
    grad: Array, rois: Array, input_shape: tuple[int, int, int, int], spatial_scale: float, sampling_ratio: int
) -> Array:
    groups = math.prod(grad.shape[2:])
    return _backward(grad, rois, [input_shape], [spatial_scale], [], _ALIGN_CENTRES, sampling_ratio, groups)[0]


def ps_roi_pool(features: Array, rois: Array, output_size: tuple[int, int], spatial_scale: float) -> Array:
    return _forward([features], rois, output_size, [spatial_scale], [], _AVERAGE, 0, math.prod(output_size))


def ps_roi_pool_backward(
    grad: Array, rois: Array, input_shape: tuple[int, int, int, int], spatial_scale: float
) -> Array:
    return _backward(grad, rois, [input_shape], [spatial_scale], [], _AVERAGE, 0, math.prod(grad.shape[2:]))[0]


def roi_pool(
    features: Array, rois: Array, output_size: tuple[int, int], spatial_scale: float, return_argmax: bool
) -> Array | tuple[Array, Array]:
    storage, working = _dtypes(features, rois)
    (images, channels, *sides) = features.shape
    maps, rois = _maps([features.shape], [spatial_scale]), contiguous(rois, working)
    bad, order, starts, windows = _windows(rois, images, maps, *output_size)
    _check_images(bad, rois, images)
    shape = (len(rois), channels, *output_size)
    pooled = empty(shape, storage)
    argmax = empty(shape if return_argmax else (0,), "i")
    flat, plane, pixel = _flat(features, storage)
    _threads.run(
        _maximum_range,
        images * -(-channels // WIDTH),
        (images, channels, *sides),
        (plane, pixel),
        flat,
        order,
        starts,
        windows,
        output_size,
        pooled.reshape(-1),
        argmax.reshape(-1),
        nanoseconds=pooled.size,
    )
    pooled = cast(pooled, features.dtype.char)
    return (pooled, argmax) if return_argmax else pooled


def roi_pool_backward(
    grad: Array, rois: Array, argmax: Array, input_shape: tuple[int, int, int, int], spatial_scale: float
) -> Array:
    storage, working = _dtypes(grad, rois)
    images, channels = input_shape[:2]
    bad, order, starts = _sort(contiguous(rois, working), images, _maps([input_shape], [spatial_scale]), np.empty(0))
    _check_images(bad, rois, images)
    result = empty(input_shape, storage)
    bins = math.prod(grad.shape[2:])
    _threads.run(
        _maximum_backward_range,
        images * -(-channels // _PLANES),
        contiguous(grad, storage).reshape(len(rois), channels, bins),
        contiguous(argmax, "i").reshape(len(rois), channels, bins),
        order,
        starts,
        result.reshape(images, channels, math.prod(input_shape[2:])),
        nanoseconds=grad.size + 0.1 * result.size,
    )
    return cast(result, grad.dtype.char)


# --------------------------------------------------------------------------------------------------- linear operators


def _forward(
    features: Sequence[Array],
    rois: Array,
    bins: tuple[int, int],
    scales: Sequence[float],
    area_limits: Sequence[float],
    kind: int,
    ratio: int,
    groups: int,
) -> Array:
    storage, working = _dtypes(features[0], rois)
    images, channels = features[0].shape[:2]
    maps, rois = _maps([array.shape for array in features], scales), contiguous(rois, working)
    bad, *table = _taps(rois, images, maps, np.array(area_limits, "d"), *bins, kind, ratio, True)
    _check_images(bad, rois, images)
    pooled = empty((len(rois), channels // groups, *bins), storage)
    by_level = []
    for level, array in enumerate(features):
        flat, plane, pixel = _flat(array, storage)
        by_level.append((array.shape, groups, level * images, (plane, pixel), flat, *table, bins, pooled.reshape(-1)))
    items = images * groups * -(-channels // groups // WIDTH)
    _run_levels(_forward_range, items, by_level, nanoseconds=0.5 * pooled.size)
    return cast(pooled, features[0].dtype.char)


def _backward(
    grad: Array,
    rois: Array,
    input_shapes: Sequence[tuple[int, int, int, int]],
    scales: Sequence[float],
    area_limits: Sequence[float],
    kind: int,
    ratio: int,
    groups: int,
) -> list[Array]:
    storage, working = _dtypes(grad, rois)
    images, channels = input_shapes[0][:2]
    bins, maps, rois = grad.shape[2:], _maps(input_shapes, scales), contiguous(rois, working)
    bad, *table = _taps(rois, images, maps, np.array(area_limits, "d"), *bins, kind, ratio, False)
    _check_images(bad, rois, images)
    flat = contiguous(grad, storage).reshape(-1)
    results = [empty(shape, storage) for shape in input_shapes]
    by_level = [
        (shape, groups, level * images, flat, *table, bins, result.reshape(-1))
        for level, (shape, result) in enumerate(zip(input_shapes, results, strict=True))
    ]
    items = images * groups * -(-channels // groups // WIDTH)
    _run_levels(_backward_range, items, by_level, nanoseconds=grad.size + 0.2 * sum(r.size for r in results))
    return [cast(result, grad.dtype.char) for result in results]


def _run_levels(kernel: Callable[..., None], items: int, by_level: Sequence[Any], nanoseconds: float) -> None:
    """Run the kernel over `items` items of each level, all of them shared out at once."""

    def levels(begin: int, end: int) -> None:
        for level, arguments in enumerate(by_level):
            first = level * items
            if begin < first + items and end > first:
                kernel(max(begin - first, 0), min(end - first, items), *arguments)

    _threads.run(levels, items * len(by_level), nanoseconds=nanoseconds)


def _dtypes(images: Array, rois: Array) -> tuple[str, str]:
    """Type codes of what the kernels read and write, and of the working precision."""
    storage = "d" if images.dtype.char == "d" else "f"
    return storage, "d" if rois.dtype.char == "d" else storage


def _maps(shapes: Sequence[tuple[int, ...]], scales: Sequence[float]) -> Array:
    """Height, width and scale of each map."""
    return np.array([(*shape[2:], scale) for shape, scale in zip(shapes, scales, strict=True)], "d")


def _check_images(bad: int, rois: Array, images: int) -> None:
    if bad >= 0:
        text = f"`boxes` must have image indices from 0 to {images - 1} in column 0, got {rois[bad, 0]} in row {bad}"
        raise ValueError(text)


def _flat(features: Array, dtype: str) -> tuple[Array, int, int]:
    """`features` as a flat array, and how far apart there two planes of an image and two pixels of a plane are."""
    _, channels, height, width = features.shape
    channels_last = features.transpose(0, 2, 3, 1)
    if features.dtype.char == dtype and channels_last.flags.c_contiguous and not features.flags.c_contiguous:
        return channels_last.reshape(-1), 1, channels
    return contiguous(features, dtype).reshape(-1), height * width, 1


# ------------------------------------------------------------------------------------------------------------- tables

# RoIs of one map are put in order of the strip of it, one of so many, in which they begin: the tiles of its block that
# the next RoI needs are then likely in the cache.
_STRIPS = 64


@jit
def _sort(rois, images, maps, area_limits):
    """Group the RoIs by map (all images of the first level, of the second, ...), and order each group from the top.

    Returns (-1 or a row without an image, RoIs in order, where the RoIs of each map start among them).
    """
    groups = len(maps) * images
    order = np.empty(len(rois), np.int64)
    strips = np.empty(len(rois), np.int64)
    strip_starts = np.zeros(groups * _STRIPS + 1, np.int64)
    starts = np.zeros(groups + 1, np.int64)
    for k in range(len(rois)):
        image = rois[k, 0]
        if not 0 <= image < images or image != np.floor(image):
            return k, order, starts
        area = (rois[k, 3] - rois[k, 1]) * (rois[k, 4] - rois[k, 2])
        level = 0
        for limit in area_limits:
            level += area >= limit
        group = level * images + np.int64(image)
        top = rois[k, 2] * maps[level, 2] / maps[level, 0] * _STRIPS
        strips[k] = group * _STRIPS + (np.int64(min(top, _STRIPS - 1)) if top >= 0 else 0)
        strip_starts[strips[k] + 1] += 1
    for strip in range(groups * _STRIPS):
        strip_starts[strip + 1] += strip_starts[strip]
    for group in range(groups + 1):
        starts[group] = strip_starts[group * _STRIPS]
    for k in range(len(rois)):
        order[strip_starts[strips[k]]] = k
        strip_starts[strips[k]] += 1
    return -1, order, starts


@jit
def _scaled(coordinate, scale):
    """A coordinate in cells of the map, within reach of integers unless it is NaN or infinite."""
    scaled = coordinate * scale
    if abs(scaled) < np.inf:
        return max(min(scaled, type(scaled)(_MOST_CELLS)), type(scaled)(-_MOST_CELLS))
    return scaled


@jit
def _rounded(number):
    """The nearest integer, halves away from zero."""
    whole = np.trunc(number)
    if abs(number - whole) >= type(number)(0.5):
        whole += np.copysign(type(number)(1), number)
    return whole


@jit
def _frame(low, high, scale, kind, bins, ratio):
    """How the bins of a RoI lie along one axis: (start of the first, size of each, samples or cells in each).

    -1 samples mean that the RoI has no place: a corner is NaN or infinite, or there would be too many samples.
    """
    real = type(low)
    low, high = _scaled(low, scale), _scaled(high, scale)
    if not (abs(low) < np.inf and abs(high) < np.inf):
        return low, low, -1
    if kind in (_AVERAGE, _MAXIMUM):
        low, high = _rounded(low), _rounded(high)
        # In integers: float32 would lose the last cells of a large RoI.
        size = real(max(np.int64(high) - np.int64(low) + (kind == _MAXIMUM), 1))
        step = size / real(bins)
        return low, step, np.int64(np.ceil(step))
    if kind == _ALIGN_CENTRES:
        low, high = low - real(0.5), high - real(0.5)
        size = high - low
    else:
        size = max(high - low, real(1))
    step = size / real(bins)
    samples = real(ratio) if ratio > 0 else max(np.ceil(step), real(0))
    return low, step, np.int64(samples) if samples <= _MOST_SAMPLES else -1


@jit
def _window(start, step, p, length):
    """Cells [begin, end) of bin p of a pooling operator, clipped to [0, length]."""
    real = type(start)
    begin = np.int64(np.floor(real(p) * step)) + np.int64(start)
    end = np.int64(np.ceil(real(p + 1) * step)) + np.int64(start)
    return min(max(begin, 0), length), min(max(end, 0), length)


@jit
def _average_taps(start, step, bins, length, stride, at, first, offset, weight):
    for p in range(bins):
        first[p] = at
        begin, end = _window(start, step, p, length - 1)  # the last row and column are never read, as in torchvision
        for cell in range(begin, end):
            offset[at] = cell * stride
            weight[at] = 1 / (end - begin)
            at += 1
    first[bins] = at
    return at


@jit
def _sample_taps(start, step, samples, bins, length, stride, at, first, offset, weight):
    """Taps of bilinear samples. A cell that several samples of a bin touch is one tap."""
    real = type(start)
    for p in range(bins):
        first[p] = at
        cell, near, far = -2, 0.0, 0.0  # the cell of the last sample, and what it and the next one weigh so far
        for i in range(samples):
            # Towards larger coordinates also in an inverted RoI.
            sample = real(i if step >= 0 else samples - 1 - i)
            y = start + real(p) * step + (sample + real(0.5)) * step / real(samples)
            if y < -1 or y > length:
                continue
            y = max(y, real(0))
            low = int(y)
            fraction = float(y - real(low))
            if low >= length - 1:
                low, fraction = length - 1, 0.0
            if low != cell:
                if cell >= 0:
                    offset[at], weight[at] = cell * stride, near / samples
                    at += 1
                    near = 0.0
                    if low == cell + 1:
                        near = far
                    elif cell + 1 < length:
                        offset[at], weight[at] = (cell + 1) * stride, far / samples
                        at += 1
                    far = 0.0
                cell = low
            near += 1 - fraction
            far += fraction
        if cell >= 0:
            offset[at], weight[at] = cell * stride, near / samples
            at += 1
            if cell + 1 < length:
                offset[at], weight[at] = (cell + 1) * stride, far / samples
                at += 1
    first[bins] = at
    return at


@jit
def _most_taps(samples, bins, length):
    """A bin has at most two taps a sample, and one a cell; neighbours share at most two cells."""
    return min(2 * bins * max(samples, 1), length + 2 * bins)


@jit
def _with_room(array, size):
    """`array`, or a copy with room for `size` elements and more."""
    if size <= len(array):
        return array
    larger = np.empty(2 * size, array.dtype)
    for i in range(len(array)):  # a slice would bring in the text of its errors, a second to compile
        larger[i] = array[i]
    return larger


@jit
def _taps(rois, images, maps, area_limits, rows, columns, kind, ratio, mark):
    """Where the bins of each RoI read, and with which weights: (bad row or -1, order, starts, first, offset, weight).

    The taps of RoI order[r] along y in bin row p are first[r, p] to first[r, p + 1], those along x in bin column p are
    first[r, rows + 1 + p] to first[r, rows + 2 + p]. An offset counts elements of a block. A RoI that has no place has
    no taps, or one of weight NaN in each bin if it is to be marked so.
    """
    real = rois.dtype.type
    bad, order, starts = _sort(rois, images, maps, area_limits)
    placed = len(rois) if bad < 0 else 0
    first = np.empty((placed, rows + columns + 2), np.int64)
    usual = 4 * placed * (rows + columns)  # two samples in each bin
    offset, weight = np.empty(usual, np.int64), np.empty(usual, rois.dtype)
    at = np.int64(0)
    stride = np.int64(WIDTH)
    for group in range(len(starts) - 1):
        level = group // images
        height, width = np.int64(maps[level, 0]), np.int64(maps[level, 1])
        scale = real(maps[level, 2])
        for r in range(starts[group], starts[group + 1]):
            roi = rois[order[r]]
            top, y_step, y_samples = _frame(roi[2], roi[4], scale, kind, rows, ratio)
            left, x_step, x_samples = _frame(roi[1], roi[3], scale, kind, columns, ratio)
            y_first, x_first = first[r, : rows + 1], first[r, rows + 1 :]
            room = at + _most_taps(y_samples, rows, height) + _most_taps(x_samples, columns, width)
            offset, weight = _with_room(offset, room), _with_room(weight, room)
            if y_samples < 0 or x_samples < 0:
                for p in range(rows + columns + 2):
                    first[r, p] = at + p * mark
                for _ in range((rows + columns + 1) * mark):
                    offset[at], weight[at] = 0, np.nan
                    at += 1
            elif kind == _AVERAGE:
                at = _average_taps(top, y_step, rows, height, width * stride, at, y_first, offset, weight)
                at = _average_taps(left, x_step, columns, width, stride, at, x_first, offset, weight)
            else:
                at = _sample_taps(top, y_step, y_samples, rows, height, width * stride, at, y_first, offset, weight)
                at = _sample_taps(left, x_step, x_samples, columns, width, stride, at, x_first, offset, weight)
    return bad, order, starts, first, offset, weight


@jit
def _windows(rois, images, maps, rows, columns):
    """The rectangle of cells of each bin of roi_pool: (bad row or -1, order, starts, windows).

    windows[r, p] are the begin and end of bin row p of RoI order[r], windows[r, rows + p] those of bin column p. In a
    RoI that has no place all end before they begin, by which it is told from one without cells.
    """
    real = rois.dtype.type
    bad, order, starts = _sort(rois, images, maps, np.empty(0))
    windows = np.empty((len(rois), rows + columns, 2), np.int64)
    height, width, scale = np.int64(maps[0, 0]), np.int64(maps[0, 1]), real(maps[0, 2])
    for r in range(len(rois) if bad < 0 else 0):
        roi = rois[order[r]]
        top, y_step, y_samples = _frame(roi[2], roi[4], scale, _MAXIMUM, rows, 0)
        left, x_step, x_samples = _frame(roi[1], roi[3], scale, _MAXIMUM, columns, 0)
        if y_samples < 0 or x_samples < 0:
            for p in range(rows + columns):
                windows[r, p, 0], windows[r, p, 1] = 0, -1
            continue
        for p in range(rows):
            windows[r, p, 0], windows[r, p, 1] = _window(top, y_step, p, height)
        for p in range(columns):
            windows[r, rows + p, 0], windows[r, rows + p, 1] = _window(left, x_step, p, width)
    return bad, order, starts, windows


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
def _fetch(flat, start, plane, pixel, lanes, block, done, low, high):
    """Bring the pixels low to high of up to 16 planes into the block, by tiles of 16, unless they are there."""
    pixels = len(block) // WIDTH
    for tile in range(low // WIDTH, high // WIDTH + 1):
        if done[tile]:
            continue
        done[tile] = True
        p = max(min(tile * WIDTH, pixels - WIDTH), 0)
        count = min(pixels - p, WIDTH)
        if lanes < WIDTH:  # what happens to be in memory may be slow to calculate with
            block[p * WIDTH : (p + count) * WIDTH] = 0
        if pixel == 1:
            _turn(flat, start + p, plane, lanes, count, block, p * WIDTH, WIDTH)
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


@jit(contract=True)
def _bin(block, offset, weight, y_begin, y_end, x_begin, x_end):
    total = full(weight.dtype.type(0))
    for y in range(y_begin, y_end):
        row = full(weight.dtype.type(0))
        for x in range(x_begin, x_end):
            row = madd(weight[x], load(block, offset[y] + offset[x]), row)
        total = madd(weight[y], row, total)
    return total


@jit(contract=True)
def _forward_range(
    begin, end, shape, groups, first_map, strides, flat, order, starts, first, offset, weight, bins, pooled
):
    images, channels, height, width = shape
    plane, pixel = strides
    rows, columns = bins
    channels //= groups
    block = np.empty(height * width * WIDTH, weight.dtype)
    done = np.empty(height * width // WIDTH + 1, np.bool_)
    values = np.empty(rows * columns * WIDTH, weight.dtype)
    for item in range(begin, end):
        image, group, channel, lanes = _item(item, images, channels, groups)
        start = image * channels * groups * height * width + (channel * groups + group) * plane
        y_bins, x_bins = (0, rows), (rows + 1, rows + 1 + columns)
        if groups > 1:
            y_bins = (group // columns, group // columns + 1)
            x_bins = (rows + 1 + group % columns, rows + 2 + group % columns)
        count = rows * columns // groups
        done[:] = False
        for r in range(starts[first_map + image], starts[first_map + image + 1]):
            low, high = block.size, -1
            for x in range(first[r, x_bins[0]], first[r, x_bins[1]]):
                low, high = min(low, offset[x]), max(high, offset[x])
            for y in range(first[r, y_bins[0]], first[r, y_bins[1]]):
                _fetch(
                    flat, start, plane * groups, pixel, lanes, block, done,
                    (offset[y] + low) // WIDTH, (offset[y] + high) // WIDTH,
                )  # fmt: skip
            at = 0
            for y in range(y_bins[0], y_bins[1]):
                for x in range(x_bins[0], x_bins[1]):
                    total = _bin(block, offset, weight, first[r, y], first[r, y + 1], first[r, x], first[r, x + 1])
                    store(values, at, total)
                    at += WIDTH
            to = (order[r] * channels + channel) * groups * count + group
            _turn(values, 0, WIDTH, count, lanes, pooled, to, groups * count)


@jit(contract=True)
def _add_bin(block, offset, weight, y_begin, y_end, x_begin, x_end, value):
    for y in range(y_begin, y_end):
        row = madd(weight[y], value, full(weight.dtype.type(0)))
        for x in range(x_begin, x_end):
            store(block, offset[y] + offset[x], madd(weight[x], row, load(block, offset[y] + offset[x])))


@jit(contract=True)
def _backward_range(begin, end, shape, groups, first_map, grad, order, starts, first, offset, weight, bins, result):
    images, channels, height, width = shape
    rows, columns = bins
    channels //= groups
    block = np.empty(height * width * WIDTH, weight.dtype)
    values = np.zeros(rows * columns * WIDTH, weight.dtype)
    for item in range(begin, end):
        image, group, channel, lanes = _item(item, images, channels, groups)
        y_bins, x_bins = (0, rows), (rows + 1, rows + 1 + columns)
        if groups > 1:
            y_bins = (group // columns, group // columns + 1)
            x_bins = (rows + 1 + group % columns, rows + 2 + group % columns)
        count = rows * columns // groups
        block[:] = 0
        for r in range(starts[first_map + image], starts[first_map + image + 1]):
            at = (order[r] * channels + channel) * groups * count + group
            _turn(grad, at, groups * count, lanes, count, values, 0, WIDTH)
            at = 0
            for y in range(y_bins[0], y_bins[1]):
                for x in range(x_bins[0], x_bins[1]):
                    _add_bin(
                        block, offset, weight, first[r, y], first[r, y + 1], first[r, x], first[r, x + 1],
                        load(values, at),
                    )  # fmt: skip
                    at += WIDTH
        pixels = height * width
        to = (image * channels * groups + channel * groups + group) * pixels
        _turn(block, 0, WIDTH, pixels, lanes, result, to, groups * pixels)


# ----------------------------------------------------------------------------------------------------------- roi_pool


@jit
def _maximum_bin(block, width, y_begin, y_end, x_begin, x_end):
    best = load(block, (y_begin * width + x_begin) * WIDTH)
    for y in range(y_begin, y_end):
        for x in range(x_begin, x_end):
            best = maximum(best, load(block, (y * width + x) * WIDTH))
    return best


@jit
def _argmax_bin(block, width, y_begin, y_end, x_begin, x_end):
    """As `_maximum_bin`, but the pixel of the first maximum, or of the first NaN."""
    best = load(block, (y_begin * width + x_begin) * WIDTH)
    where = full(np.int32(y_begin * width + x_begin))
    for y in range(y_begin, y_end):
        for x in range(x_begin, x_end):
            value = load(block, (y * width + x) * WIDTH)
            where = keep_first_maximum(best, value, where, full(np.int32(y * width + x)))
            best = maximum(best, value)
    return where


@jit
def _maximum_range(begin, end, shape, strides, flat, order, starts, windows, bins, pooled, argmax):
    images, channels, height, width = shape
    plane, pixel = strides
    rows, columns = bins
    count = rows * columns
    block = np.empty(height * width * WIDTH, pooled.dtype)
    done = np.empty(height * width // WIDTH + 1, np.bool_)
    values = np.empty(count * WIDTH, pooled.dtype)
    pixels = np.empty(count * WIDTH, np.int32)
    for item in range(begin, end):
        image, _, channel, lanes = _item(item, images, channels, 1)
        start = image * channels * height * width + channel * plane
        done[:] = False
        for r in range(starts[image], starts[image + 1]):
            left, right = windows[r, rows, 0], windows[r, -1, 1]
            if left < right:
                for y in range(windows[r, 0, 0], windows[r, rows - 1, 1]):
                    _fetch(flat, start, plane, pixel, lanes, block, done, y * width + left, y * width + right - 1)
            at = 0
            for ph in range(rows):
                top, bottom = windows[r, ph]
                for pw in range(columns):
                    left, right = windows[r, rows + pw]
                    if top < bottom and left < right:
                        store(values, at, _maximum_bin(block, width, top, bottom, left, right))
                        if argmax.size:
                            store(pixels, at, _argmax_bin(block, width, top, bottom, left, right))
                    else:
                        nothing = pooled.dtype.type(0 if top <= bottom else np.nan)
                        store(values, at, full(nothing))
                        store(pixels, at, full(np.int32(-1)))
                    at += WIDTH
            to = (order[r] * channels + channel) * count
            _turn(values, 0, WIDTH, count, lanes, pooled, to, count)
            if argmax.size:
                _turn(pixels, 0, WIDTH, count, lanes, argmax, to, count)


_PLANES = 4  # in one item: more of them would not fit the cache together


@jit
def _maximum_backward_range(begin, end, grad, argmax, order, starts, result):
    _, channels, pixels = result.shape
    blocks = -(-channels // _PLANES)
    for item in range(begin, end):
        image, channel = item // blocks, item % blocks * _PLANES
        last = min(channel + _PLANES, channels)
        result[image, channel:last] = 0
        for r in range(starts[image], starts[image + 1]):
            k = order[r]
            for c in range(channel, last):
                for p in range(grad.shape[2]):
                    pixel = argmax[k, c, p]
                    if 0 <= pixel < pixels:
                        result[image, c, pixel] += grad[k, c, p]
