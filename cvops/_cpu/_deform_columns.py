"""Columns of the deformable convolution: how its work is divided, how arrays are laid out, and where taps read.

The images are copied so that the channels of a pixel lie together, one block of channels at a time, with a pixel of
zeros behind each image: a sample reads that pixel for corners outside the image, and its gradient is added there. A
block has so few channels that the columns of a tile stay in a core's cache, and that the workspace stays in bounds.

Lanes run over channels. Where their number is no multiple of 16, `gather` and `multiply` also write to some elements
behind those that they compute. These are written again later, because both go from front to back; behind the last
there is room.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from . import _threads
from ._jit import jit
from ._memory import Array, contiguous
from ._simd import WIDTH, full, load, madd, store

# Output pixels of a tile: a multiple of the rows that `multiply` takes at once.
TILE = 96
# The columns of one pixel have at most so many bytes: those of a tile then fit into a cache of 1 MB.
_COLUMN_BYTES = 9216
# The weights of a block have at most so many bytes.
_WEIGHT_BYTES = 8 << 20


class Geometry(NamedTuple):
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


class Block(NamedTuple):
    """The channels [start, stop), which are processed together: some groups of the weight, or a part of one group."""

    start: int
    stop: int
    groups: int  # of the weight
    offset_group: int  # that of the first channel
    bounds: Array  # where groups of offsets begin and end in the block, from 0 to stop - start


class Part(NamedTuple):
    """Offsets and mask of some images, for the rows of the output from `first_row` on, in working precision."""

    first_row: int
    offset: Array  # (images, offset groups * taps * 2, pixels)
    mask: Array  # (images, offset groups * taps or none, pixels)


# ---------------------------------------------------------------------------------------- how the work is divided


def geometry_of(
    input: Array,
    offset: Array,
    weight: Array,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Geometry:
    channels, height, width = input.shape[1:]
    outputs, group_channels, kernel_height, kernel_width = weight.shape
    return Geometry(
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


def blocks_of(input: Array, weight: Array, geometry: Geometry, dtype: str, image_bytes: int) -> list[Block]:
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
        starts = list(range(0, channels, even(channels // group, most // group) * group))
    else:
        if most >= WIDTH:
            step = padded(even(group, most - most % WIDTH))
        else:
            step = even(group, most)
        starts = [first + start for first in range(0, channels, group) for start in range(0, group, step)]
    return [_block(start, stop, geometry) for start, stop in itertools.pairwise([*starts, channels])]


def _block(start: int, stop: int, geometry: Geometry) -> Block:
    groups = max(1, (stop - start) // geometry.group_channels)
    inner = range(start // geometry.offset_channels + 1, -(-stop // geometry.offset_channels))
    bounds = [0, *(group * geometry.offset_channels - start for group in inner), stop - start]
    return Block(start, stop, groups, start // geometry.offset_channels, np.array(bounds, np.int64))


def even(count: int, most: int) -> int:
    """The size of the fewest equal parts of `count` that are not larger than `most`; the last part may be smaller."""
    parts = -(-count // most)
    return -(-count // parts)


def ranges(
    input: Array,
    geometry: Geometry,
    blocks: list[Block],
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


def columns_of(block: Block, geometry: Geometry) -> int:
    return math.prod(geometry.kernel) * (block.stop - block.start)


def none_like(array: Array) -> Array:
    """An array of no channels."""
    return np.empty((len(array), 0, *array.shape[2:]), "f")


# -------------------------------------------------------------------------------------------- how arrays are laid out


def flat(array: Array, dtype: str) -> Array:
    """(images, channels, rows, columns) as a contiguous (images, channels, pixels), without a copy where possible."""
    return contiguous(array, dtype).reshape(*array.shape[:2], array.shape[2] * array.shape[3])


def flat_out(result: Array, dtype: str) -> Array:
    """The array to compute a part of a result in: the result itself if it has the dtype and the layout."""
    if result.dtype.char != dtype or not result.flags.c_contiguous:
        result = np.empty(result.shape, dtype)
    return result.reshape(*result.shape[:2], result.shape[2] * result.shape[3])


def part_of(offset: Array, mask: Array, images: slice, rows: slice, dtype: str) -> Part:
    return Part(rows.start, flat(offset[images, :, rows], dtype), flat(mask[images, :, rows], dtype))


def write(out: Array, result: Array) -> None:
    """Write a part of a result, unless it was computed in place."""
    if not np.may_share_memory(out, result):
        with np.errstate(all="ignore"):
            result[...] = out.reshape(result.shape)


def pixels_of(images: Array, block: Block, dtype: str) -> Array:
    """The block's channels as (images, pixels and one of zeros, channels), flat and with room for lanes behind it."""
    count, _, height, width = images.shape
    channels = block.stop - block.start
    memory = np.empty(count * (height * width + 1) * channels + WIDTH, dtype)
    pixels = memory[:-WIDTH].reshape(count, height * width + 1, channels)
    pixels[:, -1] = 0
    target = pixels[:, :-1].reshape(count, height, width, channels).swapaxes(0, 1)
    source = images[:, block.start : block.stop].transpose(2, 0, 3, 1)
    _threads.run(copy_range, height, source, target, nanoseconds=0.6 * source.size)
    return memory


def copy_range(begin: int, end: int, source: Array, target: Array) -> None:
    with np.errstate(all="ignore"):
        target[begin:end] = source[begin:end]  # NumPy releases the GIL meanwhile


def row_stride_of(columns):
    """The row stride of a matrix: there is room for whole lanes, and it is an odd number of cache lines.

    With a power of two, the rows would share a few sets of the cache and evict each other.
    """
    return (columns + WIDTH - 1) // (2 * WIDTH) * (2 * WIDTH) + WIDTH


def padded(count):
    return -(-count // WIDTH) * WIDTH


def group_channels(block: Block) -> int:
    return (block.stop - block.start) // block.groups


def weight_of(weight: Array, block: Block, geometry: Geometry) -> Array:
    """A view of the block's weights: (groups, outputs, channels, kernel height, kernel width)."""
    first_output = block.start // geometry.group_channels * geometry.group_outputs
    first_channel = block.start % geometry.group_channels
    groups = weight[
        first_output : first_output + block.groups * geometry.group_outputs,
        first_channel : first_channel + group_channels(block),
    ]
    return groups.reshape(block.groups, geometry.group_outputs, *groups.shape[1:])


# ---------------------------------------------------------------------------------------------------------- kernels


@jit
def locate(g, block, part, image, p, low, corners, fractions, e):
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
def gather(g, block, corners, fractions, e, pixels, columns, start):
    """Write the columns of an output pixel, (tap, channel), from columns[start] on; its samples are e, e + 1, ..."""
    one, nothing = pixels.dtype.type(1), full(pixels.dtype.type(0))
    for _ in range(g.kernel[0] * g.kernel[1]):
        for s in range(len(block.bounds) - 1):
            i0, i1, i2, i3 = corners[e, 0], corners[e, 1], corners[e, 2], corners[e, 3]
            ly, lx, m = fractions[e, 0], fractions[e, 1], fractions[e, 2]
            w0, w1, w2, w3 = corner_weights(one - ly, ly, one - lx, lx)
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
def corner_weights(upper, lower, left, right):
    return upper * left, upper * right, lower * left, lower * right


@jit
def multiples(count, number):
    """0, number, 2 * number, ..."""
    multiples = np.empty(count, np.int64)
    for k in range(count):
        multiples[k] = k * number
    return multiples
