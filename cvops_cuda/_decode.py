"""From what a head predicts to boxes and back: the formulas on CuPy arrays. Nothing waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cvops._checks import working_dtype
from cvops._decode import Fit, around, decoded, encoded, moved, result_dtype

from ._device import Array, converted, copy, ignore_fp_errors, xp


def decode_boxes(deltas: Array, anchors: Array, weights: tuple[float, ...], clip: float | None) -> Array:
    return _computed(lambda one, other: decoded(one, other, weights, clip, xp), deltas, anchors, like=deltas)


def encode_boxes(boxes: Array, anchors: Array, weights: tuple[float, ...]) -> Array:
    return _computed(lambda one, other: encoded(one, other, weights, xp), boxes, anchors, like=boxes)


def distance_to_boxes(points: Array, distances: Array) -> Array:
    return _computed(lambda one, other: around(one, other, xp), points, distances, like=distances)


def scale_boxes(boxes: Array, fit: Fit) -> Array:
    return _computed(lambda array: moved(array, fit, xp), boxes, like=boxes)


def _computed(formula: Callable[..., Any], *arrays: Array, like: Array) -> Array:
    """What the formula gives in working precision, in the dtype of `like` if that is a float."""
    dtype = working_dtype(*arrays)
    with ignore_fp_errors():
        result = formula(*(converted(array, dtype) for array in arrays))
    return copy(converted(result, result_dtype(like)))
