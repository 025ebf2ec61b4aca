"""RoI operators: tables of what each bin reads (`_roi_tables`), then kernels that work from them (`_roi_kernels`).

All but roi_pool are linear: a bin is a weighted sum of pixels. roi_align, ps_roi_align and ps_roi_pool differ only in
the tables of these weights, and share the kernels `forward` and `backward`. Each level of a pyramid adds its maps.

The workspace is bounded. RoIs are processed in chunks, in the order of `_roi_tables.sort_rois`, so that a gradient is
summed in the same order whatever the chunks are. Where the kernels cannot read an array as it lies, or cannot write to
a result, they work on copies of some images and channels at a time; RoIs that are a list, or of another dtype, are also
copied some at a time if they are very many. For a few thousand RoIs on contiguous or channels-last maps of float32 or
float64 there is one chunk, and nothing is copied.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from . import _roi_kernels, _roi_tables, _rois, _threads, _xywh
from ._memory import Array, contiguous, empty
from ._roi_kernels import FEW_CHANNELS
from ._roi_tables import ALIGN, ALIGN_CENTRES, AVERAGE, MAXIMUM
from ._rois import Rois
from ._simd import WIDTH

Shape = tuple[int, ...]
# Some RoIs and their table: (order, starts, runs, run_starts, *taps) as `_roi_tables.table_of_samples` returns them, or
# windows instead of the taps, or only (order, starts).
Chunk = Sequence[Array]
# A function that yields all chunks, one after another. Its argument is how many bytes each RoI takes besides its table.
Chunks = Callable[[int], Iterator[Chunk]]

_PLANE_PIXELS = 1 << 16  # pixels of all planes of one work item of `maxima_backward`
# How many RoIs are sorted at a time.
_SORTED_AT_ONCE = 1 << 19
# The table of a chunk and what is copied for its RoIs have at most so many bytes, unless a single RoI takes more.
CHUNK_BYTES = 10 << 20
# A copied part of the maps, or of their gradients, has at most so many bytes, unless the fewest channels that a kernel
# takes at once need more.
_PART_BYTES = 12 << 20
# The blocks of all threads together have at most so many bytes, unless a single block takes more.
_BLOCK_BYTES = 24 << 20

_NO_LIMITS = np.empty(0)
_NOTHING = np.empty(0, np.int64)
_FIRST = np.zeros(1, np.int64)


def roi_align(
    features: Array,
    rois: Rois,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Array:
    return multiscale_roi_align([features], rois, output_size, [spatial_scale], [], sampling_ratio, aligned)


def roi_align_backward(
    grad: Array, rois: Rois, input_shape: Shape, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Array:
    return multiscale_roi_align_backward(grad, rois, [input_shape], [spatial_scale], [], sampling_ratio, aligned)[0]


def multiscale_roi_align(
    features: Sequence[Array],
    rois: Rois,
    output_size: tuple[int, int],
    spatial_scales: Sequence[float],
    area_limits: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Array:
    """roi_align of each RoI on features[level], where level = sum(area >= area_limits)."""
    layout = ALIGN_CENTRES if aligned else ALIGN
    return _align(features, rois, output_size, spatial_scales, area_limits, layout, sampling_ratio, 1)


def multiscale_roi_align_backward(
    grad: Array,
    rois: Rois,
    input_shapes: Sequence[Shape],
    spatial_scales: Sequence[float],
    area_limits: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> list[Array]:
    layout = ALIGN_CENTRES if aligned else ALIGN
    return _align_backward(grad, rois, input_shapes, spatial_scales, area_limits, layout, sampling_ratio, 1)


def ps_roi_align(
    features: Array, rois: Rois, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int
) -> Array:
    groups = math.prod(output_size)
    return _align([features], rois, output_size, [spatial_scale], [], ALIGN_CENTRES, sampling_ratio, groups)


def ps_roi_align_backward(
    grad: Array, rois: Rois, input_shape: Shape, spatial_scale: float, sampling_ratio: int
) -> Array:
    groups = math.prod(grad.shape[2:])
    return _align_backward(grad, rois, [input_shape], [spatial_scale], [], ALIGN_CENTRES, sampling_ratio, groups)[0]


def ps_roi_pool(features: Array, rois: Rois, output_size: tuple[int, int], spatial_scale: float) -> Array:
    rois = _checked(rois, features)
    groups = math.prod(output_size)
    direct = _reads_directly([features], len(rois), groups)
    chunks = _chunks_of_averages(rois, features, features.shape, spatial_scale, output_size, direct, True)
    return _forward([features], len(rois), chunks, output_size, groups, direct)


def ps_roi_pool_backward(grad: Array, rois: Rois, input_shape: Shape, spatial_scale: float) -> Array:
    bins = grad.shape[2:]
    chunks = _chunks_of_averages(rois, grad, input_shape, spatial_scale, bins, True, False)
    return _backward(grad, chunks, [input_shape], math.prod(bins))[0]


def roi_pool(
    features: Array, rois: Rois, output_size: tuple[int, int], spatial_scale: float, return_argmax: bool
) -> Array | tuple[Array, Array]:
    rois = _checked(rois, features)
    storage, (_, channels, *sides), bins = _storage(features), features.shape, math.prod(output_size)
    direct, whole = channels < FEW_CHANNELS, _lies_flat(features, storage)
    shape = (len(rois), channels, *output_size)
    pooled, argmax = empty(shape, features.dtype.char), empty(shape if return_argmax else (0,), "i")
    runs = 0 if direct else _runs_of_map(features.shape)
    value_bytes = 0 if whole else bins * (np.dtype(storage).itemsize + 4 * return_argmax)  # of a channel of a RoI
    chunks = _chunks_of_windows(rois, features, features.shape, spatial_scale, MAXIMUM, output_size, runs, 0)

    def pool(features: Array, chunk: Chunk, pooled: Array, argmax: Array) -> None:
        images, channels, *_ = features.shape
        flat, strides = _flat(features, storage)
        _run_within_memory(
            _roi_kernels.maxima_direct if direct else _roi_kernels.maxima,
            len(chunk[0]) if direct else images * -(-channels // WIDTH),
            features.shape,
            strides,
            flat,
            *chunk,
            output_size,
            pooled.reshape(-1),
            argmax.reshape(-1),
            bytes_each=0 if direct else _block_bytes(sides, bins, pooled),
            nanoseconds=len(chunk[0]) * channels * bins,
        )

    for chunk in chunks(min(channels, WIDTH) * value_bytes):
        if whole:
            pool(features, chunk, pooled, argmax)
            continue
        for of_images, of_channels in _parts(features, 1, len(chunk[0]) * value_bytes, storage):
            order, local = _of_images(chunk, 0, of_images, 1)
            shape = (len(order), of_channels.stop - of_channels.start, *output_size)
            best, where = np.empty(shape, storage), np.empty(shape if return_argmax else (0,), "i")
            pool(features[of_images, of_channels], local, best, where)
            _scatter(best, pooled, order, of_channels)
            if return_argmax:
                _scatter(where, argmax, order, of_channels)
    return (pooled, argmax) if return_argmax else pooled


def roi_pool_backward(grad: Array, rois: Rois, argmax: Array, input_shape: Shape, spatial_scale: float) -> Array:
    order_by = input_shape[0], _levels([input_shape], [spatial_scale]), _NO_LIMITS, MAXIMUM, 1, 0
    storage, (_, channels, *sides), bins = _storage(grad), input_shape, math.prod(grad.shape[2:])
    whole = grad.dtype.char == storage and grad.flags.c_contiguous and argmax.flags.c_contiguous
    value_bytes = bins * (grad.itemsize + np.dtype(storage).itemsize + 4)  # of a channel of a RoI
    most = min(_SORTED_AT_ONCE, 1 << 62 if whole else CHUNK_BYTES // (min(channels, WIDTH) * value_bytes + 1) + 1)
    result = empty(input_shape, grad.dtype.char)

    def no_table(rois: Array, done: int, *_: Any) -> Any:
        bad, order, starts = _roi_tables.sort_rois(rois, *order_by, done, most)
        return bad, order, starts, (order, starts)

    chunks = partial(_chunks, no_table, rois, _working(rois, grad), order_by)

    def add(grad: Array, argmax: Array, chunk: Chunk, fresh: bool, result: Array) -> None:
        images, channels, *_ = result.shape
        # An item takes some channels, whose gradients lie together: the more the better, while the cache holds them.
        planes = max(min(_PLANE_PIXELS // math.prod(sides), channels // 8), 4)
        _threads.run(
            _roi_kernels.maxima_backward,
            images * -(-channels // planes),
            planes,
            result.shape,
            bins,
            grad.reshape(-1),
            argmax.reshape(-1),
            *chunk,
            fresh,
            result.reshape(-1),
            nanoseconds=len(chunk[0]) * channels * bins + 0.1 * result.size,
        )

    if whole:
        for i, chunk in enumerate(chunks(0)):
            add(grad, argmax, chunk, i == 0, result)
        return result
    for part, order, local, sums, fresh in _sums_in_parts(chunks, 0, [result], len(grad), 1, value_bytes, direct=True):
        add(_rows(grad, order, part, storage), _rows(argmax, order, part, "i"), local, fresh, sums)
    return result


# ------------------------------------------------------------------------------------------- how the work is divided


def _align(
    features: Sequence[Array],
    rois: Rois,
    bins: tuple[int, int],
    scales: Sequence[float],
    area_limits: Sequence[float],
    layout: int,
    ratio: int,
    groups: int,
) -> Array:
    rois = _checked(rois, features[0])
    shapes, direct = [array.shape for array in features], _reads_directly(features, len(rois), groups)
    chunks = _chunks_of_samples(rois, features[0], shapes, scales, area_limits, layout, bins, ratio, direct, True)
    return _forward(features, len(rois), chunks, bins, groups, direct)


def _align_backward(
    grad: Array,
    rois: Rois,
    shapes: Sequence[Shape],
    scales: Sequence[float],
    area_limits: Sequence[float],
    layout: int,
    ratio: int,
    groups: int,
) -> list[Array]:
    chunks = _chunks_of_samples(rois, grad, shapes, scales, area_limits, layout, grad.shape[2:], ratio, True, False)
    return _backward(grad, chunks, shapes, groups)


def _chunks_of_samples(
    rois: Rois,
    like: Array,
    shapes: Sequence[Shape],
    scales: Sequence[float],
    area_limits: Sequence[float],
    layout: int,
    bins: tuple[int, ...],
    ratio: int,
    direct: bool,
    emit_nan: bool,
) -> Chunks:
    limits = np.array(area_limits, "d") if area_limits else _NO_LIMITS
    order = shapes[0][0], _levels(shapes, scales), limits, layout, bins[0], ratio
    runs, multiple_of = (0, 1) if direct else (max(map(_runs_of_map, shapes)), _roi_kernels.UNIT)

    def table(rois: Array, *progress: Any) -> Any:
        return _roi_tables.table_of_samples(
            rois, *order[:3], *progress, runs, layout, *bins, ratio, multiple_of, emit_nan
        )  # fmt: skip

    return partial(_chunks, table, rois, _working(rois, like), order)


def _chunks_of_windows(
    rois: Rois, like: Array, shape: Shape, scale: float, layout: int, bins: tuple[int, ...], runs: int, multiple_of: int
) -> Chunks:
    order = shape[0], _levels([shape], [scale]), _NO_LIMITS, layout, bins[0], 0

    def table(rois: Array, *progress: Any) -> Any:
        return _roi_tables.table_of_windows(rois, *order[:3], *progress, runs, layout, *bins, multiple_of)

    return partial(_chunks, table, rois, _working(rois, like), order)


def _chunks_of_averages(
    rois: Rois, like: Array, shape: Shape, scale: float, bins: tuple[int, ...], direct: bool, emit_nan: bool
) -> Chunks:
    runs, multiple_of = (0, 1) if direct else (_runs_of_map(shape), _roi_kernels.UNIT)
    of_windows = _chunks_of_windows(rois, like, shape, scale, AVERAGE, bins, runs, multiple_of)
    weights = np.empty(0, _working(rois, like))

    def chunks(roi_bytes: int) -> Iterator[Chunk]:
        for *rois_and_runs, windows in of_windows(roi_bytes):
            yield *rois_and_runs, *_roi_tables.taps_of_windows(windows, weights, shape[3], *bins, multiple_of, emit_nan)

    return chunks


def _chunks(
    table: Callable[..., Any], rois: Rois, dtype: str, order_by: tuple[Any, ...], roi_bytes: int
) -> Iterator[Chunk]:
    """Yield what `table` returns for all RoIs, one chunk after another; at least one chunk."""
    for some, rows in _batches(rois, dtype, order_by):
        order, starts, done = _NOTHING, _NOTHING, 0
        while True:
            bad, order, starts, chunk = table(some, done, _SORTED_AT_ONCE, order, starts, CHUNK_BYTES, roi_bytes)
            _check_images(bad, bad, some, order_by[0])
            yield chunk if rows is None else [rows[chunk[0]], *chunk[1:]]
            done += len(chunk[0])
            if done >= len(some):
                break


def _batches(rois: Rois, dtype: str, order_by: tuple[Any, ...]) -> Iterator[tuple[Array, Array | None]]:
    """Yield the RoIs in type code `dtype`, some at a time, with the rows of `rois` that they are.

    If they are few, or need no conversion, they come all at once, with None as the rows. Otherwise a copy of all could
    be too large. Then they come in the order of `_roi_tables.sort_rois`, as many at a time as may be copied.
    """
    lie_ready = isinstance(rois, np.ndarray) and rois.dtype.char == dtype and rois.flags.c_contiguous
    if lie_ready or len(rois) <= _SORTED_AT_ONCE:
        yield _rois.block(rois, 0, len(rois), dtype), None
        return
    images, levels, *_ = order_by
    most = max(_SORTED_AT_ONCE // 2, 1)
    blocks = [(begin, min(begin + most, len(rois))) for begin in range(0, len(rois), most)]
    first_cursors = _roi_tables.strips(len(levels) * images)
    for begin, end in blocks:
        some = _rois.block(rois, begin, end, dtype)
        bad = _roi_tables.count_strips(some, *order_by, _NOTHING, first_cursors)
        _check_images(bad, begin + bad, some, images)
    for first, last in blocks:
        order, cursors = np.zeros(last - first, np.int64), first_cursors.copy()
        for begin, end in blocks:
            some = _rois.block(rois, begin, end, dtype)
            _roi_tables.fill_order(some, *order_by, _NOTHING, cursors, begin, first, order)
        yield _rois.take(rois, order, dtype), order


def _forward(
    features: Sequence[Array], rois: int, chunks: Chunks, bins: tuple[int, int], groups: int, direct: bool
) -> Array:
    """Pool `rois` RoIs by their tables. All maps have the same number of images and of channels."""
    storage, channels = _storage(features[0]), features[0].shape[1]
    result = empty((rois, channels // groups, *bins), features[0].dtype.char)
    # With a group of channels for each bin, kernels write the channels of a bin together: (rois, bins, channels).
    by_bin, itemsize = groups > 1 and not direct, np.dtype(storage).itemsize
    if all(_lies_flat(array, storage) for array in features):
        for chunk in chunks(by_bin * channels * itemsize):
            _pool(features, storage, chunk, bins, groups, direct, result, chunk[0])
        return result
    value_bytes = (1 + by_bin) * math.prod(bins) * itemsize  # of an output channel of a RoI
    for chunk in chunks(min(channels // groups, WIDTH) * value_bytes):
        for level, array in enumerate(features):
            for of_images, of_channels in _parts(array, groups, len(chunk[0]) * value_bytes, storage):
                order, local = _of_images(chunk, level * len(array), of_images, sum(bins) + 2)
                outputs = _outputs(of_channels, groups)
                part = np.empty((len(order), outputs.stop - outputs.start, *bins), storage)
                _pool([array[of_images, of_channels]], storage, local, bins, groups, direct, part, local[0])
                _scatter(part, result, order, outputs)
    return result


def _pool(
    features: Sequence[Array],
    storage: str,
    chunk: Chunk,
    bins: tuple[int, int],
    groups: int,
    direct: bool,
    pooled: Array,
    rows: Array,
) -> None:
    """Pool the RoIs of a chunk: number r becomes pooled[rows[r]]."""
    _, *tables = chunk
    images, channels, *_ = features[0].shape
    values = len(rows) * channels // groups * math.prod(bins)
    by_bin = groups > 1 and not direct
    order, flat_pooled = rows, pooled.reshape(-1)
    if by_bin:
        local, flat_pooled = np.arange(len(rows)), np.empty(values, storage)
        # Either `forward` or the transposition puts the RoIs into the order of the result. `forward` is the one to do
        # so if the chunk has all RoIs: only then does `flat_pooled` have all rows.
        order, rows = (local, rows) if len(rows) < len(pooled) else (rows, local)
    of_level = []
    for level, array in enumerate(features):
        flat, strides = _flat(array, storage)
        of_level.append((array.shape, groups, level * images, strides, flat, order, *tables, bins, flat_pooled))
    if direct:
        ends = tables[0][::images].tolist() if images else [0] * (len(features) + 1)
        items = [last - first for first, last in itertools.pairwise(ends)]
        _run_levels(_roi_kernels.forward_direct, items, of_level, 0, nanoseconds=8 * values)
    else:
        items = [_blocks(images, channels, groups)] * len(features)
        bytes_each = max(_block_bytes(array.shape[2:], math.prod(bins), tables[-1]) for array in features)
        nanoseconds = 0.5 * values + by_bin * 0.1 * features[0].size
        _run_levels(_roi_kernels.forward, items, of_level, bytes_each, nanoseconds)
    if by_bin:
        _threads.run(
            _roi_kernels.transpose_all,
            len(rows),
            groups,
            channels // groups,
            flat_pooled,
            local,
            pooled.reshape(-1),
            rows,
            nanoseconds=0.2 * values,
        )


def _backward(grad: Array, chunks: Chunks, shapes: Sequence[Shape], groups: int) -> list[Array]:
    storage, channels = _storage(grad), shapes[0][1]
    direct, itemsize = _has_few(channels, groups), np.dtype(storage).itemsize
    results = [empty(shape, grad.dtype.char) for shape in shapes]
    copies = (groups > 1) * (1 + direct) * itemsize  # bytes of a value of a RoI
    if grad.dtype.char == storage and grad.flags.c_contiguous:
        first = next(chunks(copies * channels))
        if _sums_dtype(first, len(grad), direct, storage) == storage:
            for i, chunk in enumerate(_again(chunks, copies * channels, first, len(grad))):
                _add(grad, chunk, chunk[0], groups, direct, i == 0, results)
            return results
    value_bytes = math.prod(grad.shape[2:]) * (grad.itemsize + itemsize + copies)
    width = sum(grad.shape[2:]) + 2
    for outputs, order, local, sums, fresh in _sums_in_parts(
        chunks, width, results, len(grad), groups, value_bytes, direct
    ):
        _add(_rows(grad, order, outputs, storage), local, local[0], groups, direct, fresh, [sums])
    return results


def _sums_dtype(chunk: Chunk, rois: int, direct: bool, storage: str) -> str:
    """Type code of the sums that go on from one chunk of RoIs to the next: the precision in which a chunk is summed."""
    return storage if direct or len(chunk[0]) == rois else chunk[-1].dtype.char


def _again(chunks: Chunks, roi_bytes: int, first: Chunk, rois: int) -> Iterator[Chunk]:
    """All chunks, of which the first has been computed already: it is used again if it is the only one."""
    return iter([first]) if len(first[0]) == rois else chunks(roi_bytes)


def _add(
    grad: Array,
    chunk: Chunk,
    rows: Array,
    groups: int,
    direct: bool,
    fresh: bool,
    results: Sequence[Array],
) -> None:
    """Add the gradients grad[rows[r]] of the RoIs r of a chunk to the results, which start as 0 if `fresh`."""
    _, starts, _, _, *taps = chunk
    images, channels, *_ = results[0].shape
    flat, rois, values = grad.reshape(-1), len(rows), len(rows) * channels // groups * math.prod(grad.shape[2:])
    if groups > 1:
        # What an item reads is brought together: all RoIs of a channel, or the channels of a bin.
        transposed, local = np.empty(rois * channels, grad.dtype), np.arange(rois)
        if direct:
            of_rois = grad.reshape(len(grad), channels)[rows].ravel()
            of_rois.setflags(write=False)
            _roi_kernels.transpose_all(0, 1, rois, channels, of_rois, _FIRST, transposed, _FIRST)
            rows = local
        else:
            # Either the transposition or `backward` picks the rows: `backward` if the chunk has all RoIs.
            sources, rows = (rows, local) if rois < len(grad) else (local, rows)
            _threads.run(
                _roi_kernels.transpose_all, rois, channels // groups, groups, flat, sources, transposed, local,
                nanoseconds=0.2 * values,
            )  # fmt: skip
        transposed.setflags(write=False)
        flat = transposed
    of_level = [
        (result.shape, groups, level * images, flat, rows, starts, *taps, grad.shape[2:], fresh, result.reshape(-1))
        for level, result in enumerate(results)
    ]
    kernel = _roi_kernels.backward_direct if direct else _roi_kernels.backward
    items = images * channels if direct else _blocks(images, channels, groups)
    bytes_each = (
        0 if direct else max(_block_bytes(result.shape[2:], math.prod(grad.shape[2:]), taps[-1]) for result in results)
    )
    nanoseconds = values + 0.2 * sum(result.size for result in results)
    _run_levels(kernel, [items] * len(results), of_level, bytes_each, nanoseconds)


def _sums_in_parts(
    chunks: Chunks, width: int, results: Sequence[Array], rois: int, groups: int, value_bytes: int, direct: bool
) -> Iterator[tuple[slice, Array, Chunk, Array, bool]]:
    """Go through the results part by part, and for each part through the chunks of RoIs.

    Yields (channels of `grad`, RoIs on the images of the part, the chunk of these RoIs alone, array to which the caller
    adds their gradients, whether that array has to be set instead). When all chunks are added, the sums are written to
    `results`.
    """
    storage, outputs = _storage(results[0]), results[0].shape[1] // groups
    roi_bytes = min(outputs, WIDTH) * value_bytes
    first = next(chunks(roi_bytes))
    dtype = _sums_dtype(first, rois, direct, storage)
    for level, result in enumerate(results):
        in_place = result.dtype.char == dtype
        for of_images, of_channels in _parts(result, groups, len(first[0]) * value_bytes, None if in_place else dtype):
            part = result[of_images, of_channels]
            sums = part if in_place else np.empty(part.shape, dtype)
            for i, chunk in enumerate(_again(chunks, roi_bytes, first, rois)):
                order, local = _of_images(chunk, level * len(result), of_images, width)
                yield _outputs(of_channels, groups), order, local, sums, i == 0
            if not in_place:
                with np.errstate(all="ignore"):  # what is too large for float16 becomes infinite
                    part[...] = sums.astype(storage, copy=False)


def _parts(maps: Array, groups: int, bytes_of_output: int, dtype: str | None) -> Iterator[tuple[slice, slice]]:
    """Ranges of images and of channels of `maps` that are processed at once, copied in type code `dtype` unless None.

    What is copied for the RoIs has `bytes_of_output` for each output channel. A part is some images with all their
    channels, or some channels of one image.
    """
    images, channels, *sides = maps.shape
    outputs = channels // groups
    if dtype is None:
        most_of_maps, most = images * outputs, (CHUNK_BYTES + _PART_BYTES) // max(bytes_of_output, 1)
    else:
        bytes_of_channel = math.prod(sides) * groups * np.dtype(dtype).itemsize
        most_of_maps = min(_PART_BYTES, maps.nbytes // 4) // bytes_of_channel
        most = min(most_of_maps, CHUNK_BYTES // max(bytes_of_output, 1))
    least = 1 if _has_few(channels, groups) else WIDTH
    step = max(min(max(most // least, 1) * least, outputs), 1)
    image_step = max(most_of_maps // outputs, 1) if step == outputs else 1
    for image, output in itertools.product(range(0, images, image_step), range(0, outputs, step)):
        # The last range of channels overlaps the one before: kernels may need so many.
        start = min(output, outputs - step)
        yield slice(image, min(image + image_step, images)), slice(start * groups, (start + step) * groups)


def _of_images(chunk: Chunk, first_map: int, of_images: slice, width: int) -> tuple[Array, Chunk]:
    """The RoIs of a chunk that are on these images of a level, and the chunk of these RoIs alone.

    The first array of the table has `width` entries for each RoI.
    """
    order, starts, *tables = chunk
    maps = slice(first_map + of_images.start, first_map + of_images.stop + 1)
    begin, end = int(starts[maps.start]), int(starts[maps.stop - 1])
    local = [np.arange(end - begin), starts[maps] - begin]
    if tables:
        runs, run_starts, table, *taps = tables
        local += [runs, run_starts[maps], table[begin * width : end * width], *taps]
    return order[begin:end], local


def _outputs(channels: slice, groups: int) -> slice:
    return slice(channels.start // groups, channels.stop // groups)


def _rows(array: Array, order: Array, channels: slice, dtype: str) -> Array:
    """A contiguous copy of some channels for the RoIs `order`."""
    rows = contiguous(array[order, channels], dtype)
    rows.setflags(write=False)  # as inputs are: one compilation
    return rows


def _scatter(part: Array, result: Array, order: Array, channels: slice) -> None:
    """Write what was computed for some channels of the RoIs `order`."""
    with np.errstate(all="ignore"):  # what is too large for float16 becomes infinite
        result[order, channels] = part


def _block_bytes(sides: Sequence[int], bins: int, like: Array) -> int:
    """Bytes of the block of a thread, and of its values."""
    return (math.prod(sides) + bins) * WIDTH * like.itemsize


def _run_within_memory(
    kernel: Callable[..., None], items: int, *args: Any, bytes_each: int, nanoseconds: float
) -> None:
    """As `_threads.run`, but by only so many threads that their blocks, of `bytes_each`, take `_BLOCK_BYTES`."""
    most = items if bytes_each * items <= _BLOCK_BYTES else max(_BLOCK_BYTES // bytes_each, 1)
    if items <= most or _threads.get_num_threads() <= most:
        _threads.run(kernel, items, *args, nanoseconds=nanoseconds)
        return

    def run(begin: int, end: int) -> None:
        for span in range(begin, end):
            kernel(items * span // most, items * (span + 1) // most, *args)

    _threads.run(run, most, nanoseconds=nanoseconds)


def _blocks(images: int, channels: int, groups: int) -> int:
    return images * groups * -(-channels // groups // WIDTH)


def _has_few(channels: int, groups: int) -> bool:
    """Whether there are so few channels that lanes would stay empty, and going pixel by pixel is faster."""
    return channels // groups < (WIDTH if groups > 1 else FEW_CHANNELS)


def _reads_directly(features: Sequence[Array], rois: int, groups: int) -> bool:
    """Whether the forward goes pixel by pixel: there are few channels, or too few RoIs to transpose maps for."""
    images, channels, height, width = features[0].shape
    return _has_few(channels, groups) or (groups > 1 and 100 * rois < images * height * width)


def _run_levels(
    kernel: Callable[..., None],
    items: Sequence[int],
    of_level: Sequence[tuple[Any, ...]],
    bytes_each: int,
    nanoseconds: float,
) -> None:
    """Run the kernel over the items of each level, as one piece of work for all threads."""
    if len(of_level) == 1:
        _run_within_memory(kernel, items[0], *of_level[0], bytes_each=bytes_each, nanoseconds=nanoseconds)
        return
    ends = list(itertools.accumulate(items))

    def run(begin: int, end: int) -> None:
        for arguments, count, last in zip(of_level, items, ends, strict=True):
            first = last - count
            if begin < last and end > first:
                kernel(max(begin - first, 0), min(end, last) - first, *arguments)

    _run_within_memory(run, ends[-1], bytes_each=bytes_each, nanoseconds=nanoseconds)


def _runs_of_map(shape: tuple[int, ...]) -> int:
    """The most runs of pixels that a map may have."""
    return math.prod(shape[2:]) // WIDTH + 1


def _storage(images: Array) -> str:
    """Type code of what the kernels read and write."""
    return "d" if images.dtype.char == "d" else "f"


def _working(rois: Rois, images: Array) -> str:
    """Type code of the working precision."""
    return "d" if "d" in (rois.dtype.char, images.dtype.char) else "f"


def _checked(rois: Rois, images: Array) -> Rois:
    """`rois`, in working precision if they are few. Warns once if they look like x, y, width and height."""
    dtype = _working(rois, images)
    if len(rois) <= _SORTED_AT_ONCE:
        rois = _rois.block(rois, 0, len(rois), dtype)
        _xywh.check(rois, 1)
    else:
        begins = range(0, len(rois), _SORTED_AT_ONCE)
        parts = (_rois.block(rois, begin, begin + _SORTED_AT_ONCE, dtype) for begin in begins)
        _xywh.check_in_parts(parts, len(rois), 1)
    return rois


def _levels(shapes: Sequence[tuple[int, ...]], scales: Sequence[float]) -> Array:
    """Row l is (height, width, scale) of the maps of level l."""
    return np.array([[shape[2], shape[3], scale] for shape, scale in zip(shapes, scales, strict=True)], "d")


def _check_images(bad: int, row: int, rois: Array, images: int) -> None:
    """Raise for rois[bad], the caller's row `row`, whose image index is wrong; there is none if `bad` is -1."""
    if bad >= 0:
        text = f"`boxes` must have image indices from 0 to {images - 1} in column 0, got {rois[bad, 0]} in row {row}"
        raise ValueError(text)


def _lies_flat(features: Array, dtype: str) -> bool:
    """Whether kernels can read the maps where they lie."""
    flat = features.flags.c_contiguous or features.transpose(0, 2, 3, 1).flags.c_contiguous
    return bool(flat) and features.dtype.char == dtype


def _flat(features: Array, dtype: str) -> tuple[Array, tuple[int, int]]:
    """`features` as a flat array, with the strides in it from plane to plane of an image and from pixel to pixel."""
    _, channels, height, width = features.shape
    if not features.flags.c_contiguous and features.dtype.char == dtype:
        channels_last = features.transpose(0, 2, 3, 1)
        if channels_last.flags.c_contiguous:
            return channels_last.reshape(-1), (1, channels)
    return contiguous(features, dtype).reshape(-1), (height * width, 1)
