"""What the RoI operators compute: a loop over RoIs, written from the definitions, importing nothing from cvops.

What decides which pixels are read, or how many (where a sample lies, the number of samples, the limits of a bin, the
level), is computed in working precision in the order in which the definition writes it; weights and sums are float64.
`test_reference_roi.py` checks this file against values computed by hand, and against other libraries.
"""

from __future__ import annotations

import math

import numpy as np

FARTHEST = 2**30  # feature cells from the origin; a corner beyond is moved here
MOST_SAMPLES = 2**16  # along one axis of a bin; a RoI with more is NaN

_quiet = np.errstate(all="ignore")


def working(*arrays):
    """The type of the working precision: float64 if one array is float64, else float32."""
    return np.float64 if any(array.dtype.itemsize == 8 for array in arrays) else np.float32


def as_rois(boxes):
    """Boxes (K, 5), batch index first, from such an array or from one array (L_i, 4) for each image."""
    if not isinstance(boxes, list | tuple):
        return boxes
    if not boxes:
        return np.zeros((0, 5), np.float32)
    images = [np.full((len(of_image), 1), i) for i, of_image in enumerate(boxes)]
    dtype = np.result_type(np.float32, *boxes)  # float16 does not hold the index of every image
    return np.concatenate([np.concatenate(images), np.concatenate(boxes)], 1, dtype=dtype)


def _pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)


def _native(array):
    return array.dtype.newbyteorder("=")


@_quiet
def _corners(roi, scale, real):
    """x1, y1, x2, y2 of a RoI in feature cells; None if one is NaN or infinite."""
    corners = [real(coordinate) * real(scale) for coordinate in roi[1:]]
    if not np.isfinite(corners).all():
        return None
    return [min(max(corner, real(-FARTHEST)), real(FARTHEST)) for corner in corners]


# ----------------------------------------------------------------------------------------- roi_align, ps_roi_align


def _axis_weights(start, size, bins, ratio, length):
    """(bins, length) float64: by what each pixel of a line enters the sum over the samples of each bin; their number.

    None if there are too many samples.
    """
    real = type(size)
    samples = ratio if ratio > 0 else max(math.ceil(size / real(bins)), 0)
    if samples > MOST_SAMPLES:
        return None
    weights = np.zeros((bins, length))
    size_of_bin = size / real(bins)
    index = np.arange(samples).astype(real)
    for p in range(bins):
        at = (start + real(p) * size_of_bin) + (index + real(0.5)) * size_of_bin / real(samples)
        at = np.maximum(at[(at >= -1) & (at <= length)], 0)
        before = np.minimum(at.astype(np.int64), length - 1)
        after = np.minimum(before + 1, length - 1)
        fraction = np.where(before == length - 1, 0, at - before)
        np.add.at(weights[p], before, 1 - fraction)
        np.add.at(weights[p], after, fraction)
    return weights, samples


@_quiet
def align_weights(roi, output_size, spatial_scale, sampling_ratio, aligned, smallest, height, width, real):
    """Wy (PH, H) and Wx (PW, W) of a RoI whose bins are Wy @ image @ Wx.T; None if they are NaN."""
    corners = _corners(roi, spatial_scale, real)
    if corners is None:
        return None
    shift = real(0.5) if aligned else real(0)
    x1, y1, x2, y2 = (corner - shift for corner in corners)
    rows = _axis_weights(y1, max(y2 - y1, real(smallest)), output_size[0], sampling_ratio, height)
    columns = _axis_weights(x1, max(x2 - x1, real(smallest)), output_size[1], sampling_ratio, width)
    if rows is None or columns is None:
        return None
    (wy, samples_y), (wx, samples_x) = rows, columns
    return wy, wx / max(samples_y * samples_x, 1)


def roi_align(input, boxes, output_size, spatial_scale=1.0, sampling_ratio=-1, aligned=False):
    """Mean over the samples of each bin, each interpolated between four pixels."""
    rois, output_size = as_rois(boxes), _pair(output_size)
    smallest = -math.inf if aligned else 1
    options = output_size, spatial_scale, sampling_ratio, aligned, smallest, *input.shape[2:], working(input, rois)
    images = input.astype(np.float64)
    result = np.full((len(rois), input.shape[1], *output_size), math.nan)
    for k, roi in enumerate(rois):
        weights = align_weights(roi, *options)
        if weights:
            wy, wx = weights
            result[k] = wy @ images[int(roi[0])] @ wx.T
    return _rounded(result, _native(input))


def roi_align_backward(grad, boxes, input_shape, spatial_scale=1.0, sampling_ratio=-1, aligned=False):
    """Gradient of `roi_align` for its input."""
    rois = as_rois(boxes)
    smallest = -math.inf if aligned else 1
    options = grad.shape[2:], spatial_scale, sampling_ratio, aligned, smallest, *input_shape[2:], working(grad, rois)
    result = np.zeros(input_shape)
    for k, roi in enumerate(rois):
        weights = align_weights(roi, *options)
        if weights:
            wy, wx = weights
            result[int(roi[0])] += wy.T @ grad[k].astype(np.float64) @ wx
    return _rounded(result, _native(grad))


def ps_roi_align(input, boxes, output_size, spatial_scale=1.0, sampling_ratio=-1):
    """As an aligned `roi_align`, but each bin reads channels of its own."""
    rois, (height, width) = as_rois(boxes), _pair(output_size)
    options = (height, width), spatial_scale, sampling_ratio, True, -math.inf, *input.shape[2:], working(input, rois)
    images = input.astype(np.float64)
    result = np.full((len(rois), input.shape[1] // (height * width), height, width), math.nan)
    for k, roi in enumerate(rois):
        weights = align_weights(roi, *options)
        if weights:
            wy, wx = weights
            for p, q in np.ndindex(height, width):
                result[k, :, p, q] = wy[p] @ images[int(roi[0]), p * width + q :: height * width] @ wx[q]
    return _rounded(result, _native(input))


def ps_roi_align_backward(grad, boxes, input_shape, spatial_scale=1.0, sampling_ratio=-1):
    """Gradient of `ps_roi_align` for its input."""
    rois, (height, width) = as_rois(boxes), grad.shape[2:]
    options = (height, width), spatial_scale, sampling_ratio, True, -math.inf, *input_shape[2:], working(grad, rois)
    result = np.zeros(input_shape)
    for k, roi in enumerate(rois):
        weights = align_weights(roi, *options)
        if weights:
            wy, wx = weights
            for p, q in np.ndindex(height, width):
                of_bin = grad[k, :, p, q, None, None].astype(np.float64)
                result[int(roi[0]), p * width + q :: height * width] += of_bin * np.outer(wy[p], wx[q])
    return _rounded(result, _native(grad))


@_quiet
def _rounded(result, dtype):
    return result.astype(dtype)


# ------------------------------------------------------------------------------------------- roi_pool, ps_roi_pool


def half_away(value):
    """The nearest integer, the one farther from zero of two."""
    whole = np.trunc(value)
    return int(whole) + (int(np.copysign(1, value)) if abs(value - whole) >= 0.5 else 0)


def bin_limits(start, size, bins, last, real):
    """(first, end) of each bin of a RoI that begins at pixel `start` and is `size` pixels long, within [0, last]."""
    size_of_bin = real(size) / real(bins)

    def clipped(pixel):
        return min(max(start + int(pixel), 0), last)

    return [
        (clipped(np.floor(real(p) * size_of_bin)), clipped(np.ceil(real(p + 1) * size_of_bin))) for p in range(bins)
    ]


def _pool_bins(roi, output_size, spatial_scale, inclusive, height, width, real):
    """(row, column, slice of pixels, slice of pixels) of each bin of a RoI that is not empty; None if the RoI is NaN.

    `inclusive`: the pixels at both corners belong to the RoI, and the last row and column of the map are read.
    """
    corners = _corners(roi, spatial_scale, real)
    if corners is None:
        return None
    x1, y1, x2, y2 = (half_away(corner) for corner in corners)
    more = 1 if inclusive else 0
    rows = bin_limits(y1, max(y2 - y1 + more, 1), output_size[0], height - 1 + more, real)
    columns = bin_limits(x1, max(x2 - x1 + more, 1), output_size[1], width - 1 + more, real)
    return [
        (p, q, slice(top, bottom), slice(left, right))
        for p, (top, bottom) in enumerate(rows)
        for q, (left, right) in enumerate(columns)
        if top < bottom and left < right
    ]


def roi_pool(input, boxes, output_size, spatial_scale=1.0):
    """Maximum of the pixels of each bin, and its flat index into the map: that of the first maximum, or first NaN."""
    rois, output_size = as_rois(boxes), _pair(output_size)
    options = output_size, spatial_scale, True, *input.shape[2:], working(input, rois)
    result = np.zeros((len(rois), input.shape[1], *output_size), _native(input))
    argmax = np.full(result.shape, -1, np.int32)
    places = np.arange(math.prod(input.shape[2:])).reshape(input.shape[2:])
    for k, roi in enumerate(rois):
        bins = _pool_bins(roi, *options)
        if bins is None:
            result[k] = math.nan
            continue
        for p, q, rows, columns in bins:
            place = places[rows, columns].ravel()
            pixels = input[int(roi[0])].reshape(input.shape[1], places.size)[:, place]
            first = pixels.argmax(1)  # to NumPy a NaN is the maximum
            result[k, :, p, q] = np.take_along_axis(pixels, first[:, None], 1)[:, 0]
            argmax[k, :, p, q] = place[first]
    return result, argmax


def roi_pool_backward(grad, boxes, argmax, input_shape, spatial_scale=1.0):
    """Gradient of `roi_pool` for its input: every bin's goes to its maximum."""
    image_of_roi = as_rois(boxes)[:, 0].astype(int)
    result = np.zeros((*input_shape[:2], math.prod(input_shape[2:])))
    chosen = (argmax >= 0) & (argmax < result.shape[2])
    k, c = np.nonzero(chosen)[:2]
    np.add.at(result, (image_of_roi[k], c, argmax[chosen]), grad[chosen])
    return _rounded(result.reshape(input_shape), _native(grad))


def ps_roi_pool(input, boxes, output_size, spatial_scale=1.0):
    """Mean of the pixels of each bin, each bin from channels of its own."""
    rois, (height, width) = as_rois(boxes), _pair(output_size)
    options = (height, width), spatial_scale, False, *input.shape[2:], working(input, rois)
    result = np.zeros((len(rois), input.shape[1] // (height * width), height, width))
    for k, roi in enumerate(rois):
        bins = _pool_bins(roi, *options)
        if bins is None:
            result[k] = math.nan
            continue
        for p, q, rows, columns in bins:
            of_bin = input[int(roi[0]), p * width + q :: height * width, rows, columns]
            result[k, :, p, q] = of_bin.mean((1, 2), dtype=np.float64)
    return _rounded(result, _native(input))


def ps_roi_pool_backward(grad, boxes, input_shape, spatial_scale=1.0):
    """Gradient of `ps_roi_pool` for its input."""
    rois, (height, width) = as_rois(boxes), grad.shape[2:]
    options = (height, width), spatial_scale, False, *input_shape[2:], working(grad, rois)
    result = np.zeros(input_shape)
    for k, roi in enumerate(rois):
        for p, q, rows, columns in _pool_bins(roi, *options) or []:
            of_bin = result[int(roi[0]), p * width + q :: height * width, rows, columns]
            of_bin += grad[k, :, p, q, None, None].astype(np.float64) / (of_bin.shape[1] * of_bin.shape[2])
    return _rounded(result, _native(grad))


# ---------------------------------------------------------------------------------------------- MultiScaleRoIAlign


def scale_of(height, image_shapes):
    """The power of two nearest to the ratio of the height of a map to that of the highest image."""
    return 2.0 ** round(math.log2(height / max(shape[0] for shape in image_shapes)))


@_quiet
def level_of(box, scales, canonical_scale, canonical_level, real):
    """Index of the scale at which a box is pooled."""
    levels = [-math.log2(scale) for scale in scales]
    x1, y1, x2, y2 = (real(coordinate) for coordinate in box)
    area = (x2 - x1) * (y2 - y1)
    if not area > 0:
        return levels.index(min(levels))
    octaves = real(math.log2(np.sqrt(area) / real(canonical_scale)))  # rounded once
    level = float(np.floor(real(canonical_level) + octaves + real(1e-6)))
    level = min(max(level, min(levels)), max(levels))
    return levels.index(min(present for present in levels if present >= level))


def _by_level(features, boxes, image_shapes, names, canonical_scale, canonical_level, scales, real):
    """(name, scale, indices of the boxes pooled there) of each map, and the boxes (K, 5)."""
    rois = as_rois(boxes)
    if scales is None:
        scales = [scale_of(features[name].shape[2], image_shapes) for name in names]
    levels = np.array([level_of(roi[1:], scales, canonical_scale, canonical_level, real) for roi in rois], int)
    chosen = [np.flatnonzero(levels == i) for i in range(len(scales))]
    return list(zip(names, scales, chosen, strict=True)), rois


def multiscale_roi_align(
    features, boxes, image_shapes, names, output_size, sampling_ratio,
    canonical_scale=224, canonical_level=4, aligned=False, scales=None,
):  # fmt: skip
    """`roi_align` of every box on the map of its size."""
    some, output_size = features[names[0]], _pair(output_size)
    real = working(some, *boxes)
    parts, rois = _by_level(features, boxes, image_shapes, names, canonical_scale, canonical_level, scales, real)
    result = np.zeros((len(rois), some.shape[1], *output_size), _native(some))
    for name, scale, chosen in parts:
        pooled = roi_align(features[name], rois[chosen].astype(real), output_size, scale, sampling_ratio, aligned)
        result[chosen] = pooled
    return result


def multiscale_roi_align_backward(
    grad, features, boxes, image_shapes, names, sampling_ratio,
    canonical_scale=224, canonical_level=4, aligned=False, scales=None,
):  # fmt: skip
    """Gradient of `multiscale_roi_align` for each of its maps."""
    real = working(grad, features[names[0]], *boxes)
    parts, rois = _by_level(features, boxes, image_shapes, names, canonical_scale, canonical_level, scales, real)
    return {
        name: roi_align_backward(
            grad[chosen], rois[chosen].astype(real), features[name].shape, scale, sampling_ratio, aligned
        )
        for name, scale, chosen in parts
    }
