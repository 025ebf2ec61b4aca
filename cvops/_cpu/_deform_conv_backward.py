"""Gradients of the deformable convolution, by the chain rule.

    grad_columns = weight.T @ grad
    grad_input += grad_columns * mask * (weight of the corner)     # at the four corners of each sample
    grad_mask, grad_offset = sums over channels of grad_columns * (sample, and its derivatives)
    grad_weight += grad @ columns.T

Each sum is computed by one thread, which owns a range of pixels, of channels or of columns, and in an order that does
not depend on the number of threads.
"""

from __future__ import annotations

import math

import numpy as np

from .._checks import working_dtype
from . import _threads
from ._deform_columns import (
    TILE,
    Block,
    Geometry,
    Part,
    blocks_of,
    columns_of,
    copy_range,
    corner_weights,
    even,
    flat,
    flat_out,
    gather,
    geometry_of,
    group_channels,
    locate,
    multiples,
    none_like,
    padded,
    part_of,
    pixels_of,
    ranges,
    row_stride_of,
    weight_of,
    write,
)
from ._jit import jit
from ._memory import Array, empty
from ._simd import ONE, WIDTH, ZERO, full, load, load_one, madd, multiply, store, total

# The gradients are computed in passes over some pixels. What one pass leaves to the next has at most so many bytes, so
# that it stays in a shared cache.
_PASS_BYTES = 16 << 20
# At most so many bytes: the copies of some images and of their gradients, each; and the arguments and results that are
# converted at a time.
_MOST_BYTES = 16 << 20, 8 << 20
_PANEL = 64  # channels of a work item for the gradient of the weight
_CHUNKS = 4  # parts of the channels of a block, each a work item for the gradient of the input


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
    dtype = working_dtype(grad, input, offset, weight, bias, mask)
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
        geometry = geometry_of(input, offset, weight, stride, padding, dilation)
        mask = none_like(offset) if mask is None else mask
        _backward(geometry, dtype, grad, input, offset, weight, mask, results)
    return tuple(results.get(name) for name in arguments)


def _backward(
    geometry: Geometry,
    dtype: str,
    grad: Array,
    input: Array,
    offset: Array,
    weight: Array,
    mask: Array,
    results: dict[str, Array],
) -> None:
    """Compute the gradients that `results` has memory for, `bias` excepted."""
    blocks = blocks_of(input, weight, geometry, dtype, _MOST_BYTES[0])
    grad_offset, grad_mask = results.get("offset", none_like(offset)), results.get("mask", none_like(offset))
    grad_weights = [_weight_sums(block, geometry, dtype) for block in blocks] if "weight" in results else []
    arrays = [grad, offset, mask, grad_offset, grad_mask]
    for images, rows in ranges(input, geometry, blocks, arrays, dtype, *_MOST_BYTES):
        part = part_of(offset, mask, images, rows, dtype)
        part_grad = flat(grad[images, :, rows], dtype)
        part_grad_offset = flat_out(grad_offset[images, :, rows], dtype)
        part_grad_mask = flat_out(grad_mask[images, :, rows], dtype)
        for b, block in enumerate(blocks):
            pixels = pixels_of(input[images], block, dtype)
            grad_pixels = np.zeros_like(pixels) if "input" in results else None
            block_weight = _by_output(weight, block, geometry, dtype)
            grad_weight = grad_weights[b] if grad_weights else None
            _backward_block(
                geometry, block, part, part_grad, pixels, block_weight,
                grad_pixels, part_grad_offset, grad_weight, part_grad_mask,
            )  # fmt: skip
            if grad_pixels is not None:
                _add_images(grad_pixels, results["input"][images, block.start : block.stop], rows.start == 0)
        write(part_grad_offset, grad_offset[images, :, rows])
        write(part_grad_mask, grad_mask[images, :, rows])
    for block, sums in zip(blocks, grad_weights, strict=False):
        target = weight_of(results["weight"], block, geometry)
        with np.errstate(all="ignore"):
            sums = sums.reshape(*sums.shape[:2], *target.shape[3:], -1)[..., : target.shape[2]]
            target[...] = sums.transpose(0, 1, 4, 2, 3)


def _backward_block(
    geometry: Geometry,
    block: Block,
    part: Part,
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
    samples, row_stride = taps * (len(block.bounds) - 1), row_stride_of(taps * channels + WIDTH)  # samples of a pixel
    pixel_bytes = (2 * row_stride + outputs) * grad.itemsize + samples * 44
    size = TILE * even(-(-count // TILE), max(1, _PASS_BYTES // (pixel_bytes * TILE)))
    needs_grads = grad_pixels is not None or grad_offset.shape[1] + grad_mask.shape[1] > 0
    corners, fractions = np.empty((size * samples, 4), np.int64), np.empty((size * samples, 3), grad.dtype)
    grads = np.empty((outputs, row_stride_of(size)), grad.dtype)
    columns = np.empty((0 if grad_weight is None else size, row_stride), grad.dtype)
    grad_columns = np.empty((size if needs_grads else 0, row_stride), grad.dtype)
    chunk = padded(-(-channels // _CHUNKS))
    panels = -(-channels // block.groups // _PANEL)
    for image in range(images):
        for first in range(0, count, size):
            stop = min(first + size, count)
            nanoseconds = 0.01 * (stop - first) * taps * channels * geometry.group_outputs
            _threads.run(
                _columns_range, -(-(stop - first) // TILE), geometry, block, part, image, first, stop,
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


def _add_images(pixels: Array, images: Array, first: bool) -> None:
    """Set the images to `pixels`, which have the layout of `pixels_of`, or add `pixels` to them if not `first`."""
    count, channels, height, width = images.shape
    source = pixels[:-WIDTH].reshape(count, height * width + 1, channels)[:, :-1]
    source = source.reshape(count, height, width, channels).transpose(1, 0, 3, 2)
    target = images.transpose(2, 0, 1, 3)
    if first:
        _threads.run(copy_range, height, source, target, nanoseconds=0.6 * source.size)
    else:
        with np.errstate(all="ignore"):
            target += source


def _by_output(weight: Array, block: Block, geometry: Geometry, dtype: str) -> Array:
    """The block's weights as (groups, outputs, columns of the group and room for lanes)."""
    groups = weight_of(weight, block, geometry).transpose(0, 1, 3, 4, 2)
    columns = columns_of(block, geometry) // block.groups
    result = np.empty((*groups.shape[:2], row_stride_of(columns + WIDTH)), dtype)
    result[..., :columns].reshape(groups.shape)[...] = groups
    return result


def _weight_sums(block: Block, geometry: Geometry, dtype: str) -> Array:
    """Zeros for the block's weights: (groups, outputs, taps, channels and room for lanes)."""
    shape = block.groups, geometry.group_outputs, math.prod(geometry.kernel), padded(group_channels(block))
    return np.zeros(shape, dtype)


@jit(contract=True)
def _columns_range(
    begin, end, g, block, part, image, first, stop, corners, fractions,
    pixels, grad, grads, weight, columns, grad_columns, grad_offset, grad_mask,
):  # fmt: skip
    """For tiles [begin, end) of the output pixels [first, stop): columns, their gradients, those of offset and mask.

    Gradients are brought into rows of pixels, `grads`, as the later passes need them.
    """
    one_run = multiples(ONE, ZERO)
    low = grad.dtype.type(-1)
    # A sample exactly at -1 is 0, but it has a derivative, that of the cell between -1 and 0.
    low_edge = np.nextafter(low, low + low)
    taps, channels = g.kernel[0] * g.kernel[1], block.stop - block.start
    group_channels, row_stride = channels // block.groups, columns.shape[1]
    first_output = block.start // g.group_channels * g.group_outputs
    samples = taps * (len(block.bounds) - 1)
    edge_corners, edge_fractions = np.empty((TILE * samples, 4), np.int64), np.empty((TILE * samples, 3), grad.dtype)
    flat_grads, weights = grads.ravel(), weight.ravel()
    flat_columns, flat_grad_columns = columns.ravel(), grad_columns.ravel()
    for tile in range(begin, end):
        start = tile * TILE
        size = min(TILE, stop - first - start)
        p = first + start
        for o in range(len(grads)):
            row = grads[o, start : start + size]
            for q in range(size):
                row[q] = grad[image, first_output + o, p + q]
        for q in range(size):
            locate(g, block, part, image, p + q, low, corners, fractions, (start + q) * samples)
        if len(columns):
            for q in range(start, start + size):
                gather(g, block, corners, fractions, q * samples, pixels, flat_columns, q * row_stride)
        if len(grad_columns):
            for tap in range(taps):
                for group in range(block.groups):
                    o = group * g.group_outputs
                    multiply(
                        flat_grads, o * grads.shape[1] + start, ONE, one_run, grads.shape[1],
                        weights, o * weight.shape[2] + tap * group_channels, one_run, weight.shape[2], g.group_outputs,
                        flat_grad_columns, start * row_stride + tap * channels + group * group_channels, row_stride,
                        size, group_channels, ZERO,
                    )  # fmt: skip
        if grad_offset.shape[1] or grad_mask.shape[1]:
            for q in range(size):
                locate(g, block, part, image, p + q, low_edge, edge_corners, edge_fractions, q * samples)
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
                    w0, w1, w2, w3 = corner_weights(m * (one - ly), m * ly, one - lx, lx)
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
    one_run = multiples(ONE, ZERO)
    flat_grads, flat_columns, sums = grads.ravel(), columns.ravel(), grad_weight.ravel()
    taps, channels = g.kernel[0] * g.kernel[1], block.stop - block.start
    group_channels, padded = channels // block.groups, grad_weight.shape[3]
    panels = (group_channels + _PANEL - 1) // _PANEL
    for panel in range(begin, end):
        tap, group, c = panel // panels % taps, panel // panels // taps, panel % panels * _PANEL
        o = group * g.group_outputs
        multiply(
            flat_grads, o * grads.shape[1], grads.shape[1], one_run, ONE,
            flat_columns, tap * channels + group * group_channels + c, one_run, columns.shape[1], size,
            sums, (o * taps + tap) * padded + c, taps * padded, g.group_outputs, min(_PANEL, group_channels - c), ONE,
        )  # fmt: skip
