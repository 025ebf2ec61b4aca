"""Stable radix sorts: boxes by decreasing score, and ranked boxes by class.

A score becomes an integer key, smaller for a larger score. Keys are sorted digit by digit from the last one on: the
counts of a digit's values say where the first element of each value goes, and the elements move there in order.

    elements 21 13 11 23   last digits: 1 twice, 3 twice   places: 1 from 0, 3 from 2   moved: 21 11 13 23
                           first digits: 1 twice, 2 twice  places: 1 from 0, 2 from 2   moved: 11 13 21 23

Counts of all digits are taken in the pass that makes the keys, and a digit that is the same everywhere moves nothing.
Few elements are inserted instead, and some are inserted when the highest digits are in order.
Other threads of the caller may change the inputs meanwhile: each is read once, and all that follows works on the copy.
"""

from __future__ import annotations

import numpy as np

from ._jit import jit
from ._memory import new_indices

# Up to here insertion beats moving digits, alone, and after the two highest digits; measured.
FEW_UNMOVED, _FEW = 48, 128
# Digits of 8 bits where counts of 11 would cost more than a pass (few scores), and where the places of 11 do not fit
# the processor's nearest caches (many); measured.
SHORT_DIGITS_UP_TO, _SHORT_DIGITS_FROM = 1500, 1 << 20
_NOT_RANKED_32, _NOT_RANKED_64 = np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFFFFFFFFFF)  # behind everything


@jit
def rank(scores, floor):
    """Indices of fewer than 2**32 float32 scores above `floor`, by decreasing score; ties by index, NaN last.

    All of them where `floor` is NaN.
    """
    limit = _NOT_RANKED_32 if floor != floor else key_of_float32(np.float32(floor).view(np.int32))
    elements = new_indices(scores.size)  # key, and index in the low half: 64 bits without a sign
    count = np.int64(0)
    if scores.size <= FEW_UNMOVED:
        for i in range(scores.size):
            key = key_of_float32(np.float32(scores[i]).view(np.int32))
            elements[count] = key << np.uint64(32) | np.uint64(i)
            count += key < limit
        insert(elements, count)
    else:
        digits, width = (3, 11) if SHORT_DIGITS_UP_TO < scores.size < _SHORT_DIGITS_FROM else (4, 8)
        lowest = 2 if scores.size <= _FEW else 0
        counts = np.empty(digits << width, np.uint32)  # of each value of each digit
        for i in range(counts.size):
            counts[i] = 0
        mask = np.uint64((1 << width) - 1)
        for i in range(scores.size):
            key = key_of_float32(np.float32(scores[i]).view(np.int32))
            elements[count] = key << np.uint64(32) | np.uint64(i)
            takes_part = np.uint32(key < limit)  # added, because a branch would often be foretold wrongly
            count += takes_part
            for digit in range(lowest, digits):
                counts[np.uint64(digit << width) | key >> np.uint64(digit * width) & mask] += takes_part
        moved = np.empty(count, np.int64)
        for digit in range(lowest, digits):
            shift = np.uint64(32 + digit * width)
            places = counts[digit << width : (digit + 1) << width]
            if count == 0 or places[np.uint64(elements[0]) >> shift & mask] == count:
                continue
            make_places(places)
            for i in range(count):
                element = np.uint64(elements[i])
                value = element >> shift & mask
                moved[np.uint64(places[value])] = element
                places[value] += np.uint32(1)
            elements, moved = moved, elements
        if lowest > 0:
            insert(elements, count)
    for i in range(count):
        elements[i] &= np.int64(0xFFFFFFFF)
    return elements[:count]


@jit
def key_of_float32(bits):
    """The key of a float32 of these bits: 0.0 and -0.0 are equal and NaN is the largest."""
    magnitude = np.uint64(np.int64(bits) & 0x7FFFFFFF)
    key = np.uint64(0x7FFFFFFF) - magnitude if bits >= 0 else np.uint64(0x7FFFFFFF) + magnitude
    return key if magnitude <= np.uint64(0x7F800000) else _NOT_RANKED_32 - np.uint64(1)


@jit
def count_values(elements, most):
    """(least element, shift, counts): how many elements e have each value of (e - least) >> shift, less than `most`."""
    low, high = ~np.uint64(0), np.uint64(0)
    for i in range(elements.size):
        low, high = min(low, np.uint64(elements[i])), max(high, np.uint64(elements[i]))
    shift = np.uint64(0)
    while (high - low) >> shift >= np.uint64(most):
        shift += np.uint64(1)
    counts = np.zeros(most, np.uint32)
    for i in range(elements.size):
        counts[(np.uint64(elements[i]) - low) >> shift] += np.uint32(1)
    return low, shift, counts


@jit
def insert(elements, count):
    """Sort the first `count` elements by insertion."""
    for i in range(1, count):
        element, place = np.uint64(elements[i]), i
        while place > 0 and np.uint64(elements[place - 1]) > element:
            elements[place] = elements[place - 1]
            place -= 1
        elements[place] = element


@jit
def make_places(counts):
    """Replace each count by the sum of those before it."""
    place = counts.dtype.type(0)
    for value in range(counts.size):
        count = counts[value]
        counts[value] = place
        place += count


@jit
def rank_float64(scores, floor):
    """As `rank`, of any number of float64 scores."""
    limit = _NOT_RANKED_64 if floor != floor else _key_of_float64(np.float64(floor).view(np.int64))
    keys, order = np.empty(scores.size, np.uint64), new_indices(scores.size)
    if scores.size <= FEW_UNMOVED:
        digits, width = 0, 0
    elif scores.size <= SHORT_DIGITS_UP_TO:
        digits, width = 8, 8
    else:
        digits, width = 6, 11
    counts = np.zeros((digits, 1 << width), np.int64)
    mask = np.uint64((1 << width) - 1)
    count = np.int64(0)
    for i in range(scores.size):
        key = _key_of_float64(np.float64(scores[i]).view(np.int64))
        keys[count], order[count] = key, i
        takes_part = np.int64(key < limit)
        count += takes_part
        for digit in range(digits):
            counts[digit, key >> np.uint64(digit * width) & mask] += takes_part
    if digits == 0:
        _insert_pairs(keys, order, count)
        return order[:count]
    return sort_by_key(keys[:count], order[:count], counts, width)[1]


@jit
def _insert_pairs(keys, items, count):
    """As `insert`, stable, of keys and what goes along with them."""
    for i in range(1, count):
        key, item, place = keys[i], items[i], i
        while place > 0 and keys[place - 1] > key:
            keys[place], items[place] = keys[place - 1], items[place - 1]
            place -= 1
        keys[place], items[place] = key, item


@jit
def _key_of_float64(bits):
    magnitude = np.uint64(bits & np.int64(0x7FFFFFFFFFFFFFFF))
    half = np.uint64(0x7FFFFFFFFFFFFFFF)
    key = half - magnitude if bits >= 0 else half + magnitude
    return key if magnitude <= np.uint64(0x7FF0000000000000) else _NOT_RANKED_64 - np.uint64(1)


@jit
def group(labels, order):
    """Ranked boxes class after class: (their ranks, which rise within a class; where classes begin, and the end).

    `labels` are int64, equal for equal classes only; `order` has at least one index.
    """
    classes, ranks = np.empty(order.size, np.uint64), np.empty(order.size, np.int64)
    low = high = labels[order[0]]
    for rank in range(order.size):
        label = labels[order[rank]]
        low, high = min(low, label), max(high, label)
        classes[rank], ranks[rank] = np.uint64(label), rank
    span = np.uint64(high) - np.uint64(low)  # in 64 bits without a sign, where it always fits
    digits = 0
    while digits < 8 and span >> np.uint64(8 * digits):
        digits += 1
    counts = np.zeros((digits, 256), np.int64)
    for rank in range(order.size):
        classes[rank] -= np.uint64(low)
        for digit in range(digits):
            counts[digit, classes[rank] >> np.uint64(8 * digit) & np.uint64(255)] += 1
    classes, ranks = sort_by_key(classes, ranks, counts, 8)
    starts = np.empty(order.size + 1, np.int64)
    starts[0], segments = 0, 1
    for k in range(1, order.size):
        starts[segments] = k
        segments += classes[k] != classes[k - 1]
    starts[segments] = order.size
    return ranks, starts[: segments + 1]


@jit
def sort_by_key(keys, items, counts, width):
    """(keys, items) sorted by key, from `counts` of each value of each digit of `width` bits; uses up what it gets."""
    if keys.size == 0:
        return keys, items
    mask, first = np.uint64((1 << width) - 1), keys[0]
    moved_keys, moved_items = np.empty_like(keys), np.empty_like(items)
    for digit in range(len(counts)):
        places, shift = counts[digit], np.uint64(width * digit)
        if places[first >> shift & mask] == keys.size:
            continue
        make_places(places)
        for i in range(keys.size):
            key = keys[i]
            value = key >> shift & mask
            place = np.uint64(places[value])
            moved_keys[place], moved_items[place] = key, items[i]
            places[value] += 1
        keys, moved_keys = moved_keys, keys
        items, moved_items = moved_items, items
    return keys, items
