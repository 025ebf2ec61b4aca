"""Deformable convolution: gather a tile of samples into columns, multiply them with the weight while they are in cache.

    for each tile of output pixels:
        columns = [mask * (bilinear sample of the input where the tap reads) for pixel, tap, channel]
        output = weight @ columns + bias                           # while the columns are in a core's cache

The images are copied so that the channels of a pixel lie together, one block of channels at a time, with a pixel of
zeros behind each image: a sample reads that pixel for corners outside the image, and its gradient is added there. A
block has so few channels that the columns of a tile stay in a core's cache, and that the workspace stays in bounds. The
products are computed here rather than by BLAS: no work is handed from one pool of threads to another, no thread of BLAS
keeps a core busy while it waits for more work, and the product finds the columns in the cache.

The gradients follow the chain rule:

    grad_columns = weight.T @ grad
    grad_input += grad_columns * mask * (weight of the corner)     # at the four corners of each sample
    grad_mask, grad_offset = sums over channels of grad_columns * (sample, and its derivatives)
    grad_weight += grad @ columns.T

Each sum is computed by one thread, which owns a range of pixels, of channels or of columns, and in an order that does
not depend on the number of threads.

Lanes run over channels. Where their number is no multiple of 16, `_gather` and `multiply` also write to some elements
behind those that they compute. These are written again later, because both go from front to back; behind the last
there is room.
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
from ._simd import WIDTH, full, load, load_one, madd, multiply, store, total

# Output pixels of a tile: a multiple of the rows that `multiply` takes at once.
_TILE = 96
# The columns of one pixel have at most so many bytes: those of a tile then fit into a cache of 1 MB.
_COLUMN_BYTES = 9216
# The gradients are computed in passes over some pixels. What one pass leaves to the next has at most so many bytes, so
# that it stays in a shared cache.
_PASS_BYTES = 16 << 20
# At most so many bytes: the weights of a block; the copy of some images; and the arguments and results that are
# converted at a time. The backward copies the images and also their gradients.
_WEIGHT_BYTES = 8 << 20
_FORWARD_BYTES = 32 << 20, 24 << 20
_BACKWARD_BYTES = 16 << 20, 8 << 20


_PANEL = 64  # channels of a work item for the gradient of the weight
_CHUNKS = 4  # parts of the channels of a block, each a work item for the gradient of the input


class _Geometry(NamedTuple):
    """Sizes of the convolution that are the same for all pixels."""

    height: int
    width: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    offset_channels: int  # channels that share the offsets of a group
    group_channels: int  # input channels of a group of the weight
    group_outputs: int  # output channels of a group of the weight


class _Block(NamedTuple):
    """The channels [start, stop), which are processed together: some groups of the weight, or a part of one group."""

    start: int
    stop: int
    groups: int  # of the weight
    offset_group: int  # that of the first channel
    bounds: Array  # where groups of offsets begin and end in the block, from 0 to stop - start


class _Part(NamedTuple):
    """Offsets and mask of some images, for the rows of the output from `first_row` on, in working precision."""

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
    biases = np.zeros(len(weight), dtype)
    if bias is not None:
        biases[:] = bias
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
                biases,
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
    samples, row_stride = taps * (len(block.bounds) - 1), _row_stride(taps * channels + WIDTH)  # samples of a pixel
    pixel_bytes = (2 * row_stride + outputs) * grad.itemsize + samples * 44
    size = _TILE * _even(-(-count // _TILE), max(1, _PASS_BYTES // (pixel_bytes * _TILE)))
    needs_grads = grad_pixels is not None or grad_offset.shape[1] + grad_mask.shape[1] > 0
    corners, fractions = np.empty((size * samples, 4), np.int64), np.empty((size * samples, 3), grad.dtype)
    grads = np.empty((outputs, _row_stride(size)), grad.dtype)
    columns = np.empty((0 if grad_weight is None else size, row_stride), grad.dtype)
    grad_columns = np.empty((size if needs_grads else 0, row_stride), grad.dtype)
    chunk = _padded(-(-channels // _CHUNKS))
    panels = -(-channels // block.groups // _PANEL)
    for image in range(images):
        for first in range(0, count, size):
            stop = min(first + size, count)
            nanoseconds = 0.01 * (stop - first) * taps * channels * geometry.group_outputs
            _threads.run(
                _columns_range, -(-(stop - first) // _TILE), geometry, block, part, image, first, stop,
                corners, fractions, pixels, grad, grads, weight, columns, grad_columns, grad_offset, grad_mask,
                nanoseconds=nanoseconds,
            )  # fmt: skip
            if grad_pixels is not None:
                _threads.run(
                    _scatter_range, -(-channels // chunk), geometry, block, stop - first, chunk, corners, fractions,
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
    """Divide the channels into blocks of about equal size, whose columns, images and weights stay in bounds."""
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
    """The size of the fewest equal parts of `count` that are not larger than `most`; the last part may be smaller."""
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
    """Yield the ranges of images and of rows of the output that are processed at once, in order.

    A range has as many images as fit into `image_bytes`, and all rows. If some of `arrays` have to be converted, it has
    only as many images, or as many rows of one image, as fit into `converted_bytes`.
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
    """(images, channels, rows, columns) as a contiguous (images, channels, pixels), without a copy where possible."""
    return contiguous(array, dtype).reshape(*array.shape[:2], array.shape[2] * array.shape[3])


def _flat_out(result: Array, dtype: str) -> Array:
    """The array to compute a part of a result in: the result itself if it has the dtype and the layout."""
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
    """Set the images to `pixels`, which have the layout of `_pixels`, or add `pixels` to them if not `first`."""
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
        target[begin:end] = source[begin:end]  # NumPy releases the GIL meanwhile


def _row_stride(columns):
    """The row stride of a matrix: there is room for whole lanes, and it is an odd number of cache lines.

    With a power of two, the rows would share a few sets of the cache and evict each other.
    """
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
    result = np.empty((*groups.shape[:4], _row_stride(geometry.group_outputs)), dtype)
    result[..., : geometry.group_outputs] = groups
    return result


def _by_output(weight: Array, block: _Block, geometry: _Geometry, dtype: str) -> Array:
    """The block's weights as (groups, outputs, columns of the group and room for lanes)."""
    groups = _block_weight(weight, block, geometry).transpose(0, 1, 3, 4, 2)
    columns = _columns(block, geometry) // block.groups
    result = np.empty((*groups.shape[:2], _row_stride(columns + WIDTH)), dtype)
    result[..., :columns].reshape(groups.shape)[...] = groups
    return result


def _weight_sums(block: _Block, geometry: _Geometry, dtype: str) -> Array:
    """Zeros for the block's weights: (groups, outputs, taps, channels and room for lanes)."""
    shape = block.groups, geometry.group_outputs, math.prod(geometry.kernel), _padded(_group_channels(block))
    return np.zeros(shape, dtype)


# ---------------------------------------------------------------------------------------------------------- kernels


@jit
def _locate(g, block, part, image, p, low, corners, fractions, e):
    """Find the samples of output pixel p: one for each tap and each group of offsets in the block, numbered from e on.

    A sample at (y, x) has four corners, the pixels around it:

        corners 0, 1    --  row floor(y)         corners[e, 0:4]: where each has its first channel of the group
                y, x                             fractions[e, 0], fractions[e, 1]: y - floor(y), x - floor(x)
        corners 2, 3    --  row floor(y) + 1     fractions[e, 2]: the mask

    A corner outside the image is the pixel of zeros, and so are all four unless low < y < height and low < x < width.
    """
    zero, one = fractions.dtype.type(0), fractions.dtype.type(1)
    channels = block.stop - block.start
    origin = image * (g.height * g.width + 1)
    nowhere = origin + g.height * g.width
    taps, width = g.kernel[0] * g.kernel[1], g.width
    oy, ox = part.first_row + p // g.out_width, p % g.out_width
    for i in range(g.kernel[0]):
        for j in range(g.kernel[1]):
            regular_y = fractions.dtype.type(oy * g.stride[0] - g.padding[0] + i * g.dilation[0])
            regular_x = fractions.dtype.type(ox * g.stride[1] - g.padding[1] + j * g.dilation[1])
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
                corners[e, 0], corners[e, 1] = p0 * channels + first, p1 * channels + first
                corners[e, 2], corners[e, 3] = p2 * channels + first, p3 * channels + first
                fractions[e, 0], fractions[e, 1] = ly, lx
                fractions[e, 2] = part.mask[image, k, p] if part.mask.shape[1] else one
                e += 1


@jit(contract=True)
def _gather(g, block, corners, fractions, e, pixels, columns, start):
    """Write the columns of an output pixel, (tap, channel), from columns[start] on; its samples are e, e + 1, ..."""
    one, nothing = pixels.dtype.type(1), full(pixels.dtype.type(0))
    for _ in range(g.kernel[0] * g.kernel[1]):
        for s in range(len(block.bounds) - 1):
            i0, i1, i2, i3 = corners[e, 0], corners[e, 1], corners[e, 2], corners[e, 3]
            ly, lx, m = fractions[e, 0], fractions[e, 1], fractions[e, 2]
            w0, w1, w2, w3 = _corner_weights(one - ly, ly, one - lx, lx)
            target = start + block.bounds[s]
            for n in range(0, block.bounds[s + 1] - block.bounds[s], WIDTH):
                value = madd(w0, load(pixels, i0 + n), nothing)
                value = madd(w1, load(pixels, i1 + n), value)
                value = madd(w2, load(pixels, i2 + n), value)
                value = madd(w3, load(pixels, i3 + n), value)
                store(columns, target + n, madd(m, value, nothing))
            e += 1
        start += block.stop - block.start


@jit
def _corner_weights(upper, lower, left, right):
    return upper * left, upper * right, lower * left, lower * right


@jit(contract=True)
def _forward_range(begin, end, g, block, part, pixels, weight, bias, out):
    """Compute tiles [begin, end) of the output; tile = image * (tiles of an image) + (tile of the image)."""
    none, one = (
        np.int64(0),
        np.int64(1),
    )  # a literal has a type of its own, for which `multiply` would be compiled again
    count = out.shape[2]
    tiles = (count + _TILE - 1) // _TILE
    taps, channels = g.kernel[0] * g.kernel[1], block.stop - block.start
    group_channels = channels // block.groups
    depth, row_stride = taps * channels, weight.shape[4]
    samples = taps * (len(block.bounds) - 1)
    low, weights = out.dtype.type(-1), weight.ravel()
    corners, fractions = np.empty((_TILE * samples, 4), np.int64), np.empty((_TILE * samples, 3), out.dtype)
    columns, sums = np.empty(_TILE * depth + WIDTH, out.dtype), np.empty(_TILE * row_stride, out.dtype)
    column_runs, weight_runs = _multiples(taps, channels), _multiples(taps, group_channels * row_stride)
    for tile in range(begin, end):
        image, first = tile // tiles, tile % tiles * _TILE
        size = min(_TILE, count - first)
        for q in range(size):
            _locate(g, block, part, image, first + q, low, corners, fractions, q * samples)
            _gather(g, block, corners, fractions, q * samples, pixels, columns, q * depth)
        for group in range(block.groups):
            multiply(
                columns, group * group_channels, depth, column_runs, one,
                weights, group * taps * group_channels * row_stride, weight_runs, row_stride, group_channels,
                sums, none, row_stride, size, g.group_outputs, none,
            )  # fmt: skip
            first_output = (block.start // g.group_channels + group) * g.group_outputs
            for o in range(g.group_outputs):
                row = out[image, first_output + o, first : first + size]
                if block.start % g.group_channels == 0:
                    for q in range(size):
                        row[q] = sums[q * row_stride + o] + bias[first_output + o]
                else:
                    for q in range(size):
                        row[q] += sums[q * row_stride + o]


@jit(contract=True)
def _columns_range(
    begin, end, g, block, part, image, first, stop, corners, fractions,
    pixels, grad, grads, weight, columns, grad_columns, grad_offset, grad_mask,
):  # fmt: skip
    """For tiles [begin, end) of the output pixels [first, stop): columns, their gradients, those of offset and mask.

    Gradients are brought into rows of pixels, `grads`, as the later passes need them.
    """
    none, one = np.int64(0), np.int64(1)  # not literals: see _forward_range
    one_run = _multiples(1, none)
    low = grad.dtype.type(-1)
    # A sample exactly at -1 is 0, but it has a derivative, that of the cell between -1 and 0.
    low_edge = np.nextafter(low, low + low)
    taps, channels = g.kernel[0] * g.kernel[1], block.stop - block.start
    group_channels, row_stride = channels // block.groups, columns.shape[1]
    first_output = block.start // g.group_channels * g.group_outputs
    samples = taps * (len(block.bounds) - 1)
    edge_corners, edge_fractions = np.empty((_TILE * samples, 4), np.int64), np.empty((_TILE * samples, 3), grad.dtype)
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
            _locate(g, block, part, image, p + q, low, corners, fractions, (start + q) * samples)
        if len(columns):
            for q in range(start, start + size):
                _gather(g, block, corners, fractions, q * samples, pixels, flat_columns, q * row_stride)
        if len(grad_columns):
            for tap in range(taps):
                for group in range(block.groups):
                    o = group * g.group_outputs
                    multiply(
                        flat_grads, o * grads.shape[1] + start, one, one_run, grads.shape[1],
                        weights, o * weight.shape[2] + tap * group_channels, one_run, weight.shape[2], g.group_outputs,
                        flat_grad_columns, start * row_stride + tap * channels + group * group_channels, row_stride,
                        size, group_channels, none,
                    )  # fmt: skip
        if grad_offset.shape[1] or grad_mask.shape[1]:
            for q in range(size):
                _locate(g, block, part, image, p + q, low_edge, edge_corners, edge_fractions, q * samples)
                _differentiate(
                    g, block, image, p + q, edge_corners, edge_fractions, q * samples,
                    pixels, flat_grad_columns, (start + q) * row_stride, grad_offset, grad_mask,
                )  # fmt: skip


@jit(contract=True)
def _differentiate(g, block, image, p, corners, fractions, e, pixels, grad_columns, start, grad_offset, grad_mask):
    """Add the block's channels to the gradients of the offsets and masks of output pixel p."""
    one = pixels.dtype.type(1)
    taps = g.kernel[0] * g.kernel[1]
    continued = block.start % g.offset_channels != 0  # the block before has begun the first group of offsets
    for tap in range(taps):
        for s in range(len(block.bounds) - 1):
            ly, lx, m = fractions[e, 0], fractions[e, 1], fractions[e, 2]
            value, down, down_right, right = _dots(
                pixels, corners[e, 0], corners[e, 1], corners[e, 2], corners[e, 3],
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
    """Sums over `size` channels of grad * v, where v is corner 0, and corners 2 - 0, 3 - 1 and 1 - 0.

    The differences are summed, because differences of sums would lose digits where neighbouring pixels are alike.
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
        grad = load_one(grads, start + n)
        v0, v1, v2, v3 = (
            load_one(pixels, i0 + n),
            load_one(pixels, i1 + n),
            load_one(pixels, i2 + n),
            load_one(pixels, i3 + n),
        )
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
def _scatter_range(begin, end, g, block, size, chunk, corners, fractions, grad_columns, grad_pixels):
    """For chunks [begin, end) of the block's channels: add the gradients of the columns to the pixels read."""
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
                    ly, lx, m = fractions[e, 0], fractions[e, 1], fractions[e, 2]
                    w0, w1, w2, w3 = _corner_weights(m * (one - ly), m * ly, one - lx, lx)
                    i0, i1, i2, i3 = corners[e, 0], corners[e, 1], corners[e, 2], corners[e, 3]
                    _spread(
                        grad_pixels, i0 + skip, i1 + skip, i2 + skip, i3 + skip, w0, w1, w2, w3,
                        grad_columns, start + block.bounds[s] + skip, channels,
                    )  # fmt: skip
                e += 1
            start += block.stop - block.start


@jit(contract=True)
def _spread(pixels, i0, i1, i2, i3, w0, w1, w2, w3, grads, start, size):
    """Add the gradients of `size` channels of a sample to its four corners, each with its weight."""
    whole = size - size % WIDTH
    for n in range(0, whole, WIDTH):
        grad = load(grads, start + n)
        store(pixels, i0 + n, madd(w0, grad, load(pixels, i0 + n)))
        store(pixels, i1 + n, madd(w1, grad, load(pixels, i1 + n)))
        store(pixels, i2 + n, madd(w2, grad, load(pixels, i2 + n)))
        store(pixels, i3 + n, madd(w3, grad, load(pixels, i3 + n)))
    for n in range(whole, size):
        grad = load_one(grads, start + n)
        pixels[i0 + n] += w0 * grad
        pixels[i1 + n] += w1 * grad
        pixels[i2 + n] += w2 * grad
        pixels[i3 + n] += w3 * grad


@jit(contract=True)
def _weight_range(begin, end, g, block, size, grads, columns, grad_weight):
    """For panels [begin, end) of the block's columns: add grad @ columns.T to the gradient of the weight."""
    none, one = np.int64(0), np.int64(1)  # not literals: see _forward_range
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
def _multiples(count, number):
    """0, number, 2 * number, ..."""
    multiples = np.empty(count, np.int64)
    for k in range(count):
        multiples[k] = k * number
    return multiples
