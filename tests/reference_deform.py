"""What deform_conv2d, its gradients, conv2d and the feature pyramid compute: slow loops, importing nothing from cvops.

Which pixels a sample reads is decided in the operator's working precision, in the order in which the definition writes
it; weights and sums are float64, and every channel of a sample is handled at once. `test_reference_deform.py` checks
this file against values computed by hand and against torchvision.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

_quiet = np.errstate(all="ignore")


def pair(value):
    """(vertical, horizontal) from one integer or two."""
    return (int(value), int(value)) if np.ndim(value) == 0 else tuple(map(int, value))


def output_size(size, kernel, stride=1, padding=0, dilation=1):
    """(height, width) of the result of a convolution over a map of this size."""
    axes = zip(size, kernel, pair(stride), pair(padding), pair(dilation), strict=True)
    return tuple((length + 2 * p - d * (k - 1) - 1) // s + 1 for length, k, s, p, d in axes)


# --------------------------------------------------------------------------------------------------- deform_conv2d


@_quiet
def deform_conv2d(input, offset, weight, bias=None, stride=1, padding=0, dilation=1, mask=None):
    """The deformable convolution, in the dtype of `input`."""
    arrays = (input, offset, weight, bias, mask)
    return _convolve(_read(arrays, stride, padding, dilation).columns, weight, bias).astype(input.dtype)


@_quiet
def deform_conv2d_backward(grad, input, offset, weight, bias=None, stride=1, padding=0, dilation=1, mask=None):
    """The gradients for input, offset, weight, bias and mask of sum(grad * result), in the dtype of `grad`."""
    arrays = (input, offset, weight, bias, mask)
    read = _read((*arrays, grad), stride, padding, dilation)
    groups = input.shape[1] // weight.shape[1]
    grads, columns = _split(grad.astype(float), 1, groups), _split(read.columns, 1, groups)
    of_columns = np.einsum("ngohw,goct->ngcthw", grads, _by_group(weight, groups)).reshape(read.columns.shape)
    of_weight = np.einsum("ngohw,ngcthw->goct", grads, columns).reshape(weight.shape)

    of_input, of_offset = np.zeros(input.shape), np.zeros(offset.shape)
    of_mask = None if mask is None else np.zeros(mask.shape)
    for sample in read.samples:
        n, channels, tap, row, column = sample.place
        of_sample = of_columns[n, channels, tap, row, column]
        for pixel, share in zip(sample.pixels, sample.weights, strict=True):
            of_input[(n, channels, *pixel)] += sample.factor * share * of_sample
        channel = sample.group * of_columns.shape[2] + tap
        of_offset[n, 2 * channel, row, column] = sample.factor * (sample.by_y @ of_sample)
        of_offset[n, 2 * channel + 1, row, column] = sample.factor * (sample.by_x @ of_sample)
        if mask is not None:
            of_mask[n, channel, row, column] = sample.values @ of_sample
    of_bias = None if bias is None else grad.astype(float).sum((0, 2, 3))
    gradients = of_input, of_offset, of_weight, of_bias, of_mask
    return tuple(None if gradient is None else gradient.astype(grad.dtype) for gradient in gradients)


class _Sample(NamedTuple):
    """One tap of one offset group at one output pixel."""

    place: tuple  # (image, channels, tap, row, column): where its values are in the columns
    group: int
    factor: float  # of the mask
    pixels: list  # (row, column) of each pixel around it that lies on the map
    weights: list  # one for each pixel
    values: np.ndarray  # what it reads, one for each channel
    by_y: np.ndarray  # and how that changes as it moves
    by_x: np.ndarray


class _Read(NamedTuple):
    samples: list
    columns: np.ndarray  # (N, C, taps, OH, OW): the values times the mask


@_quiet
def _read(arrays, stride, padding, dilation):
    input, offset, weight, _, mask, *_ = arrays
    wide = any(array is not None and array.dtype == np.float64 for array in arrays)
    working = np.float64 if wide else np.float32
    (down, right), (top, left), (step_down, step_right) = pair(stride), pair(padding), pair(dilation)
    kernel_height, kernel_width = weight.shape[2:]
    taps = kernel_height * kernel_width
    offset_groups = offset.shape[1] // (2 * taps)
    share = input.shape[1] // offset_groups
    images, moves = input.astype(float), offset.astype(working)
    samples, columns = [], np.zeros((*input.shape[:2], taps, *offset.shape[2:]))
    places = np.ndindex(len(input), offset_groups, kernel_height, kernel_width, *offset.shape[2:])
    for n, group, i, j, row, column in places:
        tap = i * kernel_width + j
        channel, channels = group * taps + tap, slice(group * share, (group + 1) * share)
        y = working(row * down - top + i * step_down) + moves[n, 2 * channel, row, column]
        x = working(column * right - left + j * step_right) + moves[n, 2 * channel + 1, row, column]
        factor = 1.0 if mask is None else float(mask[n, channel, row, column])
        sample = _sample((n, channels, tap, row, column), group, factor, images[n, channels], y, x)
        samples.append(sample)
        columns[sample.place] = factor * sample.values
    return _Read(samples, columns)


def _sample(place, group, factor, maps, y, x):
    """What is read at (y, x) of maps (channels, H, W); y and x are in working precision."""
    _, height, width = maps.shape
    if math.isnan(y) or math.isnan(x):
        nothing = np.full(len(maps), math.nan)
        return _Sample(place, group, factor, [], [], nothing, nothing, nothing)
    nothing = np.zeros(len(maps))
    pixels, weights, values, by_y, by_x = [], [], nothing, nothing, nothing
    if not math.isinf(y) and not math.isinf(x):
        y0, x0 = math.floor(y), math.floor(x)
        down, right = float(y) - y0, float(x) - x0
        for row, share_y, slope_y in ((y0, 1 - down, -1), (y0 + 1, down, 1)):
            for column, share_x, slope_x in ((x0, 1 - right, -1), (x0 + 1, right, 1)):
                if 0 <= row < height and 0 <= column < width:
                    pixels.append((row, column))
                    weights.append(share_y * share_x)
                    values = values + share_y * share_x * maps[:, row, column]
                    by_y = by_y + slope_y * share_x * maps[:, row, column]
                    by_x = by_x + share_y * slope_x * maps[:, row, column]
    if y <= -1 or y >= height or x <= -1 or x >= width:
        values = nothing  # as it is already, unless a pixel with weight 0 is NaN or infinite
    return _Sample(place, group, factor, pixels, weights, values, by_y, by_x)


def _convolve(columns, weight, bias):
    """Columns (N, C, taps, OH, OW) times the weight (O, C / groups, kh, kw), plus the bias, in float64."""
    groups = columns.shape[1] // weight.shape[1]
    result = np.einsum("ngcthw,goct->ngohw", _split(columns, 1, groups), _by_group(weight, groups))
    result = result.reshape(len(columns), len(weight), *columns.shape[3:])
    return result if bias is None else result + bias.astype(float)[:, None, None]


def _by_group(weight, groups):
    """The weight as (groups, O / groups, C / groups, taps)."""
    taps = weight.shape[2] * weight.shape[3]
    return _split(weight.astype(float).reshape(*weight.shape[:2], taps), 0, groups)


def _split(array, axis, groups):
    """`array` with (groups, length / groups) in place of the length of `axis`."""
    shape = array.shape
    return array.reshape(*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])


# ------------------------------------------------------------------------------------------------- feature pyramid


@_quiet
def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1):
    """The plain convolution with zeros around the map, in the dtype of `input`."""
    (down, right), (top, left), (step_down, step_right) = pair(stride), pair(padding), pair(dilation)
    height, width = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    padded = np.pad(input.astype(float), ((0, 0), (0, 0), (top, top), (left, left)))
    columns = [
        padded[:, :, y : y + height * down : down, x : x + width * right : right][:, :, :height, :width]
        for y in range(0, weight.shape[2] * step_down, step_down)
        for x in range(0, weight.shape[3] * step_right, step_right)
    ]
    return _convolve(np.stack(columns, 2), weight, bias).astype(input.dtype)


def upsampled(map, size):
    """`map` (N, C, H, W) in another size: each pixel is the nearest one, by a ratio that is float32 as in torch."""
    rows, columns = (
        np.floor(np.arange(wanted, dtype=np.float32) * np.float32(given / wanted)).astype(int).clip(max=given - 1)
        for wanted, given in zip(size, map.shape[2:], strict=True)
    )
    return map[:, :, rows][:, :, :, columns]


def feature_pyramid(maps, parameters, extra_blocks=None):
    """The pyramid over `maps` (name -> map, finest first), with torchvision's parameters by their names.

    `extra_blocks` is None, "pool" (LastLevelMaxPool) or "p6p7" (LastLevelP6P7).
    """

    def convolved(map, block, **options):
        return conv2d(map, parameters[f"{block}.weight"].astype(float), parameters[f"{block}.bias"], **options)

    exact = [map.astype(float) for map in maps.values()]
    merged, results = None, []
    for level in reversed(range(len(exact))):
        lateral = convolved(exact[level], f"inner_blocks.{level}.0")
        merged = lateral if merged is None else lateral + upsampled(merged, lateral.shape[2:])
        results.insert(0, convolved(merged, f"layer_blocks.{level}.0", padding=1))
    names = list(maps)
    if extra_blocks == "pool":
        names.append("pool")
        results.append(results[-1][:, :, ::2, ::2])
    elif extra_blocks == "p6p7":
        outputs, inputs = parameters["extra_blocks.p6.weight"].shape[:2]
        p6 = convolved(results[-1] if inputs == outputs else exact[-1], "extra_blocks.p6", stride=2, padding=1)
        p7 = convolved(np.maximum(p6, 0), "extra_blocks.p7", stride=2, padding=1)
        names += ["p6", "p7"]
        results += [p6, p7]
    dtype = next(iter(maps.values())).dtype
    return {name: result.astype(dtype) for name, result in zip(names, results, strict=True)}
