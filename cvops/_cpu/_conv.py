"""Convolution, by one matrix product for each tile of the output, which reads the image where it lies.

Lanes run over output pixels. With stride 1, the pixels that one tap reads for a row of output pixels follow each other
in a row of the padded image, and those for the next row of output pixels are one row stride of that image further on:

    padded image, 7 wide    0  1  2  3  4  5  6        output pixels  0  1  2  3  4  and two too many, which are dropped
                            7  8  9 10 11 12 13                       7  8  9 10 11
                           14 15 16 ...                tap (i, j) of output pixel p reads pixel p + 7 * i + j

So the product goes over many rows as if they were one, and nothing is gathered. Padding and strides are undone
beforehand: a band of the image is sorted into planes, one for each row and column modulo the stride.
"""

from __future__ import annotations

import itertools

import numpy as np

from .._checks import working_dtype
from . import _threads, _winograd
from ._jit import jit
from ._memory import Array, empty
from ._simd import ONE, WIDTH, ZERO, multiply

# Pixels of a tile: one or a few rows of `multiply`.
_TILE = 64
# At most so many bytes of a sorted band of the image, except for the rows that its last taps read beyond it.
_BAND_BYTES = 8 << 20


def conv2d(
    input: Array, weight: Array, bias: Array, stride: tuple[int, int], padding: tuple[int, int], exact: bool
) -> Array:
    """The convolution; without `exact`, Winograd's method is used where it is faster."""
    dtype = working_dtype(input, weight, bias)
    channels, height, width = input.shape[1:]
    outputs, _, kernel_height, kernel_width = weight.shape
    out_height = (height + 2 * padding[0] - kernel_height) // stride[0] + 1
    out_width = (width + 2 * padding[1] - kernel_width) // stride[1] + 1
    if (
        not exact
        and input.dtype.char == dtype == "f"
        and (kernel_height, kernel_width, *stride) == (3, 3, 1, 1)
        and _winograd.is_faster(channels, outputs, out_height, out_width)
    ):
        return _winograd.conv2d(input, weight, bias, padding)

    plane_width = -(-(width + 2 * padding[1]) // stride[1])
    weights = np.array(weight.transpose(0, 2, 3, 1), dtype, order="C").reshape(outputs, -1, channels)
    is_product = (kernel_height, kernel_width, *stride, *padding) == (1, 1, 1, 1, 0, 0)
    lies_ready = is_product and height * width >= _TILE and input.dtype == dtype and input[:1].flags.c_contiguous
    band = out_height if lies_ready else _band(out_height, channels * stride[0] * stride[1] * plane_width, weights)
    plane_shape = band + (kernel_height - 1) // stride[0], plane_width
    # From an output pixel to the pixel that each tap reads for it. The shape of the planes is (channels, row modulo the
    # stride, column modulo the stride, rows, columns).
    plane = plane_shape[0] * plane_width
    i, j = np.arange(kernel_height)[:, None], np.arange(kernel_width)
    taps = (i % stride[0] * stride[1] + j % stride[1]) * plane + i // stride[0] * plane_width + j // stride[1]

    result = empty((len(input), outputs, out_height, out_width), input.dtype.char)
    bias = np.array(bias, dtype)
    for image, image_result in zip(input, result, strict=True):
        out = image_result if image_result.dtype.char == dtype else np.empty(image_result.shape, dtype)
        for first in range(0, out_height, band):
            rows = min(band, out_height - first)
            corner = first * stride[0] - padding[0], -padding[1]
            pixels = image.ravel() if lies_ready else _sorted(image, corner, stride, plane_shape, dtype)
            pixels.setflags(write=False)  # as inputs are: one compilation
            _threads.run(
                _conv_range,
                -(-((rows - 1) * plane_width + out_width) // _TILE),
                pixels,
                plane_width,
                plane * stride[0] * stride[1],
                weights,
                bias,
                taps.ravel(),
                first,
                rows,
                out,
                nanoseconds=0.01 * outputs * rows * out_width * weights[0].size,
            )
        if out is not image_result:
            with np.errstate(all="ignore"):
                image_result[...] = out
    return result


def _band(out_height: int, row_size: int, like: Array) -> int:
    """How many rows of the result are computed from one sorted band, so that it has about `_BAND_BYTES`."""
    return max(1, min(out_height, _BAND_BYTES // (row_size * like.itemsize)))


def _sorted(
    image: Array, corner: tuple[int, int], stride: tuple[int, int], plane_shape: tuple[int, int], dtype: str
) -> Array:
    """The image from `corner` on as flat planes: (channels, row modulo the stride, column modulo it, rows, columns).

    It is 0 outside the image, and behind it is room for a tile.
    """
    shape = len(image), *stride, *plane_shape
    memory = np.zeros(np.prod(shape) + _TILE, dtype)
    planes = memory[:-_TILE].reshape(shape)
    _threads.run(_sort_range, len(image), image, corner, stride, planes, nanoseconds=0.6 * planes.size)
    return memory


def _sort_range(
    begin: int, end: int, image: Array, corner: tuple[int, int], stride: tuple[int, int], planes: Array
) -> None:
    for i, j in itertools.product(range(stride[0]), range(stride[1])):
        y, x = corner[0] + i, corner[1] + j
        top, left = max(0, -(y // stride[0])), max(0, -(x // stride[1]))
        target = planes[begin:end, i, j, top:, left:]
        part = image[begin:end, y + top * stride[0] :: stride[0], x + left * stride[1] :: stride[1]]
        part = part[:, : target.shape[1], : target.shape[2]]
        with np.errstate(all="ignore"):
            target[:, : part.shape[1], : part.shape[2]] = part


@jit(contract=True)
def _conv_range(begin, end, pixels, plane_width, channel_stride, weights, bias, taps, first_row, height, out):
    """Compute tiles [begin, end) of the `height` rows of the output from `first_row` on."""
    outputs, _, width = out.shape
    channels, depth = weights.shape[2], weights.shape[1] * weights.shape[2]
    count = (height - 1) * plane_width + width
    flat_weights, weight_runs = weights.ravel(), np.arange(len(taps)) * channels
    row_stride = _TILE + WIDTH
    sums = np.empty(outputs * row_stride, out.dtype)
    for tile in range(begin, end):
        first = max(0, min(tile * _TILE, count - _TILE))  # the last tile ends where the pixels do
        multiply(
            flat_weights, ZERO, depth, weight_runs, ONE, pixels, first, taps, channel_stride, channels,
            sums, ZERO, row_stride, outputs, _TILE, ZERO,
        )  # fmt: skip
        for y in range(first // plane_width, min((first + _TILE - 1) // plane_width + 1, height)):
            start = max(y * plane_width, first)
            stop = min(y * plane_width + width, first + _TILE)
            for o in range(outputs):
                row, base = out[o, first_row + y], bias[o]
                for p in range(start, stop):
                    row[p - y * plane_width] = sums[o * row_stride + p - first] + base
