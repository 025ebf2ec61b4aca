"""From the scores of a head to detections: one pass over the scores, then suppression within each image and class.

scan      every score is read once, where it lies, 16 at a time; what passes its floor becomes a candidate: its key
          (see `_rank`) with its number box * C + class below. Ranges of an image are scanned by several threads,
          each into a part of its own.
rank      the candidates of an image, best first; where they are limited, a histogram of the keys leaves the best.
suppress  the candidates of all images, as the classes of batched_nms
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._checks import working_dtype
from . import _threads, _xywh
from ._jit import jit
from ._memory import Array, contiguous, empty
from ._nms import gather, suppress
from ._nms_few import by_rank
from ._rank import group, key_of_float32, rank_float64, sort_by_key
from ._simd import any_above, full, load, madd, store
from ._simd_math import best_lane, better, keep_better

# Scores that are looked at together.
_LANES = 16
# Parts of all images, so that threads share them evenly.
_PARTS = 16
# Candidates of a part that there is memory for at first.
_FEW = 4096
# Values of the histogram that finds the best candidates: the upper half of a key.
_BUCKETS = 1 << 16
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
    numbers, bounds = _ranked_candidates(scores, objectness, score_threshold, max_candidates, multi_label, dtype)
    # Limits are any integers; the length of a padded result is one that memory can hold.
    most = len(numbers) if max_output is None else max_output if padded else min(max_output, len(numbers))
    of_class = most if max_per_class is None else min(max_per_class, most)
    kept = np.zeros(len(numbers), np.bool_)
    if len(numbers) and of_class:
        rows = _rows(numbers, bounds, length, classes, boxes.ndim == 4)
        if class_agnostic:
            limit = most if max_per_class is None else len(numbers)
            kept = suppress(_boxes_of(boxes, rows, dtype), bounds, iou_threshold, limit)
        else:
            ranks, starts = group(_labels(numbers, bounds, classes), np.arange(len(numbers)))
            ranked = _boxes_of(boxes, rows[ranks], dtype)
            kept = by_rank(suppress(ranked, starts, iou_threshold, of_class), ranks)
    counts = np.zeros(images, np.int64)
    _limit(numbers, bounds, classes, -1 if max_per_class is None else of_class, most, kept, counts)
    if padded:
        box, label, count = empty((images, most), "int64"), empty((images, most), "int64"), empty((images,), "int64")
        _write_padded(numbers, bounds, classes, kept, box, label)
        count[:] = counts
        return box, label, count
    total = int(counts.sum())
    image, box, label = empty((total,), "int64"), empty((total,), "int64"), empty((total,), "int64")
    _write(numbers, bounds, classes, kept, image, box, label)
    return image, box, label


# ------------------------------------------------------------------------------------------------------- candidates


def _ranked_candidates(
    scores: Array,
    objectness: Array | None,
    score_threshold: float | Array | None,
    most: int | None,
    multi_label: bool,
    dtype: str,
) -> tuple[Array, Array]:
    """(box * C + class of the candidates of all images, by rank in each; where images begin in it, and the end)."""
    images, length, classes = scores.shape
    most = length * classes if most is None else min(most, length * classes)
    floors = _floors(score_threshold, scores)
    if scores.size == 0 or most == 0:
        return np.empty(0, np.int64), np.zeros(images + 1, np.int64)
    bits = (length * classes).bit_length()
    of_32_bits = scores.dtype.char != "d" and (objectness is None or dtype == "f")
    if not of_32_bits or bits > 32:
        return _ranked_in_float64(scores, objectness, floors, most, multi_label, dtype)
    if scores.dtype.char != "f":
        some = max(_WIDENED // (length * classes), 1)
        if some < images:
            return _ranked_in_parts(some, scores, objectness, score_threshold, most, multi_label, dtype)
        scores = scores.astype("f")  # in the same order in memory
    flat, origin, strides = _flat(scores)
    # The inner loop runs along the axis on which neighbours lie nearest.
    along_boxes = classes == 1 or (length > 1 and strides[1] <= strides[2])
    outer = length if not multi_label or not along_boxes else classes
    parts = max(min(outer, -(-_PARTS // images)), 1)
    per_outer = length * classes // outer if multi_label else 1
    factors = contiguous(np.ones((0, 0), "f") if objectness is None else objectness, "f")
    floors32 = contiguous(np.zeros(classes, "f") if floors is None else floors, "f")
    # Mostly few scores pass, and memory that is not touched may still cost its pages: first in a little of it.
    full_size = -(-outer // parts) * per_outer
    for size in (min(_FEW, full_size), full_size):
        elements, counts = np.empty(images * parts * size, np.uint64), np.empty((images, parts), np.int64)
        _threads.run(
            (_scan if multi_label else _scan_best),
            images * parts,
            flat,
            origin,
            strides,
            (length, classes),
            along_boxes,
            factors,
            floors32,
            floors is None,
            bits,
            outer,
            per_outer,
            size,
            elements,
            counts,
            nanoseconds=scores.size * 0.4,
        )
        if (counts >= 0).all():
            break
    totals = counts.sum(1)
    bounds = np.zeros(images + 1, np.int64)
    np.cumsum(np.minimum(totals, most), out=bounds[1:])
    numbers = np.empty(bounds[-1], np.int64)
    _threads.run(
        _rank_images,
        images,
        elements,
        counts,
        size,
        most,
        bits,
        bounds,
        numbers,
        nanoseconds=30 * int(totals.sum()),
    )
    return numbers, bounds


def _ranked_in_parts(some: int, scores: Array, objectness: Array | None, *options: Any) -> tuple[Array, Array]:
    """As `_ranked_candidates`, of so many images at a time."""
    numbers, bounds = [], [np.zeros(1, np.int64)]
    for begin in range(0, len(scores), some):
        images = slice(begin, begin + some)
        of_some, ends = _ranked_candidates(scores[images], None if objectness is None else objectness[images], *options)
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


def _flat(array: Array) -> tuple[Array, int, tuple[int, ...]]:
    """(the memory of `array` as one dimension, where in it the first element lies, strides in elements)."""
    strides = tuple(
        stride // array.itemsize if size > 1 else 0 for size, stride in zip(array.shape, array.strides, strict=True)
    )
    spans = [stride * (size - 1) for size, stride in zip(array.shape, strides, strict=True)]
    upwards = array[tuple(slice(None, None, -1 if span < 0 else None) for span in spans)]
    size, first = sum(map(abs, spans)) + 1, -sum(span for span in spans if span < 0)
    flat = np.lib.stride_tricks.as_strided(upwards, (size,), (array.itemsize,), writeable=False)
    return flat, first, strides


@jit
def _scan(
    begin, end, flat, origin, strides, shape, along_boxes, factors, floors, all_pass, bits, outer, per_outer, size,
    elements, counts,
):  # fmt: skip
    """Candidates of the parts [begin, end) of all images: elements[part * size:], and their number in `counts`.

    It is -1 where they do not fit.
    """
    parts, classes = counts.shape[1], shape[1]
    step, stride = (strides[1], strides[2]) if along_boxes else (strides[2], strides[1])
    weighted = factors.size > 0
    zeros = full(np.float32(0))
    values = np.empty(_LANES, np.float32)
    value_bits = values.view(np.int32)
    for item in range(begin, end):
        image, part = item // parts, item % parts
        first, last = outer * part // parts, outer * (part + 1) // parts
        place, count = item * size, np.int64(0)
        for line in range(first, last):
            at = origin + image * strides[0] + line * stride
            number, next_number = (line, classes) if along_boxes else (line * classes, 1)
            factor = factors[image, line] if weighted and not along_boxes else np.float32(1)
            floor = floors[line] if along_boxes else np.float32(0)
            all_floors, all_factors = full(floor), full(factor)
            for k in range(0, per_outer, _LANES):
                width = min(_LANES, per_outer - k)
                if step == 1 and width == _LANES and not all_pass:
                    # Most scores end here. A product plus 0 is the product, however it is rounded.
                    lanes = load(flat, at + k)
                    if weighted:
                        row = load(factors, image * per_outer + k) if along_boxes else all_factors
                        lanes = madd(lanes, row, zeros)
                    if not any_above(lanes, all_floors if along_boxes else load(floors, k)):
                        continue
                if count + width > size:
                    count = np.int64(-1)
                    break
                for j in range(width):
                    if weighted and along_boxes:
                        factor = factors[image, k + j]
                    if not along_boxes:
                        floor = floors[k + j]
                    values[j] = flat[at + (k + j) * step] * factor
                    own = np.uint64(number + (k + j) * next_number)
                    elements[place + count] = key_of_float32(value_bits[j]) << np.uint64(bits) | own
                    count += all_pass or values[j] > floor
            if count < 0:
                break
        counts[image, part] = count


@jit
def _scan_best(
    begin, end, flat, origin, strides, shape, along_boxes, factors, floors, all_pass, bits, outer, per_outer, size,
    elements, counts,
):  # fmt: skip
    """As `_scan`, of the best class of each box: the first of equals, and NaN only where there is nothing else."""
    parts, classes = counts.shape[1], shape[1]
    weighted = factors.size > 0
    tile = 1024 if along_boxes else 1
    best, labels = np.empty(tile, np.float32), np.empty(tile, np.int32)
    best_bits, numbers = best.view(np.int32), np.arange(classes).astype(np.int32)
    zeros = full(np.float32(0))
    for item in range(begin, end):
        image, part = item // parts, item % parts
        first, last = outer * part // parts, outer * (part + 1) // parts
        place, count = item * size, np.int64(0)
        for box in range(first, last, tile):
            width = min(tile, last - box)
            at = origin + image * strides[0] + box * strides[1]
            for j in range(width):
                best[j], labels[j] = np.nan, 0
            begin_label = 0
            if not along_boxes and strides[2] == 1:
                # Sixteen classes at once, then the best lane.
                begin_label = classes // _LANES * _LANES
                lanes, label_lanes = full(np.float32(np.nan)), full(np.int32(0))
                factor = full(factors[image, box] if weighted else np.float32(1))
                for label in range(0, begin_label, _LANES):
                    found = load(flat, at + label)
                    if weighted:
                        found = madd(found, factor, zeros)
                    label_lanes = keep_better(lanes, found, label_lanes, load(numbers, label))
                    lanes = better(lanes, found)
                best[0], labels[0] = best_lane(lanes, label_lanes)
            for label in range(begin_label, classes):
                of_label = at + label * strides[2]
                whole = width // _LANES * _LANES if strides[1] == 1 else 0
                own_label = full(np.int32(label))
                for j in range(0, whole, _LANES):
                    # A product plus 0 is the product, however it is rounded.
                    lanes, found = load(best, j), load(flat, of_label + j)
                    if weighted:
                        found = madd(found, load(factors, image * factors.shape[1] + box + j), zeros)
                    store(labels, j, keep_better(lanes, found, load(labels, j), own_label))
                    store(best, j, better(lanes, found))
                for j in range(whole, width):
                    value = flat[of_label + j * strides[1]]
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
        counts[image, part] = count


@jit
def _rank_images(begin, end, elements, counts, size, most, bits, bounds, numbers):
    """numbers[bounds[i]:bounds[i + 1]]: those of the best candidates of image i, best first."""
    parts = counts.shape[1]
    mask = np.uint64((1 << bits) - 1)
    for image in range(begin, end):
        start = image * parts * size
        count = np.int64(0)
        for part in range(parts):
            place = start + part * size
            for k in range(counts[image, part]):
                elements[start + count + k] = elements[place + k]
            count += counts[image, part]
        keys = elements[start : start + count]
        if count > most:
            keys = keys[: _keep_best(keys, most, np.uint64(bits + 16))]
        width = 8 if keys.size < 1500 else 11
        ones, digits = np.uint64((1 << width) - 1), (32 + bits + width - 1) // width
        digit_counts = np.zeros((digits, 1 << width), np.int64)
        for k in range(keys.size):
            for digit in range(digits):
                digit_counts[digit, keys[k] >> np.uint64(width * digit) & ones] += 1
        keys, _ = sort_by_key(keys, np.empty(keys.size, np.int64), digit_counts, width)
        for k in range(bounds[image + 1] - bounds[image]):
            numbers[bounds[image] + k] = np.int64(keys[k] & mask)


@jit
def _keep_best(keys, most, shift):
    """Move the `most` smallest keys, and some of those that share their upper bits, to the front; return how many."""
    histogram = np.zeros(_BUCKETS, np.int64)
    for k in range(keys.size):
        histogram[keys[k] >> shift] += 1
    last, up_to = 0, histogram[0]
    while up_to < most:
        last += 1
        up_to += histogram[last]
    count = np.int64(0)
    for k in range(keys.size):
        key = keys[k]
        keys[count] = key
        count += key >> shift <= np.uint64(last)
    return count


def _ranked_in_float64(
    scores: Array, objectness: Array | None, floors: Array | None, most: int, multi_label: bool, dtype: str
) -> tuple[Array, Array]:
    """As `_ranked_candidates`, an image at a time, with NumPy."""
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


@jit
def _write(numbers, bounds, classes, kept, images, boxes, labels):
    count = 0
    for image in range(bounds.size - 1):
        for k in range(bounds[image], bounds[image + 1]):
            if kept[k]:
                images[count], boxes[count], labels[count] = image, numbers[k] // classes, numbers[k] % classes
                count += 1


@jit
def _write_padded(numbers, bounds, classes, kept, boxes, labels):
    boxes[:] = -1
    labels[:] = -1
    for image in range(bounds.size - 1):
        count = 0
        for k in range(bounds[image], bounds[image + 1]):
            if kept[k]:
                boxes[image, count], labels[image, count] = numbers[k] // classes, numbers[k] % classes
                count += 1
