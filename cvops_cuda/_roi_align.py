"""roi_align, of one map or of a pyramid of maps, and its gradient. Nothing waits for the device."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from cvops._checks import working_dtype

from ._constants import ROI_ALIGN, working_size
from ._device import Array, contiguous, converted, dtype_code, empty, launch
from ._records import pack
from ._roi_inputs import in_working_precision

Shape = tuple[int, int, int, int]

_MANY_BLOCKS = 2000  # so many keep a large GPU busy
_is_contiguous = operator.attrgetter("flags.c_contiguous")


class Pyramid(NamedTuple):
    heights: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    scales: tuple[float, float, float, float]
    limits: tuple[float, float, float, float]
    end: float


class RoiAlign(NamedTuple):
    maps: tuple[Array, Array, Array, Array]
    pyramid: Pyramid
    boxes: Array
    boxes_dtype: int
    images: int
    channels: int
    rows: int
    columns: int
    ratio: int
    aligned: int
    channels_per_block: int
    pooled: Array


class RoiAlignFootprints(NamedTuple):
    pyramid: Pyramid
    boxes: Array
    boxes_dtype: int
    size: int
    images: int
    rows: int
    columns: int
    ratio: int
    aligned: int
    workspace: Array


class RoiAlignGradients(NamedTuple):
    grad: Array
    workspace: Array
    size: int
    images: int
    channels: int
    rows: int
    columns: int
    pyramid: Pyramid
    gradients: tuple[Array, Array, Array, Array]


def roi_align(
    features: Array,
    rois: Array,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Array:
    """`multiscale_roi_align` of one map, without what several ask for: it would be a third of the time of the host."""
    maps, kernel = features, "roi_align"
    if not _is_contiguous(features) or working_dtype(features, rois) == "d":
        (maps,), kernel = _read_where_they_lie([features], rois)
    images, channels, height, width = features.shape
    pooled = empty((len(rois), channels, *output_size), maps.dtype)
    if pooled.size:
        pyramid = _one_level(height, width, spatial_scale)
        _pool(kernel, (maps, None, None, None), pyramid, images, contiguous(rois), sampling_ratio, aligned, pooled)
    return pooled if maps is features else converted(pooled, features.dtype)


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
    """roi_align of each RoI on features[level], where level = sum(area >= area_limits).

    Maps are read where they lie if all are contiguous, or all channels-last; otherwise they are copied.
    """
    maps, kernel = _read_where_they_lie(features, rois)
    rois, (images, channels, *_) = contiguous(rois), features[0].shape
    pooled = empty((len(rois), channels, *output_size), maps[0].dtype)
    if pooled.size:
        sizes = tuple([array.shape[2:] for array in features])
        for some, missing, pyramid in _launches(sizes, tuple(spatial_scales), tuple(area_limits)):
            levels: Any = *maps[some], *missing
            _pool(kernel, levels, pyramid, images, rois, sampling_ratio, aligned, pooled)
    return pooled if maps[0] is features[0] else converted(pooled, features[0].dtype)


def _pool(
    kernel: str,
    maps: tuple[Array, ...],
    pyramid: Any,
    images: int,
    rois: Array,
    ratio: int,
    aligned: bool,
    pooled: Array,
) -> None:
    """Launch a kernel on as many maps as a record has; `pyramid` is packed."""
    size, channels, rows, columns = pooled.shape
    # With more channels the taps of a RoI are found for fewer blocks; with fewer channels there are more blocks.
    channels_per_block = 64 if size * channels >= 64 * _MANY_BLOCKS else 16
    if kernel == "roi_align_last":
        channels_per_block = ROI_ALIGN.LAST_CHANNELS
    blocks = size * -(-channels // channels_per_block)
    record = RoiAlign(
        maps, pyramid, rois, dtype_code(rois), images, channels, rows, columns,
        ratio, aligned, channels_per_block, pooled,
    )  # fmt: skip
    launch("roi_align", kernel, pooled.dtype.char, blocks, ROI_ALIGN.POOL_THREADS, record)


def multiscale_roi_align_backward(
    grad: Array,
    rois: Array,
    input_shapes: Sequence[Shape],
    spatial_scales: Sequence[float],
    area_limits: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> list[Array]:
    values, rois = in_working_precision(grad, rois)
    size, (images, channels, *_), storage = len(rois), input_shapes[0], values.dtype
    rows, columns = grad.shape[2:]
    if images * channels == 0:
        return [empty(shape, grad.dtype) for shape in input_shapes]
    gradients = [empty(shape, storage) for shape in input_shapes]
    threads = ROI_ALIGN.TILE**2
    chunks = math.ceil(size / threads)
    room = size * ROI_ALIGN.ROI_BYTES[working_size(storage.char)] + chunks * ROI_ALIGN.CHUNK_BYTES
    workspace = empty((room,), "uint8")
    sizes = tuple(tuple(shape[2:]) for shape in input_shapes)
    for some, missing, pyramid in _launches(sizes, tuple(spatial_scales), tuple(area_limits)):
        if size:
            footprints = RoiAlignFootprints(
                pyramid, rois, dtype_code(rois), size, images, rows, columns, sampling_ratio, int(aligned), workspace
            )
            launch("roi_align", "roi_align_footprints", storage.char, chunks, threads, footprints)
        tiles = sum(math.prod(math.ceil(length / ROI_ALIGN.TILE) for length in lengths) for lengths in sizes[some])
        record = RoiAlignGradients(
            values, workspace, size, images, channels, rows, columns, pyramid, (*gradients[some], *missing)
        )
        blocks = images * math.ceil(channels / ROI_ALIGN.GRADIENTS) * tiles
        launch("roi_align", "roi_align_gradients", storage.char, blocks, threads, record)
    return [converted(gradient, grad.dtype) for gradient in gradients]


def _read_where_they_lie(features: Sequence[Array], rois: Array) -> tuple[list[Array], str]:
    """The maps, all in one layout and in working precision, and the kernel for this layout."""
    maps, kernel = list(features), "roi_align"
    lie_so = all(map(_is_contiguous, maps))
    if not lie_so:
        transposed = [array.transpose(0, 2, 3, 1) for array in maps]
        if lie_so := all(map(_is_contiguous, transposed)):
            maps, kernel = transposed, "roi_align_last"
    if working_dtype(rois, *maps) == "d":
        maps = [converted(array, "d") for array in maps]
        lie_so = False
    return maps if lie_so else [contiguous(array) for array in maps], kernel


@functools.lru_cache(64)
def _one_level(height: int, width: int, scale: float) -> Any:
    """The packed `Pyramid` of one map."""
    return _launches(((height, width),), (scale,), ())[0][2]


@functools.lru_cache(64)
def _launches(
    sizes: tuple[tuple[int, int], ...], scales: tuple[float, ...], area_limits: tuple[float, ...]
) -> list[tuple[slice, list[None], Any]]:
    """For each launch, its levels, one None for each that a record has besides, and their packed `Pyramid`.

    A RoI is pooled from level sum(area >= area_limits).
    """
    launches = []
    limits = [0.0, *area_limits, *[math.nan] * ROI_ALIGN.LEVELS]
    for first in range(0, len(sizes), ROI_ALIGN.LEVELS):
        some = slice(first, first + ROI_ALIGN.LEVELS)
        missing = max(first + ROI_ALIGN.LEVELS - len(sizes), 0)
        heights, widths = zip(*sizes[some], *[(0, 0)] * missing, strict=True)
        some_scales: Any = *scales[some], *[1.0] * missing
        some_limits: Any = tuple(limits[some])
        pyramid = Pyramid(heights, widths, some_scales, some_limits, limits[some.stop])
        launches.append((some, [None] * missing, pack(pyramid)))
    return launches
