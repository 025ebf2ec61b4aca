"""The inputs of the tests of the RoI operators: maps in every layout, RoIs of every kind, combinations of options."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

# ------------------------------------------------------------------------------------------------------------ maps


def normal(shape, dtype=np.float32, seed=0):
    """Normally distributed values: a map, or a gradient."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _channels_last(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def _transposed(array):
    return np.ascontiguousarray(array.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)


def _other(dtype):
    """What lies between and around the elements: a value that would show in a result."""
    return math.nan if dtype.kind == "f" else 1


def _sliced(array):
    """The middle of a larger array."""
    larger = np.full([n + 2 for n in array.shape], _other(array.dtype), array.dtype)
    middle = larger[1:-1, 1:-1, 1:-1, 1:-1]
    middle[...] = array
    return middle


def _every_other(array):
    larger = np.full([2 * n for n in array.shape], _other(array.dtype), array.dtype)
    larger[::2, 1::2, ::2, 1::2] = array
    return larger[::2, 1::2, ::2, 1::2]


def _reversed(array):
    return np.ascontiguousarray(array[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1]


def _readonly(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def _big_endian(array):
    return array.astype(array.dtype.newbyteorder(">"))


def _unaligned(array):
    """Elements that begin at odd addresses."""
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    view = buffer[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


# Name -> function from an array (of 4 axes) to one of equal values.
LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "channels-last": _channels_last,
    "transposed": _transposed,
    "sliced": _sliced,
    "every other": _every_other,
    "reversed": _reversed,
    "read-only": _readonly,
    "big-endian": _big_endian,
    "unaligned": _unaligned,
}

# ------------------------------------------------------------------------------------------------------------ RoIs


def _inside(random, count, sides):
    return np.sort(random.uniform(0, 1, (count, 2, 2)), 1) * sides


def _across(random, count, sides):
    """From a corner outside to one inside, or from one inside to one outside."""
    boxes = random.uniform(0.2, 0.8, (count, 2, 2)) * sides
    far = random.uniform(0.1, 2, (count, 1, 2)) * sides
    return np.where(random.random((count, 1, 2)) < 0.5, boxes - far * [[1], [0]], boxes + far * [[0], [1]])


def _outside(random, count, sides):
    boxes = np.sort(random.uniform(0, 1, (count, 2, 2)), 1) * sides
    side = random.integers(0, 2, count)
    boxes[np.arange(count), :, side] += random.choice([-1, 1], (count, 1)) * (2 * sides[side][:, None] + 3)
    return boxes


def _empty(random, count, sides):
    boxes = _inside(random, count, sides)
    flat = random.integers(1, 4, count)  # in x, in y, or in both
    boxes[:, 1] = np.where(flat[:, None] & [1, 2], boxes[:, 0], boxes[:, 1])
    return boxes


def _inverted(random, count, sides):
    boxes = _inside(random, count, sides)
    swapped = random.integers(1, 4, count)
    return np.where((swapped[:, None] & [1, 2])[:, None], boxes[:, ::-1], boxes)


def _tiny(random, count, sides):
    corner = random.uniform(-1, 1, (count, 1, 2)) * sides
    return corner + [[0], [1]] * random.uniform(1e-4, 0.5, (count, 1, 2))


def _whole(random, count, sides):
    return np.tile([[0, 0], sides], (count, 1, 1))


def _larger(random, count, sides):
    return [[-1], [2]] * sides * random.uniform(1, 3, (count, 1, 2))


def _halves(random, count, sides):
    """Corners on pixels, and half way between two."""
    return np.floor(np.sort(random.uniform(-1, 2, (count, 2, 2)), 1) * sides * 2) / 2


def _on_the_border(random, count, sides):
    """Boxes whose middle lies where samples begin or cease to count: at -1 or at the length of the map."""
    middle = np.where(random.random((count, 1, 2)) < 0.5, -1, sides)
    return middle + [[-1], [1]] * random.integers(1, 30, (count, 1, 2)) / random.choice([1, 2, 3], (count, 1, 2))


KINDS = {
    "inside": _inside,
    "across": _across,
    "outside": _outside,
    "empty": _empty,
    "inverted": _inverted,
    "tiny": _tiny,
    "whole": _whole,
    "larger": _larger,
    "halves": _halves,
    "on the border": _on_the_border,
}


def boxes(kind, count, height, width, scale=1.0, seed=0):
    """`count` boxes (count, 4) of a kind, or of all kinds in turn ("all"), for a map of the given size and scale."""
    random = np.random.default_rng(seed)
    sides = np.array([width, height], np.float64)
    if kind == "all":
        kinds = itertools.islice(itertools.cycle(KINDS), count)
        each = [boxes(kind, 1, height, width, scale, seed + i) for i, kind in enumerate(kinds)]
        return np.concatenate([np.zeros((0, 4)), *each])
    return (KINDS[kind](random, count, sides) / scale).reshape(count, 4)


def rois(kind, count, shape, scale=1.0, dtype=np.float32, seed=0):
    """`count` RoIs (count, 5) of a kind for maps of shape (N, C, H, W); the images in no order."""
    image_of_roi = np.random.default_rng(seed).integers(0, max(shape[0], 1), (count, 1))
    return np.concatenate([image_of_roi, boxes(kind, count, *shape[2:], scale, seed)], 1).astype(dtype)


def by_image(rois, images):
    """The same RoIs as a list of one array (L_i, 4) for each image, and the order that this puts them in."""
    lists = [rois[rois[:, 0] == i, 1:] for i in range(images)]
    return lists, np.argsort(rois[:, 0], kind="stable")


# ------------------------------------------------------------------------------------------------------ Hypothesis

_coordinate = (
    st.integers(-24, 48).map(lambda twice: twice / 2)
    | st.floats(-20, 40, width=16)
    | st.sampled_from(
        [-0.0, math.nan, math.inf, -math.inf, 1e-45, 0.49999997, 65535.5, 1e5, -3e8, 2.0**31, 3e38, -3e38]
    )
)


@st.composite
def problems(draw, dtypes=("float16", "float32", "float64")):
    """(maps (N, C, H, W), RoIs (K, 5), output size, scale) of any small size, layout and dtypes.

    The number of channels is a multiple of the number of bins, as the position-sensitive operators want it.
    """
    output_size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)) | st.sampled_from([(1, 14), (14, 1), (7, 7)]))
    images, height, width = draw(st.integers(0, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    channels = math.prod(output_size) * draw(st.sampled_from([1, 2, 3, 16, 17]))
    count = draw(st.integers(0, 5)) if images else 0
    drawn = draw(hnp.arrays(np.float64, (count, 5), elements=_coordinate))
    if count:
        drawn[:, 0] = draw(hnp.arrays(np.int64, count, elements=st.integers(0, images - 1)))
    maps = normal((images, channels, height, width), draw(st.sampled_from(dtypes)), seed=count)
    with np.errstate(over="ignore"):
        drawn = drawn.astype(draw(st.sampled_from(dtypes)))
    layout = LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))]
    scale = draw(st.sampled_from([1, 1 / 3, 0.25, 1 / 16, 2.5]))
    return layout(maps), drawn, output_size, scale


ratios = st.sampled_from([-1, 0, 1, 2, 3, 7])

# ----------------------------------------------------------------------------------------------------- combinations


def has_its_own_kernels(case):
    """Whether kernels are compiled for these dtypes alone: boxes are more precise than maps."""
    return case["dtypes"] in ("f4 f8", "f2 f8")


def pairwise(**axes):
    """Dictionaries with one value for each axis: few, but every two values of two axes are together in one of them."""
    values = list(axes.values())
    todo = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(range(len(values)), 2)
        for i, j in itertools.product(range(len(values[a])), range(len(values[b])))
    }
    rows = []
    while todo:
        row = dict(min(todo))
        for axis in sorted(set(range(len(values))) - set(row)):
            gains = [
                sum(tuple(sorted([(axis, i), other])) in todo for other in row.items())
                for i in range(len(values[axis]))
            ]
            # Of equally good values, not always the first: they would be together again and again.
            best = [i for i, gain in enumerate(gains) if gain == max(gains)]
            row[axis] = best[len(rows) % len(best)]
        todo -= set(itertools.combinations(sorted(row.items()), 2))
        rows.append({name: axes[name][row[axis]] for axis, name in enumerate(axes)})
    return rows
