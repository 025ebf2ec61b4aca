"""RoIs in working precision, of which only those that are asked for are in memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from ._memory import Array, contiguous


class RoisOfImages:
    """A list of boxes (L_i, 4), one array for each image, read as RoIs (K, 5) without a copy of all of them."""

    def __init__(self, boxes: Sequence[Array], dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self._boxes = boxes
        self._starts = [0, *itertools.accumulate(map(len, boxes))]

    def __len__(self) -> int:
        return self._starts[-1]

    def block(self, begin: int, end: int, dtype: str) -> Array:
        """The RoIs begin, ..., end - 1."""
        rois = np.empty((end - begin, 5), dtype)
        for image, (boxes, start) in enumerate(zip(self._boxes, self._starts, strict=False)):
            first, last = max(begin - start, 0), min(end - start, len(boxes))
            if first < last:
                part = rois[start + first - begin : start + last - begin]
                part[:, 0], part[:, 1:] = image, boxes[first:last]
        return rois

    def take(self, rows: Array, dtype: str) -> Array:
        """The RoIs of these rows."""
        rois = np.empty((len(rows), 5), dtype)
        images = np.searchsorted(self._starts, rows, "right") - 1
        by_image = np.argsort(images, kind="stable")
        ends = np.cumsum(np.bincount(images, minlength=len(self._boxes)))
        for image, (boxes, start) in enumerate(zip(self._boxes, self._starts, strict=False)):
            some = by_image[ends[image - 1] if image else 0 : ends[image]]
            rois[some, 0] = image
            rois[some, 1:] = boxes[rows[some] - start]
        return rois


Rois: TypeAlias = Array | RoisOfImages


def block(rois: Rois, begin: int, end: int, dtype: str) -> Array:
    """The RoIs begin, ..., end - 1, as far as there are so many: read-only, contiguous, of type code `dtype`."""
    if isinstance(rois, RoisOfImages):
        return _read_only(rois.block(begin, min(end, len(rois)), dtype))
    return contiguous(rois[begin:end], dtype)


def take(rois: Rois, rows: Array, dtype: str) -> Array:
    """The RoIs of these rows, as `block`."""
    return _read_only(rois.take(rows, dtype) if isinstance(rois, RoisOfImages) else contiguous(rois[rows], dtype))


def _read_only(array: Array) -> Array:
    array.setflags(write=False)
    return array
