"""What type checkers find in calls of cvops on arrays that have DLPack and nothing else: see of_numpy.py."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from typing import assert_type

import numpy as np

import cvops


class Array:
    def __dlpack__(self, stream: int | None = None) -> object:
        raise NotImplementedError

    def __dlpack_device__(self) -> tuple[int, int]:
        raise NotImplementedError


class Strict:
    def __dlpack__(self, *, stream: int | None = None, copy: bool | None = None) -> object:
        raise NotImplementedError


def calls(one: Array, two: Strict) -> None:
    assert_type(cvops.nms(one, two, 0.5), Array)
    assert_type(cvops.nms(two, np.ones(3), 0.5, padded=True), tuple[Strict, Strict])
    assert_type(cvops.box_iou(one, two), Array)
    assert_type(cvops.decode_boxes(one, two), Array)
    assert_type(cvops.distance_to_boxes(two, np.ones((3, 4))), Strict)
    assert_type(cvops.make_points([(3, 4)], [8], like=one), Array)
    assert_type(cvops.masks_to_boxes(two), Strict)
    assert_type(cvops.roi_align(one, [two, np.ones((1, 4))], 7), Array)
    assert_type(cvops.roi_pool(two, one, 7, return_argmax=True), tuple[Strict, Strict])
    assert_type(cvops.deform_conv2d(one, two, one, bias=two), Array)

    cvops.nms(object(), one, 0.5)  # type: ignore[call-overload]
    cvops.roi_align(one, object(), 7)  # type: ignore[arg-type]
    cvops.roi_align(one.__dlpack__(), one, 7)  # type: ignore[type-var]
