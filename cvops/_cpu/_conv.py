"""Convolution, by one product for each tile of the output, which reads the image where it lies.

Lanes run over output pixels. What one tap reads for a row of output pixels is a run of a row of the padded image, and
what it reads for the next row of them is further on by the width of that. So the product can go over many rows as if
they were one, and nothing has to be gathered; the few output pixels too many at the end of each row are dropped.
Padding and strides are undone beforehand, by sorting a band of the image into planes of every so many rows and columns.
"""

from __future__ import annotations

import itertools

import numpy as np

from .._checks import working_dtype
from . import _threads, _winograd
from ._jit import jit
from ._memory import Array, empty
from ._simd import WIDTH, multiply

# Pixels of a tile: a row of `multiply`, or some of them.
_TILE = 64
# Bytes of a band of the image, sorted, but for what its last rows read beyond it.
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
    # From a pixel to what each tap reads for it. Planes: (channels, row and column modulo the stride, rows, columns).
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
    """Rows of the result to compute from one sorted copy, of about as much memory as a band may have."""
    return max(1, min(out_height, _BAND_BYTES // (row_size * like.itemsize)))


def _sorted(
    image: Array, corner: tuple[int, int], stride: tuple[int, int], plane_shape: tuple[int, int], dtype: str
) -> Array:
    """The image from a corner on as (channels, row and column modulo the stride, rows, columns), and room for a tile.

    It is flat, and 0 outside of the image.
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
def _conv_range(begin, end, pixels, plane_width, channel_step, weights, bias, taps, first_row, height, out):
    """Tiles [begin, end) of `height` rows of the output from `first_row` on."""
    none, one = np.int64(0), np.int64(1)  # literals would be types of their own, and `multiply` compiled for each
    outputs, _, width = out.shape
    channels, depth = weights.shape[2], weights.shape[1] * weights.shape[2]
    count = (height - 1) * plane_width + width
    flat_weights, weight_runs = weights.ravel(), np.arange(len(taps)) * channels
    pitch = _TILE + WIDTH
    sums = np.empty(outputs * pitch, out.dtype)
    for tile in range(begin, end):
        first = max(0, min(tile * _TILE, count - _TILE))  # the last tile ends where the pixels do
        multiply(
            flat_weights, none, depth, weight_runs, one, pixels, first, taps, channel_step, channels,
            sums, none, pitch, outputs, _TILE, none,
        )  # fmt: skip
        for y in range(first // plane_width, min((first + _TILE - 1) // plane_width + 1, height)):
            start = max(y * plane_width, first)
            stop = min(y * plane_width + width, first + _TILE)
            for o in range(outputs):
                row, base = out[o, first_row + y], bias[o]
                for p in range(start, stop):
                    row[p - y * plane_width] = sums[o * pitch + p - first] + base
