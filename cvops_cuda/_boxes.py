"""Pairwise box measures. Nothing waits for the device."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from cvops._boxes import COMPLETE, DISTANCE, GENERALIZED, IOU, corners_and_area
from cvops._checks import working_dtype

from ._constants import BOXES
from ._device import Array, contiguous, empty, ignore_fp_errors, launch, xp


class BoxPairs(NamedTuple):
    boxes1: Array
    area1: Array
    boxes2: Array
    area2: Array
    n: int
    m: int
    measure: int
    eps: float
    result: Array


def box_iou(boxes1: Array, boxes2: Array, fmt: str) -> Array:
    return _measure(IOU, boxes1, boxes2, fmt, 0.0)


def generalized_box_iou(boxes1: Array, boxes2: Array, fmt: str) -> Array:
    return _measure(GENERALIZED, boxes1, boxes2, fmt, 0.0)


def distance_box_iou(boxes1: Array, boxes2: Array, fmt: str, eps: float) -> Array:
    return _measure(DISTANCE, boxes1, boxes2, fmt, eps)


def complete_box_iou(boxes1: Array, boxes2: Array, fmt: str, eps: float) -> Array:
    return _measure(COMPLETE, boxes1, boxes2, fmt, eps)


def _measure(measure: int, boxes1: Array, boxes2: Array, fmt: str, eps: float) -> Array:
    """Measure boxes (..., N, 4) with boxes (..., M, 4): the result (..., N, M) is in working precision."""
    batch = np.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    n, m, size = boxes1.shape[-2], boxes2.shape[-2], math.prod(batch)
    dtype = working_dtype(boxes1, boxes2)
    result = empty((*batch, n, m), dtype)
    if result.size:
        with ignore_fp_errors():
            (boxes1, area1), (boxes2, area2) = (corners_and_area(each, fmt, dtype, xp) for each in (boxes1, boxes2))
        record = BoxPairs(
            _of_batches(boxes1, (*batch, n, 4)),
            _of_batches(area1, (*batch, n)),
            _of_batches(boxes2, (*batch, m, 4)),
            _of_batches(area2, (*batch, m)),
            n,
            m,
            measure,
            eps,
            result,
        )
        blocks = size * math.ceil(n / BOXES.ROWS) * math.ceil(m / BOXES.COLUMNS)
        launch("boxes", "box_pairs", dtype, blocks, BOXES.COLUMNS, record)
    return result


def _of_batches(array: Array, shape: tuple[int, ...]) -> Array:
    return contiguous(array if array.shape == shape else xp.broadcast_to(array, shape))
