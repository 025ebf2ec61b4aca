"""Convolution: columns of what the taps read, a tile of output pixels at a time, and products by cuBLAS.

For torch tensors it is torch's own convolution, which has cuDNN. Otherwise the bias is written into the result first,
and the product of the weight and the columns of each tile is added to it. A kernel of one tap that reads every pixel
once needs no columns. Nothing waits for the device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ._constants import CONV
from ._device import Array, contiguous, convolve, empty, launch, matmul
from ._tiles import tiles


class ConvColumns(NamedTuple):
    input: Array
    channels: int
    height: int
    width: int
    kernel_height: int
    kernel_width: int
    stride_y: int
    stride_x: int
    padding_y: int
    padding_x: int
    out_width: int
    first: int
    size: int
    columns: Array


class ConvBias(NamedTuple):
    bias: Array
    outputs: int
    plane: int
    result: Array


def conv2d(
    input: Array, weight: Array, bias: Array, stride: tuple[int, int], padding: tuple[int, int], exact: bool
) -> Array:
    """The convolution. It is always computed by products of columns: `exact` only matters on the CPU."""
    result = convolve(input, weight, bias, stride, padding)
    if result is not None:
        return result
    images, channels, height, width = input.shape
    outputs, _, kernel_height, kernel_width = weight.shape
    kernel = kernel_height, kernel_width
    size = [
        (length + 2 * p - k) // s + 1 for length, k, s, p in zip((height, width), kernel, stride, padding, strict=True)
    ]
    result = empty((images, outputs, *size), input.dtype)
    if images == 0:
        return result
    code, plane, depth = input.dtype.char, math.prod(size), channels * math.prod(kernel)
    blocks = images * outputs * math.ceil(plane / CONV.PIXELS)
    launch("conv", "conv_bias", code, blocks, CONV.THREADS, ConvBias(contiguous(bias), outputs, plane, result))
    input, weight = contiguous(input), contiguous(weight).reshape(outputs, depth)
    target = result.reshape(images, outputs, plane)
    if (*kernel, *stride, *padding) == (1, 1, 1, 1, 0, 0):
        matmul(weight, input.reshape(images, channels, plane), target, True)
        return result
    for begin, end, first, last in tiles(images, plane, depth):
        columns = empty((end - begin, depth, last - first), input.dtype)
        record = ConvColumns(
            input[begin:end],
            channels,
            height,
            width,
            kernel_height,
            kernel_width,
            *stride,
            *padding,
            size[1],
            first,
            last - first,
            columns,
        )
        blocks = (end - begin) * math.ceil(channels / CONV.CHANNELS) * math.ceil((last - first) / CONV.THREADS)
        launch("conv", "conv_columns", code, blocks, CONV.THREADS, record)
        matmul(weight, columns, target[begin:end, :, first:last], True)
    return result
