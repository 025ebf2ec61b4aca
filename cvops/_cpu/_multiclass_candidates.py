"""The candidates of multiclass_nms: one pass over the scores, then those of each image by rank.

scan      every score is read once, where it lies, 64 at a time; what passes its floor becomes a candidate: its key
          (see `_rank`) with its number box * C + class below. Ranges of an image are scanned by several threads,
          each into a part of its own.
rank      the candidates of an image go into buckets of like keys; each bucket is sorted when its turn comes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types

from . import _threads
from ._jit import jit, jit_for
from ._memory import Array, contiguous
from ._rank import (
    FEW_UNMOVED,
    SHORT_DIGITS_UP_TO,
    count_values,
    insert,
    key_of_float32,
    make_places,
    rank_float64,
    sort_by_key,
)
from ._simd import WIDTH, full, load, load_one, store
from ._simd_math import above, best_lane, better, first_of, keep_better, multiply

# Scores that are looked at together: four vectors of lanes, and a bit for each.
_SCORES_AT_ONCE = 64
# Parts of all images, so that threads share them evenly.
_PARTS = 16
# Candidates of a part that there is memory for at first.
_FEW = 4096
# Buckets of the candidates of an image, at most; measured.
_MOST_BUCKETS = 1 << 12


class Candidates(NamedTuple):
    """Those of part p of image i: elements[(i * P + p) * size :][: counts[i, p]], where there are P parts."""

    elements: Array  # uint64: the key, and in the lower `bits` the number
    counts: Array
    size: int
    bits: int


def candidates_of(
    scores: Array, objectness: Array | None, floors: Array | None, most: int, multi_label: bool, dtype: str
) -> Candidates:
    """The candidates of all images, in any order."""
    images, length, classes = scores.shape
    scores = scores if scores.dtype.char == "f" else scores.astype("f")  # in the same order in memory
    strides = strides_of(scores)
    # The inner loop runs along the axis on which neighbours lie nearest.
    along_boxes = classes == 1 or (length > 1 and strides[1] <= strides[2])
    lines = length if not multi_label or not along_boxes else classes
    parts = max(min(lines, -(-_PARTS // images)), 1)
    line_length = length * classes // lines if multi_label else 1
    factors = contiguous(np.ones((0, 0), "f") if objectness is None else objectness, "f")
    floors32 = contiguous(np.zeros(classes, "f") if floors is None else floors, "f")
    bits = (length * classes).bit_length()
    common = scores, strides, classes, along_boxes, factors, floors32, floors is None, bits, lines, line_length
    # Mostly few scores pass, and memory that is not touched may still cost its pages: first in a little of it.
    full_size = -(-lines // parts) * line_length
    for size in (min(_FEW, full_size), full_size):
        elements, counts = np.empty(images * parts * size, np.uint64), np.empty((images, parts), np.int64)
        _threads.run(
            _scan if multi_label else _scan_best, images * parts, *common, size, elements, counts,
            nanoseconds=scores.size * 0.4,
        )  # fmt: skip
        if counts.min() >= 0:
            break
    return Candidates(elements, counts, size, bits)


def rank_candidates(candidates: Candidates, most: int) -> tuple[Array, Array]:
    """(numbers of the `most` best candidates of each image, by rank in each; where images begin in it, and the end)."""
    totals = candidates.counts.sum(1)
    bounds = np.zeros(len(totals) + 1, np.int64)
    np.cumsum(np.minimum(totals, most), out=bounds[1:])
    numbers = np.empty(bounds[-1], np.int64)
    _threads.run(
        _rank_images, len(totals), *candidates, most, bounds, numbers, nanoseconds=30 * int(totals.sum())
    )  # fmt: skip
    return numbers, bounds


def rank_in_parts(
    some: int, scores: Array, objectness: Array | None, floors: Array | None, most: int, *options: Any
) -> tuple[Array, Array]:
    """As `rank_candidates`, of so many images at a time."""
    numbers, bounds = [], [np.zeros(1, np.int64)]
    for begin in range(0, len(scores), some):
        images = slice(begin, begin + some)
        factors = None if objectness is None else objectness[images]
        of_some, ends = rank_candidates(candidates_of(scores[images], factors, floors, most, *options), most)
        numbers.append(of_some)
        bounds.append(bounds[-1][-1] + ends[1:])
    return np.concatenate(numbers), np.concatenate(bounds)


def strides_of(array: Array) -> tuple[int, ...]:
    """In elements; 0 where there is nothing to step to."""
    return tuple(
        stride // array.itemsize if size > 1 else 0 for size, stride in zip(array.shape, array.strides, strict=True)
    )


def of_any_strides(dimensions: int) -> Any:
    return types.Array(types.float32, dimensions, "A", readonly=True)


_NUMBER, _FLAG, _NUMBERS, _KEYS = types.int64, types.boolean, types.int64[::1], types.uint64[::1]
_SCAN = (
    _NUMBER, _NUMBER, of_any_strides(3), types.UniTuple(_NUMBER, 3), _NUMBER, _FLAG,
    types.Array(types.float32, 2, "C", readonly=True), types.Array(types.float32, 1, "C", readonly=True), _FLAG,
    _NUMBER, _NUMBER, _NUMBER, _NUMBER, _KEYS, types.int64[:, ::1],
)  # fmt: skip


@jit_for(*_SCAN)
def _scan(
    begin, end, scores, strides, classes, along_boxes, factors, floors, all_pass, bits, lines, line_length, size,
    elements, counts,
):  # fmt: skip
    """Write the candidates of the parts [begin, end) of all images to elements[part * size:], their number to `counts`.

    The number is -1 where they do not fit. An image has `lines` of scores, of which a part is some: along the boxes,
    those of a class, or else those of a box.
    """
    parts = counts.shape[1]
    step, stride = (strides[1], strides[2]) if along_boxes else (strides[2], strides[1])
    next_number, next_line = (classes, 1) if along_boxes else (1, classes)
    weighted = factors.size > 0
    is_plain = step == 1 and along_boxes and not weighted and not all_pass
    values = np.empty(_SCORES_AT_ONCE, np.float32)
    value_bits = values.view(np.int32)
    for part in range(begin, end):
        image = part // parts
        first, last = lines * (part % parts) // parts, lines * (part % parts + 1) // parts
        place, count = part * size, np.int64(0)
        for line in range(first, last):
            at = image * strides[0] + line * stride
            factor = factors[image, line] if weighted and not along_boxes else np.float32(1)
            floor = floors[line] if along_boxes else np.float32(0)
            k = 0
            while k < line_length:
                if is_plain:
                    k = _first_with_hits(scores, at, k, line_length, floor)
                width = min(_SCORES_AT_ONCE, line_length - k)
                if count + width > size:
                    count = np.int64(-1)
                    break
                hits = np.uint64(0)
                whole = width // WIDTH * WIDTH if step == 1 else 0
                for j in range(0, whole, WIDTH):
                    lanes = load(scores, at + k + j)
                    if weighted:
                        row = load(factors, image * line_length + k + j) if along_boxes else full(factor)
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
                    hits = ~np.uint64(0) >> np.uint64(_SCORES_AT_ONCE - width)
                while hits != np.uint64(0):
                    j = first_of(hits)
                    hits &= hits - np.uint64(1)
                    own = np.uint64(line * next_line + (k + j) * next_number)
                    elements[place + count] = key_of_float32(value_bits[j]) << np.uint64(bits) | own
                    count += 1
                k += _SCORES_AT_ONCE
            if count < 0:
                break
        counts[image, part % parts] = count


@jit
def _first_with_hits(scores, at, k, length, floor):
    """The first of k, k + 64, ... from which on one of 64 scores is above the floor, or where fewer are left."""
    floors = full(floor)
    while k + _SCORES_AT_ONCE <= length:
        j = at + k
        hits = above(load(scores, j), floors) | above(load(scores, j + WIDTH), floors)
        j += 2 * WIDTH
        hits |= above(load(scores, j), floors) | above(load(scores, j + WIDTH), floors)
        if hits != np.uint64(0):
            break
        k += _SCORES_AT_ONCE
    return k


@jit_for(*_SCAN)
def _scan_best(
    begin, end, scores, strides, classes, along_boxes, factors, floors, all_pass, bits, lines, line_length, size,
    elements, counts,
):  # fmt: skip
    """As `_scan`, of the best class of each box: the first of equals, and NaN only where there is nothing else."""
    parts = counts.shape[1]
    weighted = factors.size > 0
    run = 1024 if along_boxes else 1
    best, labels = np.empty(run, np.float32), np.empty(run, np.int32)
    best_bits, numbers = best.view(np.int32), np.arange(classes).astype(np.int32)
    for part in range(begin, end):
        image = part // parts
        first, last = lines * (part % parts) // parts, lines * (part % parts + 1) // parts
        place, count = part * size, np.int64(0)
        for box in range(first, last, run):
            width = min(run, last - box)
            at = image * strides[0] + box * strides[1]
            for j in range(width):
                best[j], labels[j] = np.nan, 0
            begin_label = 0
            if not along_boxes and strides[2] == 1:
                # Sixteen classes at once, then the best lane.
                begin_label = classes // WIDTH * WIDTH
                lanes, label_lanes = full(np.float32(np.nan)), full(np.int32(0))
                factor = full(factors[image, box] if weighted else np.float32(1))
                for label in range(0, begin_label, WIDTH):
                    others = load(scores, at + label)
                    if weighted:
                        others = multiply(others, factor)
                    label_lanes = keep_better(lanes, others, label_lanes, load(numbers, label))
                    lanes = better(lanes, others)
                best[0], labels[0] = best_lane(lanes, label_lanes)
            for label in range(begin_label, classes):
                of_label = at + label * strides[2]
                whole = width // WIDTH * WIDTH if strides[1] == 1 else 0
                own_label = full(np.int32(label))
                for j in range(0, whole, WIDTH):
                    lanes, others = load(best, j), load(scores, of_label + j)
                    if weighted:
                        others = multiply(others, load(factors, image * factors.shape[1] + box + j))
                    store(labels, j, keep_better(lanes, others, load(labels, j), own_label))
                    store(best, j, better(lanes, others))
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
        keys, ends = in_buckets(joined(elements, counts, size, image), most)
        start = 0
        for bucket_end in ends:
            sort(keys[start:bucket_end], bits)
            start = bucket_end
        for k in range(bounds[image + 1] - bounds[image]):
            numbers[bounds[image] + k] = np.int64(keys[k] & mask)


@jit
def joined(elements, counts, size, image):
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
def in_buckets(keys, most):
    """(the keys of the first buckets, which hold the `most` smallest keys; where each of these buckets ends).

    A bucket has keys of one range, in any order, and a later bucket has larger ones.
    """
    buckets = 16
    while buckets < keys.size // 2 and buckets < _MOST_BUCKETS:
        buckets *= 2
    low, shift, places = count_values(keys, buckets)
    used = total = np.int64(0)
    while total < min(most, keys.size):
        total += np.int64(places[used])
        used += 1
    make_places(places)
    moved = np.empty(total, np.uint64)
    for key in keys:
        bucket = (key - low) >> shift
        if bucket < np.uint64(used):
            moved[np.uint64(places[bucket])] = key
            places[bucket] += np.uint32(1)
    return moved, places[:used]


@jit
def sort(keys, bits):
    """Sort keys, no two of which are equal."""
    if keys.size <= FEW_UNMOVED:
        insert(keys, keys.size)
        return
    width = 8 if keys.size <= SHORT_DIGITS_UP_TO else 11
    ones, digits = np.uint64((1 << width) - 1), (32 + bits + width - 1) // width
    digit_counts = np.zeros((digits, 1 << width), np.int64)
    for key in keys:
        for digit in range(digits):
            digit_counts[digit, key >> np.uint64(width * digit) & ones] += 1
    keys[:], _ = sort_by_key(keys.copy(), np.empty(keys.size, np.int64), digit_counts, width)


def rank_in_float64(
    scores: Array, objectness: Array | None, floors: Array | None, most: int, multi_label: bool, dtype: str
) -> tuple[Array, Array]:
    """As `candidates_of` and `rank_candidates`, an image at a time, with NumPy."""
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
