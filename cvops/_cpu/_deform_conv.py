"""Deformable convolution: gather a tile of samples into columns, multiply them with the weight while they are in cache.

    for each tile of output pixels:
        columns = [mask * (bilinear sample of the input where the tap reads) for pixel, tap, channel]
        output = weight @ columns + bias                           # while the columns are in a core's cache

`_deform_columns` gathers the columns. The products are computed here rather than by BLAS: no work is handed from one
pool of threads to another, no thread of BLAS keeps a core busy while it waits for more work, and the product finds the
columns in the cache. The gradients are in `_deform_conv_backward`.
"""

from __future__ import annotations

import numpy as np

from .._checks import working_dtype
from . import _threads
from ._deform_columns import (
    TILE,
    Block,
    Geometry,
    blocks_of,
    columns_of,
    flat_out,
    gather,
    geometry_of,
    locate,
    multiples,
    none_like,
    part_of,
    pixels_of,
    ranges,
    row_stride_of,
    weight_of,
    write,
)
from ._jit import jit
from ._memory import Array, empty
from ._simd import ONE, WIDTH, ZERO, multiply

# At most so many bytes: the copy of some images; and the arguments and results that are converted at a time.
_MOST_BYTES = 32 << 20, 24 << 20


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
    dtype = working_dtype(input, offset, weight, bias, mask)
    geometry = geometry_of(input, offset, weight, stride, padding, dilation)
    blocks = blocks_of(input, weight, geometry, dtype, _MOST_BYTES[0])
    weights = [_by_column(weight, block, geometry, dtype) for block in blocks]
    biases = np.zeros(len(weight), dtype)
    if bias is not None:
        biases[:] = bias
    mask = none_like(offset) if mask is None else mask
    result = empty((len(input), len(weight), *offset.shape[2:]), input.dtype.char)
    for images, rows in ranges(input, geometry, blocks, [offset, mask, result], dtype, *_MOST_BYTES):
        part = part_of(offset, mask, images, rows, dtype)
        out = flat_out(result[images, :, rows], dtype)
        for block, block_weight in zip(blocks, weights, strict=True):
            _threads.run(
                _forward_range,
                len(out) * -(-out.shape[2] // TILE),
                geometry,
                block,
                part,
                pixels_of(input[images], block, dtype),
                block_weight,
                biases,
                out,
                nanoseconds=0.01 * out.size * columns_of(block, geometry),
            )
        write(out, result[images, :, rows])
    return result


def _by_column(weight: Array, block: Block, geometry: Geometry, dtype: str) -> Array:
    """The block's weights as (groups, kernel height, kernel width, channels, outputs and room for lanes)."""
    groups = weight_of(weight, block, geometry).transpose(0, 3, 4, 2, 1)
    result = np.empty((*groups.shape[:4], row_stride_of(geometry.group_outputs)), dtype)
    result[..., : geometry.group_outputs] = groups
    return result


@jit(contract=True)
def _forward_range(begin, end, g, block, part, pixels, weight, bias, out):
    """Compute tiles [begin, end) of the output; tile = image * (tiles of an image) + (tile of the image)."""
    count = out.shape[2]
    tiles = (count + TILE - 1) // TILE
    taps, channels = g.kernel[0] * g.kernel[1], block.stop - block.start
    group_channels = channels // block.groups
    depth, row_stride = taps * channels, weight.shape[4]
    samples = taps * (len(block.bounds) - 1)
    low, weights = out.dtype.type(-1), weight.ravel()
    corners, fractions = np.empty((TILE * samples, 4), np.int64), np.empty((TILE * samples, 3), out.dtype)
    columns, sums = np.empty(TILE * depth + WIDTH, out.dtype), np.empty(TILE * row_stride, out.dtype)
    column_runs, weight_runs = multiples(taps, channels), multiples(taps, group_channels * row_stride)
    for tile in range(begin, end):
        image, first = tile // tiles, tile % tiles * TILE
        size = min(TILE, count - first)
        for q in range(size):
            locate(g, block, part, image, first + q, low, corners, fractions, q * samples)
            gather(g, block, corners, fractions, q * samples, pixels, columns, q * depth)
        for group in range(block.groups):
            multiply(
                columns, group * group_channels, depth, column_runs, ONE,
                weights, group * taps * group_channels * row_stride, weight_runs, row_stride, group_channels,
                sums, ZERO, row_stride, size, g.group_outputs, ZERO,
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
