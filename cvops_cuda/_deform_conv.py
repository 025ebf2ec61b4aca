"""Deformable convolution: gather what the taps read into columns, one after another, and multiply them by cuBLAS.

The input is copied once so that the channels of a pixel lie together (a channels-last array is used as it is). Then
come tiles of output pixels, whose columns stay in a GPU's cache: one launch gathers a tile's columns, one product adds
them to the bias in the result. The gradients go through tiles in the same way: a product for the gradients of the
columns; one pass for those of offset and mask, and for the columns; a product of these for the weight. For the input,
samples are sorted by place and added up pixel by pixel.

Launches of `deform_conv2d`: one, and for each tile one and its products, of which there is one unless the weight has
groups: then one for each image or for each group, whichever are fewer. Of `deform_conv2d_backward`: three, and for each
tile seven, a sort among them; fewer if less is wanted. Nothing waits for the device, and every sum has one owner and a
fixed order.

Workspace: a copy of input and weight, and one tile of columns, 32 MB. The gradients take two such tiles (or three, if
16-bit arrays have the one of columns beside theirs in float32), copies of grad and weight, one of the input in
working precision, about 40 bytes for each sample of a tile, and 8 for each pixel and group of offsets in its images.
"""

from __future__ import annotations

import math
from typing import Any

from cvops._checks import working_dtype

from ._device import Array, contiguous, converted, dtype_code, empty, launch, matmul, order_of_keys
from ._tiles import tiles

# As in kernels/deform_conv.cu: threads of a block, the output pixels and taps that it looks at, the side of a square
# that it transposes.
_THREADS, _PIXELS, _TAPS, _EDGE = 256, 16, 16, 32
# Threads of a sample, at most, where its channels are spread over blocks, and where they are added up by one warp.
_SPREAD, _WARP = 16, 32
_PLACE_BYTES = {"f": 16, "d": 32}
_CELLS_OF_32_BITS = 2**32  # numbers of cells up to this one fit into keys of 4 bytes


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
        arguments = (None if array is None else converted(array, "d") for array in (input, weight, bias))
        wide_input, wide_weight, wide_bias = arguments
        result = deform_conv2d(wide_input, offset, wide_weight, wide_bias, stride, padding, dilation, mask)
        return converted(result, input.dtype)
    images, channels, height, width = input.shape
    outputs, group_channels, *kernel = weight.shape
    plane, taps, groups = math.prod(offset.shape[2:]), math.prod(kernel), channels // group_channels
    dtype = input.dtype
    result = empty((images, outputs, *offset.shape[2:]), dtype)
    if images == 0:
        return result
    geometry = _geometry(input, offset, weight, stride, padding, dilation, mask)
    pixels = _channels_last(input)
    copied = pixels is None
    if pixels is None:
        pixels = empty((images, height, width, channels), dtype)
    weights = empty((groups, outputs // groups, taps * group_channels), dtype)
    _arrange(input, pixels if copied else None, weight, weights, None, None, plane, bias, result)

    wide, lanes, chunks = _lanes(channels, offset, taps, group_channels, 16 // dtype.itemsize, _SPREAD)
    by_group = result.reshape(images, groups, outputs // groups, plane)
    for begin, end, first, last in tiles(images, plane, taps * channels * dtype.itemsize):
        columns = empty((end - begin, last - first, groups, taps * group_channels), dtype)
        count = columns.shape[0] * columns.shape[1]
        launch(
            "deform_conv", "deform_columns", dtype.char, _blocks(count, taps, offset) * chunks, _THREADS,
            *geometry, begin * plane + first, count, pixels, wide, lanes, columns,
        )  # fmt: skip
        target = by_group[begin:end, :, :, first:last]
        if groups >= len(target):
            for image in range(len(target)):
                matmul(weights, columns[image].transpose(1, 2, 0), target[image], bias is not None)
        else:
            for group in range(groups):
                matmul(weights[group], columns[:, :, group].swapaxes(1, 2), target[:, group], bias is not None)
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
    element = "d" if working == "d" else grad.dtype.char if grad.dtype == input.dtype else "f"
    if {grad.dtype.char, input.dtype.char} != {element}:
        one_grad, one_input, one_weight = (converted(array, element) for array in (grad, input, weight))
        gradients = deform_conv2d_backward(
            one_grad, one_input, offset, one_weight, bias, stride, padding, dilation, mask, wanted
        )
        return tuple(None if each is None else converted(each, grad.dtype) for each in gradients)
    arguments = {"input": input, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    results = {
        name: empty(array.shape, grad.dtype)
        for name, array in arguments.items()
        if name in wanted and array is not None
    }
    images, outputs, *size = grad.shape
    if images == 0:
        for name in results.keys() & {"weight", "bias"}:
            results[name][...] = 0
    else:
        grad = contiguous(grad)
        if "bias" in results:
            launch(
                "deform_conv", "deform_bias", element, outputs, _THREADS,
                grad, images, outputs, math.prod(size), results["bias"],
            )  # fmt: skip
        if results.keys() - {"bias"}:
            geometry = _geometry(input, offset, weight, stride, padding, dilation, mask)
            _backward(geometry, working, grad, input, offset, weight, results)
    return tuple(results.get(name) for name in arguments)


def _backward(
    geometry: tuple[Any, ...],
    working: str,
    grad: Array,
    input: Array,
    offset: Array,
    weight: Array,
    results: dict[str, Array],
) -> None:
    """Compute the gradients that `results` has memory for, `bias` excepted."""
    images, channels, height, width = input.shape
    outputs, group_channels, *kernel = weight.shape
    plane, taps, groups = math.prod(offset.shape[2:]), math.prod(kernel), channels // group_channels
    depth, dtype = taps * channels, grad.dtype
    code, count_all = dtype.char, images * plane
    reads = bool(results.keys() & {"offset", "weight", "mask"})  # the input
    chained = bool(results.keys() & {"input", "offset", "mask"})  # through the columns

    pixels = _channels_last(input) if reads else None
    copied = reads and pixels is None
    if copied:
        pixels = empty((images, height, width, channels), dtype)
    weights = empty((groups, outputs // groups, taps * group_channels), dtype) if chained else None
    grads = empty((images, plane, outputs), dtype)
    _arrange(input, pixels if copied else None, weight, weights, grad, grads, plane, None, None)
    by_group = grads.reshape(count_all, groups, outputs // groups).swapaxes(0, 1)
    grad_pixels = empty((images, height, width, channels), working) if "input" in results else None
    grad_weights = empty((groups, outputs // groups, taps * group_channels), working) if "weight" in results else None

    slopes_lanes = _lanes(channels, offset, taps, group_channels, 16 // dtype.itemsize, _WARP)[:2]
    for _, _, first, last in tiles(1, count_all, depth * (8 if working == "d" else 4)):
        count = last - first
        grad_columns = columns = None
        part = by_group[:, first:last]
        if weights is not None:
            grad_columns = empty((count, groups, taps * group_channels), working)
            matmul(part, weights, grad_columns.swapaxes(0, 1), False)
        if grad_weights is not None:
            columns = empty((count, groups, taps * group_channels), dtype)
        if reads:
            launch(
                "deform_conv", "deform_slopes", code, _blocks(count, taps, offset), _THREADS,
                *geometry, first, count, pixels, *slopes_lanes, grad_columns, columns,
                results.get("offset"), results.get("mask"),
            )  # fmt: skip
        if columns is not None:
            matmul(part.swapaxes(1, 2), columns.swapaxes(0, 1), grad_weights, first > 0)
        if grad_pixels is not None:
            _collect(geometry, working, code, first, count, grad_columns, grad_pixels, offset, group_channels, taps)
    _restore(grad_pixels, results.get("input"), grad_weights, results.get("weight"), weight, taps, code)


def _collect(
    geometry: tuple[Any, ...],
    working: str,
    code: str,
    first: int,
    count: int,
    grad_columns: Array,
    grad_pixels: Array,
    offset: Array,
    group_channels: int,
    taps: int,
) -> None:
    """Add what the samples of the output pixels [first, first + count) give to the gradient of the input."""
    _, height, width, channels = grad_pixels.shape
    plane, groups = math.prod(offset.shape[2:]), offset.shape[1] // (2 * taps)
    images = (first + count - 1) // plane - first // plane + 1
    if height * width == 0:
        return
    samples, cells = groups * taps * count, images * groups * (height + 1) * (width + 1)
    keys = empty((samples,), "uint32" if cells < _CELLS_OF_32_BITS else "uint64")
    places = empty((samples * _PLACE_BYTES[working],), "uint8")
    launch(
        "deform_conv", "deform_places", code, math.ceil(samples / _THREADS), _THREADS,
        *geometry, first, count, cells, keys.itemsize, keys, places,
    )  # fmt: skip
    order, starts = order_of_keys(keys), empty((cells + 1,), "int64")
    launch(
        "deform_conv", "deform_starts", code, math.ceil((cells + 1) / _THREADS), _THREADS,
        keys, keys.itemsize, order, samples, cells, starts,
    )  # fmt: skip
    wide, lanes, chunks = _lanes(channels, offset, taps, group_channels, 16 // grad_pixels.itemsize, _SPREAD)
    blocks = math.ceil(images * groups * height * width * chunks * lanes / _THREADS)
    launch(
        "deform_conv", "deform_collect", code, blocks, _THREADS,
        *geometry, first, count, images, wide, lanes, order, starts, places, grad_columns, grad_pixels,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- how the work is divided


def _lanes(
    channels: int, offset: Array, taps: int, group_channels: int, at_once: int, most: int
) -> tuple[int, int, int]:
    """Whether threads take `at_once` channels, how many of them a sample has, and how often for all its channels.

    No group of the weight or of the offsets may end within what a thread takes.
    """
    per_offset = channels * 2 * taps // offset.shape[1]
    wide = per_offset % at_once == 0 and group_channels % at_once == 0
    count = per_offset // at_once if wide else per_offset
    lanes = min(1 << (count - 1).bit_length(), most)
    return int(wide), lanes, math.ceil(count / lanes)


def _blocks(count: int, taps: int, offset: Array) -> int:
    """How many blocks look at so many output pixels."""
    groups: int = offset.shape[1] // (2 * taps)
    return math.ceil(count / _PIXELS) * math.ceil(taps / _TAPS) * groups


def _geometry(
    input: Array,
    offset: Array,
    weight: Array,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Array | None,
) -> tuple[Any, ...]:
    """What kernels are told about where taps read; the range of output pixels comes after it."""
    _, channels, height, width = input.shape
    _, group_channels, kernel_height, kernel_width = weight.shape
    taps = kernel_height * kernel_width
    return (
        height, width, channels, math.prod(offset.shape[2:]), offset.shape[3], taps, kernel_width,
        *stride, *padding, *dilation, offset.shape[1] // (2 * taps), group_channels,
        contiguous(offset), dtype_code(offset),
        None if mask is None else contiguous(mask), 0 if mask is None else dtype_code(mask),
    )  # fmt: skip


# -------------------------------------------------------------------------------------------- how arrays are laid out


def _channels_last(input: Array) -> Array | None:
    """The input as pixels, if its channels lie together."""
    pixels = input.transpose(0, 2, 3, 1)
    return pixels if pixels.flags.c_contiguous else None


def _squares(matrices: int, rows: int, columns: int) -> int:
    return matrices * math.ceil(rows / _EDGE) * math.ceil(columns / _EDGE)


def _arrange(
    input: Array,
    pixels: Array | None,
    weight: Array,
    weights: Array | None,
    grad: Array | None,
    grads: Array | None,
    plane: int,
    bias: Array | None,
    result: Array | None,
) -> None:
    """Fill the arrays that are given for copies, and `result` with the bias."""
    images, channels, height, width = input.shape
    outputs, group_channels, *kernel = weight.shape
    taps = math.prod(kernel)
    blocks = 0
    if pixels is not None:
        blocks += _squares(images, channels, height * width)
    if weights is not None:
        blocks += _squares(outputs, group_channels, taps)
    if grads is not None:
        blocks += _squares(images, outputs, plane)
    if bias is not None:
        blocks += images * outputs * math.ceil(plane / _EDGE**2)
    launch(
        "deform_conv", "deform_arrange", input.dtype.char, blocks, _THREADS,
        None if pixels is None else contiguous(input), images, channels, height * width, pixels,
        None if weights is None else contiguous(weight), outputs, group_channels, taps, weights,
        grad, plane, grads, None if bias is None else contiguous(bias), None if bias is None else result,
    )  # fmt: skip


def _restore(
    grad_pixels: Array | None,
    grad_input: Array | None,
    grad_weights: Array | None,
    grad_weight: Array | None,
    weight: Array,
    taps: int,
    code: str,
) -> None:
    """The gradients of input and weight, in the layout of these."""
    images = channels = plane = 0
    outputs, group_channels = weight.shape[:2]
    blocks = 0
    if grad_input is not None:
        images, channels, height, width = grad_input.shape
        plane = height * width
        blocks += _squares(images, plane, channels)
    if grad_weight is not None:
        blocks += _squares(outputs, taps, group_channels)
    if blocks:
        launch(
            "deform_conv", "deform_restore", code, blocks, _THREADS,
            grad_pixels, images, channels, plane, grad_input,
            grad_weights, outputs, group_channels, taps, grad_weight,
        )  # fmt: skip
