"""Convolution, by one product for each tile of the output, which reads the image where it lies.

Lanes run over output pixels. What one tap reads for a row of output pixels is a run of a row of the padded image, and
what it reads for the next row of them is further on by the width of that. So the product can go over the whole image as
if it were one row, and nothing has to be gathered; the few output pixels too many at the end of each row are dropped.
Strides are undone beforehand, by sorting the image into planes of every so many rows and columns.
"""

from __future__ import annotations

import itertools

import numpy as np

from .._checks import working_dtype
from . import _threads
from ._jit import jit
from ._memory import Array, empty
from ._simd import WIDTH, multiply

# Pixels of a tile: a row of `multiply`, or some of them.
_TILE = 64


def conv2d(input: Array, weight: Array, bias: Array, stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    dtype = working_dtype(input, weight, bias)
    channels, height, width = input.shape[1:]
    outputs, _, kernel_height, kernel_width = weight.shape
    out_height = (height + 2 * padding[0] - kernel_height) // stride[0] + 1
    out_width = (width + 2 * padding[1] - kernel_width) // stride[1] + 1
    plane_height, plane_width = -(-(height + 2 * padding[0]) // stride[0]), -(-(width + 2 * padding[1]) // stride[1])
    # From a pixel to what each tap reads for it. Planes: (channels, row and column modulo the stride, rows, columns).
    plane = plane_height * plane_width
    i, j = np.arange(kernel_height)[:, None], np.arange(kernel_width)
    taps = (i % stride[0] * stride[1] + j % stride[1]) * plane + i // stride[0] * plane_width + j // stride[1]
    weights = np.array(weight.transpose(0, 2, 3, 1), dtype, order="C").reshape(outputs, taps.size, channels)

    result = empty((len(input), outputs, out_height, out_width), input.dtype.char)
    count = (out_height - 1) * plane_width + out_width
    bias = np.array(bias, dtype)
    for image, image_result in zip(input, result, strict=True):
        if (kernel_height, kernel_width, *stride, *padding) == (1, 1, 1, 1, 0, 0) and count >= _TILE:
            pixels = np.ascontiguousarray(image, dtype)
        else:
            pixels = _sorted(image, stride, padding, (plane_height, plane_width), dtype)
        out = image_result if image_result.dtype.char == dtype else np.empty(image_result.shape, dtype)
        _threads.run(
            _conv_range,
            -(-count // _TILE),
            pixels.ravel(),
            plane_width,
            plane * stride[0] * stride[1],
            weights,
            bias,
            taps.ravel(),
            out,
            nanoseconds=0.01 * out.size * weights[0].size,
        )
        if out is not image_result:
            with np.errstate(all="ignore"):
                image_result[...] = out
    return result


def _sorted(
    image: Array, stride: tuple[int, int], padding: tuple[int, int], plane_shape: tuple[int, int], dtype: str
) -> Array:
    """The padded image as (channels, row and column modulo the stride, rows, columns), flat, with room for a tile."""
    shape = len(image), *stride, *plane_shape
    memory = np.zeros(np.prod(shape) + _TILE, dtype)
    planes = memory[:-_TILE].reshape(shape)
    _threads.run(_sort_range, len(image), image, stride, padding, planes, nanoseconds=0.6 * image.size)
    return memory


def _sort_range(
    begin: int, end: int, image: Array, stride: tuple[int, int], padding: tuple[int, int], planes: Array
) -> None:
    for i, j in itertools.product(range(stride[0]), range(stride[1])):
        top, left = -(-max(0, padding[0] - i) // stride[0]), -(-max(0, padding[1] - j) // stride[1])
        y, x = top * stride[0] + i - padding[0], left * stride[1] + j - padding[1]
        part = image[begin:end, y :: stride[0], x :: stride[1]]
        with np.errstate(all="ignore"):
            planes[begin:end, i, j, top : top + part.shape[1], left : left + part.shape[2]] = part


@jit(contract=True)
def _conv_range(begin, end, pixels, plane_width, channel_step, weights, bias, taps, out):
    """Tiles [begin, end) of the output."""
    none, one = np.int64(0), np.int64(1)  # literals would be types of their own, and `multiply` compiled for each
    outputs, height, width = out.shape
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
                row, base = out[o, y], bias[o]
                for p in range(start, stop):
                    row[p - y * plane_width] = sums[o * pitch + p - first] + base
