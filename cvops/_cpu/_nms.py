"""Greedy non-maximum suppression: rank the boxes, then drop each that overlaps a kept one of better rank.

Small calls take one dispatch (`_nms_few`). Three searches for a suppressor give the same answer, and each leaves to the
next what it is slow at: `_nms_all` looks at every kept box, `_nms_grid` in one cell of a grid, which suits boxes of
like sizes, and `_nms_hash` in a few buckets by size and place, which suits all boxes. Below thresholds that geometry
can use, `_nms_batches` looks at every kept box with all threads.
"""

from __future__ import annotations

import math

import numpy as np

from .._checks import working_dtype
from .._nms import NEAR_THRESHOLD
from . import _nms_all, _nms_batches, _nms_few, _nms_grid, _nms_hash, _threads, _xywh
from ._memory import Array, contiguous, copy, empty
from ._rank import group, rank, rank_float64

# Below NEAR_THRESHOLD, so many are kept before comparing in batches pays; measured.
_FEW_KEPT_IN_ONE_THREAD = 1024


def nms(
    boxes: Array,
    scores: Array,
    iou_threshold: float,
    score_threshold: float | None,
    max_output: int | None,
    padded: bool,
) -> Array | tuple[Array, Array]:
    boxes, scores, length, limit = _prepared(boxes, scores, max_output)
    keep = None
    if len(scores) <= _nms_few.MOST:
        of_few = _nms_few.nms_of_few if boxes.dtype.char == "f" else _nms_few.nms_of_few_float64
        keep = of_few(boxes, scores, iou_threshold, _floor(score_threshold), limit)
    if keep is None and len(scores) <= _nms_few.SOME and _nms_grid.LEAST_THRESHOLD <= iou_threshold < 1:
        of_some = _nms_few.nms_of_some if boxes.dtype.char == "f" else _nms_few.nms_of_some_float64
        keep = of_some(boxes, scores, iou_threshold, _floor(score_threshold), limit)
    if keep is None:
        _xywh.check(boxes)
        order = _rank(scores, score_threshold)
        kept = suppress(gather(boxes, order), np.array([0, len(order)]), iou_threshold, limit)
        keep = copy(_select(order, kept)[:limit])  # else it would hold the memory of all
    return _result(keep, length if padded else None)


def batched_nms(
    boxes: Array,
    scores: Array,
    idxs: Array,
    iou_threshold: float,
    score_threshold: float | None,
    max_output: int | None,
    padded: bool,
) -> Array | tuple[Array, Array]:
    boxes, scores, length, limit = _prepared(boxes, scores, max_output)
    labels = _labels(idxs)
    keep = None
    if len(scores) <= _nms_few.MOST:
        of_few = _nms_few.batched_nms_of_few if boxes.dtype.char == "f" else _nms_few.batched_nms_of_few_float64
        keep = of_few(boxes, scores, labels, iou_threshold, _floor(score_threshold), limit)
    if keep is None:
        _xywh.check(boxes)
        keep = order = _rank(scores, score_threshold)
        if len(order) > 0:
            ranks, starts = group(labels, order)
            kept = suppress(gather(boxes, order[ranks]), starts, iou_threshold, limit)
            keep = _select(order, _nms_few.by_rank(kept, ranks))[:limit]
        keep = copy(keep)
    return _result(keep, length if padded else None)


def _prepared(boxes: Array, scores: Array, max_output: int | None) -> tuple[Array, Array, int, int]:
    """(boxes and scores as kernels take them, length of a padded result, most boxes that may be kept)."""
    dtype = working_dtype(boxes, scores)
    boxes, scores = _as_real(boxes, dtype), _as_real(scores, dtype)
    length = len(scores) if max_output is None else max_output
    return boxes, scores, length, min(length, len(scores))


def _as_real(array: Array, dtype: str) -> Array:
    """`array` C-contiguous and of type code `dtype`, read-only."""
    if array.dtype.char != "e" or dtype != "f":
        return contiguous(array, dtype)
    widened = np.empty(array.shape, np.float32)
    _nms_few.widen(np.ascontiguousarray(array).view(np.uint16).ravel(), widened.ravel())
    widened.setflags(write=False)
    return widened


def _result(keep: Array, padded_length: int | None) -> Array | tuple[Array, Array]:
    if padded_length is None:
        return keep
    indices, count = empty((padded_length,), "int64"), empty((), "int64")
    indices[: len(keep)] = keep
    indices[len(keep) :] = -1
    count[()] = len(keep)
    return indices, count


def _floor(score_threshold: float | None) -> float:
    return math.nan if score_threshold is None else score_threshold


def _rank(scores: Array, score_threshold: float | None) -> Array:
    """Indices by decreasing score, ties by index, NaN last; only those above `score_threshold`, if there is one."""
    order: Array
    if scores.dtype.char == "f" and len(scores) < 1 << 32:
        order = rank(scores, _floor(score_threshold))
    else:
        order = rank_float64(contiguous(scores, "d"), _floor(score_threshold))
    return order


def _labels(idxs: Array) -> Array:
    """The class of each box as int64: equal for equal classes only."""
    if idxs.dtype.kind != "f":
        return contiguous(idxs, np.dtype(np.int64).char)
    labels = idxs.astype(np.float64) + 0.0  # -0.0 is 0.0
    labels = labels.astype(np.int64) if (abs(labels) < 2.0**63).all() else labels.view(np.int64)
    labels.setflags(write=False)
    return labels


def gather(boxes: Array, order: Array) -> Array:
    ranked = np.empty((len(order), 4), boxes.dtype)
    _threads.run(_nms_few.gather_range, len(order), boxes, order, ranked, nanoseconds=8 * len(order))
    return ranked


def _select(order: Array, kept: Array) -> Array:
    return order[: _nms_few.select(order, kept, order)]


def suppress(ranked: Array, starts: Array, iou_threshold: float, limit: int) -> Array:
    """Flags of the boxes that are kept, at most `limit` in each segment ranked[starts[s]:starts[s + 1]]."""
    kept = np.empty(len(ranked), np.bool_)
    if iou_threshold >= 1:  # no IoU is above 1
        kept[:] = True
        return kept
    few = _FEW_KEPT_IN_ONE_THREAD if iou_threshold < NEAR_THRESHOLD else _nms_few.FEW_KEPT
    segments = np.arange(len(starts) - 1)
    settled = np.empty(len(segments), np.int64)  # boxes whose flags are set: each search goes on where one gave up
    nanoseconds = len(ranked) * min(5 + len(ranked) / len(segments) / 50, 100)
    common = ranked, starts, iou_threshold, limit
    _threads.run(_nms_all.search_all_range, len(segments), *common, few, kept, settled, nanoseconds=nanoseconds)
    segments = segments[settled < np.diff(starts)]
    if iou_threshold < NEAR_THRESHOLD:
        for s in segments:
            segment = slice(starts[s], starts[s + 1])
            _nms_batches.search_in_batches(ranked[segment], iou_threshold, limit, kept[segment])
        return kept
    if len(segments) > 0 and iou_threshold >= _nms_grid.LEAST_THRESHOLD:
        _threads.run(
            _nms_grid.search_grid_range, len(segments), segments, *common, kept, settled, nanoseconds=nanoseconds
        )
        segments = segments[settled[segments] < np.diff(starts)[segments]]
    if len(segments) > 0:
        buckets = _nms_hash.buckets(iou_threshold, ranked.dtype)
        _threads.run(
            _nms_hash.search_near_range,
            len(segments),
            segments,
            *common,
            kept,
            settled,
            *buckets,
            nanoseconds=nanoseconds,
        )
    return kept
