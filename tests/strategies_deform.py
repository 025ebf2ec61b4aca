"""The inputs of the tests of deform_conv2d: calls of every kind, from a fixed list and from Hypothesis."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from tests.reference_deform import output_size, pair
from tests.strategies_roi import pairwise

FLOATS = ("float64", "float32", "float16")
NAMES = ("input", "offset", "weight", "bias", "mask")


class Case(NamedTuple):
    """A call of deform_conv2d. `groups` and `offset_groups` may be "C", one for each channel."""

    kernel: tuple = (3, 3)
    stride: int | tuple = 1
    padding: int | tuple = 1
    dilation: int | tuple = 1
    groups: int | str = 1
    offset_groups: int | str = 1
    batch: int = 2
    channels: int = 6
    outputs: int = 6
    size: tuple = (5, 6)
    offsets: str = "anywhere"
    mask: bool = True
    bias: bool = True
    dtype: str = "float64"
    offset_dtype: str = ""  # as dtype
    mask_dtype: str = ""  # as dtype
    seed: int = 0

    @property
    def options(self):
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    @property
    def output_shape(self):
        return (self.batch, self.outputs, *output_size(self.size, self.kernel, **self.options))

    def arrays(self):
        """The array arguments by name; None for a mask or bias that is not there."""
        random = np.random.default_rng(self.seed)
        taps, groups, offset_groups = math.prod(self.kernel), self._count(self.groups), self._count(self.offset_groups)
        output = self.output_shape[2:]
        arrays = {
            "input": random.normal(size=(self.batch, self.channels, *self.size)),
            "offset": _OFFSETS[self.offsets](self, random, (self.batch, offset_groups, taps, 2, *output)),
            "weight": random.normal(size=(self.outputs, self.channels // groups, *self.kernel)),
            "bias": random.normal(size=self.outputs),
            "mask": random.uniform(-1, 2, (self.batch, offset_groups * taps, *output)),
        }
        arrays["offset"] = arrays["offset"].reshape(self.batch, -1 if self.batch else 2 * offset_groups * taps, *output)
        dtypes = {"offset": self.offset_dtype or self.dtype, "mask": self.mask_dtype or self.dtype}
        given = {"bias": self.bias, "mask": self.mask}
        return {
            name: array.astype(dtypes.get(name, self.dtype)) if given.get(name, True) else None
            for name, array in arrays.items()
        }

    def grad(self):
        """A gradient of the result."""
        return np.random.default_rng(self.seed + 1).normal(size=self.output_shape).astype(self.dtype)

    def __str__(self):
        named = zip(self._fields, self, self._field_defaults.values(), strict=True)
        return ", ".join(f"{name} {value}" for name, value, default in named if value != default) or "plain"

    def _count(self, groups):
        return self.channels if groups == "C" else groups


# ----------------------------------------------------------------------------------------------------- offsets


def _places(case):
    """Where each tap reads without its offset: (taps, 2, OH, OW)."""
    (down, right), (top, left), (step_down, step_right) = map(pair, case.options.values())
    rows, columns = (np.arange(length) for length in case.output_shape[2:])
    y = rows * down - top + np.arange(case.kernel[0])[:, None] * step_down  # (kh, OH)
    x = columns * right - left + np.arange(case.kernel[1])[:, None] * step_right
    y, x = np.broadcast_arrays(y[:, None, :, None], x[None, :, None, :])
    return np.stack([y, x], 2).reshape(-1, 2, *case.output_shape[2:])


def _on_borders(case, random, shape):
    """Exactly on the pixels around the border of the map, and in between."""
    height, width = case.size
    rows = random.choice([-2, -1.5, -1, -0.5, 0, 0.5, height - 1, height - 0.5, height, height + 0.5], shape)
    columns = random.choice([-2, -1.5, -1, -0.5, 0, 0.5, width - 1, width - 0.5, width, width + 0.5], shape)
    return np.where(np.arange(2)[:, None, None] == 0, rows, columns) - _places(case)


def _beside_borders(case, random, shape):
    """One rounding away from where the map ends, in the precision of the offsets."""
    dtype = np.dtype(case.offset_dtype or case.dtype)
    height, width = case.size
    ends = [random.choice(np.array([-1, 0, length - 1, length], dtype), shape) for length in (height, width)]
    places = np.where(np.arange(2)[:, None, None] == 0, *ends) - _places(case).astype(dtype)
    return np.nextafter(places, random.choice(np.array([-math.inf, math.inf], dtype), shape))


def _mixed(case, random, shape):
    """NaN, infinities and numbers beyond every integer among ordinary ones."""
    offsets = random.normal(0, 2, shape)
    odd = random.choice([math.nan, math.inf, -math.inf, 6e4, -6e4, 1e30, -1e30], shape)
    with np.errstate(over="ignore"):
        odd = odd.astype(case.offset_dtype or case.dtype)
    return np.where(random.uniform(size=shape) < 0.1, odd, offsets)


_OFFSETS = {
    "zero": lambda case, random, shape: np.zeros(shape),
    "integers": lambda case, random, shape: random.integers(-3, 4, shape).astype(float),
    # Far enough from integers for finite differences.
    "fractions": lambda case, random, shape: random.integers(-3, 4, shape) + random.uniform(0.2, 0.8, shape),
    "anywhere": lambda case, random, shape: random.normal(0, 2, shape),
    "all outside": lambda case, random, shape: random.choice([-1, 1], shape) * random.uniform(40, 6e4, shape),
    "on borders": _on_borders,
    "beside borders": _beside_borders,
    "NaN and infinite": _mixed,
}
OFFSETS = tuple(_OFFSETS)


# ------------------------------------------------------------------------------------------------ the fixed list


def _sized(outputs_per_channel=1, **fields):
    """The case with a map that gives about 3 x 4 results, of which there are fewer for many images."""
    case = Case(**fields)
    results = (3, 4) if case.batch < 10 else (1, 2)
    size = tuple(
        max(2, (wanted - 1) * s + d * (k - 1) + 1 - 2 * p)
        for wanted, k, s, p, d in zip(results, case.kernel, *map(pair, case.options.values()), strict=True)
    )
    return case._replace(outputs=outputs_per_channel * case.channels, size=size)


CASES = [
    _sized(**fields, seed=seed)
    for seed, fields in enumerate(
        pairwise(
            kernel=[(1, 1), (3, 3), (5, 5), (2, 3)],
            stride=[1, 2, (3, 1)],
            padding=[0, 1, (2, 1)],
            dilation=[1, 2, (1, 3)],
            groups=[1, 2, "C"],
            offset_groups=[1, 2, "C"],
            batch=[0, 1, 3, 37],
            channels=[2, 6, 18],
            outputs_per_channel=[1, 2],
            offsets=OFFSETS,
            mask=[True, False],
            bias=[True, False],
            dtype=FLOATS,
            offset_dtype=FLOATS,
            mask_dtype=FLOATS,
        )
    )
]

# Channels, results and pixels around the sizes at which a vector, a tile or a block may begin or end.
LARGE = [
    Case(channels=channels, outputs=outputs, size=size, groups=groups, offset_groups=offset_groups, batch=batch)
    for channels, outputs, size, groups, offset_groups, batch in [
        (1, 1, (5, 19), 1, 1, 1),
        (15, 17, (8, 12), 1, 1, 1),
        (16, 16, (1, 97), 1, 1, 1),
        (17, 63, (7, 14), 1, 1, 2),
        (32, 64, (8, 12), 1, 2, 1),
        (33, 65, (11, 9), 1, 3, 1),
        (24, 48, (9, 11), 2, 2, 2),
        (40, 20, (6, 17), 4, 8, 1),
        (48, 96, (10, 10), 3, 2, 1),
        (86, 70, (13, 15), 1, 1, 1),
        (96, 130, (14, 14), 1, 2, 1),
        (130, 34, (6, 6), 2, 1, 2),
        (260, 8, (4, 5), 1, 1, 1),
    ]
]


# -------------------------------------------------------------------------------------------------- Hypothesis


@st.composite
def cases(draw, offsets=OFFSETS, dtypes=FLOATS, same_dtypes=False):
    """Small calls of any kind."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride, padding, dilation = (
        draw(st.integers(low, high) | st.tuples(st.integers(low, high), st.integers(low, high)))
        for low, high in ((1, 3), (0, 3), (1, 3))
    )
    axes = zip(kernel, pair(padding), pair(dilation), strict=True)
    size = tuple(max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, 4)) for k, p, d in axes)
    groups, offset_groups = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 3]))
    dtype = draw(st.sampled_from(dtypes))
    other = st.just(dtype) if same_dtypes else st.sampled_from(dtypes)
    return Case(
        kernel,
        stride,
        padding,
        dilation,
        groups,
        offset_groups,
        batch=draw(st.integers(0, 2)),
        channels=math.lcm(groups, offset_groups) * draw(st.integers(1, 3)),
        outputs=groups * draw(st.integers(1, 3)),
        size=size,
        offsets=draw(st.sampled_from(offsets)),
        mask=draw(st.booleans()),
        bias=draw(st.booleans()),
        dtype=dtype,
        offset_dtype=draw(other),
        mask_dtype=draw(other),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
