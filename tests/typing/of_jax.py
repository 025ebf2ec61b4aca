"""What type checkers find in calls of cvops on arrays of JAX, and in cvops.jax: see of_numpy.py."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from typing import assert_type

import numpy as np
from jax import Array
from numpy.typing import NDArray

import cvops
import cvops.jax


def plain(maps: Array, boxes: Array, scores: Array) -> None:
    assert_type(cvops.nms(boxes, scores, 0.5), Array)
    assert_type(cvops.nms(boxes, scores, 0.5, padded=True), tuple[Array, Array])
    assert_type(cvops.generalized_box_iou(boxes, boxes), Array)
    assert_type(cvops.clip_boxes_to_image(boxes, maps.shape[-2:]), Array)
    assert_type(cvops.roi_pool(maps, [boxes], 7, return_argmax=True), tuple[Array, Array])
    assert_type(cvops.roi_align_backward(maps, boxes, maps.shape), Array)
    assert_type(cvops.FeaturePyramidNetwork([8], 4)({"map": maps}), dict[str, Array])

    cvops.nms(boxes, 3, 0.5)  # type: ignore[call-overload]
    cvops.nms(boxes, scores, scores[0])  # type: ignore[call-overload]


def traced(maps: Array, boxes: Array, scores: Array, array: NDArray[np.float32]) -> None:
    assert_type(cvops.jax.nms(boxes, scores, 0.5, max_output=3), tuple[Array, Array])
    assert_type(cvops.jax.batched_nms(array, array, scores, 0.5, max_output=3), tuple[Array, Array])
    assert_type(cvops.jax.box_area(boxes), Array)
    assert_type(cvops.jax.box_iou(boxes, array, "xywh"), Array)
    assert_type(cvops.jax.box_convert(array, "xyxy", "xywh"), Array)
    assert_type(cvops.jax.clip_boxes_to_image(boxes, (480, 640)), Array)
    assert_type(cvops.jax.roi_align(maps, [boxes, array], 7), Array)
    assert_type(cvops.jax.roi_pool(maps, boxes, (7, 7)), Array)
    assert_type(cvops.jax.deform_conv2d(maps, maps, maps, stride=2), Array)
    pool = cvops.jax.MultiScaleRoIAlign(["p2"], 7, 2)
    assert_type(pool({"p2": maps}, [boxes], [(64, 64)]), Array)

    cvops.jax.nms(boxes, scores, 0.5)  # type: ignore[call-arg]
    cvops.jax.nms("boxes", scores, 0.5, max_output=3)  # type: ignore[arg-type]
    cvops.jax.box_convert(boxes, "xyzz", "xyxy")  # type: ignore[arg-type]
    cvops.jax.roi_align(maps, [[0, 0, 1, 1]], 7)  # type: ignore[list-item]
    cvops.jax.deform_conv2d(maps, maps, maps, stride=0.5)  # type: ignore[arg-type]
