"""From what a head predicts to boxes and back: the formulas on CuPy arrays. Nothing waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cvops._box_formulas import Fit, decoders
from cvops._checks import working_dtype
from cvops._decode import result_dtype

from ._device import Array, converted, copy, ignore_fp_errors, xp

_decoded, _encoded, _around, _moved = decoders(xp)


def decode_boxes(deltas: Array, anchors: Array, weights: list[float], clip: float | None) -> Array:
    return _computed(lambda one, other: _decoded(one, other, weights, clip), deltas, anchors, like=deltas)


def encode_boxes(boxes: Array, anchors: Array, weights: list[float]) -> Array:
    return _computed(lambda one, other: _encoded(one, other, weights), boxes, anchors, like=boxes)


def distance_to_boxes(points: Array, distances: Array) -> Array:
    return _computed(_around, points, distances, like=distances)


def scale_boxes(boxes: Array, fit: Fit) -> Array:
    return _computed(lambda array: _moved(array, fit), boxes, like=boxes)


def _computed(formula: Callable[..., Any], *arrays: Array, like: Array) -> Array:
    """What the formula gives in working precision, in the dtype of `like` if that is a float."""
    dtype = working_dtype(*arrays)
    with ignore_fp_errors():
        result = formula(*(converted(array, dtype) for array in arrays))
    return copy(converted(result, result_dtype(like)))
