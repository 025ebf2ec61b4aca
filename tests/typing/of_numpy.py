"""What type checkers find in calls of cvops on arrays of NumPy, besides the ordinary ones of operators.py.

Nothing here runs. Checkers check what `assert_type` says, and that each `type: ignore`, which marks a wrong call, is
needed.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import cvops

Indices = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]


def suppression(boxes: Float32, scores: Float32, idxs: NDArray[np.int32], flag: bool, any_dtype: NDArray[Any]) -> None:
    assert_type(cvops.nms(any_dtype, any_dtype, 0.5), Indices)
    assert_type(cvops.nms(np.zeros((3, 4)), np.zeros(3), 1, score_threshold=0, max_output=10), Indices)
    assert_type(cvops.nms(boxes, scores, np.float32(0.5), max_output=np.int64(3), padded=False), Indices)
    assert_type(cvops.nms(boxes, scores, 0.5, padded=True), tuple[Indices, Indices])
    assert_type(cvops.nms(boxes, scores, 0.5, padded=flag), Indices | tuple[Indices, Indices])
    assert_type(cvops.batched_nms(boxes, scores, idxs, 0.5, padded=True), tuple[Indices, Indices])
    assert_type(cvops.batched_nms(boxes, scores, idxs, 0.5, padded=flag), Indices | tuple[Indices, Indices])
    assert_type(cvops.multiclass_nms(boxes, scores, 0.5).box, Indices)
    assert_type(cvops.multiclass_nms(boxes, scores, 0.5, max_output=9, padded=True).count, Indices)

    found = cvops.multiclass_nms(boxes, scores, 0.5, score_threshold=scores, objectness=scores, multi_label=flag)
    assert_type(found.image, Indices)
    padded = cvops.multiclass_nms(boxes, scores, 0.5, max_output=3, padded=True)
    assert_type(padded.count, Indices)
    one_or_other = cvops.multiclass_nms(boxes, scores, 0.5, max_output=3, padded=flag)
    assert_type(one_or_other.label, Indices)
    print(one_or_other.image)  # type: ignore[union-attr]

    cvops.multiclass_nms(boxes, scores, 0.5, padded=True)  # type: ignore[call-overload]
    cvops.multiclass_nms(boxes, scores, 0.5, metric="giou")  # type: ignore[call-overload]
    cvops.nms("boxes", 3, 0.5)  # type: ignore[call-overload]
    cvops.nms([[0.0, 0.0, 1.0, 1.0]], scores, 0.5)  # type: ignore[call-overload]
    cvops.nms(boxes, [0.5], 0.5)  # type: ignore[call-overload]
    cvops.nms(boxes, scores, "0.5")  # type: ignore[call-overload]
    cvops.nms(boxes, scores, None)  # type: ignore[call-overload]
    cvops.nms(boxes, scores, scores)  # type: ignore[call-overload]
    cvops.nms(boxes, scores, 0.5, 0.1)  # type: ignore[call-overload]
    cvops.nms(boxes, scores, 0.5, max_output=1.5)  # type: ignore[call-overload]
    cvops.nms(boxes, scores, 0.5, padded=3)  # type: ignore[call-overload]
    cvops.nms(boxes, None, 0.5)  # type: ignore[call-overload]
    cvops.nms(boxes, scores)  # type: ignore[call-overload]
    cvops.batched_nms(boxes, scores, 0.5)  # type: ignore[call-overload]
    cvops.batched_nms(boxes, scores, (1, 2), 0.5)  # type: ignore[call-overload]


def boxes(one: Float32, two: Float64, half: NDArray[np.float16], whole: NDArray[np.int64], unknown: str) -> None:
    assert_type(cvops.box_area(two, "xywh"), Float64)
    assert_type(cvops.box_area(half), Floats)
    assert_type(cvops.box_area(whole), Floats)
    assert_type(cvops.box_area(np.zeros((3, 4))), Float64)
    assert_type(cvops.box_iou(one, two), Floats)
    assert_type(cvops.box_iou(whole, two, fmt="cxcywh"), Floats)
    assert_type(cvops.distance_box_iou(one, one, 1e-7), Float32)
    assert_type(cvops.complete_box_iou(one, whole, eps=np.float64(1e-7)), Floats)
    assert_type(cvops.decode_boxes(one, two), Float32)
    assert_type(cvops.decode_boxes(half, one, (10, 10, 5, 5), clip=None), NDArray[np.float16])
    assert_type(cvops.encode_boxes(two, one), Float64)
    assert_type(cvops.distance_to_boxes(two, one), Float32)
    assert_type(cvops.scale_boxes(half, (640, 640), (480, 640.5), letterbox="topleft"), NDArray[np.float16])
    assert_type(cvops.make_points([(3, 4)], [8]), Float32)
    assert_type(cvops.make_points([(3, 4)], [(8, 8.5)], offset=0, like=two), Float64)
    assert_type(cvops.make_anchors([(3, 4)], [8], scales=(32,), ratios=((1, 2),)), Float32)
    assert_type(cvops.make_anchors([(3, 4)], [8], scales=(32,), ratios=(1,), like=half), NDArray[np.float16])
    assert_type(cvops.box_convert(half, "xyxy", "xywh"), NDArray[np.float16])
    assert_type(cvops.box_convert(whole, "xyxy", "cxcywh"), NDArray[Any])
    assert_type(cvops.clip_boxes_to_image(whole, whole.shape[:2]), NDArray[np.int64])
    assert_type(cvops.remove_small_boxes(two, 3), Indices)

    cvops.box_area(3)  # type: ignore[call-overload]
    cvops.box_area(one, "xyzz")  # type: ignore[call-overload]
    cvops.box_area(one, unknown)  # type: ignore[call-overload]
    cvops.box_iou(one, [one])  # type: ignore[call-overload]
    cvops.generalized_box_iou(one, one, "xyxy")  # type: ignore[call-overload]
    cvops.distance_box_iou(one, one, fmt="xyxyxyxy")  # type: ignore[call-overload]
    cvops.complete_box_iou(one, one, "xyxy")  # type: ignore[call-overload]
    cvops.box_convert(one, "xyzz", "xyxy")  # type: ignore[call-overload]
    cvops.box_convert(one, "xyxy")  # type: ignore[call-overload]
    cvops.clip_boxes_to_image(one, 480)  # type: ignore[arg-type]
    cvops.clip_boxes_to_image(one, "ab")  # type: ignore[arg-type]
    cvops.clip_boxes_to_image(None, (480, 640))  # type: ignore[type-var]
    cvops.remove_small_boxes(one, "3")  # type: ignore[call-overload]
    cvops.masks_to_boxes([one])  # type: ignore[call-overload]


def regions(maps: Float32, boxes: Float64, argmax: NDArray[np.int32], flag: bool) -> None:
    assert_type(cvops.roi_align(maps, boxes, 7), Float32)
    assert_type(cvops.roi_align(maps, [boxes, maps], (7, 7), 0.25, sampling_ratio=2, aligned=True), Float32)
    assert_type(cvops.roi_align(maps, (boxes,), [7, 7], np.float64(0.25)), Float32)
    assert_type(cvops.roi_pool(maps, boxes, 7), Float32)
    assert_type(cvops.roi_pool(maps, boxes, 7, return_argmax=False), Float32)
    assert_type(cvops.roi_pool(maps, [boxes], 7, return_argmax=True), tuple[Float32, NDArray[np.int32]])
    assert_type(cvops.roi_pool(maps, boxes, 7, return_argmax=flag), Float32 | tuple[Float32, NDArray[np.int32]])
    assert_type(cvops.ps_roi_align(maps, [], 7), Float32)
    assert_type(cvops.ps_roi_pool(maps, boxes, 7), Float32)
    assert_type(cvops.roi_align_backward(maps, boxes, (1, 2, 3, 4)), Float32)
    assert_type(cvops.roi_pool_backward(boxes, boxes, argmax, maps.shape), Float64)
    assert_type(cvops.ps_roi_align_backward(maps, [boxes], [1, 2, 3, 4]), Float32)
    assert_type(cvops.ps_roi_pool_backward(maps, boxes, (1, 2, 3, 4), 0.5), Float32)
    assert_type(cvops.RoIAlign(7, 0.25, 2)(maps, boxes), Float32)
    assert_type(cvops.RoIPool((7, 7), 0.25)(maps, [boxes]), Float32)
    assert_type(cvops.PSRoIAlign(7, 0.25, 2)(maps, boxes), Float32)
    assert_type(cvops.PSRoIPool(7, 0.25)(maps, boxes), Float32)

    cvops.roi_align(maps, "boxes", 7)  # type: ignore[arg-type]
    cvops.roi_align(maps, [[0, 0, 0, 1, 1]], 7)  # type: ignore[list-item]
    cvops.roi_align(maps, {"boxes": boxes}, 7)  # type: ignore[arg-type]
    cvops.roi_align([maps], boxes, 7)  # type: ignore[type-var]
    cvops.roi_align(maps, boxes, 7.5)  # type: ignore[arg-type]
    cvops.roi_align(maps, boxes, "7")  # type: ignore[arg-type]
    cvops.roi_align(maps, boxes, 7, sampling_ratio=0.5)  # type: ignore[arg-type]
    cvops.roi_pool(maps, boxes, 7, 1.0, True)  # type: ignore[call-overload]
    cvops.roi_pool("maps", boxes, 7)  # type: ignore[call-overload]
    cvops.roi_align_backward(maps, boxes, 3)  # type: ignore[arg-type]
    cvops.roi_pool_backward(maps, boxes, [1], (1, 2, 3, 4))  # type: ignore[arg-type]
    cvops.ps_roi_pool(maps, boxes, None)  # type: ignore[arg-type]
    cvops.RoIAlign("7", 0.25, 2)  # type: ignore[arg-type]
    cvops.RoIPool(7, 0.25)(maps, 3)  # type: ignore[arg-type]


def convolution(image: Float32, offset: Float64) -> None:
    assert_type(cvops.deform_conv2d(image, offset, image), Float32)
    assert_type(cvops.deform_conv2d(image, offset, image, None, (1, 2), [1, 1], np.int64(1), mask=offset), Float32)
    gradients = cvops.deform_conv2d_backward(image, image, offset, image)
    assert_type(gradients, tuple[Float32, Float32, Float32, Float32 | None, Float32 | None])
    wanted = cvops.deform_conv2d_backward(image, image, offset, image, wanted=["input", "mask"])
    assert_type(wanted, tuple[Float32 | None, Float32 | None, Float32 | None, Float32 | None, Float32 | None])
    layer = cvops.DeformConv2d(4, 8, kernel_size=3, rng=np.random.default_rng(0))
    assert_type(layer(image, offset), Float32)
    assert_type(layer.weight, Floats)
    assert_type(layer.bias, Floats | None)
    assert_type(layer.state_dict(), dict[str, Floats])
    layer.load_state_dict({"weight": image, "bias": offset})

    cvops.deform_conv2d(image, offset, 3)  # type: ignore[arg-type]
    cvops.deform_conv2d(image, offset, image, stride=0.5)  # type: ignore[arg-type]
    cvops.deform_conv2d_backward(image, image, offset, image, wanted=["input", "masks"])  # type: ignore[list-item]
    cvops.DeformConv2d(4, 8)  # type: ignore[call-arg]
    cvops.DeformConv2d(4, 8, 3, rng=0)  # type: ignore[arg-type]
    layer(image, "offset")  # type: ignore[arg-type]
    layer.load_state_dict({"weight": 3})  # type: ignore[dict-item]


def pyramids(maps: dict[str, Float32], boxes: Float32) -> None:
    pool = cvops.MultiScaleRoIAlign(["p2", "p3"], output_size=7, sampling_ratio=2)
    assert_type(pool(maps, [boxes], [(256, 256)]), Float32)
    assert_type(pool.backward(boxes, maps, boxes, image_shapes=[[256, 256]]), dict[str, Float32])
    shapes = [(1, 8, 64, 64), [1, 8, 32, 32]]
    assert_type(cvops.multiscale_roi_align(list(maps.values()), [boxes], 7, scales=[0.25, 0.125]), Float32)
    gradients = cvops.multiscale_roi_align_backward(boxes, boxes, shapes, scales=(0.25, 0.125), sampling_ratio=2)
    assert_type(gradients, list[Float32])
    cvops.FeaturePyramidNetwork([8, 16], np.int64(4), cvops.LastLevelMaxPool())
    network = cvops.FeaturePyramidNetwork([8, 16], 4, cvops.LastLevelP6P7(4, 4))
    assert_type(network(maps), dict[str, Float32])

    pool(boxes, [boxes], [(256, 256)])  # type: ignore[arg-type]
    cvops.multiscale_roi_align(maps, [boxes], 7, scales=[0.25])  # type: ignore[arg-type]
    cvops.multiscale_roi_align([boxes], [boxes], 7)  # type: ignore[call-arg]
    cvops.multiscale_roi_align_backward(boxes, boxes, (1, 8, 64, 64), scales=[0.25])  # type: ignore[arg-type]
    pool({"p2": "map"}, [boxes], [(256, 256)])  # type: ignore[type-var]
    pool(maps, ["boxes"], [(256, 256)])  # type: ignore[list-item]
    pool(maps, [boxes], (256, 256))  # type: ignore[arg-type]
    cvops.MultiScaleRoIAlign(["p2"], 7, 2, 224)  # type: ignore[call-arg]
    cvops.FeaturePyramidNetwork([8], 4, "pool")  # type: ignore[arg-type]
    network([boxes])  # type: ignore[arg-type]


def process() -> None:
    assert_type(cvops.get_num_threads(), int)
    cvops.set_num_threads(2)
    cvops.warmup("cpu", ["float32", "float64"], ["nms"])

    cvops.set_num_threads("2")  # type: ignore[arg-type]
    cvops.warmup("gpu")  # type: ignore[arg-type]
    cvops.warmup(dtypes=["int8"])  # type: ignore[list-item]
