"""Inputs of tests and measurements. Published figures refer to them: change no number and no order of draws here."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


def clustered(
    n: int, objects: int | None = None, size: float | None = None, seed: int = 0
) -> tuple[Array, Array, Array]:
    """`n` noisy detections of a few objects, as a detector gives them before nms.

    Returns boxes (n, 4) and scores (n,), both float32, and class ids (n,) int64 in [0, 80). By default there is an
    object for every 20 boxes, in a square image whose side of `size` pixels keeps the crowding the same above 5 000.
    """
    rng = np.random.default_rng(seed)
    objects = objects or max(5, n // 20)
    size = size or 1000 * max(1.0, n / 5000) ** 0.5
    object_centres = rng.uniform(0, size, (objects, 2))
    object_sides = np.exp(rng.normal(4, 0.7, (objects, 2)))
    found = rng.integers(0, objects, n)
    centres = object_centres[found] + rng.normal(0, 0.1, (n, 2)) * object_sides[found]
    sides = object_sides[found] * np.exp(rng.normal(0, 0.15, (n, 2)))
    scores = rng.uniform(0, 1, n).astype(np.float32)
    return corners(centres - sides / 2, centres + sides / 2), scores, (found % 80).astype(np.int64)


def hostile(n: int, seed: int = 0) -> dict[str, Array]:
    """Sets of `n` boxes (n, 4) float32, by name, each of which breaks a shortcut that nms could take."""
    rng = np.random.default_rng(seed)
    place = rng.permutation(n)[:, None] * 20.0
    radius = 10.0 ** rng.uniform(-3, 3, (n, 1))
    centre = rng.normal(0, 1000, (n, 2))
    corner = rng.uniform(0, 3000, (n, 2))
    cluster = rng.normal(0, 0.25, (n, 2)) * 50 + rng.integers(0, 10, (n, 2)) * 200
    in_a_row = place * [1, 0]
    side = np.where(np.arange(n) % 10 == 0, 2500, 8)[:, None]
    columns = int(np.ceil(n**0.5))
    lattice = 2.0**18 * np.stack(np.unravel_index(np.arange(n), (columns, columns)), 1)
    return {
        "identical": np.full((n, 4), [0, 0, 50, 50], np.float32),
        "disjoint": corners(in_a_row, in_a_row + 10),
        "chain": corners(in_a_row / 5, in_a_row / 5 + 10),
        "six decades": corners(centre - radius, centre + radius),
        "huge over small": corners(corner, corner + side),
        "dense": corners(cluster - 25, cluster + 25),
        "power-of-two lattice": corners(lattice, lattice + 1),
    }


def uniform_scores(n: int, seed: int = 1) -> Array:
    """`n` random scores, for the boxes of `hostile`."""
    return np.random.default_rng(seed).uniform(0, 1, n).astype(np.float32)


def rois(
    k: int,
    height: int,
    width: int,
    scale: float,
    batch: int = 1,
    seed: int = 0,
    smallest: float = 10,
    fraction: float = 0.2,
) -> Array:
    """`k` RoIs (k, 5) float32 in image pixels, for a (height, width) feature map of the given spatial scale.

    Sides lie between `smallest` and that plus `fraction` of the image.
    """
    rng = np.random.default_rng(seed)
    # Multiplied before divided, in this order: another one rounds otherwise.
    corner = rng.uniform(0, 1, (k, 2)) * [width, height] / scale * 0.8
    sides = rng.uniform(0, 1, (k, 2)) * [width, height] / scale * fraction + smallest
    image_of_roi = rng.integers(0, batch, (k, 1))
    rois: Array = np.concatenate([image_of_roi, corner, corner + sides], 1).astype(np.float32)
    return rois


def pyramid_boxes(k: int = 512, height: int = 800, width: int = 1344, seed: int = 0) -> Array:
    """`k` boxes (k, 4) float32 with a detector's spread of sizes, clipped to the image."""
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.normal(4.6, 0.9, (k, 2)))
    centres = rng.uniform(0, 1, (k, 2)) * [width, height]
    return corners(*np.clip([centres - sides / 2, centres + sides / 2], 0, [width, height]))


def uniform(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Maps or gradients of random numbers in [0, 1), float32."""
    return np.random.default_rng(seed).random(shape, np.float32)


def deformed(images: int, channels: int, height: int, width: int, outputs: int, seed: int = 0) -> dict[str, Any]:
    """The arrays of a 3x3 deform_conv2d with padding 1, float32, by name: offsets of about a pixel, and masks."""
    rng = np.random.default_rng(seed)

    def uniform(*shape: int) -> Array:
        return rng.uniform(0, 1, shape).astype(np.float32)

    return {
        "input": uniform(images, channels, height, width),
        "weight": uniform(outputs, channels, 3, 3),
        "offset": rng.normal(0, 1, (images, 18, height, width)).astype(np.float32),
        "mask": uniform(images, 9, height, width),
        "bias": uniform(outputs),
    }


def corners(top_left: Array, bottom_right: Array) -> Array:
    return np.concatenate([top_left, bottom_right], 1).astype(np.float32)


class Case(NamedTuple):
    """Maps of one shape and RoIs on them."""

    shape: tuple[int, int, int, int]
    rois: int
    bins: int
    scale: float
    samples: int = 0  # along each axis of a bin; 0: as many as fit

    def __str__(self) -> str:
        return f"{self.shape[1:]}, {self.rois} RoI{'s' if self.rois > 1 else ''}, {self.bins} x {self.bins}"

    @property
    def inputs(self) -> str:
        """How maps and boxes are made."""
        return f"uniform maps {self.shape}, rois({self.rois}, seed=0), scale {self.scale:g}, sampling {self.samples}"

    def maps(self) -> Array:
        """Make the maps."""
        return uniform(self.shape)

    def boxes(self) -> Array:
        """Make the RoIs (K, 5)."""
        return rois(self.rois, *self.shape[2:], self.scale, self.shape[0])


CASES = [
    Case((1, 256, 200, 304), 512, 7, 1 / 4, 2),
    Case((1, 256, 50, 76), 512, 7, 1 / 16),
    Case((1, 1024, 38, 50), 300, 14, 1 / 16),
]
ONE = Case((1, 256, 200, 304), 1, 7, 1 / 4, 2)
TINY = [Case((1, channels, 50, 50), 1, 7, 1 / 4) for channels in (1, 50)]
POSITION_SENSITIVE = Case((1, 1029, 38, 63), 300, 7, 1 / 16)
SMALL = [Case((1, 32, 50, 76), 64, 7, 1 / 16, 2)]
SMALL_POSITION_SENSITIVE = Case((1, 98, 38, 63), 64, 7, 1 / 16)


def layouts(array: Any) -> tuple[Any, ...]:
    """The same numbers, and those from behind, as they may lie in memory."""
    twice = np.repeat(array, 2, -1)
    return array, np.asfortranarray(array), twice[..., ::2], array[::-1][..., ::-1]
