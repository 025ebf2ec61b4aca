"""The order of scores and of classes: against NumPy's stable sorts, at every size where another way begins."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests import data

_rank = pytest.importorskip("cvops._cpu._rank")
_nms = pytest.importorskip("cvops._cpu._nms")

UNMOVED, FEW = _rank.FEW_UNMOVED, _rank._FEW
SHORT, LONG = _rank.SHORT_DIGITS_UP_TO, _rank._SHORT_DIGITS_FROM
SIZES = [
    0,
    1,
    2,
    UNMOVED,
    UNMOVED + 1,
    24,
    25,
    64,
    65,
    FEW - 1,
    FEW,
    FEW + 1,
    255,
    256,
    257,
    SHORT - 1,
    SHORT,
    SHORT + 1,
    5000,
]
MANY = [LONG - 1, LONG, LONG + 1]


def wanted(scores, floor=None):
    """Indices by decreasing score, ties by index, NaN last: of what is not NaN first, then of the rest."""
    indices = np.arange(len(scores))
    if floor is not None:
        indices = indices[scores > floor]
    numbers = indices[~np.isnan(scores[indices])]
    return np.concatenate([numbers[np.argsort(-scores[numbers], kind="stable")], indices[np.isnan(scores[indices])]])


def special(dtype):
    info = np.finfo(dtype)
    values = [0, -0.0, 1, -1, math.inf, -math.inf, math.nan, -math.nan, info.max, info.min, info.tiny, -info.tiny]
    return np.array([*values, info.smallest_subnormal, -info.smallest_subnormal, 0.5, -0.5], dtype)


def sets(dtype, size):
    """Scores by name: all that a digit can be, digits that are the same everywhere, and ties."""
    random, info = np.random.default_rng(size), np.finfo(dtype)
    bits = random.integers(0, 1 << 8 * np.dtype(dtype).itemsize, size, dtype=f"u{np.dtype(dtype).itemsize}")
    steps = np.spacing(np.array(0.5, dtype))
    return {
        "probabilities": random.random(size, dtype),
        "any bits": bits.view(dtype),
        "both signs": random.normal(size=size).astype(dtype),
        "special": random.choice(special(dtype), size),
        "all the same": np.full(size, 0.3, dtype),
        "all NaN": np.full(size, math.nan, dtype),
        "zeros of both signs": random.choice(np.array([0, -0.0], dtype), size),
        "few values": random.integers(0, 5, size).astype(dtype) / dtype(7),
        "last bits": dtype(0.5) + random.integers(0, 200, size).astype(dtype) * steps,
        "rising": np.sort(random.random(size, dtype)),
        "falling": -np.sort(-random.random(size, dtype)),
        "all but the last alike": np.where(np.arange(size) < size - 1, dtype(0.5) + bits % 9 * steps, info.min),
        "powers": dtype(2) ** random.integers(-100, 100, size).astype(dtype),
    }


def check(scores):
    for floor in (None, -math.inf, 0.0, -0.0, 0.3, 1.0, math.inf):
        limit = None if floor is None else scores.dtype.type(floor)
        got = _nms._rank(scores, None if limit is None else float(limit))
        np.testing.assert_array_equal(got, wanted(scores, limit))
        assert got.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_scores(dtype, size):
    for scores in sets(dtype, size).values():
        check(scores)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", MANY)
def test_many_scores(dtype, size):
    for name in ("probabilities", "special"):
        scores = sets(dtype, size)[name]
        np.testing.assert_array_equal(_nms._rank(scores, None), wanted(scores))
    np.testing.assert_array_equal(_nms._rank(scores, 0.0), wanted(scores, 0))


@pytest.mark.parametrize(("width", "size"), [(8, SHORT), (11, 3 * SHORT)])
def test_every_digit(width, size):
    """Scores that differ in one digit alone, of every value that it has."""
    for digit in range(-(-32 // width)):
        bits = np.arange(1 << min(width, 32 - digit * width), dtype=np.uint64) << np.uint64(digit * width)
        scores = np.random.default_rng(0).permutation(np.resize(bits, size)).astype(np.uint32).view(np.float32)
        np.testing.assert_array_equal(_nms._rank(scores, None), wanted(scores))


def test_every_digit_of_float64():
    for digit in range(6):
        bits = np.arange(1 << min(11, 64 - digit * 11), dtype=np.uint64) << np.uint64(digit * 11)
        scores = np.random.default_rng(0).permutation(np.resize(bits, 3000)).view(np.float64)
        np.testing.assert_array_equal(_nms._rank(scores, None), wanted(scores))


def test_float16_scores_keep_their_order():
    scores = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(_nms._rank(scores.astype(np.float32), None), wanted(scores))


SPANS = {
    "one": [5],
    "small": range(80),
    "negative": range(-300, 0),
    "to the end of 8 bits": [0, 255],
    "beyond 8 bits": [-1, 255],
    "three digits": [-(2**16), 0, 2**17],
    "far apart": [7, 10**12, -(10**12)],
    "the whole range": [-(2**63), 2**63 - 1, 0, -1],
    "from the least on": [-(2**63), -(2**63) + 1],
}


@pytest.mark.parametrize("size", [1, 2, 30, 3000])
@pytest.mark.parametrize("name", SPANS)
def test_classes(name, size):
    random = np.random.default_rng(size)
    labels = random.choice(np.array([*SPANS[name]], np.int64), size)
    order = random.permutation(size)[: size - size // 4]
    ranks, starts = _rank.group(labels, order)
    np.testing.assert_array_equal(ranks, np.argsort(labels[order], kind="stable"))
    ordered = labels[order][ranks]
    begins = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    np.testing.assert_array_equal(starts, [0, *begins, len(order)])


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"])
def test_labels_are_equal_for_equal_classes_only(dtype):
    limits = np.iinfo(dtype) if dtype[0] in "iu" else np.finfo(dtype)
    classes = np.array([limits.min, limits.max, 0, 1, 2, 100, 0, limits.max, limits.min], dtype)
    if dtype == "f8":
        classes = np.concatenate([classes, [-0.0, 2.0**63, 2.0**53, -(2.0**63)]])
    labels = _nms._labels(classes)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels[:, None] == labels, classes[:, None] == classes)


def test_labels_of_ordinary_detections_take_one_pass():
    """Floats that are small integers, too: their bits would be eight digits."""
    for dtype in (np.int64, np.uint8, np.float32, np.uint64):
        labels = _nms._labels(data.clustered(1000)[2].astype(dtype))
        assert labels.max() - labels.min() < 256
