"""roi_align, of one map or of a pyramid of maps, and its gradient. Nothing waits for the device, nothing is zeroed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ._device import Array, contiguous, converted, dtype_code, empty, launch
from ._roi_inputs import in_working_precision

Shape = tuple[int, int, int, int]

# As in kernels/roi_align.cu.
_LEVELS = 4
_POOL_THREADS, _LAST_CHANNELS = 128, 128
_MANY_BLOCKS = 2000  # are enough to keep a large GPU busy
_THREADS, _TILE, _GRADIENTS = 256, 16, 16
_ROI_BYTES, _CHUNK_BYTES = {"d": 64, "f": 48, "e": 48, "E": 48}, 16


def roi_align(
    features: Array,
    rois: Array,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Array:
    return multiscale_roi_align([features], rois, output_size, [spatial_scale], [], sampling_ratio, aligned)


def roi_align_backward(
    grad: Array, rois: Array, input_shape: Shape, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Array:
    return multiscale_roi_align_backward(grad, rois, [input_shape], [spatial_scale], [], sampling_ratio, aligned)[0]


def multiscale_roi_align(
    features: Sequence[Array],
    rois: Array,
    output_size: tuple[int, int],
    spatial_scales: Sequence[float],
    area_limits: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Array:
    """roi_align of each RoI on the map of the index that tells how many of the increasing limits its area reaches.

    One launch for every four maps; no workspace. Maps are read where they lie if all are contiguous, or all
    channels-last; others are copied.
    """
    maps, kernel = _read_where_they_lie(features, rois)
    rois, storage = contiguous(rois), maps[0].dtype
    images, channels, *_ = features[0].shape
    pooled = empty((len(rois), channels, *output_size), storage)
    if pooled.size:
        # More channels share the taps of a RoI, fewer make more blocks.
        share = 64 if len(rois) * channels >= 64 * _MANY_BLOCKS else 16
        if kernel == "roi_align_last":
            share = _LAST_CHANNELS
        blocks = len(rois) * math.ceil(channels / share)
        for some, levels in _groups([array.shape for array in features], spatial_scales, area_limits):
            launch(
                "roi_align", kernel, storage.char, blocks, _POOL_THREADS, *_filled_up(maps[some]), *levels, rois,
                dtype_code(rois), images, channels, *output_size, sampling_ratio, int(aligned), share, pooled,
            )  # fmt: skip
    return converted(pooled, features[0].dtype)


def multiscale_roi_align_backward(
    grad: Array,
    rois: Array,
    input_shapes: Sequence[Shape],
    spatial_scales: Sequence[float],
    area_limits: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> list[Array]:
    """Two launches for every four maps, one if there are no RoIs. Workspace: 48 bytes for each RoI, 64 in float64."""
    values, rois = in_working_precision(grad, rois)
    size, (images, channels, *_), bins, storage = len(rois), input_shapes[0], grad.shape[2:], values.dtype
    if images * channels == 0:
        return [empty(shape, grad.dtype) for shape in input_shapes]
    gradients = [empty(shape, storage) for shape in input_shapes]
    chunks = math.ceil(size / _THREADS)
    workspace = empty((size * _ROI_BYTES[storage.char] + chunks * _CHUNK_BYTES,), "uint8")
    for some, levels in _groups(input_shapes, spatial_scales, area_limits):
        if size:
            launch(
                "roi_align", "roi_align_places", storage.char, chunks, _THREADS, *levels, rois,
                dtype_code(rois), size, images, *bins, sampling_ratio, int(aligned), workspace,
            )  # fmt: skip
        tiles = sum(math.ceil(height / _TILE) * math.ceil(width / _TILE) for *_, height, width in input_shapes[some])
        blocks = images * math.ceil(channels / _GRADIENTS) * tiles
        launch(
            "roi_align", "roi_align_gradients", storage.char, blocks, _THREADS, values, workspace, size, images,
            channels, *bins, *levels[: 2 * _LEVELS], *_filled_up(gradients[some]),
        )  # fmt: skip
    return [converted(gradient, grad.dtype) for gradient in gradients]


def _read_where_they_lie(features: Sequence[Array], rois: Array) -> tuple[list[Array], str]:
    """The maps, all of one layout and in working precision, and the kernel for it."""
    if not all(array.flags.c_contiguous for array in features):
        turned = [array.transpose(0, 2, 3, 1) for array in features]
        if all(array.flags.c_contiguous for array in turned):
            return [in_working_precision(array, rois)[0] for array in turned], "roi_align_last"
    return [in_working_precision(array, rois)[0] for array in features], "roi_align"


def _groups(
    shapes: Sequence[tuple[int, ...]], scales: Sequence[float], area_limits: Sequence[float]
) -> Iterator[tuple[slice, list[float]]]:
    """The levels that each launch does: which they are, and heights, widths, scales and limits as kernels take them.

    A RoI is of the last level whose limit its area reaches; NaN is never reached.
    """
    limits = [0.0, *area_limits, *[math.nan] * _LEVELS]
    for first in range(0, len(shapes), _LEVELS):
        some = slice(first, first + _LEVELS)
        missing = max(first + _LEVELS - len(shapes), 0)
        heights = [shape[2] for shape in shapes[some]] + [0] * missing
        widths = [shape[3] for shape in shapes[some]] + [0] * missing
        yield some, [*heights, *widths, *scales[some], *[1.0] * missing, *limits[first : first + _LEVELS + 1]]


def _filled_up(maps: list[Array]) -> list[Array | None]:
    return maps + [None] * (_LEVELS - len(maps))
