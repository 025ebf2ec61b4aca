"""From the scores of a head to detections: one pass over the scores, then suppression within each image and class.

`_multiclass_candidates` scans and ranks. Where an image has few detections, suppression goes down the ranks until it
has all of them: what comes after is neither sorted nor looked at. Else all candidates of all images are suppressed as
the classes of batched_nms.
"""

from __future__ import annotations

import numpy as np
from numba import types

from .._checks import working_dtype
from . import _threads, _xywh
from ._jit import jit, jit_for
from ._memory import Array, copy, empty
from ._multiclass_candidates import (
    Candidates,
    candidates_of,
    in_buckets,
    joined,
    of_any_strides,
    rank_candidates,
    rank_in_float64,
    rank_in_parts,
    sort,
    strides_of,
)
from ._nms import gather, suppress
from ._nms_all import LANES, lowered, overlaps, put
from ._nms_few import by_rank
from ._rank import group
from ._simd import load_one

# An image may have so many detections where each candidate is compared with all of its class; measured.
_FEW_DETECTIONS = 1024
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
    dtype = working_dtype(boxes, scores, objectness)
    most = length * classes if max_candidates is None else min(max_candidates, length * classes)
    head = scores, objectness, _floors(score_threshold, scores), most, multi_label, dtype
    if images * most == 0:
        numbers, bounds = np.empty(0, np.int64), np.zeros(images + 1, np.int64)
    elif scores.dtype.char == "d" or (objectness is not None and dtype == "d") or (length * classes) >> 32:
        numbers, bounds = rank_in_float64(*head)
    elif scores.dtype.char != "f" and images > (some := max(_WIDENED // (length * classes), 1)):
        numbers, bounds = rank_in_parts(some, *head)
    else:
        candidates = candidates_of(*head)
        if boxes.dtype.char == dtype == "f" and not (class_agnostic and max_per_class is not None):
            found = _few_detections(
                candidates, boxes, classes, most, iou_threshold, max_per_class, max_output, class_agnostic
            )
            if found is not None:
                return _written(*found, classes, max_output if padded else None)
        numbers, bounds = rank_candidates(candidates, most)
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


def _floors(score_threshold: float | Array | None, scores: Array) -> Array | None:
    """The score that each class has to surpass, in the dtype of the scores; None if all pass."""
    if score_threshold is None:
        return None
    if isinstance(score_threshold, float):
        return np.full(scores.shape[2], score_threshold, scores.dtype)
    with np.errstate(all="ignore"):
        return score_threshold.astype(scores.dtype)


def _few_detections(
    candidates: Candidates,
    boxes: Array,
    classes: int,
    most: int,
    iou_threshold: float,
    max_per_class: int | None,
    max_output: int | None,
    class_agnostic: bool,
) -> tuple[Array, Array] | None:
    """(numbers of the detections, image after image; how many each image has).

    None where an image may have many detections, or where boxes look like xywh, which the general way then warns of.
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
        _search_images, len(totals), *candidates, most, classes, boxes, strides_of(boxes), iou_threshold, limit,
        of_class, class_agnostic, _xywh.is_looked_for(total), found, counts, nanoseconds=30 * total,
    )  # fmt: skip
    if counts.min() < 0:
        return None
    return found[np.arange(limit) < counts[:, None]], counts


_NUMBER, _FLAG = types.int64, types.boolean
_SEARCH = (
    _NUMBER, _NUMBER, types.uint64[::1], types.int64[:, ::1], _NUMBER, _NUMBER, _NUMBER, _NUMBER, of_any_strides(4),
    types.UniTuple(_NUMBER, 4), types.float64, _NUMBER, _NUMBER, _FLAG, _FLAG, types.int64[:, ::1], types.int64[::1],
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
        keys, ends = in_buckets(joined(elements, counts, size, image), most)
        origin, candidates = image * strides[0], min(keys.size, most)
        totals[image] = -1
        to_sort = keys.size  # the keys from there on are sorted
        if looks_for_xywh:
            if candidates < keys.size:  # some keys of the last bucket are none of the best
                to_sort = ends[-2] if ends.size > 1 else 0
                sort(keys[to_sort:], bits)
            if not _are_upright(keys[:candidates], mask, classes, boxes, origin, strides):
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
                if k < to_sort:
                    sort(keys[k:sorted_up_to], bits)
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
