"""Deformable convolution: gather what the taps read into columns, a tile of output pixels at a time, and multiply them.

The input is copied once so that the channels of a pixel lie together; a channels-last array is used as it is. Then the
columns of a tile are gathered, and a product by cuBLAS sums them up, into rows that have the outputs of a pixel
together: so every row that cuBLAS reads or writes begins at an aligned address, also where a map has an odd size. Last,
the bias is added and the result is transposed to the caller's layout.

The gradients are computed tile by tile too: a product gives the gradients of the columns; one pass those of offset and
mask, and the columns; a product of these that of the weight. For the gradient of the input, samples are sorted by the
cell in which they lie, and the pixels sum them up.

Nothing waits for the device, and every sum has one owner and a fixed order. docs/performance.md lists launches and
workspace.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from cvops._checks import working_dtype

from ._constants import DEFORM_CONV, WARP
from ._device import (
    Array,
    allocate,
    contiguous,
    converted,
    dtype_code,
    empty,
    is_aligned,
    launch,
    matmul,
    order_of_keys,
)
from ._tiles import tiles

# Threads of a sample, at most, where several blocks may take its channels; else a warp sums over all of them.
_SPREAD = 16
_CELLS_OF_32_BITS = 2**32  # with fewer cells, keys have 4 bytes


class Call(NamedTuple):
    height: int
    width: int
    channels: int
    out_pixels: int
    out_width: int
    taps: int
    kernel_width: int
    stride_y: int
    stride_x: int
    padding_y: int
    padding_x: int
    dilation_y: int
    dilation_x: int
    offset_groups: int
    group_channels: int
    offset: Array
    offset_dtype: int
    mask: Array
    mask_dtype: int
    first: int
    size: int


class DeformColumns(NamedTuple):
    call: Call
    pixels: Array
    wide: int
    lanes: int
    columns: Array


class DeformSlopes(NamedTuple):
    call: Call
    pixels: Array
    wide: int
    lanes: int
    grad_columns: Array
    columns: Array
    grad_offset: Array
    grad_mask: Array


class DeformKeys(NamedTuple):
    call: Call
    cells: int
    key_bytes: int
    keys: Array
    contributions: Array


class DeformStarts(NamedTuple):
    keys: Array
    key_bytes: int
    order: Array
    samples: int
    cells: int
    starts: Array


class DeformCollect(NamedTuple):
    call: Call
    images: int
    wide: int
    lanes: int
    order: Array
    starts: Array
    contributions: Array
    grad_columns: Array
    grad_pixels: Array


class DeformArrange(NamedTuple):
    input: Array
    images: int
    channels: int
    plane: int
    pixels: Array
    weight: Array
    outputs: int
    group_channels: int
    taps: int
    weights: Array
    grad: Array
    out_plane: int
    grads: Array


class DeformRestore(NamedTuple):
    pixels: Array
    images: int
    channels: int
    plane: int
    bias: Array
    result: Array
    grad_weights: Array
    outputs: int
    group_channels: int
    taps: int
    grad_weight: Array


class DeformBias(NamedTuple):
    grad: Array
    images: int
    outputs: int
    out_plane: int
    grad_bias: Array


class _Sizes(NamedTuple):
    images: int
    channels: int
    height: int
    width: int
    outputs: int
    groups: int  # of the weight
    taps: int
    offset_groups: int
    plane: int  # output pixels of an image

    @property
    def group_channels(self) -> int:
        return self.channels // self.groups

    @property
    def weight(self) -> tuple[int, int, int]:
        """The shape of the weight of each group as a matrix: its rows have the order of the columns of a pixel."""
        return self.groups, self.outputs // self.groups, self.taps * self.group_channels


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
    working = working_dtype(input, offset, weight, bias, mask)
    if working == "d" and input.dtype.char != "d":
        images, weight, bias = (None if array is None else converted(array, "d") for array in (input, weight, bias))
        return converted(deform_conv2d(images, offset, weight, bias, stride, padding, dilation, mask), input.dtype)
    sizes = _sizes(input, offset, weight)
    result = empty((sizes.images, sizes.outputs, *offset.shape[2:]), input.dtype)
    if sizes.images == 0:
        return result
    pixels, weights = _pixels(input), empty(sizes.weight, input.dtype)
    _arrange(sizes, input, pixels, weight, weights)
    call = _call(sizes, offset, weight, stride, padding, dilation, mask)
    wide_lanes, chunks = _lanes(sizes, 16 // input.dtype.itemsize, _SPREAD)
    sums = empty((sizes.images * sizes.plane, sizes.groups, sizes.weight[1]), working)
    for _, _, first, last in tiles(1, len(sums), sizes.taps * sizes.channels):
        columns = empty((last - first, sizes.groups, sizes.weight[2]), input.dtype)
        record = DeformColumns(call._replace(first=first, size=last - first), pixels, *wide_lanes, columns)
        blocks = _blocks(sizes, last - first) * chunks
        launch("deform_conv", "deform_columns", input.dtype.char, blocks, DEFORM_CONV.THREADS, record)
        matmul(columns.swapaxes(0, 1), weights.swapaxes(1, 2), sums[first:last].swapaxes(0, 1), False)
    _restore(sizes, input.dtype.char, sizes.outputs, sizes.plane, sums, bias, result, None, None)
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
    working = working_dtype(grad, input, offset, weight, bias, mask)
    dtype = "d" if working == "d" else grad.dtype.char if grad.dtype == input.dtype else "f"
    if {grad.dtype.char, input.dtype.char} != {dtype}:
        grad_alike, input_alike, weight_alike = (converted(array, dtype) for array in (grad, input, weight))
        gradients = deform_conv2d_backward(
            grad_alike, input_alike, offset, weight_alike, bias, stride, padding, dilation, mask, wanted
        )
        return tuple(None if each is None else converted(each, grad.dtype) for each in gradients)
    arguments = {"input": input, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    results = {
        name: empty(array.shape, grad.dtype)
        for name, array in arguments.items()
        if name in wanted and array is not None
    }
    sizes = _sizes(input, offset, weight)
    if sizes.images == 0:
        for name in results.keys() & {"weight", "bias"}:
            results[name][...] = 0
        return tuple(results.get(name) for name in arguments)
    grad = contiguous(grad)
    if "bias" in results:
        record = DeformBias(grad, sizes.images, sizes.outputs, sizes.plane, results["bias"])
        launch("deform_conv", "deform_bias", dtype, sizes.outputs, DEFORM_CONV.THREADS, record)
    if results.keys() - {"bias"}:
        call = _call(sizes, offset, weight, stride, padding, dilation, mask)
        _backward(sizes, call, working, grad, input, weight, results)
    return tuple(results.get(name) for name in arguments)


def _backward(
    sizes: _Sizes,
    call: Call,
    working: str,
    grad: Array,
    input: Array,
    weight: Array,
    results: dict[str, Array],
) -> None:
    """Compute the gradients that `results` has memory for, `bias` excepted."""
    reads = bool(results.keys() & {"offset", "weight", "mask"})  # the input
    chained = bool(results.keys() & {"input", "offset", "mask"})  # through the columns
    pixels = _pixels(input) if reads else None
    weights = empty(sizes.weight, grad.dtype) if chained else None
    grads = empty((sizes.images, sizes.plane, sizes.outputs), grad.dtype)
    _arrange(sizes, input, pixels, weight, weights, grad, grads)
    by_group = grads.reshape(sizes.images * sizes.plane, sizes.groups, -1).swapaxes(0, 1)
    grad_pixels = grad_weights = None
    if "input" in results:
        grad_pixels = empty((sizes.images, sizes.height, sizes.width, sizes.channels), working)
    if "weight" in results:
        grad_weights = empty(sizes.weight, working)
    wide_lanes, _ = _lanes(sizes, 16 // grad.dtype.itemsize, WARP)
    for _, _, first, last in tiles(1, sizes.images * sizes.plane, sizes.taps * sizes.channels):
        grad_columns = columns = None
        of_tile = call._replace(first=first, size=last - first)
        if weights is not None:
            grad_columns = empty((last - first, sizes.groups, sizes.weight[2]), working)
            matmul(by_group[:, first:last], weights, grad_columns.swapaxes(0, 1), False)
        if grad_weights is not None:
            columns = empty((last - first, sizes.groups, sizes.weight[2]), grad.dtype)
        if reads:
            record = DeformSlopes(
                of_tile, pixels, *wide_lanes, grad_columns, columns, results.get("offset"), results.get("mask")
            )
            blocks = _blocks(sizes, last - first)
            launch("deform_conv", "deform_slopes", grad.dtype.char, blocks, DEFORM_CONV.THREADS, record)
        if columns is not None:
            matmul(by_group[:, first:last].swapaxes(1, 2), columns.swapaxes(0, 1), grad_weights, first > 0)
        if grad_pixels is not None and grad_pixels.size:
            _collect(sizes, of_tile, grad.dtype.char, grad_columns, grad_pixels)
    of_input, of_weight = results.get("input"), results.get("weight")
    area = sizes.height * sizes.width
    _restore(sizes, grad.dtype.char, sizes.channels, area, grad_pixels, None, of_input, grad_weights, of_weight)


def _collect(sizes: _Sizes, call: Call, code: str, grad_columns: Array, grad_pixels: Array) -> None:
    """Add to the gradient of the input that of what the output pixels of a call read."""
    first, count = call.first, call.size
    images = (first + count - 1) // sizes.plane - first // sizes.plane + 1
    planes, samples = images * sizes.offset_groups, sizes.offset_groups * sizes.taps * count
    cells = planes * (sizes.height + 1) * (sizes.width + 1)
    keys, contributions, starts = allocate(
        (samples, "uint32" if cells < _CELLS_OF_32_BITS else "uint64"),
        (samples * DEFORM_CONV.CONTRIBUTION_BYTES[grad_pixels.itemsize], "uint8"),
        (cells + 1, "int64"),
    )
    threads = DEFORM_CONV.THREADS
    record = DeformKeys(call, cells, keys.itemsize, keys, contributions)
    launch("deform_conv", "deform_keys", code, math.ceil(samples / threads), threads, record)
    order = order_of_keys(keys)
    of_cells = DeformStarts(keys, keys.itemsize, order, samples, cells, starts)
    launch("deform_conv", "deform_starts", code, math.ceil((cells + 1) / threads), threads, of_cells)
    (wide, lanes), chunks = _lanes(sizes, 16 // grad_pixels.itemsize, _SPREAD)
    blocks = math.ceil(planes * sizes.height * sizes.width * chunks * lanes / threads)
    of_pixels = DeformCollect(call, images, wide, lanes, order, starts, contributions, grad_columns, grad_pixels)
    launch("deform_conv", "deform_collect", code, blocks, threads, of_pixels)


# ---------------------------------------------------------------------------------------- how the work is divided


def _sizes(input: Array, offset: Array, weight: Array) -> _Sizes:
    images, channels, height, width = input.shape
    outputs, group_channels, *kernel = weight.shape
    taps = math.prod(kernel)
    groups, offset_groups = channels // group_channels, offset.shape[1] // (2 * taps)
    return _Sizes(images, channels, height, width, outputs, groups, taps, offset_groups, math.prod(offset.shape[2:]))


def _lanes(sizes: _Sizes, at_once: int, most: int) -> tuple[tuple[int, int], int]:
    """((whether threads take `at_once` channels, threads of a sample), how often these go on to other channels).

    A thread takes several channels only if all of them are always in one group of the weight and one of the offsets.
    """
    channels = sizes.channels // sizes.offset_groups
    wide = channels % at_once == 0 and sizes.group_channels % at_once == 0
    count = channels // at_once if wide else channels
    lanes = min(1 << (count - 1).bit_length(), most)
    return (int(wide), lanes), math.ceil(count / lanes)


def _blocks(sizes: _Sizes, count: int) -> int:
    """How many blocks look at so many output pixels."""
    pixels: int = math.ceil(count / DEFORM_CONV.PIXELS)
    taps: int = math.ceil(sizes.taps / DEFORM_CONV.TAPS)
    return pixels * taps * sizes.offset_groups


def _call(
    sizes: _Sizes,
    offset: Array,
    weight: Array,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Array | None,
) -> Call:
    """The record from which kernels locate samples. The output pixels, `first` and `size`, are set for each tile."""
    return Call(
        sizes.height, sizes.width, sizes.channels, sizes.plane, offset.shape[3], sizes.taps, weight.shape[3],
        *stride, *padding, *dilation, sizes.offset_groups, sizes.group_channels,
        contiguous(offset), dtype_code(offset),
        None if mask is None else contiguous(mask), 0 if mask is None else dtype_code(mask), 0, 0,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------- how arrays are laid out


def _pixels(input: Array) -> Array:
    """The input with the channels of a pixel together, if it lies like that, otherwise memory for such a copy."""
    pixels = input.transpose(0, 2, 3, 1)
    return pixels if _is_pixels(input) else empty(pixels.shape, input.dtype)


def _is_pixels(input: Array) -> bool:
    return input.transpose(0, 2, 3, 1).flags.c_contiguous and is_aligned(input)


def _squares(matrices: int, rows: int, columns: int) -> int:
    down: int = math.ceil(rows / DEFORM_CONV.EDGE)
    across: int = math.ceil(columns / DEFORM_CONV.EDGE)
    return matrices * down * across


def _arrange(
    sizes: _Sizes,
    input: Array,
    pixels: Array | None,
    weight: Array,
    weights: Array | None,
    grad: Array | None = None,
    grads: Array | None = None,
) -> None:
    """Copy the arrays, each transposed, to those arrays of the other layout that are not None."""
    area, blocks = sizes.height * sizes.width, 0
    if pixels is None or _is_pixels(input):
        input = pixels = None
    else:
        input = contiguous(input)
        blocks += _squares(sizes.images, sizes.channels, area)
    if weights is not None:
        blocks += _squares(sizes.outputs, sizes.group_channels, sizes.taps)
    if grads is not None:
        blocks += _squares(sizes.images, sizes.outputs, sizes.plane)
    record = DeformArrange(
        input, sizes.images, sizes.channels, area, pixels,
        None if weights is None else contiguous(weight), sizes.outputs, sizes.group_channels, sizes.taps, weights,
        grad, sizes.plane, grads,
    )  # fmt: skip
    launch("deform_conv", "deform_arrange", weight.dtype.char, blocks, DEFORM_CONV.THREADS, record)


def _restore(
    sizes: _Sizes,
    code: str,
    channels: int,
    area: int,
    pixels: Array | None,
    bias: Array | None,
    result: Array | None,
    grad_weights: Array | None,
    grad_weight: Array | None,
) -> None:
    """Transpose `pixels` (images, area, channels) plus the bias to `result`, and grad_weights to grad_weight."""
    blocks = 0
    if result is not None:
        blocks += _squares(sizes.images, area, channels)
    if grad_weight is not None:
        blocks += _squares(sizes.outputs, sizes.taps, sizes.group_channels)
    if blocks:
        record = DeformRestore(
            pixels, sizes.images, channels, area, None if bias is None else contiguous(bias), result,
            grad_weights, sizes.outputs, sizes.group_channels, sizes.taps, grad_weight,
        )  # fmt: skip
        launch("deform_conv", "deform_restore", code, blocks, DEFORM_CONV.THREADS, record)
