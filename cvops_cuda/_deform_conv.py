"""Deformable convolution: gather what the taps read into columns, a tile of output pixels at a time, and multiply them.

The input is copied once so that the channels of a pixel lie together (a channels-last array is used as it is). Then one
launch gathers a tile's columns, and a product sums them up, again with the outputs of a pixel together: no row that
cuBLAS reads or writes begins at an odd address because a map has an odd size. Last come the bias and the caller's
layout. The gradients go through tiles in the same way: a product for the gradients of the columns; one pass for those
of offset and mask, and for the columns; a product of these for the weight. For the input, samples are sorted by place
and added up pixel by pixel.

Launches of `deform_conv2d`: two, and for each tile two. Of `deform_conv2d_backward`: three, and for each tile seven, a
sort among them; fewer if less is wanted. Nothing waits for the device, and every sum has one owner and a fixed order.
Arrays of two dtypes, but for offset and mask, cost a conversion each.

Workspace: copies of input and weight, one of the result in working precision, and one tile of columns, 16 Mi numbers.
For the gradients, copies of input, weight and grad; input, weight and a tile in working precision, and a tile; and for
the input about 50 bytes for each pair of offsets of a tile, with what the sort takes, and 8 for each pixel and group of
offsets of its images.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from cvops._checks import working_dtype

from ._device import Array, contiguous, converted, dtype_code, empty, is_aligned, launch, matmul, order_of_keys
from ._tiles import tiles

# As in kernels/deform_conv.cu: threads of a block, the output pixels and taps that it looks at, the side of a square
# that it transposes, the bytes of a place.
_THREADS, _PIXELS, _TAPS, _EDGE = 256, 16, 16, 32
_PLACE_BYTES = {"f": 16, "d": 32}
# Threads of a sample, at most: where blocks share its channels, and where one warp adds over all of them.
_SPREAD, _WARP = 16, 32
_CELLS_OF_32_BITS = 2**32  # with fewer, keys have 4 bytes


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
        """The shape of the weight, its rows in the order of columns."""
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
    working = working_dtype(*(array for array in (input, offset, weight, bias, mask) if array is not None))
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
        launch(
            "deform_conv", "deform_columns", input.dtype.char, _blocks(sizes, last - first) * chunks, _THREADS,
            *call, first, last - first, pixels, *wide_lanes, columns,
        )  # fmt: skip
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
    working = working_dtype(*(array for array in (grad, input, offset, weight, bias, mask) if array is not None))
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
        launch(
            "deform_conv", "deform_bias", dtype, sizes.outputs, _THREADS,
            grad, sizes.images, sizes.outputs, sizes.plane, results["bias"],
        )  # fmt: skip
    if results.keys() - {"bias"}:
        call = _call(sizes, offset, weight, stride, padding, dilation, mask)
        _backward(sizes, call, working, grad, input, weight, results)
    return tuple(results.get(name) for name in arguments)


def _backward(
    sizes: _Sizes,
    call: tuple[Any, ...],
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
    wide_lanes, _ = _lanes(sizes, 16 // grad.dtype.itemsize, _WARP)
    for _, _, first, last in tiles(1, sizes.images * sizes.plane, sizes.taps * sizes.channels):
        grad_columns = columns = None
        if weights is not None:
            grad_columns = empty((last - first, sizes.groups, sizes.weight[2]), working)
            matmul(by_group[:, first:last], weights, grad_columns.swapaxes(0, 1), False)
        if grad_weights is not None:
            columns = empty((last - first, sizes.groups, sizes.weight[2]), grad.dtype)
        if reads:
            launch(
                "deform_conv", "deform_slopes", grad.dtype.char, _blocks(sizes, last - first), _THREADS,
                *call, first, last - first, pixels, *wide_lanes, grad_columns, columns,
                results.get("offset"), results.get("mask"),
            )  # fmt: skip
        if columns is not None:
            matmul(by_group[:, first:last].swapaxes(1, 2), columns.swapaxes(0, 1), grad_weights, first > 0)
        if grad_pixels is not None and grad_pixels.size:
            _collect(sizes, call, grad.dtype.char, first, last - first, grad_columns, grad_pixels)
    of_input, of_weight = results.get("input"), results.get("weight")
    area = sizes.height * sizes.width
    _restore(sizes, grad.dtype.char, sizes.channels, area, grad_pixels, None, of_input, grad_weights, of_weight)


def _collect(
    sizes: _Sizes, call: tuple[Any, ...], code: str, first: int, count: int, grad_columns: Array, grad_pixels: Array
) -> None:
    """Add to the gradient of the input what the output pixels [first, first + count) read of it."""
    images = (first + count - 1) // sizes.plane - first // sizes.plane + 1
    planes, samples = images * sizes.offset_groups, sizes.offset_groups * sizes.taps * count
    cells = planes * (sizes.height + 1) * (sizes.width + 1)
    keys = empty((samples,), "uint32" if cells < _CELLS_OF_32_BITS else "uint64")
    places = empty((samples * _PLACE_BYTES[grad_pixels.dtype.char],), "uint8")
    launch(
        "deform_conv", "deform_places", code, math.ceil(samples / _THREADS), _THREADS,
        *call, first, count, cells, keys.itemsize, keys, places,
    )  # fmt: skip
    order, starts = order_of_keys(keys), empty((cells + 1,), "int64")
    launch(
        "deform_conv", "deform_starts", code, math.ceil((cells + 1) / _THREADS), _THREADS,
        keys, keys.itemsize, order, samples, cells, starts,
    )  # fmt: skip
    (wide, lanes), chunks = _lanes(sizes, 16 // grad_pixels.itemsize, _SPREAD)
    blocks = math.ceil(planes * sizes.height * sizes.width * chunks * lanes / _THREADS)
    launch(
        "deform_conv", "deform_collect", code, blocks, _THREADS,
        *call, first, count, images, wide, lanes, order, starts, places, grad_columns, grad_pixels,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- how the work is divided


def _sizes(input: Array, offset: Array, weight: Array) -> _Sizes:
    images, channels, height, width = input.shape
    outputs, group_channels, *kernel = weight.shape
    taps = math.prod(kernel)
    groups, offset_groups = channels // group_channels, offset.shape[1] // (2 * taps)
    return _Sizes(images, channels, height, width, outputs, groups, taps, offset_groups, math.prod(offset.shape[2:]))


def _lanes(sizes: _Sizes, at_once: int, most: int) -> tuple[tuple[int, int], int]:
    """Whether threads take `at_once` channels and how many of them a sample has; how often, for all its channels.

    No group of the weight or of the offsets may end within what a thread takes.
    """
    channels = sizes.channels // sizes.offset_groups
    wide = channels % at_once == 0 and sizes.group_channels % at_once == 0
    count = channels // at_once if wide else channels
    lanes = min(1 << (count - 1).bit_length(), most)
    return (int(wide), lanes), math.ceil(count / lanes)


def _blocks(sizes: _Sizes, count: int) -> int:
    """How many blocks look at so many output pixels."""
    return math.ceil(count / _PIXELS) * math.ceil(sizes.taps / _TAPS) * sizes.offset_groups


def _call(
    sizes: _Sizes,
    offset: Array,
    weight: Array,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Array | None,
) -> tuple[Any, ...]:
    """What kernels are told about where taps read; which output pixels comes after it."""
    return (
        sizes.height, sizes.width, sizes.channels, sizes.plane, offset.shape[3], sizes.taps, weight.shape[3],
        *stride, *padding, *dilation, sizes.offset_groups, sizes.group_channels,
        contiguous(offset), dtype_code(offset),
        None if mask is None else contiguous(mask), 0 if mask is None else dtype_code(mask),
    )  # fmt: skip


# -------------------------------------------------------------------------------------------- how arrays are laid out


def _pixels(input: Array) -> Array:
    """The input with the channels of a pixel together: itself where they are, else memory for a copy."""
    pixels = input.transpose(0, 2, 3, 1)
    return pixels if _is_pixels(input) else empty(pixels.shape, input.dtype)


def _is_pixels(input: Array) -> bool:
    return input.transpose(0, 2, 3, 1).flags.c_contiguous and is_aligned(input)


def _squares(matrices: int, rows: int, columns: int) -> int:
    return matrices * math.ceil(rows / _EDGE) * math.ceil(columns / _EDGE)


def _arrange(
    sizes: _Sizes,
    input: Array,
    pixels: Array | None,
    weight: Array,
    weights: Array | None,
    grad: Array | None = None,
    grads: Array | None = None,
) -> None:
    """Fill the memory that is given for copies."""
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
    launch(
        "deform_conv", "deform_arrange", weight.dtype.char, blocks, _THREADS,
        input, sizes.images, sizes.channels, area, pixels,
        None if weights is None else contiguous(weight), sizes.outputs, sizes.group_channels, sizes.taps, weights,
        grad, sizes.plane, grads,
    )  # fmt: skip


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
    """Fill `result` from (images, area, channels) with the bias, and the gradient of the weight, if they are there."""
    blocks = 0
    if result is not None:
        blocks += _squares(sizes.images, area, channels)
    if grad_weight is not None:
        blocks += _squares(sizes.outputs, sizes.taps, sizes.group_channels)
    if blocks:
        launch(
            "deform_conv", "deform_restore", code, blocks, _THREADS,
            pixels, sizes.images, channels, area, None if bias is None else contiguous(bias), result,
            grad_weights, sizes.outputs, sizes.group_channels, sizes.taps, grad_weight,
        )  # fmt: skip
