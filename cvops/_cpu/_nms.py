"""Greedy non-maximum suppression: rank the boxes, then drop each that overlaps a kept one of better rank.

Two searches for the overlapping box give the same answer. `_search_all` looks at every kept box, 16 at a time.
`_search_near` looks only where a suppressor can be: IoU > t bounds how far apart the sizes and the corners of two boxes
can lie, so kept boxes are hashed by size and corner, and a few buckets are searched for each candidate. Kept boxes do
not overlap each other by more than t, so a bucket of the right size holds few of them, and the time is near-linear.

A threshold is decided by the true division in working precision; no kernel here may contract (see `_jit`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._checks import working_dtype
from . import _threads, _xywh
from ._jit import jit
from ._memory import Array, contiguous, copy, empty
from ._rank import group, rank, rank_float64
from ._xywh import looks_like_xywh

# Up to here one dispatch that ranks by counting beats a sort; measured with 16 to 1 024 boxes.
_FEW = 256
# Once so many boxes are kept, and for thresholds not below the second figure, looking only near is faster than looking
# at all of them; both measured.
_FEW_KEPT = 1024
_NEAR_THRESHOLD = 0.1


def nms(
    boxes: Array,
    scores: Array,
    iou_threshold: float,
    score_threshold: float | None,
    max_output: int | None,
    padded: bool,
) -> Array | tuple[Array, Array]:
    dtype = working_dtype(boxes, scores)
    boxes, scores = contiguous(boxes, dtype), contiguous(scores, dtype)
    length = len(scores) if max_output is None else max_output
    limit = min(length, len(scores))
    if len(scores) <= _FEW and dtype == "f":
        keep = np.empty(len(scores), np.int64)
        threshold = _threshold(iou_threshold, dtype)
        kept = _nms_few(boxes, scores, threshold, _floor(score_threshold), limit, keep)
        if kept < 0:
            kept = ~kept
            _xywh.tell()
        keep = keep[:kept]
    else:
        _xywh.check(boxes)
        order = _rank(scores, score_threshold)
        kept = _suppress(_gather(boxes, order), np.array([0, len(order)]), iou_threshold, limit)
        keep = _select(order, kept)
    return _result(keep, limit, length if padded else None)


def batched_nms(
    boxes: Array,
    scores: Array,
    idxs: Array,
    iou_threshold: float,
    score_threshold: float | None,
    max_output: int | None,
    padded: bool,
) -> Array | tuple[Array, Array]:
    dtype = working_dtype(boxes, scores)
    boxes, scores = contiguous(boxes, dtype), contiguous(scores, dtype)
    length = len(scores) if max_output is None else max_output
    limit = min(length, len(scores))
    _xywh.check(boxes)
    order = _rank(scores, score_threshold)
    if len(order) == 0:
        return _result(order, limit, length if padded else None)
    ranks, starts = group(_labels(idxs), order)
    kept = _by_rank(_suppress(_gather(boxes, order[ranks]), starts, iou_threshold, limit), ranks)
    return _result(_select(order, kept), limit, length if padded else None)


def _result(keep: Array, limit: int, padded_length: int | None) -> Array | tuple[Array, Array]:
    keep = keep[:limit]
    if padded_length is None:
        return copy(keep)
    indices, count = empty((padded_length,), "int64"), empty((), "int64")
    indices[: len(keep)] = keep
    indices[len(keep) :] = -1
    count[()] = len(keep)
    return indices, count


def _threshold(iou_threshold: float, dtype: str) -> np.floating:
    """The largest threshold in working precision that is not above `iou_threshold`: both decide alike."""
    real = np.float64 if dtype == "d" else np.float32
    threshold = real(iou_threshold)
    return np.nextafter(threshold, real(-1)) if float(threshold) > iou_threshold else threshold


def _floor(score_threshold: float | None) -> float:
    return math.nan if score_threshold is None else score_threshold


# ---------------------------------------------------------------------------------------------------------- ranking


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


@jit
def _by_rank(kept, ranks):
    ranked = np.empty_like(kept)
    for k in range(ranks.size):
        ranked[ranks[k]] = kept[k]
    return ranked


def _gather(boxes: Array, order: Array) -> Array:
    ranked = np.empty((len(order), 4), boxes.dtype)
    _threads.run(_gather_range, len(order), boxes, order, ranked, nanoseconds=8 * len(order))
    return ranked


@jit
def _gather_range(begin, end, boxes, order, ranked):
    for i in range(begin, end):
        for k in range(4):
            ranked[i, k] = boxes[order[i], k]


def _select(order: Array, kept: Array) -> Array:
    keep = np.empty(len(order), np.int64)
    return keep[: _select_into(order, kept, keep)]


@jit
def _select_into(order, kept, keep):
    count = 0
    for i in range(order.size):
        keep[count] = order[i]
        count += kept[i]
    return count


# ------------------------------------------------------------------------------------------------------ suppression


def _suppress(ranked: Array, starts: Array, iou_threshold: float, limit: int) -> Array:
    """Flags of the boxes that are kept, at most `limit` in each segment ranked[starts[s]:starts[s + 1]]."""
    kept = np.empty(len(ranked), np.bool_)
    if iou_threshold >= 1:  # no IoU is above 1
        kept[:] = True
        return kept
    threshold = _threshold(iou_threshold, ranked.dtype.char)
    few = len(ranked) if iou_threshold < _NEAR_THRESHOLD else _FEW_KEPT
    finished = np.empty(len(starts) - 1, np.bool_)
    nanoseconds = len(ranked) * min(5 + len(ranked) / len(finished) / 50, 100)
    _threads.run(
        _search_all_range,
        len(finished),
        ranked,
        starts,
        threshold,
        limit,
        few,
        kept,
        finished,
        nanoseconds=nanoseconds,
    )
    if not finished.all():
        unfinished = np.flatnonzero(~finished)
        _threads.run(
            _search_near_range,
            len(unfinished),
            unfinished,
            ranked,
            starts,
            threshold,
            limit,
            kept,
            *_grid(iou_threshold, ranked.dtype),
            nanoseconds=nanoseconds,
        )
    return kept


@jit
def _search_all_range(begin, end, ranked, starts, threshold, limit, few, kept, finished):
    for s in range(begin, end):
        segment = slice(starts[s], starts[s + 1])
        finished[s] = _search_all(ranked[segment], threshold, limit, few, kept[segment])


@jit
def _search_near_range(begin, end, segments, ranked, starts, threshold, limit, kept, t, shift, pitch, least_area):
    for s in segments[begin:end]:
        segment = slice(starts[s], starts[s + 1])
        _search_near(ranked[segment], threshold, limit, kept[segment], t, shift, pitch, least_area)


# Kept boxes lie in blocks of this many, coordinate by coordinate: x1, y1, x2, y2, area. LLVM turns a loop of just this
# length into straight vector code; 8 and 64 lanes were 10 and 3 times slower.
_LANES = 16


@jit
def _overlaps(block, x1, y1, x2, y2, area, threshold):
    """Whether the candidate overlaps a box of the block by more than the threshold."""
    zero = block.dtype.type(0)
    hit = 0
    for k in range(_LANES):
        width = max(min(x2, block[2, k]) - max(x1, block[0, k]), zero)
        height = max(min(y2, block[3, k]) - max(y1, block[1, k]), zero)
        inter = width * height
        hit |= inter / ((area + block[4, k]) - inter) > threshold
    return hit


@jit
def _overlaps_any(blocks, count, x1, y1, x2, y2, area, threshold):
    """Whether the candidate overlaps one of the first `count` boxes by more than the threshold."""
    for s in range((count + _LANES - 1) // _LANES):
        if _overlaps(blocks[s], x1, y1, x2, y2, area, threshold):
            return True
    return False


@jit
def _put(block, k, x1, y1, x2, y2, area):
    """Make the candidate the box in lane k of a block; lanes behind it overlap nothing."""
    if k == 0:
        for j in range(_LANES):
            block[0, j] = np.inf
            block[1, j] = np.inf
            block[2, j] = -np.inf
            block[3, j] = -np.inf
            block[4, j] = 0
    block[0, k] = x1
    block[1, k] = y1
    block[2, k] = x2
    block[3, k] = y2
    block[4, k] = area


@jit
def _search_all(boxes, threshold, limit, few, kept):
    """Suppress `boxes`, which are in rank order, comparing each with every kept one.

    Returns False, with `kept` unfinished, when more than `few` would have to be compared with.
    """
    zero, infinity = boxes.dtype.type(0), boxes.dtype.type(np.inf)
    blocks = np.empty((min(len(boxes), few) // _LANES + 1, 5, _LANES), boxes.dtype)
    held = total = 0
    for i in range(len(boxes)):
        x1, y1, x2, y2 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        width, height = x2 - x1, y2 - y1
        area = width * height
        # All others (empty, inverted, infinite, NaN) have IoU 0 or NaN with everything: kept, and no suppressor.
        overlapping = width > zero and height > zero and zero < area < infinity
        suppressed = total == limit
        if overlapping and not suppressed:
            suppressed = _overlaps_any(blocks, held, x1, y1, x2, y2, area, threshold)
        if overlapping and not suppressed:
            if held == few:
                return False
            _put(blocks[held // _LANES], held % _LANES, x1, y1, x2, y2, area)
            held += 1
        kept[i] = not suppressed
        total += kept[i]
    return True


@jit
def _nms_few(boxes, scores, threshold, floor, limit, keep):
    """All of nms in one dispatch; returns the number kept, or its complement if the boxes look like xywh."""
    order = rank(scores, floor)
    count = order.size
    ranked = np.empty((count, 4), boxes.dtype)
    _gather_range(0, count, boxes, order, ranked)
    kept = np.empty(count, np.bool_)
    _search_all(ranked, threshold, limit, count, kept)
    count = _select_into(order, kept, keep)
    return ~count if looks_like_xywh(boxes, 0) else count


# ---------------------------------------------------------------------------------------- suppression, looking near


def _grid(iou_threshold: float, dtype: Any) -> tuple[float, int, float, float]:
    """(threshold for the geometry, bits of a float64 below its size level, bucket pitch in largest sizes, least area).

    The geometry takes a threshold that is a little lower, so that rounding in working precision hides no pair. Levels
    and pitch shrink with 1 - t, as the room between two kept boxes does.
    """
    octaves = max(4 * (1 - iou_threshold), 2.0**-8)  # of size in one level: two of them from t = 0.5 downwards
    shift = 53 - max(0, math.floor(math.log2(2 / octaves)))
    return iou_threshold * (1 - 1e-5), shift, max(4 * (1 - iou_threshold), 1e-3), 16 * float(np.finfo(dtype).tiny)


@jit
def _level(size, shift):
    """Bucket of a positive float64 by size: its leading bits, a logarithm that is exactly monotone."""
    return np.float64(size).view(np.int64) >> shift


@jit
def _least(level, shift):
    """The smallest size of a level."""
    return np.int64(level << shift).view(np.float64)


@jit
def _scale(level, shift, pitch):
    """Cells of a level's buckets per unit of length: a cell is `pitch` times the level's largest size."""
    return 1 / (pitch * _least(level + 1, shift))


@jit
def _cell(position):
    return np.int64(math.floor(min(max(position, -(2.0**62)), 2.0**62)))


@jit
def _slot(x, y, a, c, mask):
    """Slot in the hash table of the cell (x, y) of the levels a (width) and c (height)."""
    key = np.uint64(x) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(y) * np.uint64(0xC2B2AE3D27D4EB4F)
    key += np.uint64(a * 2053 + c) * np.uint64(0x165667B19E3779F9)
    # Every bit of the key reaches every bit of the slot: regular grids of boxes must not share slots.
    key = (key ^ (key >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return np.int64((key ^ (key >> np.uint64(32))) & mask)


@jit
def _pair_of_levels(a, c):
    return (a * 67 + c) & 4095


@jit
def _search_near(boxes, threshold, limit, kept, t, shift, pitch, least_area):
    """As `_search_all`, but each box is compared only with kept ones of like size and place."""
    zero, infinity = boxes.dtype.type(0), boxes.dtype.type(np.inf)
    slots = 64
    while slots < len(boxes) // 8:
        slots *= 2
    mask = np.uint64(slots - 1)
    heads = np.full(slots, -1, np.int32)  # newest block of each chain
    blocks = np.empty((len(boxes), 5, _LANES), boxes.dtype)
    older = np.empty(len(boxes), np.int32)
    filled = np.empty(len(boxes), np.int32)
    occupied = np.zeros(4096, np.bool_)  # by pair of levels, so that empty scales cost nothing; may err to True
    # Where an area or a size may underflow or overflow, sizes say nothing about IoU: such boxes are compared with all
    # their like, those within a factor 2^30 included, which is more than any ratio that a threshold lets through.
    least_size, largest_size = 2.0**-900, 2.0**900
    delicate = np.empty((len(boxes) // _LANES + 1, 5, _LANES), boxes.dtype)
    used = held = total = 0
    for i in range(len(boxes)):
        kept[i] = False
        if total == limit:
            continue
        x1, y1, x2, y2 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        width, height = x2 - x1, y2 - y1
        area = width * height
        if width > zero and height > zero and zero < area < infinity:
            w, h = np.float64(width), np.float64(height)
            margin = min(area / least_area, min(w, h) / least_size, largest_size / max(w, h))
            a, c = _level(w, shift), _level(h, shift)
            column, row = _cell(x1 * _scale(a, shift, pitch)), _cell(y1 * _scale(c, shift, pitch))
            slot = _slot(column, row, a, c, mask)
            if margin < 2.0**30 and _overlaps_any(delicate, held, x1, y1, x2, y2, area, threshold):
                continue
            # Most suppressors are in the candidate's own bucket, so that one comes first.
            if margin >= 1 and (
                _overlaps_chain(blocks, older, heads[slot], x1, y1, x2, y2, area, threshold)
                or _overlaps_near(
                    heads, blocks, older, occupied, mask, x1, y1, x2, y2, area, threshold, t, shift, pitch
                )
            ):
                continue
            if margin < 2.0**30:
                _put(delicate[held // _LANES], held % _LANES, x1, y1, x2, y2, area)
                held += 1
            if margin >= 1:
                occupied[_pair_of_levels(a, c)] = True
                block = heads[slot]
                if block < 0 or filled[block] == _LANES:
                    older[used], heads[slot], filled[used] = block, used, 0
                    block = used
                    used += 1
                _put(blocks[block], filled[block], x1, y1, x2, y2, area)
                filled[block] += 1
        kept[i] = True
        total += 1


@jit
def _overlaps_near(heads, blocks, older, occupied, mask, x1, y1, x2, y2, area, threshold, t, shift, pitch):
    """Whether a kept box overlaps the candidate by more than the threshold.

    IoU > t means that the widths differ by less than a factor 1 / t and that the common width is at least t times the
    larger one. So a kept box of width v has its left edge in [x1 - (v - t max(w, v)), x1 + (w - t max(w, v))]; the same
    holds for heights. `floor` and rounding are monotone, so an edge in this range has its cell in the range of cells.
    """
    x, y, w, h = np.float64(x1), np.float64(y1), np.float64(x2 - x1), np.float64(y2 - y1)
    first, last = _level(h * t, shift), _level(h / t, shift)
    for a in range(_level(w * t, shift), _level(w / t, shift) + 1):
        narrowest, widest = _least(a, shift), _least(a + 1, shift)
        scale = _scale(a, shift, pitch)
        widest = min(widest, w / t)
        left = _cell((x - (widest - t * max(w, widest))) * scale)
        right = _cell((x + (w - t * max(w, narrowest))) * scale)
        for c in range(first, last + 1):
            if not occupied[_pair_of_levels(a, c)]:
                continue
            lowest, highest = _least(c, shift), _least(c + 1, shift)
            scale = _scale(c, shift, pitch)
            highest = min(highest, h / t)
            top = _cell((y - (highest - t * max(h, highest))) * scale)
            bottom = _cell((y + (h - t * max(h, lowest))) * scale)
            for column in range(left, right + 1):
                for row in range(top, bottom + 1):
                    block = heads[_slot(column, row, a, c, mask)]
                    if _overlaps_chain(blocks, older, block, x1, y1, x2, y2, area, threshold):
                        return True
    return False


@jit
def _overlaps_chain(blocks, older, block, x1, y1, x2, y2, area, threshold):
    while block >= 0:
        if _overlaps(blocks[block], x1, y1, x2, y2, area, threshold):
            return True
        block = older[block]
    return False
