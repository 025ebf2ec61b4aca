"""The inputs of the tests: sets of many boxes by name, and Hypothesis strategies for a few boxes of every kind."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import data

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

# ------------------------------------------------------------------------------------------------------- many boxes


def few(cases, every, but=lambda case: False):
    """The cases of a large grid, of which all but one of `every` are slow, and of those what `but` tells."""
    return [
        pytest.param(case, marks=pytest.mark.slow if i % every or but(case) else ()) for i, case in enumerate(cases)
    ]


def many(n):
    """Sets of `n` boxes (n, 4) by name: ordinary ones, and ones on which a shortcut could go wrong."""
    random = np.random.default_rng(0)
    boxes, _, classes = data.clustered(n)
    steps = np.arange(n)[:, None]
    growing = 1.003 ** random.permutation(n)[:, None] * [1, 1]
    at_once = random.integers(0, 12, (n, 2))
    dirty = boxes.copy()
    dirty[::50, 0] = math.nan
    dirty[1::50, 2] = math.inf
    dirty[2::50] = dirty[2::50, [2, 3, 0, 1]]
    dirty[3::50, 3] = dirty[3::50, 1]
    per_class = (10.0 ** (classes % 9 * 5 - 23))[:, None].astype(np.float32)
    slivers = np.array([[1e304, 1e-250], [1.5e269, 1e-250], [2e-273, 1e250], [1e-250, 1e200]])
    return {
        "clustered": boxes,
        **data.hostile(n),
        "nested about one centre": data.corners(-growing, growing),
        "nested at one corner": data.corners(0 * growing, growing),
        "wide and flat": data.corners(steps % 90 * [3, 0.01], steps % 90 * [3, 0.01] + [900, 0.3]),
        "small integers": data.corners(at_once, at_once + random.integers(0, 6, (n, 2))),
        "negative": boxes - np.float32(1e4),
        "far from the origin": boxes + np.float32(2**23),  # where float32 holds whole numbers only
        "very far": boxes + np.float32(1e8),  # where it holds multiples of 8 only
        "with NaN, inf, inverted and empty ones": dirty,
        "subnormal areas": boxes * np.float32(1e-22),
        "areas around the least normal one": boxes * np.float32(8e-21),
        "tiny to huge": boxes * per_class,
        "float64": boxes.astype(np.float64) * (1 + 1e-12 * steps),
        "float64, areas around the least normal one": boxes * 1e-155,
        "float64, slivers": boxes * np.tile(slivers[classes % 4], 2),
        "float64, 1e-300 to 1e300": boxes * 10.0 ** (classes % 60 * 10 - 300)[:, None],
    }


def crowd(dtype=np.float32):
    """1 500 disjoint unit boxes, all kept: beside them, any boxes are handled as thousands are."""
    corner = 20 + 2 * np.stack(np.divmod(np.arange(1500), 50), 1)
    return data.corners(corner, corner + 1).astype(dtype)


def pairs_at(threshold, n, dtype):
    """`n` disjoint pairs of boxes (2 n, 4) whose IoU is `threshold`, give or take some roundings.

    The second box of a pair is narrower, flatter, or moved: the farthest that a suppressor can be, in each direction.
    """
    random = np.random.default_rng(0)
    place = np.stack(np.unravel_index(np.arange(n), (int(n**0.5) + 1, int(n**0.5) + 1)), 1) * 1000.0
    side = np.exp(random.uniform(0, 5, (n, 2)))
    ratio = np.where(np.arange(n)[:, None] % 3 == [0, 1], threshold, 1)
    slack = side * (1 - ratio) * random.choice([0, 0.5, 1], (n, 2))
    move = np.where(np.arange(n)[:, None] % 6 == [2, 5], (1 - threshold) / (1 + threshold), 0) * side
    move *= random.choice([-1, 1], (n, 2))
    first = np.concatenate([place, place + side], 1)
    second = np.concatenate([place + slack + move, place + slack + move + side * ratio], 1)
    return np.concatenate([first, second]).astype(dtype)


def pairs_above(threshold, n):
    """`n` pairs of float32 boxes (2 n, 4) whose IoU is above the threshold only because it is rounded.

    The narrower box of a pair is a little less than a power of two wide, and the wider one, times the threshold, is
    not: a search by size has to allow for rounding. Each pair is twice as large as the one before it.
    """
    narrow, wide = np.nextafter(np.float32(1), np.float32(0)), np.float32(1 / threshold)
    while float(wide) * threshold < 1:
        wide = np.nextafter(wide, np.float32(math.inf))
    height = np.random.default_rng(0).uniform(1, 2, 200_000).astype(np.float32)
    inter, area = narrow * height, wide * height
    height = height[inter / ((area + inter) - inter) > np.float64(threshold)][:n]
    boxes = np.zeros((2, n, 4))
    boxes[0, :, 2], boxes[1, :, 2], boxes[:, :, 3] = narrow, wide, height
    boxes *= 2.0 ** np.arange(-n // 2, n - n // 2)[:, None]
    return boxes.reshape(2 * n, 4).astype(np.float32)


# -------------------------------------------------------------------------------------------------------- few boxes

thresholds = st.sampled_from([0, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.7, 0.95, 1]) | st.floats(0, 1)

_magnitudes = [5e-324, 1e-300, 1e-160, 1e-45, 1e-40, 1e-20, 1, 1e19, 3e38, 1e160, 1e308, math.inf]
_extremes = st.sampled_from([0, -0.0, math.nan, *_magnitudes, *(-magnitude for magnitude in _magnitudes)])
_corner = st.integers(-4, 12)  # small integers: many ties, duplicates and IoUs equal to a threshold


@st.composite
def boxes(draw, max_size=40, dtypes=FLOATS + INTEGERS):
    """Boxes (L, 4) of small integers, of a scale from 1e-3 to 1e6, of extreme values, or of a few rows repeated."""
    count, dtype = draw(st.integers(0, max_size)), np.dtype(draw(st.sampled_from(dtypes)))
    kind = draw(st.sampled_from(["integers", "scaled", "extreme", "repeated"])) if dtype.kind == "f" else "integers"
    if kind == "extreme":
        rows = draw(hnp.arrays(np.float64, (count, 4), elements=_extremes | st.floats(width=32)))
    elif kind == "scaled":
        scale = 10.0 ** draw(st.integers(-3, 6))
        rows = draw(hnp.arrays(np.float64, (count, 4), elements=st.floats(-1, 1, width=32)))
        rows[:, 2:] = rows[:, :2] + abs(rows[:, 2:])
        rows *= scale
    else:
        rows = draw(hnp.arrays(np.float64, (count, 4), elements=_corner))
        if kind == "repeated" and count:
            rows = rows[draw(hnp.arrays(np.intp, count, elements=st.integers(0, min(count - 1, 3))))] * 0.1
        if dtype.kind == "u":
            rows = abs(rows)
    with np.errstate(over="ignore"):
        return rows.astype(dtype)


def scores(count):
    """Scores (count,): a few values many times, or any floats."""
    few = st.sampled_from([0, -0.0, 0.5, 1, math.nan, math.inf, -math.inf])
    return st.sampled_from(FLOATS).flatmap(
        lambda dtype: (
            hnp.arrays(dtype, count, elements=few)
            | hnp.arrays(dtype, count, elements=st.floats(width=8 * np.dtype(dtype).itemsize))
        )
    )


def idxs(count):
    """Class indices (count,) of any integer dtype, of a few values that include the outermost."""

    def of(dtype):
        limits = np.iinfo(dtype)
        return hnp.arrays(dtype, count, elements=st.sampled_from([limits.min, 0, 1, 2, limits.max - 1, limits.max]))

    return st.sampled_from(INTEGERS).flatmap(of)


@st.composite
def detections(draw, max_size=40, dtypes=FLOATS + INTEGERS):
    """(boxes (L, 4), scores (L,), idxs (L,)); `dtypes` are those of the boxes."""
    drawn = draw(boxes(max_size, dtypes))
    return drawn, draw(scores(len(drawn))), draw(idxs(len(drawn)))
