"""The box functions: against the reference, and every edge by name."""

from __future__ import annotations

import math
import re
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cvops
from cvops import _boxes
from tests import compare, data, reference, strategies
from tests.libraries import to_numpy

FORMATS = ("xyxy", "xywh", "cxcywh")
IOUS = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")
# dtype of the boxes -> dtype of areas and IoUs
RESULTS = dict.fromkeys(("f8", "i4", "i8", "u4", "u8"), "f8") | dict.fromkeys(
    ("f4", "f2", "i1", "i2", "u1", "u2"), "f4"
)

A, B, EMPTY = [0, 0, 2, 2], [1, 1, 3, 3], [1, 1, 1, 5]

every_iou = pytest.mark.parametrize("name", IOUS)
every_format = pytest.mark.parametrize("fmt", FORMATS)


def some_boxes(*shape, seed=0):
    """Boxes (*shape, 4) that are small, not inverted and made of whole numbers in every format."""
    random = np.random.default_rng(seed)
    corner = 2 * random.integers(8, 16, (*shape, 2))
    return np.concatenate([corner, corner + 2 * random.integers(1, 9, (*shape, 2))], -1).astype(np.float32)


def check(name, *args, on=cvops, **options):
    """Call the function and compare with the reference, which gets the values that arrays of other libraries hold."""
    values = [to_numpy(arg) if hasattr(arg, "__dlpack__") else arg for arg in args]
    got, want = getattr(on, name)(*args, **options), getattr(reference, name)(*values, **options)
    (compare.same if want.dtype.kind in "iu" else compare.close)(got, want, args[0])


# ------------------------------------------------------------------------------------------------------- box_area


@every_format
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (2, 3), (2, 0, 3), (2, 3, 1, 2), ()])
def test_box_area(array, fmt, shape):
    check("box_area", array(some_boxes(*shape)), fmt)


@given(strategies.boxes(), st.sampled_from(FORMATS))
def test_box_area_of_any_boxes(ops, boxes, fmt):
    check("box_area", boxes, fmt, on=ops)


@pytest.mark.parametrize(("dtype", "result"), RESULTS.items())
def test_box_area_dtypes(ops, dtype, result):
    got = ops.box_area(some_boxes(5).astype(dtype))
    compare.close(got, reference.box_area(some_boxes(5)).astype(result), got)


def test_box_area_does_not_overflow_small_dtypes(ops):
    assert ops.box_area(np.array([[-128, -128, 127, 127]], np.int8)) == 255 * 255
    assert ops.box_area(np.array([[9, 9, 0, 0], [9, 0, 0, 9]], np.uint8)).tolist() == [81, -81]
    assert ops.box_area(np.array([[0, 0, 60000, 60000]], np.float16)) == np.float32(np.float16(60000)) ** 2
    assert ops.box_area(np.array([[-(2**31), 0, 2**31 - 1, 1]], np.int32)) == 2**32 - 1
    assert ops.box_area(np.array([[-(2**63), 0, 2**62, 2]], np.int64)) == 3.0 * 2**63


# -------------------------------------------------------------------------------------------------- the IoU family


@every_iou
@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0), (1, 1), (1, 17), (17, 1), (40, 33), (3, 128), (1, 1030)])
def test_pairs(array, name, n, m):
    check(name, array(some_boxes(n)), array(some_boxes(m, seed=1)))


@every_iou
@every_format
def test_pairs_in_every_format(array, name, fmt):
    check(name, array(some_boxes(9)), array(some_boxes(11, seed=1)), fmt=fmt)


@every_iou
@pytest.mark.parametrize(
    ("batch1", "batch2"),
    [
        ((2,), (2,)),
        ((2,), ()),
        ((), (3, 2)),
        ((2, 1), (3,)),
        ((1,), (4,)),
        ((0,), (1,)),
        ((2, 3), (2, 3)),
        ((5, 1, 2), (3, 1)),
    ],
)
def test_pairs_in_batches(array, name, batch1, batch2):
    check(name, array(some_boxes(*batch1, 4)), array(some_boxes(*batch2, 3, seed=1)))


@pytest.mark.slow
@every_iou
@given(boxes1=strategies.boxes(12), boxes2=strategies.boxes(12))
def test_pairs_of_any_boxes(ops, name, boxes1, boxes2):
    check(name, boxes1, boxes2, on=ops)


@every_iou
@pytest.mark.parametrize(("dtype", "result"), RESULTS.items())
def test_dtypes_of_pairs(ops, name, dtype, result):
    one, two = some_boxes(5), some_boxes(6, seed=1)
    got = getattr(ops, name)(one.astype(dtype), two.astype(dtype))
    want = getattr(reference, name)(one.astype("f8"), two.astype("f8"))
    compare.close(got, want.astype(result), got)


@every_iou
@pytest.mark.parametrize(
    ("first", "second", "result"),
    [
        ("f4", "f8", "f8"),
        ("f8", "f2", "f8"),
        ("f4", "i4", "f8"),
        ("u1", "i8", "f8"),
        ("f2", "f4", "f4"),
        ("i2", "f2", "f4"),
    ],
)
def test_pairs_of_two_dtypes(ops, name, first, second, result):
    one, two = some_boxes(5), some_boxes(6, seed=1)
    got = getattr(ops, name)(one.astype(first), two.astype(second))
    want = getattr(reference, name)(one.astype("f8"), two.astype("f8"))
    compare.close(got, want.astype(result), got)


def test_every_number_of_threads_gives_the_same(threads):
    """Several times the pairs from which threads are worth it. Rows at the ends of the batches are checked."""
    boxes1, boxes2 = data.clustered(3 * 650)[0].reshape(3, 650, 4), data.clustered(2600)[0]
    rows = [0, 1, 649]
    want = reference.box_iou(boxes1[:, rows], boxes2)
    results = []
    for count in (1, 2, 3, 4):
        threads(count)
        results.append(cvops.box_iou(boxes1, boxes2))
        assert results[-1].shape == (3, 650, 2600)
        np.testing.assert_array_equal(results[-1][:, rows], want)
        np.testing.assert_array_equal(results[-1], results[0])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_box_iou_is_exactly_that_of_nms(ops, dtype):
    """Working precision in the written order: no contraction, no reciprocal."""
    boxes = data.clustered(60)[0].astype(dtype)
    compare.same(ops.box_iou(boxes, boxes), reference.box_iou(boxes, boxes), boxes)


def test_values_by_hand(ops):
    a, b, apart = (np.array([box], np.float64) for box in (A, B, [4, 0, 6, 2]))
    assert ops.box_iou(a, b) == 1 / 7
    assert ops.generalized_box_iou(a, apart) == -4 / 12
    assert ops.distance_box_iou(a, b, 0) == pytest.approx(1 / 7 - 2 / 18)
    v = 4 / math.pi**2 * (math.pi / 4 - math.atan(1 / 2)) ** 2
    high = np.array([[0, 0, 2, 4.0]])
    assert ops.complete_box_iou(a, high, 0) == pytest.approx(1 / 2 - 1 / 20 - v / (1 / 2 + v) * v)


@every_iou
def test_zero_over_zero_is_nan(ops, name):
    empty, one = np.array([EMPTY], np.float32), np.array([A], np.float32)
    function = getattr(ops, name)
    assert math.isnan(function(empty, empty)[0, 0])
    assert ops.box_iou(empty, one) == 0
    assert math.isnan(function(np.array([[0, 0, math.nan, 2]], np.float32), one)[0, 0])


@pytest.mark.parametrize("name", ["distance_box_iou", "complete_box_iou"])
@pytest.mark.parametrize("eps", [0, 1e-7, 0.5, np.float32(2), 3])
def test_eps(ops, name, eps):
    check(name, some_boxes(5), some_boxes(6, seed=1), eps, on=ops)
    check(name, some_boxes(5), some_boxes(6, seed=1), eps=eps, on=ops)


# ----------------------------------------------------------------------------------------------------- box_convert


@pytest.mark.parametrize("out_fmt", FORMATS)
@pytest.mark.parametrize("in_fmt", FORMATS)
@pytest.mark.parametrize("shape", [(0,), (7,), (2, 3), ()])
def test_box_convert(array, in_fmt, out_fmt, shape):
    check("box_convert", array(some_boxes(*shape)), in_fmt, out_fmt)


@given(strategies.boxes(dtypes=strategies.FLOATS), st.sampled_from(FORMATS), st.sampled_from(FORMATS))
def test_box_convert_of_any_boxes(ops, boxes, in_fmt, out_fmt):
    # Where an intermediate value is too large for the dtype, the result is infinite sooner or later.
    boxes[~(abs(boxes) < np.finfo(boxes.dtype).max / 8)] = math.nan
    check("box_convert", boxes, in_fmt, out_fmt, on=ops)


@pytest.mark.parametrize("dtype", [*strategies.FLOATS, *strategies.INTEGERS])
@pytest.mark.parametrize("out_fmt", FORMATS)
@pytest.mark.parametrize("in_fmt", FORMATS)
def test_box_convert_keeps_the_dtype(ops, dtype, in_fmt, out_fmt):
    check("box_convert", some_boxes(20).astype(dtype), in_fmt, out_fmt, on=ops)


@pytest.mark.parametrize(("in_fmt", "out_fmt"), [(a, b) for a in FORMATS for b in FORMATS if a != b])
@pytest.mark.parametrize("dtype", strategies.INTEGERS)
def test_integers_become_floats_where_a_conversion_halves(array, dtype, in_fmt, out_fmt):
    """Odd sizes give halves, and centres near the edge of the image corners left of it."""
    boxes = np.array([[3, 3, 20, 21], [50, 51, 21, 31], [10, 10, 31, 41], [0, 1, 1, 0], [127, 127, 127, 127]], dtype)
    given = array(boxes)
    got, want = cvops.box_convert(given, in_fmt, out_fmt), reference.box_convert(to_numpy(given), in_fmt, out_fmt)
    compare.same(got, want, given)
    if want.dtype.kind == "f":
        assert "cxcywh" in (in_fmt, out_fmt)


def test_halves_of_integers_by_hand(ops):
    boxes = np.array([[3, 3, 20, 20], [50, 50, 21, 31]], np.uint8)
    got = ops.box_convert(boxes, "cxcywh", "xyxy")
    compare.same(got, np.array([[-7, -7, 13, 13], [39.5, 34.5, 60.5, 65.5]], np.float32), boxes)
    got = ops.box_convert(boxes.astype(np.int32), "xyxy", "cxcywh")
    compare.same(got, np.array([[11.5, 11.5, 17, 17], [35.5, 40.5, -29, -19]]), boxes)
    large = np.array([[2**62, 0, 2**62 + 2**40, 1]])
    assert ops.box_convert(large, "xyxy", "cxcywh").tolist() == [[2.0**62 + 2**39, 0.5, 2.0**40, 1]]


@pytest.mark.parametrize("dtype", strategies.INTEGERS)
def test_integers_between_corners_and_sizes_are_exact(ops, dtype):
    largest = np.iinfo(dtype).max
    boxes = np.array([[1, 2, largest, largest - 1]], dtype)
    assert ops.box_convert(boxes, "xyxy", "xywh").tolist() == [[1, 2, largest - 1, largest - 3]]


def test_float16_is_converted_in_float32(ops):
    boxes = np.array([[60000, 2047, 60032, 2048], [-3, 0.1, 8, 0.3]], np.float16)
    centres = np.array([[60016, 2047.5, 32, 1], *reference.box_convert(boxes[1:].astype("f4"), "xyxy", "cxcywh")])
    compare.same(ops.box_convert(boxes, "xyxy", "cxcywh"), centres.astype(np.float16), boxes)
    sizes = np.array([[2049, 0, 2.5, 1]], np.float16)  # 2048 - 1.25, not rounded on the way
    got = ops.box_convert(sizes, "cxcywh", "xywh")
    compare.same(got, reference.box_convert(sizes.astype("f4"), "cxcywh", "xywh").astype("f2"), sizes)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "i8"])
@pytest.mark.parametrize("shape", [(200_000,), (2, 100_000), (100_000, 2), (1, 200_000)])
@pytest.mark.parametrize(("in_fmt", "out_fmt"), [("xyxy", "cxcywh"), ("cxcywh", "xyxy"), ("cxcywh", "xywh")])
def test_box_convert_allocates_little_but_its_result(in_fmt, out_fmt, shape, dtype):
    boxes = np.ones((*shape, 4), dtype)
    cvops.box_convert(boxes[:1], in_fmt, out_fmt)
    tracemalloc.start()
    result = cvops.box_convert(boxes, in_fmt, out_fmt)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.2 * result.nbytes + 2**20


# -------------------------------------------------------------------------------------------------- very many boxes
# On the CPU they are computed in parts. Here parts are small, and results have the bits that they have as a whole.


@pytest.mark.parametrize("name", ["box_iou", "complete_box_iou"])
@pytest.mark.parametrize("fmt", ["xyxy", "cxcywh"])
@pytest.mark.parametrize("dtype", strategies.few(["f4", "f2", "i4"], every=3))
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((9,), (1,)), ((1,), (9,)), ((7,), (6,)), ((9, 1), (9, 1)), ((9, 1), (1, 1)), ((2, 5), (2, 4)), ((2, 5), (4,)),
        ((4, 1, 3), (5, 2)), ((1, 4, 3), (2, 4, 11)), ((0,), (9,)), ((2, 0, 3), (9,)),
    ],
)  # fmt: skip
def test_measures_in_parts(monkeypatch, name, fmt, dtype, one, other):
    from cvops._cpu import _boxes as kernels

    sets = some_boxes(*one).astype(dtype), some_boxes(*other, seed=1).astype(dtype)
    for boxes1, boxes2 in zip(*map(data.layouts, sets), strict=True):
        compare.same_in_parts(monkeypatch, kernels, "_BOXES", getattr(cvops, name), boxes1, boxes2, fmt=fmt)


@every_format
@pytest.mark.parametrize("dtype", ["f4", "f2", "i4"])
@pytest.mark.parametrize("shape", [(9,), (2, 3), (9, 1, 2), (2, 0, 3), ()])
def test_area_and_conversion_in_parts(monkeypatch, fmt, dtype, shape):
    for boxes in data.layouts(some_boxes(*shape).astype(dtype)):
        compare.same_in_parts(monkeypatch, _boxes, "_BLOCK", cvops.box_area, boxes, fmt)
        for other in FORMATS:
            compare.same_in_parts(monkeypatch, _boxes, "_BLOCK", cvops.box_convert, boxes, fmt, other)


@pytest.mark.parametrize("dtype", ["f4", "f2", "i4"])
@pytest.mark.parametrize("length", [0, 1, 9, 40])
def test_small_boxes_in_parts(monkeypatch, dtype, length):
    for boxes in data.layouts(some_boxes(length).astype(dtype)):
        for size in (0, 8, 100):
            compare.same_in_parts(monkeypatch, _boxes, "_BLOCK", cvops.remove_small_boxes, boxes, size)


# --------------------------------------------------------------------------------- clip_boxes_to_image


@pytest.mark.parametrize("size", [(30, 50), (50, 30), (0, 0), (30.5, 25.25), (np.int64(9), np.float32(8)), [30, 50]])
@pytest.mark.parametrize("shape", [(0,), (7,), (2, 3), ()])
def test_clip_boxes_to_image(array, shape, size):
    boxes = array(some_boxes(*shape) - 20)
    compare.same(cvops.clip_boxes_to_image(boxes, size), reference.clip_boxes_to_image(to_numpy(boxes), size), boxes)


@given(strategies.boxes(), st.tuples(st.integers(0, 100), st.integers(0, 100)))
def test_clip_any_boxes(ops, boxes, size):
    compare.same(ops.clip_boxes_to_image(boxes, size), reference.clip_boxes_to_image(boxes, size), boxes)


@pytest.mark.parametrize("dtype", [*strategies.FLOATS, *strategies.INTEGERS])
def test_clip_to_an_image_larger_than_the_dtype(ops, dtype):
    boxes = np.array([[0, 1, 2, 127]], dtype)
    compare.same(ops.clip_boxes_to_image(boxes, (10**6, 10**9)), boxes, boxes)


def test_clip_keeps_nan_and_bounds_inf(ops):
    boxes = np.array([[math.nan, -math.inf, math.inf, math.nan]], np.float32)
    compare.same(ops.clip_boxes_to_image(boxes, (5, 6)), np.array([[math.nan, 0, 6, math.nan]], np.float32), boxes)


# ---------------------------------------------------------------------------------------------- remove_small_boxes


@pytest.mark.parametrize("min_size", [0, 10, 12.5, -1, math.inf, np.float32(7), np.int8(6)])
@pytest.mark.parametrize("length", [0, 1, 50])
def test_remove_small_boxes(array, length, min_size):
    check("remove_small_boxes", array(some_boxes(length)), min_size)


@given(strategies.boxes(), st.sampled_from([-1, 0, 1, 4, 1e-3, 1e3, math.inf]))
def test_remove_small_boxes_of_any_kind(ops, boxes, min_size):
    got, want = ops.remove_small_boxes(boxes, min_size), reference.remove_small_boxes(boxes, min_size)
    compare.same(got, want, boxes)


def test_sides_equal_to_the_minimum_are_kept(ops):
    boxes = np.array([[0, 0, 3, 3], [0, 0, 3, 2.5], [0, 0, 2.5, 3], [3, 3, 0, 0], [0, 0, math.nan, 5]], np.float32)
    assert ops.remove_small_boxes(boxes, 3).tolist() == [0]
    assert ops.remove_small_boxes(boxes, 0).tolist() == [0, 1, 2]


def test_sides_of_unsigned_boxes_do_not_wrap(ops):
    boxes = np.array([[9, 9, 0, 0], [0, 0, 255, 255], [200, 0, 0, 255]])
    for dtype in (np.uint8, np.uint16, np.uint32, np.uint64):
        assert ops.remove_small_boxes(boxes.astype(dtype), 3).tolist() == [1]
    assert ops.remove_small_boxes(np.array([[-128, -128, 127, 127]], np.int8), 255).tolist() == [0]


# -------------------------------------------------------------------------------------------------- masks_to_boxes

masks = hnp.arrays(
    st.sampled_from(["?", "u1", "i4", "f2", "f4", "f8"]),
    st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(1, 6)),
    elements=st.sampled_from([0, 0, 0, 1]),
)


@given(masks)
def test_masks_to_boxes(ops, masks):
    check("masks_to_boxes", masks, on=ops)


def test_masks_to_boxes_of_many_masks(monkeypatch):
    """On the CPU some are looked at after the others."""
    masks = np.random.default_rng(0).uniform(size=(23, 5, 4)) > 0.9
    want = cvops.masks_to_boxes(masks)
    for block, sides in ((7, 1 << 20), (1 << 20, 30), (1, 1)):
        monkeypatch.setattr(_boxes, "_BLOCK", block)
        monkeypatch.setattr(_boxes, "_MASK_SIDES", sides)
        np.testing.assert_array_equal(cvops.masks_to_boxes(masks), want)


@pytest.mark.parametrize("dtype", ["?", "u1", "i4", "f4"])
@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 1, 1), (5, 1, 9), (5, 9, 1), (3, 20, 30)])
def test_masks_to_boxes_of_every_library(array, shape, dtype):
    pixels = np.random.default_rng(0).random(shape) > 0.9
    check("masks_to_boxes", array(pixels.astype(dtype)))


def test_nonzero_is_inside(ops):
    masks = np.zeros((7, 3, 4), np.float32)
    masks[:, 1, 2] = [-1, 0.25, math.nan, math.inf, 1e-45, -0.0, 0]
    want = np.array([[2, 1, 2, 1]] * 5 + [[0, 0, 0, 0]] * 2, np.float32)
    compare.same(ops.masks_to_boxes(masks), want, masks)


# -------------------------------------------------------------------------------------------------- unusual numbers


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", *strategies.INTEGERS])
@pytest.mark.parametrize("length", [1, 7])
def test_no_box_function_warns(ops, dtype, length):
    """Infinities, NaN and what overflows are ordinary values; one box alone is computed on NumPy's scalars."""
    info = np.finfo(dtype) if dtype[0] == "f" else np.iinfo(dtype)
    extremes = [info.min, info.max, 0, 1]
    if dtype[0] == "f":
        extremes += [math.nan, math.inf, -math.inf, info.tiny, info.smallest_subnormal]
    boxes = np.array([extremes[i % len(extremes)] for i in range(4 * length)], dtype).reshape(length, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for some in (boxes, boxes[:, ::-1], boxes[0]):
            for fmt in FORMATS:
                ops.box_area(some, fmt)
                for out_fmt in FORMATS:
                    ops.box_convert(some, fmt, out_fmt)
            for size in ((0, 0), (1e300, math.inf), (5, 70000)):
                ops.clip_boxes_to_image(some, size)
        for min_size in (0, 1e300, -1e300, math.inf, math.nan):
            if not math.isnan(min_size):
                ops.remove_small_boxes(boxes, min_size)
        for fmt in FORMATS:
            ops.box_iou(boxes, boxes, fmt)
            ops.generalized_box_iou(boxes, boxes, fmt=fmt)
            for eps in (0, 1e-300, 1e300, math.inf):
                ops.distance_box_iou(boxes, boxes, eps, fmt=fmt)
                ops.complete_box_iou(boxes, boxes, eps, fmt=fmt)
        if dtype[0] == "f":
            ops.masks_to_boxes(np.resize(boxes, (2, 3, 4)))


COLLAPSED = np.array(
    [[12, 20, 28, 20], [12, 20, 12, 40], [12, 20, 12, 20], [0, 0, 1e-40, 1e-41], [28, 40, 12, 20], [12, 40, 28, 20]]
)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_complete_iou_of_collapsed_and_inverted_boxes(ops, dtype):
    """The angle is atan2(width, height): 90 degrees without height, 0 without width, 0 for a point."""
    target = np.array([[10, 10, 30, 50]], dtype)
    boxes = COLLAPSED.astype(dtype)
    got = ops.complete_box_iou(boxes, target)
    assert np.isfinite(got).all()
    check("complete_box_iou", boxes, target, on=ops)
    check("complete_box_iou", target, boxes, on=ops)
    difference = math.pi / 2 - math.atan(1 / 2)
    v = 4 / math.pi**2 * difference**2
    apart = 10**2 / (20**2 + 40**2)  # centres, over the diagonal
    assert got[0, 0] == pytest.approx(-apart - v / (1 + v) * v, rel=1e-5)


# --------------------------------------------------------------------------------------------------- refused inputs


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3), (4, 0), ()])
def test_boxes_of_another_shape(array, shape):
    wrong, right = array(np.zeros(shape, np.float32)), array(some_boxes(2))
    text = re.escape(f"`boxes` must have shape (..., 4), got {shape}")
    for call in (
        lambda: cvops.box_area(wrong),
        lambda: cvops.box_convert(wrong, "xyxy", "xywh"),
        lambda: cvops.clip_boxes_to_image(wrong, (9, 9)),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    for name in IOUS:
        with pytest.raises(ValueError, match=r"`boxes1` must have shape .*" + re.escape(f", 4), got {shape}")):
            getattr(cvops, name)(wrong, right)
        with pytest.raises(ValueError, match=r"`boxes2` must have shape .*" + re.escape(f", 4), got {shape}")):
            getattr(cvops, name)(right, wrong)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (3, 5)])
def test_remove_small_boxes_takes_one_set(array, shape):
    with pytest.raises(ValueError, match=re.escape(f"`boxes` must have shape (L, 4), got {shape}")):
        cvops.remove_small_boxes(array(np.zeros(shape, np.float32)), 1)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4, 5), ()])
def test_masks_of_another_shape(array, shape):
    with pytest.raises(ValueError, match=re.escape(f"`masks` must have shape (N, H, W), got {shape}")):
        cvops.masks_to_boxes(array(np.zeros(shape, np.float32)))


@every_iou
@pytest.mark.parametrize(("batch1", "batch2"), [((2,), (3,)), ((2, 3), (2,)), ((0,), (2,))])
def test_batches_that_do_not_match(array, name, batch1, batch2):
    with pytest.raises(ValueError, match=r"`boxes1` and `boxes2` must .*" + re.escape(f"{batch1} and {batch2}")):
        getattr(cvops, name)(array(some_boxes(*batch1, 4)), array(some_boxes(*batch2, 5)))


@pytest.mark.parametrize("dtype", [bool, np.complex64, np.longdouble, "datetime64[s]", "U3"])
def test_boxes_of_other_dtypes(dtype):
    wrong = np.zeros((2, 4), dtype)
    for call in (
        lambda: cvops.box_area(wrong),
        lambda: cvops.box_convert(wrong, "xyxy", "xyxy"),
        lambda: cvops.clip_boxes_to_image(wrong, (9, 9)),
        lambda: cvops.remove_small_boxes(wrong, 1),
    ):
        with pytest.raises(TypeError, match=r"`boxes` must be .*, got "):
            call()
    for name in IOUS:
        with pytest.raises(TypeError, match=r"`boxes1` must be .*, got "):
            getattr(cvops, name)(wrong, some_boxes(2))
        with pytest.raises(TypeError, match=r"`boxes2` must be .*, got "):
            getattr(cvops, name)(some_boxes(2), wrong)


@pytest.mark.parametrize("dtype", [np.complex64, np.longdouble, "datetime64[s]"])
def test_masks_of_other_dtypes(dtype):
    with pytest.raises(TypeError, match=r"`masks` must be .*, got "):
        cvops.masks_to_boxes(np.zeros((2, 3, 4), dtype))


@pytest.mark.parametrize(
    ("fmt", "text"),
    [
        ("xyxyr", "got 'xyxyr'"),
        ("", "got ''"),
        *((fmt, "not supported yet") for fmt in ("xywhr", "cxcywhr", "xyxyxyxy")),
    ],
)
def test_other_formats(fmt, text):
    boxes = some_boxes(2)
    for call in (
        lambda: cvops.box_area(boxes, fmt),
        lambda: cvops.box_convert(boxes, fmt, "xyxy"),
        lambda: cvops.box_convert(boxes, "xyxy", fmt),
        *(lambda name=name: getattr(cvops, name)(boxes, boxes, fmt=fmt) for name in IOUS),
    ):
        with pytest.raises(ValueError, match=text):
            call()


def test_formats_are_keywords_where_torchvision_has_none():
    boxes = some_boxes(2)
    for name in IOUS[1:]:
        with pytest.raises(TypeError):
            getattr(cvops, name)(boxes, boxes, "xywh")
        with pytest.raises(TypeError, match="positional"):
            getattr(cvops, name)(boxes, boxes, 1e-7, "xywh")


@pytest.mark.parametrize("size", [(5,), (5, 6, 7), (-1, 5), (5, math.nan)])
def test_wrong_image_sizes(size):
    with pytest.raises(ValueError, match="`size` must be "):
        cvops.clip_boxes_to_image(some_boxes(2), size)


@pytest.mark.parametrize("value", ["3", None, 1j, [3]])
def test_wrong_numbers(value):
    with pytest.raises(TypeError, match="`min_size` must be "):
        cvops.remove_small_boxes(some_boxes(2), value)
    with pytest.raises(TypeError, match="`eps` must be "):
        cvops.distance_box_iou(some_boxes(2), some_boxes(2), value)
    with pytest.raises(TypeError, match="`size` must be "):
        cvops.clip_boxes_to_image(some_boxes(2), (value, 3))
