"""One small call per operator and code path, so that every kernel it can reach is compiled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import _boxes, _nms


def _nms_calls(dtype: str) -> None:
    for length in (8, 512, 8192):  # one dispatch, all pairs, looking near
        boxes, scores = _detections(length, dtype)
        _nms.nms(boxes, scores, 0.5)


def _batched_nms_calls(dtype: str) -> None:
    for length in (512, 8192):
        boxes, scores = _detections(length, dtype)
        _nms.batched_nms(boxes, scores, np.zeros(length, np.int64), 0.5)


def _box_iou_calls(dtype: str) -> None:
    boxes, _ = _detections(8, dtype)
    _boxes.box_iou(boxes, boxes)


def _detections(length: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    corners = np.arange(2.0 * length).reshape(length, 2)
    return np.concatenate([corners, corners + 1], 1).astype(dtype), np.linspace(0, 1, length).astype(dtype)


CALLS: dict[str, Callable[[str], None]] = {
    "nms": _nms_calls,
    "batched_nms": _batched_nms_calls,
    "box_iou": _box_iou_calls,
    "generalized_box_iou": _box_iou_calls,
    "distance_box_iou": _box_iou_calls,
    "complete_box_iou": _box_iou_calls,
}
