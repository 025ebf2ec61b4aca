"""From the scores of a head to detections: one pass over the scores, then suppression within each image and class.

scan      every score is read once, where it lies, 64 at a time; what passes its floor becomes a candidate: its key
          (see `_rank`) with its number box * C + class below. Ranges of an image are scanned by several threads,
          each into a part of its own.
rank      the candidates of an image go into buckets of like keys; each bucket is sorted when its turn comes.
suppress  where an image has few detections, down the ranks until it has all of them: what comes after is neither
          sorted nor looked at. Else all candidates of all images, as the classes of batched_nms.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types

from .._checks import working_dtype
from . import _threads, _xywh
from ._jit import jit, jit_for
from ._memory import Array, contiguous, copy, empty
from ._nms import gather, suppress
from ._nms_all import LANES, lowered, overlaps, put
from ._nms_few import by_rank
from ._rank import group, insert, key_of_float32, make_places, rank_float64, sort_by_key
from ._simd import full, load, load_one, store
from ._simd_math import above, best_lane, better, first_of, keep_better, multiply

# Scores that are looked at together, in lanes.
_LANES, _TOGETHER = 16, 64
# Parts of all images, so that threads share them evenly.
_PARTS = 16
# Candidates of a part that there is memory for at first.
_FEW = 4096
# An image may have so many detections where each candidate is compared with all of its class; measured.
_FEW_DETECTIONS = 1024
# Buckets of candidates of an image, and keys up to which insertion sorts one; measured.
_MOST_BUCKETS, _FEW_KEYS = 1 << 12, 24
# 16-bit scores that are widened at a time, unless one image has more: 32 MB.
_WIDENED = 1 << 23


def multiclass_nms(
    boxes: Array,
    scores: Array,
    objectness: Array | None,
    iou_threshold: float,
    score_threshold: float | Array | None,
    max_candidates: int | None,
    max_per_class: int | None,
    max_output: int | None,
    multi_label: bool,
    class_agnostic: bool,
    metric: str,
    padded: bool,
) -> tuple[Array, Array, Array]:
    images, length, classes = scores.shape
    dtype = working_dtype(boxes, scores, *(() if objectness is None else (objectness,)))
    most = length * classes if max_candidates is None else min(max_candidates, length * classes)
    given = scores, objectness, _floors(score_threshold, scores), most, multi_label, dtype
    if images * most == 0:
        numbers, bounds = np.empty(0, np.int64), np.zeros(images + 1, np.int64)
    elif scores.dtype.char == "d" or (objectness is not None and dtype == "d") or (length * classes) >> 32:
        numbers, bounds = _ranked_in_float64(*given)
    elif scores.dtype.char != "f" and images > (some := max(_WIDENED // (length * classes), 1)):
        numbers, bounds = _ranked_in_parts(some, *given)
    else:
        candidates = _scanned(*given)
        if boxes.dtype.char == dtype == "f" and not (class_agnostic and max_per_class is not None):
            found = _few_detections(
                candidates, boxes, classes, most, iou_threshold, max_per_class, max_output, class_agnostic
            )
            if found is not None:
                return _written(*found, classes, max_output if padded else None)
        numbers, bounds = _ranked(candidates, most)
    # Limits are any integers; the length of a padded result is one that memory can hold.
    limit = len(numbers) if max_output is None else min(max_output, len(numbers))
    of_class = limit if max_per_class is None else min(max_per_class, limit)
    kept = np.zeros(len(numbers), np.bool_)
    if len(numbers) and of_class:
        rows = _rows(numbers, bounds, length, classes, boxes.ndim == 4)
        if class_agnostic:
            limit_of_all = limit if max_per_class is None else len(numbers)
            kept = suppress(_boxes_of(boxes, rows, dtype), bounds, iou_threshold, limit_of_all)
        else:
            ranks, starts = group(_labels(numbers, bounds, classes), np.arange(len(numbers)))
            ranked = _boxes_of(boxes, rows[ranks], dtype)
            kept = by_rank(suppress(ranked, starts, iou_threshold, of_class), ranks)
    counts = np.zeros(images, np.int64)
    _limit(numbers, bounds, classes, -1 if max_per_class is None else of_class, limit, kept, counts)
    return _written(numbers[kept], counts, classes, max_output if padded else None)


# ------------------------------------------------------------------------------------------------------- candidates


class _Candidates(NamedTuple):
    """Those of part p of image i: elements[(i * P + p) * size :][: counts[i, p]], where there are P parts."""

    elements: Array  # uint64: the key, and in the lower `bits` the number
    counts: Array
    size: int
    bits: int


def _scanned(
    scores: Array, objectness: Array | None, floors: Array | None, most: int, multi_label: bool, dtype: str
) -> _Candidates:
    """The candidates of all images, in any order."""
    images, length, classes = scores.shape
    scores = scores if scores.dtype.char == "f" else scores.astype("f")  # in the same order in memory
    strides = _strides(scores)
    # The inner loop runs along the axis on which neighbours lie nearest.
    along_boxes = classes == 1 or (length > 1 and strides[1] <= strides[2])
    outer = length if not multi_label or not along_boxes else classes
    parts = max(min(outer, -(-_PARTS // images)), 1)
    per_outer = length * classes // outer if multi_label else 1
    factors = contiguous(np.ones((0, 0), "f") if objectness is None else objectness, "f")
    floors32 = contiguous(np.zeros(classes, "f") if floors is None else floors, "f")
    bits = (length * classes).bit_length()
    common = scores, strides, (length, classes), along_boxes, factors, floors32, floors is None, bits, outer, per_outer
    # Mostly few scores pass, and memory that is not touched may still cost its pages: first in a little of it.
    full_size = -(-outer // parts) * per_outer
    for size in (min(_FEW, full_size), full_size):
        elements, counts = np.empty(images * parts * size, np.uint64), np.empty((images, parts), np.int64)
        _threads.run(
            _scan if multi_label else _scan_best, images * parts, *common, size, elements, counts,
            nanoseconds=scores.size * 0.4,
        )  # fmt: skip
        if counts.min() >= 0:
            break
    return _Candidates(elements, counts, size, bits)


def _ranked(candidates: _Candidates, most: int) -> tuple[Array, Array]:
    """(numbers of the `most` best candidates of each image, by rank in each; where images begin in it, and the end)."""
    totals = candidates.counts.sum(1)
    bounds = np.zeros(len(totals) + 1, np.int64)
    np.cumsum(np.minimum(totals, most), out=bounds[1:])
    numbers = np.empty(bounds[-1], np.int64)
    _threads.run(
        _rank_images, len(totals), *candidates, most, bounds, numbers, nanoseconds=30 * int(totals.sum())
    )  # fmt: skip
    return numbers, bounds


def _ranked_in_parts(
    some: int, scores: Array, objectness: Array | None, floors: Array | None, most: int, *options: Any
) -> tuple[Array, Array]:
    """As `_ranked`, of so many images at a time."""
    numbers, bounds = [], [np.zeros(1, np.int64)]
    for begin in range(0, len(scores), some):
        images = slice(begin, begin + some)
        factors = None if objectness is None else objectness[images]
        of_some, ends = _ranked(_scanned(scores[images], factors, floors, most, *options), most)
        numbers.append(of_some)
        bounds.append(bounds[-1][-1] + ends[1:])
    return np.concatenate(numbers), np.concatenate(bounds)


def _floors(score_threshold: float | Array | None, scores: Array) -> Array | None:
    """The score that each class has to surpass, in the dtype of the scores; None if all pass."""
    if score_threshold is None:
        return None
    if isinstance(score_threshold, float):
        return np.full(scores.shape[2], score_threshold, scores.dtype)
    with np.errstate(all="ignore"):
        return score_threshold.astype(scores.dtype)


def _strides(array: Array) -> tuple[int, ...]:
    """In elements; 0 where there is nothing to step to."""
    return tuple(
        stride // array.itemsize if size > 1 else 0 for size, stride in zip(array.shape, array.strides, strict=True)
    )


def _of_any_strides(dimensions: int) -> Any:
    return types.Array(types.float32, dimensions, "A", readonly=True)


_NUMBER, _FLAG, _NUMBERS, _KEYS = types.int64, types.boolean, types.int64[::1], types.uint64[::1]
_SCAN = (
    _NUMBER, _NUMBER, _of_any_strides(3), types.UniTuple(_NUMBER, 3), types.UniTuple(_NUMBER, 2), _FLAG,
    types.Array(types.float32, 2, "C", readonly=True), types.Array(types.float32, 1, "C", readonly=True), _FLAG,
    _NUMBER, _NUMBER, _NUMBER, _NUMBER, _KEYS, types.int64[:, ::1],
)  # fmt: skip


@jit_for(*_SCAN)
def _scan(
    begin, end, scores, strides, shape, along_boxes, factors, floors, all_pass, bits, outer, per_outer, size,
    elements, counts,
):  # fmt: skip
    """Candidates of the parts [begin, end) of all images: elements[part * size:], and their number in `counts`.

    It is -1 where they do not fit.
    """
    parts, classes = counts.shape[1], shape[1]
    step, stride = (strides[1], strides[2]) if along_boxes else (strides[2], strides[1])
    next_number, next_line = (classes, 1) if along_boxes else (1, classes)
    weighted = factors.size > 0
    is_plain = step == 1 and along_boxes and not weighted and not all_pass
    values = np.empty(_TOGETHER, np.float32)
    value_bits = values.view(np.int32)
    for part in range(begin, end):
        image = part // parts
        first, last = outer * (part % parts) // parts, outer * (part % parts + 1) // parts
        place, count = part * size, np.int64(0)
        for line in range(first, last):
            at = image * strides[0] + line * stride
            factor = factors[image, line] if weighted and not along_boxes else np.float32(1)
            floor = floors[line] if along_boxes else np.float32(0)
            k = 0
            while k < per_outer:
                if is_plain:
                    k = _first_with_hits(scores, at, k, per_outer, floor)
                width = min(_TOGETHER, per_outer - k)
                if count + width > size:
                    count = np.int64(-1)
                    break
                hits = np.uint64(0)
                whole = width // _LANES * _LANES if step == 1 else 0
                for j in range(0, whole, _LANES):
                    lanes = load(scores, at + k + j)
                    if weighted:
                        row = load(factors, image * per_outer + k + j) if along_boxes else full(factor)
                        lanes = multiply(lanes, row)
                    store(values, j, lanes)
                    hits |= above(lanes, full(floor) if along_boxes else load(floors, k + j)) << np.uint64(j)
                for j in range(whole, width):
                    if weighted and along_boxes:
                        factor = factors[image, k + j]
                    if not along_boxes:
                        floor = floors[k + j]
                    values[j] = load_one(scores, at + (k + j) * step) * factor
                    hits |= np.uint64(values[j] > floor) << np.uint64(j)
                if all_pass:
                    hits = ~np.uint64(0) >> np.uint64(_TOGETHER - width)
                while hits != np.uint64(0):
                    j = first_of(hits)
                    hits &= hits - np.uint64(1)
                    own = np.uint64(line * next_line + (k + j) * next_number)
                    elements[place + count] = key_of_float32(value_bits[j]) << np.uint64(bits) | own
                    count += 1
                k += _TOGETHER
            if count < 0:
                break
        counts[image, part % parts] = count


@jit
def _first_with_hits(scores, at, k, length, floor):
    """The first of k, k + 64, ... from which on one of 64 scores is above the floor, or where fewer are left."""
    floors = full(floor)
    while k + _TOGETHER <= length:
        j = at + k
        hits = above(load(scores, j), floors) | above(load(scores, j + _LANES), floors)
        j += 2 * _LANES
        hits |= above(load(scores, j), floors) | above(load(scores, j + _LANES), floors)
        if hits != np.uint64(0):
            break
        k += _TOGETHER
    return k


@jit_for(*_SCAN)
def _scan_best(
    begin, end, scores, strides, shape, along_boxes, factors, floors, all_pass, bits, outer, per_outer, size,
    elements, counts,
):  # fmt: skip
    """As `_scan`, of the best class of each box: the first of equals, and NaN only where there is nothing else."""
    parts, classes = counts.shape[1], shape[1]
    weighted = factors.size > 0
    tile = 1024 if along_boxes else 1
    best, labels = np.empty(tile, np.float32), np.empty(tile, np.int32)
    best_bits, numbers = best.view(np.int32), np.arange(classes).astype(np.int32)
    for part in range(begin, end):
        image = part // parts
        first, last = outer * (part % parts) // parts, outer * (part % parts + 1) // parts
        place, count = part * size, np.int64(0)
        for box in range(first, last, tile):
            width = min(tile, last - box)
            at = image * strides[0] + box * strides[1]
            for j in range(width):
                best[j], labels[j] = np.nan, 0
            begin_label = 0
            if not along_boxes and strides[2] == 1:
                # Sixteen classes at once, then the best lane.
                begin_label = classes // _LANES * _LANES
                lanes, label_lanes = full(np.float32(np.nan)), full(np.int32(0))
                factor = full(factors[image, box] if weighted else np.float32(1))
                for label in range(0, begin_label, _LANES):
                    found = load(scores, at + label)
                    if weighted:
                        found = multiply(found, factor)
                    label_lanes = keep_better(lanes, found, label_lanes, load(numbers, label))
                    lanes = better(lanes, found)
                best[0], labels[0] = best_lane(lanes, label_lanes)
            for label in range(begin_label, classes):
                of_label = at + label * strides[2]
                whole = width // _LANES * _LANES if strides[1] == 1 else 0
                own_label = full(np.int32(label))
                for j in range(0, whole, _LANES):
                    lanes, found = load(best, j), load(scores, of_label + j)
                    if weighted:
                        found = multiply(found, load(factors, image * factors.shape[1] + box + j))
                    store(labels, j, keep_better(lanes, found, load(labels, j), own_label))
                    store(best, j, better(lanes, found))
                for j in range(whole, width):
                    value = load_one(scores, of_label + j * strides[1])
                    if weighted:
                        value *= factors[image, box + j]
                    is_better = value > best[j] or (best[j] != best[j] and value == value)
                    best[j] = value if is_better else best[j]
                    labels[j] = label if is_better else labels[j]
            if count + width > size:
                count = np.int64(-1)
                break
            for j in range(width):
                own = np.uint64((box + j) * classes + labels[j])
                elements[place + count] = key_of_float32(best_bits[j]) << np.uint64(bits) | own
                count += all_pass or best[j] > floors[labels[j]]
        counts[image, part % parts] = count


@jit
def _rank_images(begin, end, elements, counts, size, bits, most, bounds, numbers):
    """numbers[bounds[i]:bounds[i + 1]]: those of the best candidates of image i, best first."""
    mask = np.uint64((1 << bits) - 1)
    for image in range(begin, end):
        keys, ends = _in_buckets(_joined(elements, counts, size, image), bits, most)
        start = 0
        for bucket_end in ends:
            _sort(keys[start:bucket_end], bits)
            start = bucket_end
        for k in range(bounds[image + 1] - bounds[image]):
            numbers[bounds[image] + k] = np.int64(keys[k] & mask)


@jit
def _joined(elements, counts, size, image):
    """The candidates of all parts of an image, moved together into its first part: they may be asked for again."""
    parts = counts.shape[1]
    start = image * parts * size
    count = np.int64(0)
    for part in range(parts):
        place = start + part * size
        for k in range(counts[image, part]):
            elements[start + count + k] = elements[place + k]
        count += counts[image, part]
        counts[image, part] = 0
    counts[image, 0] = count
    return elements[start : start + count]


@jit
def _in_buckets(keys, bits, most):
    """(the `most` smallest keys, then perhaps others, bucket after bucket; where each bucket ends).

    A bucket has keys of one range, in any order, and a later bucket has larger ones.
    """
    buckets = 16
    while buckets < keys.size // 2 and buckets < _MOST_BUCKETS:
        buckets *= 2
    low, high = ~np.uint64(0), np.uint64(0)
    for key in keys:
        low, high = min(low, key), max(high, key)
    shift = np.uint64(0)
    while keys.size and (high - low) >> shift >= np.uint64(buckets):
        shift += np.uint64(1)
    places = np.zeros(buckets, np.int64)
    for key in keys:
        places[(key - low) >> shift] += 1
    used = total = 0
    while total < min(most, keys.size):
        total += places[used]
        used += 1
    make_places(places)
    moved = np.empty(total, np.uint64)
    for key in keys:
        bucket = (key - low) >> shift
        if bucket < np.uint64(used):
            moved[places[bucket]] = key
            places[bucket] += 1
    if total > most:
        _sort(moved[places[used - 2] if used > 1 else 0 :], bits)
    return moved, places[:used]


@jit
def _sort(keys, bits):
    """Sort keys, no two of which are equal."""
    if keys.size <= _FEW_KEYS:
        insert(keys, keys.size)
        return
    width = 8 if keys.size < 1500 else 11
    ones, digits = np.uint64((1 << width) - 1), (32 + bits + width - 1) // width
    digit_counts = np.zeros((digits, 1 << width), np.int64)
    for key in keys:
        for digit in range(digits):
            digit_counts[digit, key >> np.uint64(width * digit) & ones] += 1
    keys[:], _ = sort_by_key(keys.copy(), np.empty(keys.size, np.int64), digit_counts, width)


def _ranked_in_float64(
    scores: Array, objectness: Array | None, floors: Array | None, most: int, multi_label: bool, dtype: str
) -> tuple[Array, Array]:
    """As `_scanned` and `_ranked`, an image at a time, with NumPy."""
    images, _, classes = scores.shape
    numbers, bounds = [], [0]
    for image in range(images):
        values = scores[image]
        if objectness is not None:
            with np.errstate(all="ignore"):
                values = values.astype(dtype) * objectness[image].astype(dtype)[:, None]
        passes = np.full(values.shape, True) if floors is None else values > floors
        if not multi_label:
            with np.errstate(all="ignore"):
                best = np.where(np.isnan(values), -math.inf, values).argmax(1)
            # Of NaN and -inf alone the first -inf is the best.
            lowest = np.take_along_axis(values, best[:, None], 1)[:, 0]
            best = np.where(np.isnan(lowest) | (lowest == -math.inf), (values == -math.inf).argmax(1), best)
            passes &= np.arange(classes) == best[:, None]
        candidates = np.flatnonzero(passes)
        ranked = candidates[rank_float64(values.reshape(-1)[candidates].astype("d"), math.nan)][:most]
        numbers.append(ranked)
        bounds.append(bounds[-1] + len(ranked))
    return np.concatenate(numbers), np.array(bounds)


# ------------------------------------------------------------------------------------------------------ suppression


def _few_detections(
    candidates: _Candidates,
    boxes: Array,
    classes: int,
    most: int,
    iou_threshold: float,
    max_per_class: int | None,
    max_output: int | None,
    class_agnostic: bool,
) -> tuple[Array, Array] | None:
    """(numbers of the detections, image after image; how many each image has), or None for the general way to go.

    That is for images that may have many, and to say a word about boxes that look like xywh.
    """
    totals = candidates.counts.sum(1)
    limit = min(most, int(totals.max()), most if max_output is None else max_output)
    if not 0 < limit <= _FEW_DETECTIONS:
        return None
    boxes = boxes if boxes.ndim == 4 else boxes[:, :, None]
    found, counts = np.empty((len(totals), limit), np.int64), np.empty(len(totals), np.int64)
    total = int(totals.sum())
    of_class = limit if max_per_class is None else min(max_per_class, limit)
    _threads.run(
        _search_images, len(totals), *candidates, most, classes, boxes, _strides(boxes), iou_threshold, limit, of_class,
        class_agnostic, _xywh.is_looked_for(total), found, counts, nanoseconds=30 * total,
    )  # fmt: skip
    if counts.min() < 0:
        return None
    return found[np.arange(limit) < counts[:, None]], counts


_SEARCH = (
    _NUMBER, _NUMBER, _KEYS, types.int64[:, ::1], _NUMBER, _NUMBER, _NUMBER, _NUMBER, _of_any_strides(4),
    types.UniTuple(_NUMBER, 4), types.float64, _NUMBER, _NUMBER, _FLAG, _FLAG, types.int64[:, ::1], _NUMBERS,
)  # fmt: skip


@jit_for(*_SEARCH)
def _search_images(
    begin, end, elements, counts, size, bits, most, classes, boxes, strides, iou_threshold, limit, of_class,
    class_agnostic, looks_for_xywh, found, totals,
):  # fmt: skip
    """found[i, :totals[i]]: numbers of the detections of image i; -1 of them if most of its boxes look like xywh."""
    groups = 1 if class_agnostic else classes
    mask = np.uint64((1 << bits) - 1)
    threshold = lowered(iou_threshold, boxes)
    zero, infinity = np.float32(0), np.float32(np.inf)
    # Blocks of kept boxes, each of one class, and the one of that class that was begun before it.
    blocks = np.empty((limit // LANES + min(groups, limit), 5, LANES), np.float32)
    before = np.empty(len(blocks), np.int64)
    newest, held, kept = np.empty(groups, np.int64), np.empty(groups, np.int64), np.empty(groups, np.int64)
    for image in range(begin, end):
        keys, ends = _in_buckets(_joined(elements, counts, size, image), bits, most)
        origin, candidates = image * strides[0], min(keys.size, most)
        totals[image] = -1
        if looks_for_xywh and not _are_upright(keys[:candidates], mask, classes, boxes, origin, strides):
            continue
        newest[:] = -1
        held[:] = 0
        kept[:] = 0
        blocks_used = bucket = sorted_up_to = count = 0
        for k in range(candidates):
            if count == limit:
                break
            if k == sorted_up_to:
                while ends[bucket] == k:
                    bucket += 1
                sorted_up_to = ends[bucket]
                _sort(keys[k:sorted_up_to], bits)
            number = np.int64(keys[k] & mask)
            x1, y1, x2, y2 = _box(number, classes, boxes, origin, strides)
            group = 0 if class_agnostic else number % classes
            if kept[group] == of_class:
                continue
            width, height = x2 - x1, y2 - y1
            area = width * height
            # As `search_all`: all others overlap nothing.
            if width > zero and height > zero and zero < area < infinity:
                block, suppressed = newest[group], False
                while block >= 0 and not suppressed:
                    suppressed = overlaps(blocks[block], x1, y1, x2, y2, area, threshold)
                    block = before[block]
                if suppressed:
                    continue
                if held[group] % LANES == 0:
                    before[blocks_used], newest[group] = newest[group], blocks_used
                    blocks_used += 1
                put(blocks, newest[group], held[group] % LANES, x1, y1, x2, y2, area)
                held[group] += 1
            kept[group] += 1
            found[image, count] = number
            count += 1
        totals[image] = count


@jit
def _box(number, classes, boxes, origin, strides):
    """The corners of the box of a candidate."""
    at = origin + number // classes * strides[1] + number % classes * strides[2]
    step = strides[3]
    return (
        load_one(boxes, at),
        load_one(boxes, at + step),
        load_one(boxes, at + 2 * step),
        load_one(boxes, at + 3 * step),
    )


@jit
def _are_upright(keys, mask, classes, boxes, origin, strides):
    """Whether at least half of the boxes of candidates are not inverted along an axis."""
    upright = 0
    for key in keys:
        if 2 * upright >= keys.size:
            break
        x1, y1, x2, y2 = _box(np.int64(key & mask), classes, boxes, origin, strides)
        upright += not (x2 < x1 or y2 < y1)
    return 2 * upright >= keys.size


@jit
def _rows(numbers, bounds, length, classes, of_classes):
    """The row of each candidate's box among those of all images: one for each box, or for each box and class."""
    rows = np.empty(numbers.size, np.int64)
    for image in range(bounds.size - 1):
        for k in range(bounds[image], bounds[image + 1]):
            own = numbers[k] if of_classes else np.int64(np.uint32(numbers[k] // classes))
            rows[k] = image * length * (classes if of_classes else 1) + own
    return rows


@jit
def _labels(numbers, bounds, classes):
    """A class of batched_nms for each image and class."""
    labels = np.empty(numbers.size, np.int64)
    for image in range(bounds.size - 1):
        for k in range(bounds[image], bounds[image + 1]):
            labels[k] = image * classes + numbers[k] % classes
    return labels


def _boxes_of(boxes: Array, rows: Array, dtype: str) -> Array:
    """boxes[rows] of all images, in working precision."""
    if boxes.flags.c_contiguous and boxes.dtype.char == dtype:
        ranked = gather(boxes.reshape(-1, 4), rows)
    else:
        places = np.unravel_index(rows, boxes.shape[:-1])
        ranked = boxes[places].astype(dtype)
    _xywh.check(ranked)
    return ranked


@jit
def _limit(numbers, bounds, classes, of_class, most, kept, counts):
    """Keep at most `of_class` of each class (-1: any number) and `most` of each image; counts[i]: those of image i."""
    for image in range(counts.size):
        of_classes = np.zeros(classes if of_class >= 0 else 0, np.int64)
        for k in range(bounds[image], bounds[image + 1]):
            if kept[k] and of_class >= 0:
                label = numbers[k] % classes
                of_classes[label] += 1
                kept[k] = of_classes[label] <= of_class
            kept[k] = kept[k] and counts[image] < most
            counts[image] += kept[k]


def _written(numbers: Array, counts: Array, classes: int, length: int | None) -> tuple[Array, Array, Array]:
    """The result, padded to `length` for each image if there is one, from the detections of one image after another."""
    if length is not None:
        box, label, count = empty((len(counts), length), "int64"), empty((len(counts), length), "int64"), copy(counts)
        _write_padded(numbers, counts, classes, box, label)
        return box, label, count
    image, box, label = (empty(numbers.shape, "int64") for _ in range(3))
    _write(numbers, counts, classes, image, box, label)
    return image, box, label


@jit
def _write(numbers, counts, classes, images, boxes, labels):
    k = 0
    for image in range(counts.size):
        for _ in range(counts[image]):
            images[k], boxes[k], labels[k] = image, numbers[k] // classes, numbers[k] % classes
            k += 1


@jit
def _write_padded(numbers, counts, classes, boxes, labels):
    boxes[:] = -1
    labels[:] = -1
    k = 0
    for image in range(counts.size):
        for place in range(counts[image]):
            boxes[image, place], labels[image, place] = numbers[k] // classes, numbers[k] % classes
            k += 1
