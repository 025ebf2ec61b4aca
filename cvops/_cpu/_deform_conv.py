"""Deformable convolution: gather a tile of samples into columns, multiply them with the weight while they are in cache.

The images are copied so that the channels of a pixel lie together, one block of channels at a time, with a pixel of
zeros behind each image: what reads outside an image reads that pixel, and what adds outside adds there. A block is
small enough for the columns of a tile to stay in a core's cache, and for the workspace to stay in bounds. The products
are computed here rather than by BLAS: nothing is handed from one pool of threads to another, no BLAS spins on after its
work and holds a core, and a part of a product is no further away than the cache.

The gradients follow the chain rule backwards: the gradient of the columns is a product of the output's gradient and the
weight; from there it is spread over the four pixels around each sample, and its products with them give the gradients
of offset and mask. The gradient of the weight is a product of the output's gradient and the columns. Each sum has one
owner, a range of pixels, of channels or of columns, and an order that no number of threads changes.

Lanes run over channels. Where their number is no multiple of sixteen, `_gather` and `multiply` write past their own
elements, and what comes next, always further on, puts that right; arrays have room for the last.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .._checks import working_dtype
from . import _threads
from ._jit import jit
from ._memory import Array, contiguous, empty
from ._simd import WIDTH, full, item, load, madd, multiply, store, total

# Output pixels of a tile: a multiple of the rows that `multiply` takes at once.
_TILE = 96
# Bytes of the columns of one pixel: those of a tile fit into a cache of 1 MB.
_COLUMN_BYTES = 9216
# Bytes of what the passes of the backward over some pixels hand on: it stays in a shared cache.
_PASS_BYTES = 16 << 20
# Bytes of the weights of a block, and of the copy of some images and of the arguments and results converted at a time.
# The backward has two such copies, one of gradients.
_WEIGHT_BYTES = 8 << 20
_FORWARD_BYTES = 32 << 20, 24 << 20
_BACKWARD_BYTES = 16 << 20, 8 << 20


# Channels of a panel of the weight's gradient, and parts into which the channels of a block fall for the input's.
_PANEL = 64
_CHUNKS = 4


class _Geometry(NamedTuple):
    """What is the same for all pixels."""

    height: int
    width: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    offset_channels: int  # channels of a group of offsets
    group_channels: int  # channels and outputs of a group of the weight
    group_outputs: int


class _Block(NamedTuple):
    """The channels [start, stop): some groups of the weight, or a part of one."""

    start: int
    stop: int
    groups: int
    offset_group: int  # of the first channel
    bounds: Array  # of the groups of offsets, from 0 to stop - start


class _Part(NamedTuple):
    """Where to sample in some images, for some rows of the output, in working precision."""

    first_row: int
    offset: Array  # (images, offset groups * taps * 2, pixels)
    mask: Array  # (images, offset groups * taps or none, pixels)


def deform_conv2d(
    input: Array,
    offset: Array,
    weight: Array,
    bias: Array | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Array | None,
) -> Array:
    dtype = working_dtype(*(array for array in (input, offset, weight, bias, mask) if array is not None))
    geometry = _geometry(input, offset, weight, stride, padding, dilation)
    blocks = _blocks(input, weight, geometry, dtype, _FORWARD_BYTES[0])
    weights = [_by_column(weight, block, geometry, dtype) for block in blocks]
    start = np.zeros(len(weight), dtype)
    if bias is not None:
        start[:] = bias
    mask = _none_like(offset) if mask is None else mask
    result = empty((len(input), len(weight), *offset.shape[2:]), input.dtype.char)
    for images, rows in _ranges(input, geometry, blocks, [offset, mask, result], dtype, *_FORWARD_BYTES):
        part = _Part(rows.start, _flat(offset[images, :, rows], dtype), _flat(mask[images, :, rows], dtype))
        out = _flat_out(result[images, :, rows], dtype)
        for block, block_weight in zip(blocks, weights, strict=True):
            _threads.run(
                _forward_range,
                len(out) * -(-out.shape[2] // _TILE),
                geometry,
                block,
                part,
                _pixels(input[images], block, dtype),
                block_weight,
                start,
                out,
                nanoseconds=0.01 * out.size * _columns(block, geometry),
            )
        _write(out, result[images, :, rows])
    return result


def deform_conv2d_backward(
    grad: Array,
    input: Array,
    offset: Array,
    weight: Array,
    bias: Array | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Array | None,
    wanted: tuple[str, ...],
) -> tuple[Array | None, ...]:
    dtype = working_dtype(*(array for array in (grad, input, offset, weight, bias, mask) if array is not None))
    arguments = {"input": input, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    results = {
        name: empty(array.shape, grad.dtype.char)
        for name, array in arguments.items()
        if name in wanted and array is not None
    }
    if "bias" in results:
        with np.errstate(all="ignore"):
            results["bias"][...] = grad.sum((0, 2, 3), dtype)
    if results.keys() - {"bias"}:
        geometry = _geometry(input, offset, weight, stride, padding, dilation)
        mask = _none_like(offset) if mask is None else mask
        _backward(geometry, dtype, grad, input, offset, weight, mask, results)
    return tuple(results.get(name) for name in arguments)


def _backward(
    geometry: _Geometry,
    dtype: str,
    grad: Array,
    input: Array,
    offset: Array,
    weight: Array,
    mask: Array,
    results: dict[str, Array],
) -> None:
    """Compute the gradients that `results` has memory for, `bias` excepted."""
    blocks = _blocks(input, weight, geometry, dtype, _BACKWARD_BYTES[0])
    grad_offset, grad_mask = results.get("offset", _none_like(offset)), results.get("mask", _none_like(offset))
    grad_weights = [_weight_sums(block, geometry, dtype) for block in blocks] if "weight" in results else []
    arrays = [grad, offset, mask, grad_offset, grad_mask]
    for images, rows in _ranges(input, geometry, blocks, arrays, dtype, *_BACKWARD_BYTES):
        part = _Part(rows.start, _flat(offset[images, :, rows], dtype), _flat(mask[images, :, rows], dtype))
        part_grad = _flat(grad[images, :, rows], dtype)
        part_grad_offset = _flat_out(grad_offset[images, :, rows], dtype)
        part_grad_mask = _flat_out(grad_mask[images, :, rows], dtype)
        for b, block in enumerate(blocks):
            pixels = _pixels(input[images], block, dtype)
            grad_pixels = np.zeros_like(pixels) if "input" in results else None
            block_weight = _by_output(weight, block, geometry, dtype)
            grad_weight = grad_weights[b] if grad_weights else None
            _backward_block(
                geometry, block, part, part_grad, pixels, block_weight,
                grad_pixels, part_grad_offset, grad_weight, part_grad_mask,
            )  # fmt: skip
            if grad_pixels is not None:
                _add_images(grad_pixels, results["input"][images, block.start : block.stop], rows.start == 0)
        _write(part_grad_offset, grad_offset[images, :, rows])
        _write(part_grad_mask, grad_mask[images, :, rows])
    for block, sums in zip(blocks, grad_weights, strict=False):
        target = _block_weight(results["weight"], block, geometry)
        with np.errstate(all="ignore"):
            sums = sums.reshape(*sums.shape[:2], *target.shape[3:], -1)[..., : target.shape[2]]
            target[...] = sums.transpose(0, 1, 4, 2, 3)


def _backward_block(
    geometry: _Geometry,
    block: _Block,
    part: _Part,
    grad: Array,
    pixels: Array,
    weight: Array,
    grad_pixels: Array | None,
    grad_offset: Array,
    grad_weight: Array | None,
    grad_mask: Array,
) -> None:
    """Add the gradients of one block of channels, for some images and some rows of the output."""
    images, _, count = grad.shape
    taps, channels = math.prod(geometry.kernel), block.stop - block.start
    outputs = block.groups * geometry.group_outputs
    entries, pitch = taps * (len(block.bounds) - 1), _pitch(taps * channels + WIDTH)
    pixel_bytes = (2 * pitch + outputs) * grad.itemsize + entries * 44
    size = _TILE * _even(-(-count // _TILE), max(1, _PASS_BYTES // (pixel_bytes * _TILE)))
    needs_grads = grad_pixels is not None or grad_offset.shape[1] + grad_mask.shape[1] > 0
    where, how = np.empty((size * entries, 4), np.int64), np.empty((size * entries, 3), grad.dtype)
    grads = np.empty((outputs, _pitch(size)), grad.dtype)
    columns = np.empty((0 if grad_weight is None else size, pitch), grad.dtype)
    grad_columns = np.empty((size if needs_grads else 0, pitch), grad.dtype)
    chunk = _padded(-(-channels // _CHUNKS))
    panels = -(-channels // block.groups // _PANEL)
    for image in range(images):
        for first in range(0, count, size):
            stop = min(first + size, count)
            nanoseconds = 0.01 * (stop - first) * taps * channels * geometry.group_outputs
            _threads.run(
                _columns_range, -(-(stop - first) // _TILE), geometry, block, part, image, first, stop, where, how,
                pixels, grad, grads, weight, columns, grad_columns, grad_offset, grad_mask, nanoseconds=nanoseconds,
            )  # fmt: skip
            if grad_pixels is not None:
                _threads.run(
                    _scatter_range, -(-channels // chunk), geometry, block, stop - first, chunk, where, how,
                    grad_columns, grad_pixels, nanoseconds=0.5 * (stop - first) * taps * channels,
                )  # fmt: skip
            if grad_weight is not None:
                _threads.run(
                    _weight_range, taps * block.groups * panels, geometry, block, stop - first,
                    grads, columns, grad_weight, nanoseconds=nanoseconds,
                )  # fmt: skip


# ---------------------------------------------------------------------------------------- how the work is divided


def _geometry(
    input: Array,
    offset: Array,
    weight: Array,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> _Geometry:
    channels, height, width = input.shape[1:]
    outputs, group_channels, kernel_height, kernel_width = weight.shape
    return _Geometry(
        height,
        width,
        out_width=offset.shape[3],
        kernel=(kernel_height, kernel_width),
        stride=stride,
        padding=padding,
        dilation=dilation,
        offset_channels=channels * 2 * kernel_height * kernel_width // offset.shape[1],
        group_channels=group_channels,
        group_outputs=outputs * group_channels // channels,
    )


def _blocks(input: Array, weight: Array, geometry: _Geometry, dtype: str, image_bytes: int) -> list[_Block]:
    """All channels in blocks about as large as each other, whose columns, images and weights stay in bounds."""
    taps, group = math.prod(geometry.kernel), geometry.group_channels
    bytes_and_bounds = [
        (taps, _COLUMN_BYTES),
        (taps * len(weight), _WEIGHT_BYTES),
        (geometry.height * geometry.width + 1, image_bytes),
    ]
    itemsize = np.dtype(dtype).itemsize
    most = max(1, min(bound // (size * itemsize) for size, bound in bytes_and_bounds))
    channels = input.shape[1]
    if group <= most:
        starts = list(range(0, channels, _even(channels // group, most // group) * group))
    else:
        if most >= WIDTH:
            step = _padded(_even(group, most - most % WIDTH))
        else:
            step = _even(group, most)
        starts = [first + start for first in range(0, channels, group) for start in range(0, group, step)]
    return [_block(start, stop, geometry) for start, stop in itertools.pairwise([*starts, channels])]


def _block(start: int, stop: int, geometry: _Geometry) -> _Block:
    groups = max(1, (stop - start) // geometry.group_channels)
    inner = range(start // geometry.offset_channels + 1, -(-stop // geometry.offset_channels))
    bounds = [0, *(group * geometry.offset_channels - start for group in inner), stop - start]
    return _Block(start, stop, groups, start // geometry.offset_channels, np.array(bounds, np.int64))


def _even(count: int, most: int) -> int:
    """The size of the parts into which `count` falls when none may be larger than `most`; the last may be smaller."""
    parts = -(-count // most)
    return -(-count // parts)


def _ranges(
    input: Array,
    geometry: _Geometry,
    blocks: list[_Block],
    arrays: list[Array],
    dtype: str,
    image_bytes: int,
    converted_bytes: int,
) -> Iterator[tuple[slice, slice]]:
    """Ranges of images and of rows of the output that are processed at once, in order.

    As many images as there is room for, and all rows, unless one of `arrays` has to be converted.
    """
    images, rows = len(input), arrays[0].shape[2]
    itemsize = np.dtype(dtype).itemsize
    channels = max(block.stop - block.start for block in blocks)
    copied = (geometry.height * geometry.width + 1) * channels * itemsize
    converted = sum(  # by one row
        array.shape[1] * geometry.out_width * itemsize
        for array in arrays
        if array.dtype.char != dtype or not array.flags.c_contiguous
    )
    most_rows = converted_bytes // max(1, converted)
    image_step = max(1, min(image_bytes // copied, most_rows // rows))
    row_step = max(1, min(most_rows, rows))
    for image in range(0, images, image_step):
        for row in range(0, rows, row_step):
            yield slice(image, min(image + image_step, images)), slice(row, min(row + row_step, rows))


def _columns(block: _Block, geometry: _Geometry) -> int:
    return math.prod(geometry.kernel) * (block.stop - block.start)


def _none_like(array: Array) -> Array:
    """An array of no channels."""
    return np.empty((len(array), 0, *array.shape[2:]), "f")


# -------------------------------------------------------------------------------------------- how arrays are laid out


def _flat(array: Array, dtype: str) -> Array:
    """(images, channels, rows, columns) as a contiguous (images, channels, pixels): itself where it is so already."""
    return contiguous(array, dtype).reshape(*array.shape[:2], array.shape[2] * array.shape[3])


def _flat_out(result: Array, dtype: str) -> Array:
    """Where to compute a part of a result: in itself where that has the dtype and the layout."""
    if result.dtype.char != dtype or not result.flags.c_contiguous:
        result = np.empty(result.shape, dtype)
    return result.reshape(*result.shape[:2], result.shape[2] * result.shape[3])


def _write(out: Array, result: Array) -> None:
    """Write a part of a result, unless it was computed in place."""
    if not np.may_share_memory(out, result):
        with np.errstate(all="ignore"):
            result[...] = out.reshape(result.shape)


def _pixels(images: Array, block: _Block, dtype: str) -> Array:
    """The block's channels as (images, pixels and one of zeros, channels), flat and with room for lanes behind it."""
    count, _, height, width = images.shape
    channels = block.stop - block.start
    memory = np.empty(count * (height * width + 1) * channels + WIDTH, dtype)
    pixels = memory[:-WIDTH].reshape(count, height * width + 1, channels)
    pixels[:, -1] = 0
    target = pixels[:, :-1].reshape(count, height, width, channels).swapaxes(0, 1)
    source = images[:, block.start : block.stop].transpose(2, 0, 3, 1)
    _threads.run(_copy_range, height, source, target, nanoseconds=0.6 * source.size)
    return memory


def _add_images(pixels: Array, images: Array, first: bool) -> None:
    """The way back from the layout of `_pixels`: set the images, or add to them unless it is the first time."""
    count, channels, height, width = images.shape
    source = pixels[:-WIDTH].reshape(count, height * width + 1, channels)[:, :-1]
    source = source.reshape(count, height, width, channels).transpose(1, 0, 3, 2)
    target = images.transpose(2, 0, 1, 3)
    if first:
        _threads.run(_copy_range, height, source, target, nanoseconds=0.6 * source.size)
    else:
        with np.errstate(all="ignore"):
            target += source


def _copy_range(begin: int, end: int, source: Array, target: Array) -> None:
    with np.errstate(all="ignore"):
        target[begin:end] = source[begin:end]  # NumPy lets go of the GIL meanwhile


def _pitch(columns):
    """Distance of the rows of a matrix: room for lanes, and an odd number of cache lines, to spread over the cache."""
    return (columns + WIDTH - 1) // (2 * WIDTH) * (2 * WIDTH) + WIDTH


def _padded(count):
    return -(-count // WIDTH) * WIDTH


def _group_channels(block: _Block) -> int:
    return (block.stop - block.start) // block.groups


def _block_weight(weight: Array, block: _Block, geometry: _Geometry) -> Array:
    """A view of the block's weights: (groups, outputs, channels, kernel height, kernel width)."""
    first_output = block.start // geometry.group_channels * geometry.group_outputs
    first_channel = block.start % geometry.group_channels
    groups = weight[
        first_output : first_output + block.groups * geometry.group_outputs,
        first_channel : first_channel + _group_channels(block),
    ]
    return groups.reshape(block.groups, geometry.group_outputs, *groups.shape[1:])


def _by_column(weight: Array, block: _Block, geometry: _Geometry, dtype: str) -> Array:
    """The block's weights as (groups, kernel height, kernel width, channels, outputs and room for lanes)."""
    groups = _block_weight(weight, block, geometry).transpose(0, 3, 4, 2, 1)
    result = np.empty((*groups.shape[:4], _pitch(geometry.group_outputs)), dtype)
    result[..., : geometry.group_outputs] = groups
    return result


def _by_output(weight: Array, block: _Block, geometry: _Geometry, dtype: str) -> Array:
    """The block's weights as (groups, outputs, columns of the group and room for lanes)."""
    groups = _block_weight(weight, block, geometry).transpose(0, 1, 3, 4, 2)
    columns = _columns(block, geometry) // block.groups
    result = np.empty((*groups.shape[:2], _pitch(columns + WIDTH)), dtype)
    result[..., :columns].reshape(groups.shape)[...] = groups
    return result


def _weight_sums(block: _Block, geometry: _Geometry, dtype: str) -> Array:
    """Zeros for the block's weights: (groups, outputs, taps, channels and room for lanes)."""
    shape = block.groups, geometry.group_outputs, math.prod(geometry.kernel), _padded(_group_channels(block))
    return np.zeros(shape, dtype)


# ---------------------------------------------------------------------------------------------------------- kernels


@jit
def _locate(g, block, part, image, p, low, where, how, e):
    """Find what output pixel p reads: an entry for each tap and each group of offsets in the block, from entry e on.

    An entry of `where` is four indices into the pixels of the block: the first channel of the group in each of the four
    pixels around the position (y, x), in row-major order. What is outside the image is the pixel of zeros. So are all
    four unless low < y < height and low < x < width. An entry of `how` is the distance from the first of the pixels, in
    y and in x, and the mask.
    """
    zero, one = how.dtype.type(0), how.dtype.type(1)
    channels = block.stop - block.start
    origin = image * (g.height * g.width + 1)
    nowhere = origin + g.height * g.width
    taps, width = g.kernel[0] * g.kernel[1], g.width
    oy, ox = part.first_row + p // g.out_width, p % g.out_width
    for i in range(g.kernel[0]):
        for j in range(g.kernel[1]):
            regular_y = how.dtype.type(oy * g.stride[0] - g.padding[0] + i * g.dilation[0])
            regular_x = how.dtype.type(ox * g.stride[1] - g.padding[1] + j * g.dilation[1])
            for s in range(len(block.bounds) - 1):
                k = (block.offset_group + s) * taps + i * g.kernel[1] + j
                y, x = regular_y + part.offset[image, 2 * k, p], regular_x + part.offset[image, 2 * k + 1, p]
                top, left = np.floor(y), np.floor(x)
                inside = y > low and x > low and y < g.height and x < width
                p0 = p1 = p2 = p3 = nowhere
                ly = lx = zero
                if inside:
                    ly, lx = y - top, x - left
                    row, column = np.int64(top), np.int64(left)
                    above, below, before, behind = row >= 0, row < g.height - 1, column >= 0, column < width - 1
                    pixel = origin + row * width + column
                    p0 = pixel if above and before else nowhere
                    p1 = pixel + 1 if above and behind else nowhere
                    p2 = pixel + width if below and before else nowhere
                    p3 = pixel + width + 1 if below and behind else nowhere
                elif y != y or x != x:
                    ly = lx = y + x  # NaN
                first = block.bounds[s]
                where[e, 0], where[e, 1] = p0 * channels + first, p1 * channels + first
                where[e, 2], where[e, 3] = p2 * channels + first, p3 * channels + first
                how[e, 0], how[e, 1] = ly, lx
                how[e, 2] = part.mask[image, k, p] if part.mask.shape[1] else one
                e += 1


@jit(contract=True)
def _gather(g, block, where, how, e, pixels, columns, start):
    """Write the samples of an output pixel, (tap, channel), from columns[start] on; its entries begin at e."""
    one, nothing = pixels.dtype.type(1), full(pixels.dtype.type(0))
    for _ in range(g.kernel[0] * g.kernel[1]):
        for s in range(len(block.bounds) - 1):
            i0, i1, i2, i3 = where[e, 0], where[e, 1], where[e, 2], where[e, 3]
            ly, lx, m = how[e, 0], how[e, 1], how[e, 2]
            hy, hx = one - ly, one - lx
            w0, w1, w2, w3 = hy * hx, hy * lx, ly * hx, ly * lx
            target = start + block.bounds[s]
            for n in range(0, block.bounds[s + 1] - block.bounds[s], WIDTH):
                value = madd(w0, load(pixels, i0 + n), nothing)
                value = madd(w1, load(pixels, i1 + n), value)
                value = madd(w2, load(pixels, i2 + n), value)
                value = madd(w3, load(pixels, i3 + n), value)
                store(columns, target + n, madd(m, value, nothing))
            e += 1
        start += block.stop - block.start


@jit(contract=True)
def _forward_range(begin, end, g, block, part, pixels, weight, bias, out):
    """Tiles [begin, end) of the output, all images counted through."""
    none, one = np.int64(0), np.int64(1)  # literals would be types of their own, and `multiply` compiled for each
    count = out.shape[2]
    tiles = (count + _TILE - 1) // _TILE
    taps, channels = g.kernel[0] * g.kernel[1], block.stop - block.start
    group_channels = channels // block.groups
    depth, pitch = taps * channels, weight.shape[4]
    entries = taps * (len(block.bounds) - 1)
    low, weights = out.dtype.type(-1), weight.ravel()
    where, how = np.empty((_TILE * entries, 4), np.int64), np.empty((_TILE * entries, 3), out.dtype)
    columns, sums = np.empty(_TILE * depth + WIDTH, out.dtype), np.empty(_TILE * pitch, out.dtype)
    column_runs, weight_runs = _multiples(taps, channels), _multiples(taps, group_channels * pitch)
    for tile in range(begin, end):
        image, first = tile // tiles, tile % tiles * _TILE
        size = min(_TILE, count - first)
        for q in range(size):
            _locate(g, block, part, image, first + q, low, where, how, q * entries)
            _gather(g, block, where, how, q * entries, pixels, columns, q * depth)
        for group in range(block.groups):
            multiply(
                columns, group * group_channels, depth, column_runs, one,
                weights, group * taps * group_channels * pitch, weight_runs, pitch, group_channels,
                sums, none, pitch, size, g.group_outputs, none,
            )  # fmt: skip
            first_output = (block.start // g.group_channels + group) * g.group_outputs
            for o in range(g.group_outputs):
                row = out[image, first_output + o, first : first + size]
                if block.start % g.group_channels == 0:
                    for q in range(size):
                        row[q] = sums[q * pitch + o] + bias[first_output + o]
                else:
                    for q in range(size):
                        row[q] += sums[q * pitch + o]


@jit(contract=True)
def _columns_range(
    begin, end, g, block, part, image, first, stop, where, how,
    pixels, grad, grads, weight, columns, grad_columns, grad_offset, grad_mask,
):  # fmt: skip
    """Tiles [begin, end) of the output pixels [first, stop): their columns, and what depends on a pixel alone."""
    none, one = np.int64(0), np.int64(1)  # no literals: see _forward_range
    one_run = _multiples(1, none)
    low = grad.dtype.type(-1)
    low_edge = np.nextafter(low, low + low)  # the edge itself is in the cell behind it, whose derivative counts
    taps, channels = g.kernel[0] * g.kernel[1], block.stop - block.start
    group_channels, pitch = channels // block.groups, columns.shape[1]
    first_output = block.start // g.group_channels * g.group_outputs
    entries = taps * (len(block.bounds) - 1)
    edge_where, edge_how = np.empty((_TILE * entries, 4), np.int64), np.empty((_TILE * entries, 3), grad.dtype)
    flat_grads, weights = grads.ravel(), weight.ravel()
    flat_columns, flat_grad_columns = columns.ravel(), grad_columns.ravel()
    for tile in range(begin, end):
        start = tile * _TILE
        size = min(_TILE, stop - first - start)
        p = first + start
        for o in range(len(grads)):
            row = grads[o, start : start + size]
            for q in range(size):
                row[q] = grad[image, first_output + o, p + q]
        for q in range(size):
            _locate(g, block, part, image, p + q, low, where, how, (start + q) * entries)
        if len(columns):
            for q in range(start, start + size):
                _gather(g, block, where, how, q * entries, pixels, flat_columns, q * pitch)
        if len(grad_columns):
            for tap in range(taps):
                for group in range(block.groups):
                    o = group * g.group_outputs
                    multiply(
                        flat_grads, o * grads.shape[1] + start, one, one_run, grads.shape[1],
                        weights, o * weight.shape[2] + tap * group_channels, one_run, weight.shape[2], g.group_outputs,
                        flat_grad_columns, start * pitch + tap * channels + group * group_channels, pitch,
                        size, group_channels, none,
                    )  # fmt: skip
        if grad_offset.shape[1] or grad_mask.shape[1]:
            for q in range(size):
                _locate(g, block, part, image, p + q, low_edge, edge_where, edge_how, q * entries)
                _differentiate(
                    g, block, image, p + q, edge_where, edge_how, q * entries,
                    pixels, flat_grad_columns, (start + q) * pitch, grad_offset, grad_mask,
                )  # fmt: skip


@jit(contract=True)
def _differentiate(g, block, image, p, where, how, e, pixels, grad_columns, start, grad_offset, grad_mask):
    """Add what the block's channels give to the gradients of the offsets and masks of output pixel p."""
    one = pixels.dtype.type(1)
    taps = g.kernel[0] * g.kernel[1]
    continued = block.start % g.offset_channels != 0  # the first group of offsets, from the block before
    for tap in range(taps):
        for s in range(len(block.bounds) - 1):
            ly, lx, m = how[e, 0], how[e, 1], how[e, 2]
            value, down, down_right, right = _dots(
                pixels, where[e, 0], where[e, 1], where[e, 2], where[e, 3],
                grad_columns, start + block.bounds[s], block.bounds[s + 1] - block.bounds[s],
            )  # fmt: skip
            slope_y = (one - lx) * down + lx * down_right
            slope_x = right + ly * (down_right - down)
            k = (block.offset_group + s) * taps + tap
            add = continued and s == 0
            if grad_offset.shape[1]:
                _accumulate(grad_offset, image, 2 * k, p, m * slope_y, add)
                _accumulate(grad_offset, image, 2 * k + 1, p, m * slope_x, add)
            if grad_mask.shape[1]:
                _accumulate(grad_mask, image, k, p, value + lx * right + ly * slope_y, add)
            e += 1
        start += block.stop - block.start


@jit(contract=True)
def _dots(pixels, i0, i1, i2, i3, grads, start, size):
    """Sums over `size` channels of the gradient times pixel 0, and times pixels 2 - 0, 3 - 1 and 1 - 0.

    Differences of sums would lose digits where neighbours are alike.
    """
    zero, minus_one = pixels.dtype.type(0), pixels.dtype.type(-1)
    s0 = s1 = s2 = s3 = full(zero)
    whole = size - size % WIDTH
    for n in range(0, whole, WIDTH):
        grad = load(grads, start + n)
        v0, v1, v2, v3 = load(pixels, i0 + n), load(pixels, i1 + n), load(pixels, i2 + n), load(pixels, i3 + n)
        s0 = madd(grad, v0, s0)
        s1 = madd(grad, madd(minus_one, v0, v2), s1)
        s2 = madd(grad, madd(minus_one, v1, v3), s2)
        s3 = madd(grad, madd(minus_one, v0, v1), s3)
    t0, t1, t2, t3 = total(s0), total(s1), total(s2), total(s3)
    for n in range(whole, size):
        grad = item(grads, start + n)
        v0, v1, v2, v3 = item(pixels, i0 + n), item(pixels, i1 + n), item(pixels, i2 + n), item(pixels, i3 + n)
        t0 += grad * v0
        t1 += grad * (v2 - v0)
        t2 += grad * (v3 - v1)
        t3 += grad * (v1 - v0)
    return t0, t1, t2, t3


@jit
def _accumulate(array, image, channel, p, value, add):
    if add:
        array[image, channel, p] += value
    else:
        array[image, channel, p] = value


@jit(contract=True)
def _scatter_range(begin, end, g, block, size, chunk, where, how, grad_columns, grad_pixels):
    """Chunks [begin, end) of the block's channels: spread the gradient of the columns over the pixels."""
    one = grad_pixels.dtype.type(1)
    first_channel, last_channel = begin * chunk, min(end * chunk, block.stop - block.start)
    e = 0
    for q in range(size):
        start = q * grad_columns.shape[1]
        for _ in range(g.kernel[0] * g.kernel[1]):
            for s in range(len(block.bounds) - 1):
                skip = max(first_channel - block.bounds[s], 0)
                channels = min(last_channel, block.bounds[s + 1]) - block.bounds[s] - skip
                if channels > 0:
                    ly, lx, m = how[e, 0], how[e, 1], how[e, 2]
                    hy, hx = m * (one - ly), one - lx
                    ly *= m
                    _spread(
                        grad_pixels, where[e, 0] + skip, where[e, 1] + skip, where[e, 2] + skip, where[e, 3] + skip,
                        hy * hx, hy * lx, ly * hx, ly * lx, grad_columns, start + block.bounds[s] + skip, channels,
                    )  # fmt: skip
                e += 1
            start += block.stop - block.start


@jit(contract=True)
def _spread(pixels, i0, i1, i2, i3, w0, w1, w2, w3, grads, start, size):
    """Add the gradient of `size` channels of a sample to the four pixels that it is of."""
    whole = size - size % WIDTH
    for n in range(0, whole, WIDTH):
        grad = load(grads, start + n)
        store(pixels, i0 + n, madd(w0, grad, load(pixels, i0 + n)))
        store(pixels, i1 + n, madd(w1, grad, load(pixels, i1 + n)))
        store(pixels, i2 + n, madd(w2, grad, load(pixels, i2 + n)))
        store(pixels, i3 + n, madd(w3, grad, load(pixels, i3 + n)))
    for n in range(whole, size):
        grad = item(grads, start + n)
        pixels[i0 + n] += w0 * grad
        pixels[i1 + n] += w1 * grad
        pixels[i2 + n] += w2 * grad
        pixels[i3 + n] += w3 * grad


@jit(contract=True)
def _weight_range(begin, end, g, block, size, grads, columns, grad_weight):
    """Panels [begin, end) of the block's columns: add the product of the output's gradient and the columns."""
    none, one = np.int64(0), np.int64(1)  # no literals: see _forward_range
    one_run = _multiples(1, none)
    flat_grads, flat_columns, sums = grads.ravel(), columns.ravel(), grad_weight.ravel()
    taps, channels = g.kernel[0] * g.kernel[1], block.stop - block.start
    group_channels, padded = channels // block.groups, grad_weight.shape[3]
    panels = (group_channels + _PANEL - 1) // _PANEL
    for panel in range(begin, end):
        tap, group, c = panel // panels % taps, panel // panels // taps, panel % panels * _PANEL
        o = group * g.group_outputs
        multiply(
            flat_grads, o * grads.shape[1], grads.shape[1], one_run, one,
            flat_columns, tap * channels + group * group_channels + c, one_run, columns.shape[1], size,
            sums, (o * taps + tap) * padded + c, taps * padded, g.group_outputs, min(_PANEL, group_channels - c), one,
        )  # fmt: skip


@jit
def _multiples(count, step):
    multiples = np.empty(count, np.int64)
    for k in range(count):
        multiples[k] = k * step
    return multiples
