"""One small call per operator and code path, so that every kernel it can reach is compiled.

The functions take a dtype and what makes an array of the wanted backend from a NumPy array.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _boxes, _decode, _deform_conv, _multiclass, _nms, _pyramid, _roi

_IMAGES = 1, 16, 4, 4  # shape
# Lengths and thresholds. CPU: one dispatch, a grid, batches, hashed buckets; CUDA: one block, a batch, two of them.
_NMS_CALLS = (8, 0.5), (512, 0.5), (2048, 0.0), (8192, 0.2), (20000, 0.5)


def _nms_calls(dtype: str, asarray: Any) -> None:
    for length, threshold in _NMS_CALLS:
        boxes, scores = _detections(length, dtype, asarray)
        _nms.nms(boxes, scores, threshold)


def _batched_nms_calls(dtype: str, asarray: Any) -> None:
    for length, threshold in _NMS_CALLS:
        boxes, scores = _detections(length, dtype, asarray)
        _nms.batched_nms(boxes, scores, asarray(np.zeros(length, np.int64)), threshold)


def _multiclass_nms_calls(dtype: str, asarray: Any) -> None:
    boxes, scores = (asarray(np.zeros((1, 8, size), dtype)) for size in (4, 2))
    many_boxes, many_scores = (asarray(np.zeros((1, 1025, size), dtype)) for size in (4, 1))  # CPU: as batched_nms
    for class_agnostic in (False, True):
        _multiclass.multiclass_nms(many_boxes, many_scores, 0.5, class_agnostic=class_agnostic)
    for multi_label in (True, False):
        _multiclass.multiclass_nms(boxes, scores, 0.5, multi_label=multi_label)
        _multiclass.multiclass_nms(boxes, scores, 0.5, max_candidates=1, max_output=1, padded=True)


def _of_boxes(call: Callable[[Any], Any]) -> Callable[[str, Any], None]:
    def calls(dtype: str, asarray: Any) -> None:
        call(_detections(8, dtype, asarray)[0])

    return calls


def _distance_to_boxes_calls(dtype: str, asarray: Any) -> None:
    boxes, _ = _detections(8, dtype, asarray)
    _decode.distance_to_boxes(asarray(np.zeros((8, 2), dtype)), boxes)


def _roi_calls(dtype: str, asarray: Any, forward: Callable[..., Any]) -> None:
    forward(*_images_and_rois(dtype, asarray), 2)


def _roi_align_calls(dtype: str, asarray: Any) -> None:
    images, boxes = _images_and_rois(dtype, asarray)
    channels_last = asarray(np.zeros((1, 4, 4, 16), dtype).transpose(0, 3, 1, 2))
    for maps in (channels_last, images):  # CPU: several dispatches, one
        _roi.roi_align(maps, boxes, 2)


def _roi_pool_calls(dtype: str, asarray: Any) -> None:
    images, boxes = _images_and_rois(dtype, asarray)
    _roi.roi_pool(images, boxes, 2, return_argmax=True)
    _roi.roi_pool(images, boxes, 2)


def _roi_backward_calls(dtype: str, asarray: Any, backward: Callable[..., Any], channels: int = 16) -> None:
    _, boxes = _images_and_rois(dtype, asarray)
    backward(asarray(np.zeros((1, channels, 2, 2), dtype)), boxes, _IMAGES)


def _roi_pool_backward_calls(dtype: str, asarray: Any) -> None:
    images, boxes = _images_and_rois(dtype, asarray)
    pooled, argmax = _roi.roi_pool(images, boxes, 2, return_argmax=True)
    _roi.roi_pool_backward(pooled, boxes, argmax, _IMAGES)


def _images_and_rois(dtype: str, asarray: Any) -> tuple[Any, Any]:
    return asarray(np.zeros(_IMAGES, dtype)), asarray(np.array([[0, 0, 0, 3, 3]], dtype))


def _detections(length: int, dtype: str, asarray: Any) -> tuple[Any, Any]:
    corners = np.arange(2.0 * length).reshape(length, 2)
    boxes, scores = np.concatenate([corners, corners + 1], 1), np.linspace(0, 1, length)
    return asarray(boxes.astype(dtype)), asarray(scores.astype(dtype))


def _deform_conv2d_calls(dtype: str, asarray: Any) -> None:
    _deform_conv.deform_conv2d(*_deformed(dtype, asarray), padding=1)


def _deform_conv2d_backward_calls(dtype: str, asarray: Any) -> None:
    image, offset, weight = _deformed(dtype, asarray)
    _deform_conv.deform_conv2d_backward(image, image, offset, weight, asarray(np.zeros(1, dtype)), padding=1)


def _feature_pyramid_network_calls(dtype: str, asarray: Any) -> None:
    for exact in (False, True):
        maps = {"map": asarray(np.ones((1, 1, 16, 16), dtype))}
        _pyramid.FeaturePyramidNetwork([1], 16, exact=exact)(maps)


def _deformed(dtype: str, asarray: Any) -> tuple[Any, Any, Any]:
    shapes = (1, 1, 4, 4), (1, 18, 4, 4), (1, 1, 3, 3)
    return tuple(asarray(np.zeros(shape, dtype)) for shape in shapes)


CALLS: dict[str, Callable[[str, Any], None]] = {
    "nms": _nms_calls,
    "batched_nms": _batched_nms_calls,
    "multiclass_nms": _multiclass_nms_calls,
    "box_iou": _of_boxes(lambda boxes: _boxes.box_iou(boxes, boxes)),
    "generalized_box_iou": _of_boxes(lambda boxes: _boxes.generalized_box_iou(boxes, boxes)),
    "distance_box_iou": _of_boxes(lambda boxes: _boxes.distance_box_iou(boxes, boxes)),
    "complete_box_iou": _of_boxes(lambda boxes: _boxes.complete_box_iou(boxes, boxes)),
    "decode_boxes": _of_boxes(lambda boxes: _decode.decode_boxes(boxes, boxes)),
    "encode_boxes": _of_boxes(lambda boxes: _decode.encode_boxes(boxes, boxes)),
    "distance_to_boxes": _distance_to_boxes_calls,
    "scale_boxes": _of_boxes(lambda boxes: _decode.scale_boxes(boxes, (2, 2), (1, 1))),
    "roi_align": _roi_align_calls,
    "roi_align_backward": functools.partial(_roi_backward_calls, backward=_roi.roi_align_backward),
    "roi_pool": _roi_pool_calls,
    "roi_pool_backward": _roi_pool_backward_calls,
    "ps_roi_align": functools.partial(_roi_calls, forward=_roi.ps_roi_align),
    "ps_roi_align_backward": functools.partial(_roi_backward_calls, backward=_roi.ps_roi_align_backward, channels=4),
    "ps_roi_pool": functools.partial(_roi_calls, forward=_roi.ps_roi_pool),
    "ps_roi_pool_backward": functools.partial(_roi_backward_calls, backward=_roi.ps_roi_pool_backward, channels=4),
    "deform_conv2d": _deform_conv2d_calls,
    "deform_conv2d_backward": _deform_conv2d_backward_calls,
    "FeaturePyramidNetwork": _feature_pyramid_network_calls,
}
