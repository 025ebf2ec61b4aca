"""The same answers as torchvision, ONNX Runtime and OpenCV, where they are installed."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cvops
from benchmarks import peers
from tests import compare, data, strategies
from tests.libraries import require

DATA = Path(__file__).parent.parent / "examples" / "data"
THRESHOLDS = (0, 0.1, 0.3, 0.5, 0.7, 0.95)

many = functools.cache(strategies.many)


@pytest.fixture(
    params=[[name, *peers.PACKAGES[name]] for name in ("ONNX Runtime", "OpenCV")], ids=lambda names: names[0]
)
def peer(request):
    return request.param[0]


def to_torch(array):
    return require("torch").from_numpy(np.array(array))


# ------------------------------------------------------------------------------------------------- nms: torchvision


def check_nms(torchvision, boxes, scores, threshold):
    want = torchvision.ops.nms(to_torch(boxes), to_torch(scores.astype(boxes.dtype)), threshold)
    compare.same(cvops.nms(boxes, scores.astype(boxes.dtype), threshold), want.numpy(), boxes)


def check_batched_nms(torchvision, boxes, scores, idxs, threshold):
    """torchvision's last sort is not stable: the same boxes, and the same scores in the same order."""
    scores = scores.astype(boxes.dtype)
    inputs = boxes, scores, idxs
    want = torchvision.ops.boxes._batched_nms_vanilla(*(to_torch(array) for array in inputs), threshold).numpy()
    got = cvops.batched_nms(*inputs, threshold)
    np.testing.assert_array_equal(np.sort(got), np.sort(want))
    np.testing.assert_array_equal(scores[got], scores[want])


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("name", strategies.many(1))
def test_nms_is_torchvisions(torchvision, name, threshold):
    for size in (0, 1, 100, 1000, 7100):
        boxes, scores = many(size)[name], data.uniform_scores(size)
        check_nms(torchvision, boxes, scores, threshold)
        check_nms(torchvision, boxes, scores.round(1), threshold)  # many ties


@pytest.mark.parametrize("name", ["clustered", "identical", "six decades", "dense"])
def test_nms_of_20_000_boxes_is_torchvisions(torchvision, name):
    check_nms(torchvision, many(20_000)[name], data.uniform_scores(20_000), 0.5)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("name", strategies.many(1))
def test_batched_nms_is_torchvisions_class_by_class(torchvision, name, threshold):
    for size in (0, 1, 100, 5000):
        boxes, scores, idxs = many(size)[name], data.uniform_scores(size), data.clustered(size)[2]
        check_batched_nms(torchvision, boxes, scores.round(2), idxs - 40, threshold)


@given(detections=strategies.detections(dtypes=("float32", "float64")), threshold=strategies.thresholds)
def test_nms_of_any_boxes_is_torchvisions(torchvision, detections, threshold):
    boxes, scores, idxs = detections
    scores = np.nan_to_num(scores.astype(np.float64), posinf=2, neginf=-2).clip(-1e30, 1e30)
    check_nms(torchvision, boxes, scores, threshold)
    check_batched_nms(torchvision, boxes, scores, idxs.astype(np.int64), threshold)


# ------------------------------------------------------------------------------------ nms: ONNX Runtime and OpenCV


@pytest.mark.parametrize("percent", [50, 60, 70])
@pytest.mark.parametrize("path", sorted(DATA.glob("[ps]*.npz")), ids=lambda path: path.stem)
def test_real_detections_of_peers(peer, path, percent):
    with np.load(path) as file:
        boxes, scores, labels = file["boxes"], file["scores"], file["labels"].astype(np.int64)
    got = cvops.batched_nms(boxes, scores, labels, percent / 100)
    want = peers.BATCHED_NMS[peer](boxes, scores, labels, percent / 100)()
    np.testing.assert_array_equal(np.sort(got), np.sort(want))
    np.testing.assert_array_equal(scores[got], scores[want])


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("size", [1, 10, 300, 1000])
def test_well_formed_boxes_of_peers(peer, size, threshold):
    boxes, scores, idxs = data.clustered(size)
    corner, end = boxes[:, None, :2].astype(np.float64), boxes[:, None, 2:].astype(np.float64)
    inter = (np.minimum(end, boxes[:, 2:]) - np.maximum(corner, boxes[:, :2])).clip(0).prod(2)
    area = (end - corner).prod(2)
    iou = inter / (area + area.T - inter)
    assert abs(iou - threshold).min() > 1e-6, "the peers round differently: choose another seed"
    np.testing.assert_array_equal(cvops.nms(boxes, scores, threshold), peers.NMS[peer](boxes, scores, threshold)())
    want = peers.BATCHED_NMS[peer](boxes, scores, idxs, threshold)()
    np.testing.assert_array_equal(cvops.batched_nms(boxes, scores, idxs, threshold), want)


# ----------------------------------------------------------------------------------------------------------- boxes


def check(torchvision, name, *args):
    """The function on torch tensors against torchvision's: close in value, equal in kind, dtype and shape."""
    args = [to_torch(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    want = getattr(torchvision.ops, name)(*args).numpy()
    (compare.close if want.dtype.kind == "f" else compare.same)(getattr(cvops, name)(*args), want, args[0])


def boxes_of(*shape, dtype=np.float32, seed=0):
    boxes = data.clustered(math.prod(shape), seed=seed)[0]
    return boxes.reshape(*shape, 4).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0,), (1,), (50,), (2, 3, 4), ()])
def test_functions_of_one_set(torchvision, shape, dtype):
    boxes = boxes_of(*shape, dtype=dtype)
    formats = ("xyxy", "xywh", "cxcywh")
    for fmt in formats:
        check(torchvision, "box_area", boxes, fmt)
        for out_fmt in formats:
            check(torchvision, "box_convert", boxes, fmt, out_fmt)
    check(torchvision, "clip_boxes_to_image", boxes, (300, 500))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, np.int16, np.int32, np.int64])
def test_results_of_other_dtypes(torchvision, dtype):
    boxes = (boxes_of(30).clip(0, 1000) // 8).astype(dtype)
    check(torchvision, "clip_boxes_to_image", boxes, (60, 90))
    check(torchvision, "box_convert", boxes, "xyxy", "xywh")
    check(torchvision, "remove_small_boxes", boxes, 7)
    if boxes.dtype.kind == "f":
        check(torchvision, "box_area", boxes)
        check(torchvision, "box_iou", boxes, boxes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shapes", [((0,), (0,)), ((0,), (3,)), ((40,), (1,)), ((60,), (50,)), ((3, 4), (2, 1, 5)), ((2, 4), (5,))]
)
@pytest.mark.parametrize("name", ["box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"])
def test_functions_of_pairs(torchvision, name, shapes, dtype):
    boxes1, boxes2 = boxes_of(*shapes[0], dtype=dtype), boxes_of(*shapes[1], dtype=dtype, seed=1)
    check(torchvision, name, boxes1, boxes2)
    if name == "box_iou":
        for fmt in ("xyxy", "xywh", "cxcywh"):
            check(torchvision, name, boxes1, boxes2, fmt)
    if name in ("distance_box_iou", "complete_box_iou"):
        check(torchvision, name, boxes1, boxes2, 0.5)


@pytest.mark.parametrize("name", ["box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"])
def test_degenerate_pairs(torchvision, name):
    """All but infinite and inverted boxes, and points for complete IoU, whose angle is NaN in torchvision."""
    odd = np.array([[1, 1, 1, 5], [2, 2, 2, 2], [0, 0, 4, 4], [math.nan, 0, 1, 1], [-5, -5, -1, -1], [0, 0, 1e6, 1e-3]])
    if name == "complete_box_iou":
        odd = np.delete(odd, 1, axis=0)
    check(torchvision, name, odd, odd)
    check(torchvision, name, odd.astype(np.float32), odd.astype(np.float32))


@pytest.mark.parametrize("min_size", [0, 0.7, 20, 50.5])
def test_remove_small_boxes(torchvision, min_size):
    boxes = np.concatenate([boxes_of(100), np.array([[0, 0, 0.7, 0.7]], np.float32)])
    check(torchvision, "remove_small_boxes", boxes, min_size)
    check(torchvision, "remove_small_boxes", boxes.astype(np.float64), min_size)


@given(st.integers(0, 2**32))
def test_masks_to_boxes(torchvision, seed):
    random = np.random.default_rng(seed)
    masks = random.random(random.integers(1, 9, 3)) > random.random()
    check(torchvision, "masks_to_boxes", masks)
    check(torchvision, "masks_to_boxes", masks * np.float32(-0.5))
