"""The reference against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests import reference

# B overlaps A by 1 of 7, D touches A and overlaps B by 1 of 7, E has no width.
A, B, D, E = [0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [1, 1, 1, 5]


def boxes(*rows, dtype=np.float64):
    return np.array(rows, dtype)


def test_working_precision():
    def of(*dtypes):
        return reference.working(*(np.zeros(1, dtype) for dtype in dtypes))[0].dtype.name

    assert of("f4") == of("f2") == of("f2", "f4") == of("i1") == of("u2", "f2") == "float32"
    assert of("f8") == of("f4", "f8") == of("i4") == of("u8", "f4") == of("i8", "i1") == "float64"


def test_rank_puts_ties_in_index_order_and_nan_last():
    scores = np.array([0.5, math.nan, 1, -0.0, 0.0, 0.5, -math.inf, math.inf, math.nan])
    assert reference.rank(scores) == [7, 2, 0, 5, 3, 4, 6, 1, 8]


def test_iou():
    a, b, d, e = boxes(A, B, D, E)
    assert reference.iou(a, b) == reference.iou(b, a) == reference.iou(b, d) == 1 / 7
    assert reference.iou(a, a) == 1
    assert reference.iou(a, d) == reference.iou(a, e) == 0
    assert math.isnan(reference.iou(e, e))
    assert reference.iou(*boxes(A, B, dtype=np.float32)) == np.float32(1) / np.float32(7)


def test_nms_keeps_what_no_better_box_overlaps():
    scores = np.array([1, 2, 3, 4, 5])
    for threshold, keep in [(1, [4, 3, 2, 1, 0]), (0.5, [4, 3, 2, 1]), (0.1, [4, 3, 1]), (0, [4, 3, 1])]:
        np.testing.assert_array_equal(reference.nms(boxes(A, A, B, D, E), scores, threshold), keep)


def test_nms_lets_only_kept_boxes_suppress():
    # Neighbours overlap by 9 of 11, the outer two by 8 of 12.
    row = boxes([0, 0, 10, 1], [1, 0, 11, 1], [2, 0, 12, 1])
    np.testing.assert_array_equal(reference.nms(row, np.array([3, 2, 1]), 0.7), [0, 2])


def test_nms_compares_the_working_iou_with_the_double():
    # The float32 nearest to 1/3 is above the double 1/3, which the IoU in float64 equals.
    pair, scores = boxes([0, 0, 2, 1], [1, 0, 3, 1]), np.array([1.0, 0.0])
    np.testing.assert_array_equal(reference.nms(pair, scores, 1 / 3), [0, 1])
    for many in (reference.nms, reference.nms_of_many):
        np.testing.assert_array_equal(many(pair.astype("f4"), scores.astype("f4"), 1 / 3), [0])


def test_nms_options():
    four, scores = boxes(A, A, B, D), np.array([1, math.nan, 3, 2])
    np.testing.assert_array_equal(reference.nms(four, scores, 1), [2, 3, 0, 1])
    np.testing.assert_array_equal(reference.nms(four, scores, 1, score_threshold=1), [2, 3])
    np.testing.assert_array_equal(reference.nms(four, scores, 1, max_output=1), [2])


def test_batched_nms_separates_classes():
    for batched in (reference.batched_nms, reference.batched_nms_of_many):
        got = batched(boxes(A, A, A, A), np.array([1, 2, 3, 4]), np.array([7, -1, 7, 7]), 0.5)
        np.testing.assert_array_equal(got, [3, 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threshold", [0, 0.3, 0.6])
def test_nms_of_many_is_nms(dtype, threshold):
    random = np.random.default_rng(0)
    corner = random.uniform(-5, 5, (200, 2))
    some = np.concatenate([corner, corner + random.uniform(-1, 15, (200, 2))], 1).astype(dtype)
    some[::17, 2] = math.nan
    some[::19, 3] = math.inf
    scores = random.integers(0, 50, 200).astype(dtype)
    want = reference.nms(some, scores, threshold)
    np.testing.assert_array_equal(reference.nms_of_many(some, scores, threshold), want)
    assert 20 < len(want) < 180  # neither trivial


def test_box_area():
    np.testing.assert_array_equal(reference.box_area(boxes(A, E, [3, 0, 1, 5])), [4, 0, -10])
    for fmt in ("xywh", "cxcywh"):
        np.testing.assert_array_equal(reference.box_area(boxes([9, 9, 3, 4]), fmt), [12])
    np.testing.assert_array_equal(reference.box_area(boxes([-128, 0, 127, 1], dtype=np.int8)), [255])


def test_box_iou():
    got = reference.box_iou(boxes(A, E), boxes(A, B, D, E))
    np.testing.assert_array_equal(got, [[1, 1 / 7, 0, 0], [0, 0, 0, math.nan]])
    assert reference.box_iou(np.empty((0, 4)), np.empty((0, 4))).shape == (0, 0)


def test_box_iou_in_other_formats():
    np.testing.assert_array_equal(reference.box_iou(boxes([0, 0, 2, 2]), boxes([1, 1, 2, 2]), "xywh"), [[1 / 7]])
    np.testing.assert_array_equal(reference.box_iou(boxes([1, 1, 2, 2]), boxes([2, 2, 2, 2]), "cxcywh"), [[1 / 7]])


def test_box_iou_of_batches():
    batch = np.stack([boxes(A, B, D), boxes(B, B, E)])  # (2, 3, 4) with (1, 4)
    np.testing.assert_array_equal(reference.box_iou(batch, boxes(A)), [[[1], [1 / 7], [0]], [[1 / 7], [1 / 7], [0]]])


def test_generalized_box_iou():
    # The hull of A and B is 3 x 3, that of A and [4, 0, 6, 2] 6 x 2.
    got = reference.generalized_box_iou(boxes(A), boxes(A, B, [4, 0, 6, 2]))
    np.testing.assert_allclose(got, [[1, 1 / 7 - 2 / 9, -4 / 12]], rtol=1e-15)


def test_distance_box_iou():
    # Centres of A and B: (1, 1) and (2, 2); the hull is 3 x 3.
    np.testing.assert_allclose(reference.distance_box_iou(boxes(A), boxes(A, B), 0), [[1, 1 / 7 - 2 / 18]], rtol=1e-15)
    np.testing.assert_allclose(reference.distance_box_iou(boxes(A), boxes(B), 2), [[1 / 7 - 2 / 20]], rtol=1e-15)


def test_complete_box_iou():
    # A and a box twice as high: IoU 4/8, centres (1, 1) and (1, 2), hull 2 x 4, aspect ratios 1 and 1/2.
    v = 4 / math.pi**2 * (math.pi / 4 - math.atan(1 / 2)) ** 2
    got = reference.complete_box_iou(boxes(A), boxes([0, 0, 2, 4]), 0)
    np.testing.assert_allclose(got, [[1 / 2 - 1 / 20 - v / (1 / 2 + v) * v]], rtol=1e-15)


def test_box_convert():
    forms = {"xyxy": [1, 2, 4, 8], "xywh": [1, 2, 3, 6], "cxcywh": [2.5, 5, 3, 6]}
    for in_fmt, given in forms.items():
        for out_fmt, want in forms.items():
            np.testing.assert_array_equal(reference.box_convert(boxes(given, given), in_fmt, out_fmt), [want, want])


def test_clip_boxes_to_image():
    got = reference.clip_boxes_to_image(boxes([-1, -2, 30, 20], [4, 12, math.nan, math.inf]), (10, 20))
    np.testing.assert_array_equal(got, [[0, 0, 20, 10], [4, 10, math.nan, 10]])


def test_remove_small_boxes():
    some = boxes(A, [0, 0, 1, 5], [0, 0, 5, 1], [0, 0, math.nan, 9], [5, 5, 0, 0])
    np.testing.assert_array_equal(reference.remove_small_boxes(some, 2), [0])
    np.testing.assert_array_equal(reference.remove_small_boxes(some, 0), [0, 1, 2])


def test_masks_to_boxes():
    masks = np.zeros((3, 4, 5))
    masks[0, 1, 2] = masks[0, 3, 4] = 1
    masks[1, 3, 0] = -2
    np.testing.assert_array_equal(reference.masks_to_boxes(masks), [[2, 1, 4, 3], [0, 3, 0, 3], [0, 0, 0, 0]])
