"""One small call per operator and code path, so that every kernel it can reach is compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _boxes, _deform_conv, _nms, _pyramid, _roi


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


def _roi_calls(dtype: str, forward: Callable[..., Any]) -> None:
    images, boxes = _images_and_rois(dtype)
    forward(images, boxes, 2)


def _roi_backward_calls(dtype: str, backward: Callable[..., Any]) -> None:
    images, boxes = _images_and_rois(dtype)
    backward(images[:, :, :2, :2], boxes, images.shape)


def _ps_roi_backward_calls(dtype: str, backward: Callable[..., Any]) -> None:
    images, boxes = _images_and_rois(dtype)
    backward(images[:, :4, :2, :2], boxes, images.shape)


def _roi_pool_backward_calls(dtype: str) -> None:
    images, boxes = _images_and_rois(dtype)
    pooled, argmax = _roi.roi_pool(images, boxes, 2, return_argmax=True)
    _roi.roi_pool_backward(pooled, boxes, argmax, images.shape)


def _images_and_rois(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((1, 16, 4, 4), dtype), np.array([[0, 0, 0, 3, 3]], dtype)


def _detections(length: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    corners = np.arange(2.0 * length).reshape(length, 2)
    return np.concatenate([corners, corners + 1], 1).astype(dtype), np.linspace(0, 1, length).astype(dtype)


def _deform_conv2d_calls(dtype: str) -> None:
    _deform_conv.deform_conv2d(*_deformed(dtype), padding=1)


def _deform_conv2d_backward_calls(dtype: str) -> None:
    image, offset, weight = _deformed(dtype)
    _deform_conv.deform_conv2d_backward(image, image, offset, weight, padding=1)


def _feature_pyramid_network_calls(dtype: str) -> None:
    _pyramid.FeaturePyramidNetwork([1], 1)({"map": np.ones((1, 1, 4, 4), dtype)})


def _deformed(dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.ones((1, 1, 4, 4), dtype), np.zeros((1, 18, 4, 4), dtype), np.ones((1, 1, 3, 3), dtype)


CALLS: dict[str, Callable[[str], None]] = {
    "nms": _nms_calls,
    "batched_nms": _batched_nms_calls,
    "box_iou": _box_iou_calls,
    "generalized_box_iou": _box_iou_calls,
    "distance_box_iou": _box_iou_calls,
    "complete_box_iou": _box_iou_calls,
    "roi_align": functools.partial(_roi_calls, forward=_roi.roi_align),
    "roi_align_backward": functools.partial(_roi_backward_calls, backward=_roi.roi_align_backward),
    "roi_pool": functools.partial(_roi_calls, forward=_roi.roi_pool),
    "roi_pool_backward": _roi_pool_backward_calls,
    "ps_roi_align": functools.partial(_roi_calls, forward=_roi.ps_roi_align),
    "ps_roi_align_backward": functools.partial(_ps_roi_backward_calls, backward=_roi.ps_roi_align_backward),
    "ps_roi_pool": functools.partial(_roi_calls, forward=_roi.ps_roi_pool),
    "ps_roi_pool_backward": functools.partial(_ps_roi_backward_calls, backward=_roi.ps_roi_pool_backward),
    "deform_conv2d": _deform_conv2d_calls,
    "deform_conv2d_backward": _deform_conv2d_backward_calls,
    "FeaturePyramidNetwork": _feature_pyramid_network_calls,
}
