"""nms and batched_nms in one dispatch, which ranks, suppresses and allocates the result: for small and simple calls.

`lean_nms` and `lean_batched_nms` take a call whose arguments are surely right and return None for any other, and for
what takes longer: the general way then checks the arguments, says what is wrong with them, and gives the same answer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from .._checks import rounded
from ._jit import jit, jit_for
from ._memory import Array, new_indices, result
from ._nms_all import LANES, lowered, overlaps_any, put, search_all
from ._nms_grid import geometric, search_grid
from ._rank import group, rank, rank_float64
from ._xywh import looks_like_xywh

# Boxes up to which one dispatch is faster than several, and of which so many may be kept; measured.
MOST = 2048
FEW_KEPT = 256
# Boxes up to which threads do not pay.
SOME = 1 << 15
# Indices behind those that are kept for which a result keeps the memory of all: to copy it would take longer.
_MOST_IDLE = 48

_FLOAT64, _FLOAT32, _FLOAT16 = map(np.dtype, ("float64", "float32", "float16"))
_INT64, _UINT16 = np.dtype("int64"), np.dtype("uint16")
_ndarray = np.ndarray
_ALL = math.nan  # a score threshold that all scores pass


def _arrays_of(real: Any) -> tuple[Any, Any]:
    """Numba's types of boxes and scores: of any strides, so that columns of an array of detections are taken too."""
    return types.Array(real, 2, "A", readonly=True), types.Array(real, 1, "A", readonly=True)


_LABELS = types.Array(types.int64, 1, "C", readonly=True)


def lean_nms(boxes: Any, scores: Any, iou_threshold: Any, score_threshold: Any) -> Array | None:
    """`nms`, or None for the general way to go."""
    try:
        if type(boxes) is type(scores) is _ndarray and type(iou_threshold) is float and (limit := len(scores)) <= MOST:
            if boxes.dtype is scores.dtype is _FLOAT32 and score_threshold is None:
                keep: Array | None = nms_of_few(boxes, scores, iou_threshold, _ALL, limit)
                return keep
            kernels = nms_of_few, nms_of_few_float64
            return _other_lean(kernels, boxes, scores, (), iou_threshold, score_threshold, limit)
    except TypeError:  # of `len` or a kernel: another number of dimensions
        pass
    return None


def lean_batched_nms(boxes: Any, scores: Any, idxs: Any, iou_threshold: Any, score_threshold: Any) -> Array | None:
    """`batched_nms`, or None for the general way to go."""
    try:
        if (
            type(boxes) is type(scores) is type(idxs) is _ndarray
            and type(iou_threshold) is float
            and (limit := len(scores)) <= MOST
            and idxs.dtype is _INT64
            and len(idxs) == limit
            and _is_contiguous(idxs.flags)
        ):
            if boxes.dtype is scores.dtype is _FLOAT32 and score_threshold is None:
                keep: Array | None = batched_nms_of_few(boxes, scores, idxs, iou_threshold, _ALL, limit)
                return keep
            kernels = batched_nms_of_few, batched_nms_of_few_float64
            return _other_lean(kernels, boxes, scores, (idxs,), iou_threshold, score_threshold, limit)
    except TypeError:  # of `len` or a kernel: another number of dimensions
        pass
    return None


def _other_lean(
    kernels: tuple[Any, Any],
    boxes: Any,
    scores: Any,
    labels: tuple[Any, ...],
    iou_threshold: float,
    score_threshold: Any,
    limit: int,
) -> Array | None:
    """What the kernel for float32 or for float64 gives in the less ordinary calls, or None."""
    if score_threshold is None:
        score_threshold = _ALL
    elif type(score_threshold) is not float or score_threshold != score_threshold:
        return None
    dtype = boxes.dtype
    if dtype is not scores.dtype:
        return None
    kernel, kernel_float64 = kernels
    if dtype is _FLOAT64:
        kernel = kernel_float64
    elif dtype is _FLOAT16 and _is_contiguous(boxes.flags) and _is_contiguous(scores.flags):
        boxes, scores = _widened(boxes.view(_UINT16), scores.view(_UINT16))
        if score_threshold is not _ALL:
            score_threshold = rounded(score_threshold, "e")
    elif dtype is not _FLOAT32:
        return None
    keep: Array | None = kernel(boxes, scores, *labels, iou_threshold, score_threshold, limit)
    return keep


def _is_contiguous(flags: Any) -> bool:
    return flags.c_contiguous is flags.aligned is True


@jit
def _is_plain(boxes, scores, iou_threshold):
    """Whether the arguments are right and aligned, and no word about xywh is due."""
    return (
        boxes.shape[0] == scores.size
        and boxes.shape[1] == 4
        and 0.0 <= iou_threshold <= 1.0
        and (boxes.ctypes.data | boxes.strides[0] | boxes.strides[1]) % boxes.itemsize == 0
        and (scores.ctypes.data | scores.strides[0]) % scores.itemsize == 0
        and not looks_like_xywh(boxes, 0)
    )


@jit_for(*_arrays_of(types.float32), types.float64, types.float64, types.int64)
def nms_of_few(boxes, scores, iou_threshold, floor, limit):
    """The indices that nms keeps, or None for the general way to go: if many are kept, for one."""
    return _nms(boxes, rank(scores, floor), iou_threshold, limit) if _is_plain(boxes, scores, iou_threshold) else None


@jit_for(*_arrays_of(types.float64), types.float64, types.float64, types.int64)
def nms_of_few_float64(boxes, scores, iou_threshold, floor, limit):
    if not _is_plain(boxes, scores, iou_threshold):
        return None
    return _nms(boxes, rank_float64(scores, floor), iou_threshold, limit)


@jit
def _nms(boxes, order, iou_threshold, limit):
    """As `search_all`, in one pass, which moves the indices of the boxes that are kept to the front of `order`."""
    threshold = lowered(iou_threshold, boxes)
    zero, infinity = boxes.dtype.type(0), boxes.dtype.type(np.inf)
    blocks = np.empty((min(order.size, FEW_KEPT) // LANES + 1, 5, LANES), boxes.dtype)
    held = count = np.int64(0)
    for i in range(order.size):
        index = order[i]
        x1, y1, x2, y2 = boxes[index, 0], boxes[index, 1], boxes[index, 2], boxes[index, 3]
        width, height = x2 - x1, y2 - y1
        area = width * height
        if width > zero and height > zero and zero < area < infinity:
            if overlaps_any(blocks, held, x1, y1, x2, y2, area, threshold):
                continue
            if held == FEW_KEPT:
                return None
            put(blocks, held // LANES, held % LANES, x1, y1, x2, y2, area)
            held += 1
        if count == limit:
            break
        order[count] = index
        count += 1
    return _result(order, count, len(boxes))


@jit_for(*_arrays_of(types.float32), types.float64, types.float64, types.int64)
def nms_of_some(boxes, scores, iou_threshold, floor, limit):
    """As `nms_of_few`, of which many may be kept, for thresholds of the grid; or None if it does not suit."""
    if not _is_plain(boxes, scores, iou_threshold):
        return None
    return _nms_on_grid(boxes, rank(scores, floor), iou_threshold, limit)


@jit_for(*_arrays_of(types.float64), types.float64, types.float64, types.int64)
def nms_of_some_float64(boxes, scores, iou_threshold, floor, limit):
    if not _is_plain(boxes, scores, iou_threshold):
        return None
    return _nms_on_grid(boxes, rank_float64(scores, floor), iou_threshold, limit)


@jit(inline=True)
def _nms_on_grid(boxes, order, iou_threshold, limit):
    """Without a look at all of the first boxes kept, which would be more code to compile and no faster."""
    ranked = np.empty((order.size, 4), boxes.dtype)
    gather_range(0, order.size, boxes, order, ranked)
    kept, threshold = np.empty(order.size, np.bool_), lowered(iou_threshold, boxes)
    settled = search_grid(ranked, threshold, geometric(iou_threshold), limit, kept, np.int64(0))
    return _result(order, select(order, kept, order), len(boxes)) if settled == order.size else None


@jit_for(*_arrays_of(types.float32), _LABELS, types.float64, types.float64, types.int64)
def batched_nms_of_few(boxes, scores, labels, iou_threshold, floor, limit):
    """The indices that batched_nms keeps, or None for the general way to go: if many of a class are kept, for one."""
    if not _is_plain(boxes, scores, iou_threshold):
        return None
    return _batched_nms(boxes, rank(scores, floor), labels, iou_threshold, limit)


@jit_for(*_arrays_of(types.float64), _LABELS, types.float64, types.float64, types.int64)
def batched_nms_of_few_float64(boxes, scores, labels, iou_threshold, floor, limit):
    if not _is_plain(boxes, scores, iou_threshold):
        return None
    return _batched_nms(boxes, rank_float64(scores, floor), labels, iou_threshold, limit)


@jit
def _batched_nms(boxes, order, labels, iou_threshold, limit):
    if order.size == 0:
        return _result(order, 0, len(boxes))
    ranks, starts = group(labels, order)
    ranked = np.empty((order.size, 4), boxes.dtype)
    gather_range(0, order.size, boxes, order[ranks], ranked)
    kept = np.empty(order.size, np.bool_)
    threshold = lowered(iou_threshold, boxes)
    for s in range(starts.size - 1):
        segment = slice(starts[s], starts[s + 1])
        if search_all(ranked[segment], threshold, limit, FEW_KEPT, kept[segment]) < starts[s + 1] - starts[s]:
            return None
    count = min(select(order, by_rank(kept, ranks), order), limit)
    return _result(order, count, len(boxes))


@jit_for(types.Array(types.uint16, 2, "C", readonly=True), types.Array(types.uint16, 1, "C", readonly=True))
def _widened(boxes, scores):
    """Both in float32, from the bits of float16."""
    wide_boxes, wide_scores = np.empty(boxes.shape, np.float32), np.empty(scores.shape, np.float32)
    widen(boxes.ravel(), wide_boxes.ravel())
    widen(scores, wide_scores)
    return result(wide_boxes), result(wide_scores)


@jit
def widen(halves, widened):
    """Set `widened` to the float16 numbers of these bits: several times faster than a cast of NumPy's."""
    for i in range(halves.size):
        bits = np.uint32(halves[i])
        magnitude = (bits & np.uint32(0x7FFF)) << np.uint32(13)
        # The exponent counts from 15 in float16 and from 127 in float32; all ones stay all ones.
        value = np.uint32(magnitude).view(np.float32) * np.float32(2.0**112)
        if magnitude >= np.uint32(0x0F800000):
            value = np.uint32(magnitude | np.uint32(0x7F800000)).view(np.float32)
        widened[i] = -value if bits & np.uint32(0x8000) else value


@jit
def _result(order, count, most):
    """The first `count` indices as a result: a copy, where more than a little memory would lie idle behind them.

    There is memory for `most`, of which `order` may show a part: those above a score threshold.
    """
    if most - count <= _MOST_IDLE and order.ctypes.data % 64 == 0:
        return result(order[:count])
    keep = new_indices(count)
    for i in range(count):
        keep[i] = order[i]
    return result(keep)


@jit
def gather_range(begin, end, boxes, order, ranked):
    """ranked[begin:end] = boxes[order[begin:end]]."""
    for i in range(begin, end):
        for k in range(4):
            ranked[i, k] = boxes[order[i], k]


@jit
def by_rank(kept, ranks):
    """Flags of the boxes by rank, from flags class after class."""
    ranked = np.empty_like(kept)
    for k in range(ranks.size):
        ranked[ranks[k]] = kept[k]
    return ranked


@jit
def select(order, kept, keep):
    """Put the indices that are kept into `keep`, which may be `order` itself; returns how many."""
    count = 0
    for i in range(order.size):
        keep[count] = order[i]
        count += kept[i]
    return count
