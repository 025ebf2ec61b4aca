"""What type checkers find in calls of cvops on tensors, and in cvops.torch: see of_numpy.py."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from collections import Counter
from typing import assert_type

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import cvops
import cvops.torch as ops


def plain(maps: Tensor, boxes: Tensor, scores: Tensor, array: NDArray[np.float32], flag: bool) -> None:
    assert_type(cvops.nms(boxes, scores, 0.5), Tensor)
    assert_type(cvops.nms(boxes, scores, 0.5, padded=True), tuple[Tensor, Tensor])
    assert_type(cvops.nms(boxes, scores, 0.5, padded=flag), Tensor | tuple[Tensor, Tensor])
    assert_type(cvops.nms(array, scores, 0.5), NDArray[np.int64])
    assert_type(cvops.batched_nms(boxes, array, scores, 0.5), Tensor)
    assert_type(cvops.box_iou(boxes, array), Tensor)
    assert_type(cvops.box_convert(boxes, "xyxy", "cxcywh"), Tensor)
    assert_type(cvops.clip_boxes_to_image(boxes, maps.shape[-2:]), Tensor)
    assert_type(cvops.remove_small_boxes(boxes, 1), Tensor)
    assert_type(cvops.masks_to_boxes(maps), Tensor)
    assert_type(cvops.roi_align(maps, [boxes], 7), Tensor)
    assert_type(cvops.roi_align_backward(maps, boxes, maps.shape), Tensor)
    assert_type(cvops.roi_pool(maps, boxes, 7), Tensor)
    assert_type(cvops.roi_pool(maps, boxes, 7, return_argmax=True), tuple[Tensor, Tensor])
    assert_type(cvops.roi_pool(maps, boxes, 7, return_argmax=flag), Tensor | tuple[Tensor, Tensor])
    assert_type(cvops.deform_conv2d(maps, maps, maps), Tensor)
    gradients = cvops.deform_conv2d_backward(maps, maps, maps, maps)
    assert_type(gradients, tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None])
    pool = cvops.MultiScaleRoIAlign(["p2"], 7, 2)
    assert_type(pool({"p2": maps}, [boxes], [(64, 64)]), Tensor)
    assert_type(pool.backward(maps, {"p2": maps}, [boxes], [maps.shape[-2:]]), dict[str, Tensor])

    cvops.nms(boxes, scores, scores[0])  # type: ignore[call-overload]
    cvops.nms([boxes], scores, 0.5)  # type: ignore[call-overload]
    cvops.box_convert(boxes, "xyzz", "xyxy")  # type: ignore[call-overload]
    cvops.roi_align(maps, [boxes, 3], 7)  # type: ignore[list-item]


def differentiable(maps: Tensor, boxes: Tensor, scores: Tensor, flag: bool) -> None:
    assert_type(ops.nms(boxes, scores, 0.5), Tensor)
    assert_type(ops.nms(boxes, scores, np.float32(0.5), None, 10), Tensor)
    assert_type(ops.nms(boxes, scores, scores[0], padded=True), tuple[Tensor, Tensor])
    assert_type(ops.nms(boxes, scores, 0.5, padded=flag), Tensor | tuple[Tensor, Tensor])
    assert_type(ops.batched_nms(boxes, scores, scores, 0.5), Tensor)
    assert_type(ops.batched_nms(boxes, scores, scores, 0.5, padded=True), tuple[Tensor, Tensor])
    assert_type(ops.roi_align(maps, [boxes], 7), Tensor)
    assert_type(ops.roi_pool(maps, boxes, (7, 7), 0.25), Tensor)
    assert_type(ops.deform_conv2d(maps, maps, maps, stride=1, padding=(1, 1)), Tensor)
    assert_type(ops.box_convert(boxes, "xyxy", "cxcywh"), Tensor)
    assert_type(ops.clip_boxes_to_image(boxes, maps.shape[-2:]), Tensor)
    assert_type(ops.complete_box_iou_loss(boxes, boxes, reduction="mean"), Tensor)
    assert_type(ops.decode_boxes(boxes, boxes, (10, 10, scores[0], np.float32(5)), clip=None), Tensor)
    assert_type(ops.scale_boxes(boxes, (640, 640), maps.shape[-2:], letterbox="topleft"), Tensor)
    assert_type(ops.multiclass_nms(boxes, maps, 0.5, score_threshold=scores).image, Tensor)
    assert_type(ops.multiclass_nms(boxes, maps, 0.5, 0.25, objectness=scores, max_output=3, padded=True).count, Tensor)
    one_or_other = ops.multiclass_nms(boxes, maps, 0.5, max_output=3, padded=flag)
    assert_type(one_or_other.label, Tensor)
    print(one_or_other.image)  # type: ignore[union-attr]
    ops.DeformConv2d(4, 8, (3, 3), padding=1)
    ops.RoIAlign((7, 7), 0.25, 2)
    with ops.replace_torchvision() as calls:
        assert_type(calls, Counter[str])

    ops.nms("boxes", scores, 0.5)  # type: ignore[call-overload]
    ops.nms(boxes, scores, "0.5")  # type: ignore[call-overload]
    ops.multiclass_nms(boxes, maps, 0.5, padded=True)  # type: ignore[call-overload]
    ops.scale_boxes(boxes, (640, 640), (480, 640), letterbox="left")  # type: ignore[arg-type]
    ops.roi_align(maps, [boxes], "7")  # type: ignore[arg-type]
    ops.roi_align(maps, [[0, 0, 1, 1]], 7)  # type: ignore[list-item]
    ops.deform_conv2d(maps, maps, maps, stride=0.5)  # type: ignore[arg-type]
    ops.box_convert(boxes, "xyzz", "xyxy")  # type: ignore[arg-type]
    ops.generalized_box_iou_loss(boxes, boxes, "median")  # type: ignore[arg-type]
