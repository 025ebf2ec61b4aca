"""Boxes from deltas: the formula on CuPy arrays. Nothing waits for the device."""

from __future__ import annotations

from cvops._checks import working_dtype
from cvops._decode import decoded, result_dtype

from ._device import Array, converted, copy, ignore_fp_errors, xp


def decode_boxes(deltas: Array, anchors: Array, weights: tuple[float, ...], clip: float | None) -> Array:
    dtype = working_dtype(deltas, anchors)
    with ignore_fp_errors():
        boxes = decoded(converted(deltas, dtype), converted(anchors, dtype), weights, clip, xp)
    return copy(converted(boxes, result_dtype(deltas)))
