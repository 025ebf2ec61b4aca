"""nms and batched_nms in one dispatch, which ranks, suppresses and allocates the result: for small and simple calls.

`lean_nms` and `lean_batched_nms` take a call whose arguments are surely right and return None for any other, and for
what takes longer: the general way then checks the arguments, says what is wrong with them, and gives the same answer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from ._jit import jit, jit_for
from ._memory import Array
from ._nms_all import lowered, search_all
from ._rank import group, rank
from ._xywh import looks_like_xywh

# Boxes up to which one dispatch is faster than several, and of which so many may be kept; measured.
MOST = 2048
FEW_KEPT = 256

_FLOAT32, _INT64 = np.dtype(np.float32), np.dtype(np.int64)
_BOXES = types.Array(types.float32, 2, "C", readonly=True)
_SCORES = types.Array(types.float32, 1, "C", readonly=True)
_LABELS = types.Array(types.int64, 1, "C", readonly=True)


def lean_nms(boxes: Any, scores: Any, iou_threshold: Any, score_threshold: Any) -> Array | None:
    """`nms`, or None for the general way to go."""
    if not _is_plain(boxes, scores, iou_threshold, score_threshold):
        return None
    floor = math.nan if score_threshold is None else score_threshold
    keep: Array | None = nms_of_few(boxes, scores, iou_threshold, floor, len(scores))
    return keep


def lean_batched_nms(boxes: Any, scores: Any, idxs: Any, iou_threshold: Any, score_threshold: Any) -> Array | None:
    """`batched_nms`, or None for the general way to go."""
    if not _is_plain(boxes, scores, iou_threshold, score_threshold):
        return None
    if type(idxs) is not np.ndarray or idxs.dtype is not _INT64 or idxs.shape != scores.shape:
        return None
    if not _is_contiguous(idxs.flags):
        return None
    floor = math.nan if score_threshold is None else score_threshold
    keep: Array | None = batched_nms_of_few(boxes, scores, idxs, iou_threshold, floor, len(scores))
    return keep


def _is_plain(boxes: Any, scores: Any, iou_threshold: Any, score_threshold: Any) -> bool:
    """Whether these arguments are right, few, and as kernels take them."""
    if not (
        type(boxes) is np.ndarray
        and type(scores) is np.ndarray
        and boxes.dtype is _FLOAT32
        and scores.dtype is _FLOAT32
        and type(iou_threshold) is float
        and 0.0 <= iou_threshold <= 1.0
        and (score_threshold is None or (type(score_threshold) is float and score_threshold == score_threshold))
    ):
        return False
    shape = scores.shape
    if len(shape) != 1 or shape[0] > MOST or boxes.shape != (shape[0], 4):
        return False
    return _is_contiguous(boxes.flags) and _is_contiguous(scores.flags)


def _is_contiguous(flags: Any) -> bool:
    return flags.c_contiguous is flags.aligned is True


@jit_for(_BOXES, _SCORES, types.float64, types.float64, types.int64)
def nms_of_few(boxes, scores, iou_threshold, floor, limit):
    """The indices that nms keeps, or None if many are kept or the boxes look like xywh."""
    if looks_like_xywh(boxes, 0):
        return None
    order = rank(scores, floor)
    ranked = np.empty((order.size, 4), boxes.dtype)
    gather_range(0, order.size, boxes, order, ranked)
    kept = np.empty(order.size, np.bool_)
    if not search_all(ranked, lowered(iou_threshold, boxes), limit, FEW_KEPT, kept):
        return None
    return _aligned(order[: select(order, kept, order)])


@jit_for(_BOXES, _SCORES, _LABELS, types.float64, types.float64, types.int64)
def batched_nms_of_few(boxes, scores, labels, iou_threshold, floor, limit):
    """The indices that batched_nms keeps, or None if many of a class are kept or the boxes look like xywh."""
    if looks_like_xywh(boxes, 0):
        return None
    order = rank(scores, floor)
    if order.size == 0:
        return _aligned(order)
    ranks, starts = group(labels, order)
    ranked = np.empty((order.size, 4), boxes.dtype)
    gather_range(0, order.size, boxes, order[ranks], ranked)
    kept = np.empty(order.size, np.bool_)
    threshold = lowered(iou_threshold, boxes)
    for s in range(starts.size - 1):
        segment = slice(starts[s], starts[s + 1])
        if not search_all(ranked[segment], threshold, limit, FEW_KEPT, kept[segment]):
            return None
    return _aligned(order[: min(select(order, by_rank(kept, ranks), order), limit)])


@jit
def _aligned(keep):
    """A copy that starts at a multiple of 64 bytes: JAX shares no other memory."""
    memory = np.empty(keep.size + 8, np.int64)
    begin = -memory.ctypes.data % 64 // 8
    result = memory[begin : begin + keep.size]
    for i in range(keep.size):
        result[i] = keep[i]
    return result


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
