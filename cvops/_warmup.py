"""One small call per operator and code path, so that every kernel it can reach is compiled.

The functions take a dtype and what makes an array of the wanted backend from a NumPy array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import _boxes, _nms


def _nms_calls(dtype: str, asarray: Any) -> None:
    for length in (8, 512, 8192):  # CPU: one dispatch, all pairs, looking near; CUDA: one block, many
        boxes, scores = _detections(length, dtype, asarray)
        _nms.nms(boxes, scores, 0.5)


def _batched_nms_calls(dtype: str, asarray: Any) -> None:
    for length in (512, 8192):
        boxes, scores = _detections(length, dtype, asarray)
        _nms.batched_nms(boxes, scores, asarray(np.zeros(length, np.int64)), 0.5)


def _box_iou_calls(dtype: str, asarray: Any) -> None:
    boxes, _ = _detections(8, dtype, asarray)
    _boxes.box_iou(boxes, boxes)


def _detections(length: int, dtype: str, asarray: Any) -> tuple[Any, Any]:
    corners = np.arange(2.0 * length).reshape(length, 2)
    boxes, scores = np.concatenate([corners, corners + 1], 1), np.linspace(0, 1, length)
    return asarray(boxes.astype(dtype)), asarray(scores.astype(dtype))


CALLS: dict[str, Callable[[str, Any], None]] = {
    "nms": _nms_calls,
    "batched_nms": _batched_nms_calls,
    "box_iou": _box_iou_calls,
    "generalized_box_iou": _box_iou_calls,
    "distance_box_iou": _box_iou_calls,
    "complete_box_iou": _box_iou_calls,
}
