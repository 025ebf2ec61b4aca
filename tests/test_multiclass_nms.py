"""multiclass_nms: against the reference, ONNX Runtime, the composition of older operators, and every edge by name."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cvops
from tests import compare, data, libraries, strategies
from tests import reference_multiclass as reference
from tests.libraries import to_numpy

INF, NAN = math.inf, math.nan


BOXES = np.array([[[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]]], np.float32)
SCORES = np.array([[[0.8, 0.1], [0.9, 0.1], [0.1, 0.7]]], np.float32)

# A layout in memory -> the array (N, L, C) with these values in it.
LAYOUTS = {
    "(N, L, C)": np.ascontiguousarray,
    "(N, C, L)": lambda scores: np.ascontiguousarray(scores.transpose(0, 2, 1)).transpose(0, 2, 1),
    "(L, C, N)": lambda scores: np.ascontiguousarray(scores.transpose(1, 2, 0)).transpose(2, 0, 1),
    "(L, N, C)": lambda scores: np.ascontiguousarray(scores.transpose(1, 0, 2)).transpose(1, 0, 2),
    "a part of (N, L, 5 + C)": lambda scores: np.pad(scores, ((0, 0), (0, 0), (5, 0)), constant_values=9)[:, :, 5:],
    "a part of (N, 4 + C, L)": lambda scores: np.pad(
        scores.transpose(0, 2, 1), ((0, 0), (4, 0), (0, 0)), constant_values=9
    )[:, 4:].transpose(0, 2, 1),
    "backwards": lambda scores: np.ascontiguousarray(scores[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
    "every third": lambda scores: np.repeat(scores, 3, 2)[:, :, ::3],
}


def some(images, length, classes, dtype="f4", seed=0, of_classes=False):
    """Clustered boxes (N, L, 4) or (N, L, C, 4), and scores (N, L, C)."""
    random = np.random.default_rng(seed)
    boxes = data.clustered(max(images * length * (classes if of_classes else 1), 1), seed=seed)[0]
    shape = (images, length, classes, 4) if of_classes else (images, length, 4)
    boxes = np.resize(boxes, shape) if math.prod(shape) else np.zeros(shape, "f4")
    return boxes.astype(dtype), random.random((images, length, classes)).astype(dtype)


def check(boxes, scores, *args, on=cvops, **options):
    """Call it and compare with the reference, which gets the values that arrays of other libraries hold."""
    values = [to_numpy(array) for array in (boxes, scores)]
    wanted = {name: to_numpy(value) if hasattr(value, "__dlpack__") else value for name, value in options.items()}
    got = on.multiclass_nms(boxes, scores, *args, **options)
    want = reference.multiclass_nms(*values, *args, **wanted)
    assert len(got) == len(want) == 3
    for one, other in zip(got, want, strict=True):
        compare.same(one, other, boxes)
    return got


# --------------------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, [(0, 1, 0), (0, 2, 1), (0, 0, 1), (0, 2, 0)]),
        ({"score_threshold": 0.25}, [(0, 1, 0), (0, 2, 1)]),
        ({"score_threshold": np.array([0.85, 0.05], np.float32)}, [(0, 1, 0), (0, 2, 1), (0, 0, 1)]),
        ({"max_candidates": 2}, [(0, 1, 0)]),
        ({"max_per_class": 1}, [(0, 1, 0), (0, 2, 1)]),
        ({"max_output": 1}, [(0, 1, 0)]),
        ({"multi_label": False}, [(0, 1, 0), (0, 2, 1)]),
        ({"class_agnostic": True}, [(0, 1, 0), (0, 2, 1)]),
        ({"class_agnostic": True, "iou_threshold": 0.99, "max_per_class": 1}, [(0, 1, 0), (0, 2, 1)]),
        ({"objectness": np.array([[1, 0.5, 0]], np.float32)}, [(0, 0, 0), (0, 0, 1), (0, 2, 0), (0, 2, 1)]),
    ],
)
def test_by_hand(ops, options, want):
    """The second box overlaps the first one by 81 / 119."""
    options = {"iou_threshold": 0.5, **options}
    by_reference = reference.multiclass_nms(BOXES, SCORES, **options)
    assert list(zip(*map(np.ndarray.tolist, by_reference), strict=True)) == want
    got = ops.multiclass_nms(BOXES, SCORES, **options)
    assert list(zip(*map(np.ndarray.tolist, got), strict=True)) == want


def test_names_of_the_results():
    found = cvops.multiclass_nms(BOXES, SCORES, 0.5, score_threshold=0.25)
    assert found._fields == ("image", "box", "label")
    assert BOXES[found.image, found.box].tolist() == [[1, 1, 11, 11], [20, 20, 30, 30]]
    assert SCORES[found.image, found.box, found.label].tolist() == [np.float32(0.9), np.float32(0.7)]
    padded = cvops.multiclass_nms(BOXES, SCORES, 0.5, max_output=5, padded=True)
    assert padded._fields == ("box", "label", "count")
    assert (padded.box.tolist(), padded.count.tolist()) == ([[1, 2, 0, 2, -1]], [4])


# -------------------------------------------------------------------------------------------- against the reference


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 3), (3, 40, 17), (2, 33, 16), (1, 50, 1), (17, 3, 2), (2, 5, 70)])
def test_shapes(array, shape):
    boxes, scores = map(array, some(*shape))
    check(boxes, scores, 0.5)
    check(boxes, scores, 0.5, score_threshold=0.7, max_output=5, padded=True)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("of_classes", [False, True])
def test_nothing(array, shape, of_classes):
    boxes, scores = map(array, some(*shape, of_classes=of_classes))
    for multi_label in (False, True):
        check(boxes, scores, 0.5, multi_label=multi_label)
        check(boxes, scores, 0.5, max_output=4, padded=True, multi_label=multi_label, score_threshold=0.5)


@pytest.mark.parametrize("limit", ["max_candidates", "max_per_class", "max_output"])
def test_limits_of_nothing(ops, limit):
    boxes, scores = some(2, 9, 3)
    check(boxes, scores, 0.5, on=ops, **{limit: 0})
    check(boxes, scores, 0.5, on=ops, **{"max_output": 3, "padded": True, limit: 0})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", strategies.few(["float32", "float16", "float64"], every=3))
def test_layouts(ops, layout, dtype):
    boxes, scores = some(3, 37, 21, dtype)
    scores = LAYOUTS[layout](scores)
    objectness = np.ascontiguousarray(np.random.default_rng(1).random((37, 3)).astype(dtype)).T
    before = scores.tobytes()
    for options in ({}, {"score_threshold": 0.9}, {"score_threshold": 0.3, "objectness": objectness}):
        for multi_label in (True, False):
            check(boxes, scores, 0.4, on=ops, multi_label=multi_label, **options)
    assert scores.tobytes() == before


def test_scores_of_stride_zero(ops):
    boxes, scores = some(2, 20, 3)
    for axis in range(3):
        same = np.broadcast_to(scores.take([0], axis), scores.shape)
        for multi_label in (True, False):
            check(boxes, same, 0.5, on=ops, multi_label=multi_label)


def test_read_only_scores(ops):
    boxes, scores = some(2, 20, 3)
    scores.flags.writeable = boxes.flags.writeable = False
    check(boxes, scores, 0.5, on=ops, score_threshold=0.5)


@pytest.mark.parametrize("layout", ["(N, L, C)", "(N, C, L)"])
def test_boxes_of_each_class(array, layout):
    boxes, scores = some(2, 19, 5, of_classes=True)
    for options in ({}, {"class_agnostic": True, "max_per_class": 3}, {"multi_label": False, "score_threshold": 0.5}):
        check(array(boxes), array(LAYOUTS[layout](scores)), 0.5, **options)


@pytest.mark.parametrize("of_boxes", ["float64", "float32", "float16", "int32", "uint8"])
@pytest.mark.parametrize("of_scores", strategies.FLOATS)
def test_dtypes(ops, of_boxes, of_scores):
    boxes, scores = some(2, 30, 4)
    boxes, scores = np.clip(boxes / 4, 0, 255).astype(of_boxes), scores.astype(of_scores)
    objectness = scores[:, :, 0]
    for options in ({}, {"score_threshold": 0.3}, {"objectness": objectness}, {"objectness": objectness.astype("f8")}):
        check(boxes, scores, 0.5, on=ops, **options)


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_a_score_at_the_threshold_does_not_pass(ops, dtype):
    """0.3 in the dtype of the scores, whatever is nearest to it."""
    scores = np.full((1, 3, 1), 0.3, dtype)
    scores[0, 1] = np.nextafter(scores[0, 1], scores.dtype.type(1))
    for floor in (0.3, np.array([0.3], dtype), np.array([0.3])):
        for multi_label in (True, False):
            found = ops.multiclass_nms(BOXES, scores, 0.5, score_threshold=floor, multi_label=multi_label)
            assert found[1].tolist() == [1]


def test_a_floor_for_each_class(ops):
    boxes, scores = some(2, 40, 5)
    floors = np.array([0.9, INF, -INF, NAN, 0.5], np.float32)
    for layout in LAYOUTS.values():
        for multi_label in (True, False):
            options = {"score_threshold": floors, "multi_label": multi_label}
            label = check(boxes, layout(scores), 0.5, on=ops, **options)[2]
            assert set(label.tolist()) == {0, 2, 4}


@pytest.mark.parametrize("layout", strategies.few(LAYOUTS, every=3))
@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_ties_nan_and_zeros(ops, layout, dtype):
    boxes = np.arange(24, dtype=np.float32)[None, :, None] * 10 + np.array([0, 0, 1, 1], np.float32)
    kinds = np.array([0.5, NAN, 0.0, -0.0, 0.5, INF, -INF, NAN, -1], dtype)
    scores = LAYOUTS[layout](np.random.default_rng(0).choice(kinds, (1, 24, 19)))
    for options in ({}, {"score_threshold": -INF}, {"score_threshold": 0.0}, {"max_candidates": 77}):
        for multi_label in (True, False):
            check(boxes, scores, 0.5, on=ops, multi_label=multi_label, **options)


def test_the_best_class_of_a_box(ops):
    scores = np.array([[NAN, 3, 3], [NAN, NAN, -INF], [NAN, NAN, NAN], [-0.0, 0.0, NAN]], np.float32)[None]
    boxes = np.arange(4, dtype=np.float32)[None, :, None] * 10 + np.array([0, 0, 1, 1], np.float32)
    for dtype in strategies.FLOATS:
        found = ops.multiclass_nms(boxes, scores.astype(dtype), 0.5, multi_label=False)
        assert list(zip(found[1].tolist(), found[2].tolist(), strict=True)) == [(0, 1), (3, 0), (1, 2), (2, 0)]
        found = ops.multiclass_nms(boxes, scores.astype(dtype), 0.5, multi_label=False, score_threshold=-INF)
        assert found[1].tolist() == [0, 3]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_best_class_of_each_of_many_boxes(layout, weighted):
    """More boxes and classes than are looked at together, with ties, NaN, infinities and zeros of both signs."""
    boxes, scores = some(2, 1100, 35)
    random = np.random.default_rng(0)
    scores = np.round(4 * scores) / 4
    scores[random.random(scores.shape) < 0.5] = NAN
    scores[random.random(scores.shape) < 0.1] = -INF
    scores[random.random(scores.shape) < 0.1] = -0.0
    scores[0, :700] = np.where(scores[0, :700] > 0, NAN, scores[0, :700])
    scores[1, :300, 1:] = NAN
    objectness = random.choice([0.5, 1, -1, 0], (2, 1100)).astype("f4") if weighted else None
    with np.errstate(all="ignore"):
        values = scores * objectness[:, :, None] if weighted else scores
    # In Python's order of tuples: numbers before NaN, greater before less, and earlier before later.
    rows = values.reshape(-1, 35).tolist()
    keys = [[(value != value, -value if value == value else 0, c) for c, value in enumerate(row)] for row in rows]
    found = cvops.multiclass_nms(boxes, LAYOUTS[layout](scores), 1, multi_label=False, objectness=objectness)
    labels = np.full((2, 1100), -1)
    labels[found.image, found.box] = found.label
    assert labels.ravel().tolist() == [min(row)[2] for row in keys]


@pytest.mark.parametrize("threshold", [0, 0.3, 1])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_limits(ops, threshold, class_agnostic):
    boxes, scores = some(3, 60, 4)
    for most, of_class, candidates in ((None, 2, None), (5, None, 50), (7, 3, 120), (1000, 1000, 1000), (3, 1, 1)):
        options = {"max_output": most, "max_per_class": of_class, "max_candidates": candidates}
        check(boxes, scores, threshold, on=ops, class_agnostic=class_agnostic, **options)


def test_objectness_is_multiplied_in_working_precision(ops):
    """In float16 both products would be 0.25."""
    scores = np.float16([[[0.5], [0.5]]])
    objectness = np.array([[0.5, 0.5001]], np.float32)
    boxes = BOXES[:, [0, 2]]
    assert ops.multiclass_nms(boxes, scores, 0.5, objectness=objectness)[1].tolist() == [1, 0]
    assert ops.multiclass_nms(boxes, scores, 0.5, objectness=objectness, score_threshold=0.25)[1].tolist() == [1]


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("dtypes", [*itertools.product(["uint8", *strategies.FLOATS], *[strategies.FLOATS] * 2)])
def test_the_working_precision_is_that_of_all_arrays(ops, dtypes, multi_label):
    """Factors that differ beyond float32, and quarters for scores: the order depends on the factors alone."""
    of_boxes, of_scores, of_objectness = dtypes
    boxes, scores = some(2, 25, 3)
    objectness = (1 + np.random.default_rng(0).integers(0, 4, (2, 25)) * 1e-9).astype(of_objectness)
    scores = (np.round(4 * scores) / 4).astype(of_scores)
    options = {"objectness": objectness, "score_threshold": 0.5, "multi_label": multi_label}
    check((boxes / 8).astype(of_boxes), scores, 0.5, on=ops, **options)


def test_limits_of_any_size(ops):
    boxes, scores = some(2, 9, 3)
    for limit in (2**31, 2**63, 10**30):
        for name in ("max_candidates", "max_per_class", "max_output"):
            check(boxes, scores, 0.5, on=ops, **{name: limit})
        check(boxes, scores, 0.5, on=ops, max_candidates=limit, max_per_class=limit, max_output=9, padded=True)


# ------------------------------------------------------------------------------------------------------ properties


_factors = st.sampled_from([0, 0.5, 1 / 3, 1, -1, INF, NAN])


@st.composite
def heads(draw):
    """(boxes, scores, options): a few boxes and classes of a few images, in any layout."""
    images, length, classes = draw(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(0, 4)))
    of_classes = draw(st.booleans())
    rows = images * length * (classes if of_classes else 1)
    shape = (images, length, classes, 4) if of_classes else (images, length, 4)
    boxes = draw(strategies.boxes().filter(len)) if rows else np.zeros((1, 4), np.float32)
    scores = draw(strategies.scores((images, length, classes)))
    scores = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](scores) if scores.size else scores
    floors = st.sampled_from([None, -INF, 0, 0.5, 1]) | st.just(np.linspace(0, 1, classes).astype(scores.dtype))
    limits = st.none() | st.integers(0, 30)
    options = {
        "score_threshold": draw(floors), "max_candidates": draw(limits), "max_per_class": draw(limits),
        "multi_label": draw(st.booleans()), "class_agnostic": draw(st.booleans()),
    }  # fmt: skip
    if draw(st.booleans()):
        options["objectness"] = draw(
            hnp.arrays(draw(st.sampled_from(strategies.FLOATS)), (images, length), elements=_factors)
        )
    options |= draw(st.sampled_from([{}, {"max_output": 4}, {"max_output": 20, "padded": True}]))
    return np.resize(boxes, shape), scores, options


@given(heads(), strategies.thresholds)
def test_any_head(ops, head, threshold):
    boxes, scores, options = head
    check(boxes, scores, threshold, on=ops, **options)


@given(heads(), strategies.thresholds)
def test_any_head_that_may_have_many_detections(head, threshold):
    """On the CPU an image with few is searched down the ranks, and others as batched_nms does: here all are."""
    from cvops._cpu import _multiclass_nms

    boxes, scores, options = head
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_multiclass_nms, "_FEW_DETECTIONS", 0)
        check(boxes, scores, threshold, **options)


@pytest.mark.parametrize("few", [20, 4096])
@pytest.mark.parametrize("layout", ["(N, L, C)", "(N, C, L)", "a part of (N, 4 + C, L)"])
@pytest.mark.parametrize("options", [{}, {"score_threshold": 0.9}, {"max_candidates": 500}])
@pytest.mark.parametrize("most", [100, None])
def test_the_composition_of_older_operators(ops, threads, monkeypatch, layout, options, few, most):
    """Threshold, batched_nms over image * C + class, top: for any number of threads, in little memory and in more."""
    from cvops._cpu import _multiclass_candidates

    monkeypatch.setattr(_multiclass_candidates, "_FEW", few)
    images, length, classes = (3, 700, 20) if ops.backend == "numpy" else (2, 60, 20)
    boxes, scores = some(images, length, classes)
    want = []
    for n in range(images):
        box, label = np.nonzero(scores[n] > options.get("score_threshold", -1))
        best = np.argsort(-scores[n, box, label], kind="stable")[: options.get("max_candidates")]
        box, label = box[best], label[best]
        keep = cvops.batched_nms(boxes[n, box], scores[n, box, label], label, 0.4)[:most]
        want += [(n, *row) for row in zip(box[keep].tolist(), label[keep].tolist(), strict=True)]
    for count in (1, 2, 3):
        threads(count)
        got = ops.multiclass_nms(boxes, LAYOUTS[layout](scores), 0.4, max_output=most, **options)
        assert list(zip(*map(np.ndarray.tolist, got), strict=True)) == want


@pytest.mark.parametrize("layout", ["(N, L, C)", "(N, C, L)"])
@pytest.mark.parametrize("length", [15, 16, 17, 63, 64, 65, 127, 128, 129, 200])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("floors", [0.5, [0.5, 0.25, 0.125]])
def test_a_single_score_that_passes_is_found_in_every_place(layout, length, weighted, floors):
    """Of many boxes, and of many classes: scores are read many at a time."""
    classes = 3
    boxes = np.zeros((1, length, 4), "f4")
    options = {"objectness": np.ones((1, length), "f4")} if weighted else {}
    for box in (*range(0, length, 7), length - 1):
        for label in range(classes):
            scores = np.full((1, length, classes), 0.125, "f4")
            scores[0, box, label] = 0.75
            floor = np.array(floors, "f4") if isinstance(floors, list) else floors
            got = cvops.multiclass_nms(boxes, LAYOUTS[layout](scores), 0.5, score_threshold=floor, **options)
            assert [array.tolist() for array in got] == [[0], [box], [label]]
    for label in (*range(0, length, 7), length - 1):
        scores = np.full((1, classes, length), 0.125, "f4")
        scores[0, 1, label] = 0.75
        weights = {"objectness": np.ones((1, classes), "f4")} if weighted else {}
        got = cvops.multiclass_nms(boxes[:, :classes], LAYOUTS[layout](scores), 0.5, score_threshold=0.5, **weights)
        assert [array.tolist() for array in got] == [[0], [1], [label]]


@pytest.mark.parametrize("layout", ["(N, L, C)", "(N, C, L)"])
@pytest.mark.parametrize("values", ["uniform", "equal", "few", "one far away", "NaN", "-inf", "neighbours"])
@pytest.mark.parametrize("options", [{}, {"max_candidates": 700}, {"max_candidates": 1, "max_output": 1}])
def test_ranks_of_any_scores(threads, layout, values, options):
    """Buckets of like scores: some hold nearly everything, and limits end within one."""
    threads(1)
    random = np.random.default_rng(0)
    scores = random.random((1, 900, 3), np.float32)
    if values == "equal":
        scores[:] = 0.5
    elif values == "few":
        scores = np.round(scores * 5) / 5
    elif values == "neighbours":
        scores = (random.integers(0, 50, scores.shape) + np.float32(0.5).view("i4")).astype("i4").view("f4")
    elif values != "uniform":
        scores[0, 450, 1] = {"one far away": 1e30, "NaN": NAN, "-inf": -INF}[values]
    boxes = np.zeros((1, 900, 4), "f4")  # overlap nothing
    ranked = np.argsort(-scores.ravel(), kind="stable")  # NaN last
    for limits in (options, {"max_output": 1000} | options):
        want = ranked[: min(limits.values(), default=None)]
        got = cvops.multiclass_nms(boxes, LAYOUTS[layout](scores), 0.5, **limits)
        assert (got.box * 3 + got.label).tolist() == want.tolist()


@pytest.mark.parametrize("layout", ["contiguous", "(N, 4, L)", "every second", "backwards"])
@pytest.mark.parametrize("of_classes", [False, True])
def test_boxes_of_any_strides(layout, of_classes):
    boxes, scores = some(2, 60, 3, of_classes=of_classes)
    laid = {
        "contiguous": boxes,
        "(N, 4, L)": np.ascontiguousarray(np.moveaxis(boxes, -1, 1)),
        "every second": np.repeat(np.repeat(boxes, 2, 1), 2, -1),
        "backwards": np.ascontiguousarray(boxes[::-1, ::-1, ..., ::-1]),
    }[layout]
    given_boxes = {
        "(N, 4, L)": lambda given: np.moveaxis(given, 1, -1),
        "every second": lambda given: given[:, ::2, ..., ::2],
        "backwards": lambda given: given[::-1, ::-1, ..., ::-1],
    }.get(layout, lambda given: given)(laid)
    assert (given_boxes == boxes).all()
    for options in ({}, {"max_output": 20}, {"class_agnostic": True}):
        check(given_boxes, scores, 0.4, score_threshold=0.3, **options)


@pytest.mark.parametrize("kept", [15, 16, 17, 33])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_every_kept_box_suppresses(ops, kept, class_agnostic):
    """Kept boxes lie in blocks: each of them is followed by one of a lower score that it drops."""
    corners = 20 * np.arange(kept, dtype="f4")[:, None] + np.array([0, 0, 10, 10], "f4")
    boxes = np.concatenate([corners, corners + 1])[None]
    scores = np.linspace(1, 0.5, 2 * kept, dtype="f4")[None, :, None]
    scores = np.concatenate([scores, scores], 2)
    check(boxes, scores, 0.5, on=ops, class_agnostic=class_agnostic)
    check(boxes, scores, 0.5, on=ops, class_agnostic=class_agnostic, max_output=kept)
    check(boxes, scores, 0.5, on=ops, class_agnostic=class_agnostic, max_per_class=kept - 1)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize(
    "options",
    [
        {"score_threshold": 0.5}, {"multi_label": False}, {"max_candidates": 9, "max_output": 5, "padded": True},
        {"objectness": np.linspace(0, 1, 5 * 8, dtype="f2").reshape(5, 8), "class_agnostic": True},
    ],
)  # fmt: skip
def test_images_of_16_bits_in_parts(monkeypatch, layout, options):
    """On the CPU some images at a time are widened."""
    from cvops._cpu import _multiclass_nms

    boxes, scores = some(5, 8, 3, "f2")
    for images in (1, 2, 4, 5):
        monkeypatch.setattr(_multiclass_nms, "_WIDENED", images * 8 * 3)
        check(boxes, LAYOUTS[layout](scores), 0.4, **options)


def test_onnx_runtime_finds_the_same(onnxruntime):
    onnx = libraries.require("onnx")
    boxes, scores = some(2, 300, 6)
    boxes = np.sort(boxes.reshape(2, 300, 2, 2), 2).reshape(2, 300, 4)
    names = ["boxes", "scores", "limit", "iou", "floor"]
    node = onnx.helper.make_node("NonMaxSuppression", names, ["selected"])
    types = [onnx.TensorProto.FLOAT] * 2 + [onnx.TensorProto.INT64] + [onnx.TensorProto.FLOAT] * 2
    inputs = [onnx.helper.make_tensor_value_info(name, each, None) for name, each in zip(names, types, strict=True)]
    output = onnx.helper.make_tensor_value_info("selected", onnx.TensorProto.INT64, None)
    graph = onnx.helper.make_graph([node], "nms", inputs, [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = [boxes, scores.transpose(0, 2, 1), np.int64([7]), np.float32([0.45]), np.float32([0.3])]
    (want,) = session.run(None, dict(zip(names, map(np.ascontiguousarray, values), strict=True)))
    got = cvops.multiclass_nms(boxes, scores, np.float32(0.45), score_threshold=0.3, max_per_class=7)
    assert len(want) > 50
    assert {*zip(*map(np.ndarray.tolist, got), strict=True)} == {(n, b, c) for n, c, b in want.tolist()}


@pytest.mark.parametrize("most", [20, 10_000])
def test_openvino_finds_the_same(openvino, most):
    """In the same order too."""
    boxes, scores = some(2, 300, 6)
    boxes = np.sort(boxes.reshape(2, 300, 2, 2), 2).reshape(2, 300, 4)
    given = boxes, np.ascontiguousarray(scores.transpose(0, 2, 1))
    nodes = [openvino.opset9.parameter(list(array.shape), np.float32) for array in given]
    limits = {"iou_threshold": 0.45, "score_threshold": 0.3, "keep_top_k": most}
    node = openvino.opset9.multiclass_nms(*nodes, sort_result_type="score", output_type="i64", **limits)
    model = openvino.Model([node.output(i) for i in range(3)], nodes)
    rows, places, counts = openvino.Core().compile_model(model, "CPU")(given).values()
    want = places[: counts.sum(), 0], rows[: counts.sum(), 0]
    got = cvops.multiclass_nms(boxes, scores, np.float32(0.45), score_threshold=0.3, max_output=most)
    assert len(want[0]) > 30
    assert (got.image * 300 + got.box).tolist() == want[0].tolist()
    assert got.label.tolist() == want[1].tolist()


# --------------------------------------------------------------------------------------------------------- refused

REFUSED = [
    ((BOXES[0], SCORES[0], 0.5), {}, ValueError, "`scores` must have shape (N, L, C), got (3, 2): use `scores[None]`"),
    ((BOXES, SCORES[0, 0], 0.5), {}, ValueError, "`scores` must have shape (N, L, C), got (2,)"),
    ((BOXES[0], SCORES, 0.5), {}, ValueError, "`boxes` must have shape (1, 3, 4) or (1, 3, 2, 4), as `scores`, got (3"),
    ((BOXES[:, :2], SCORES, 0.5), {}, ValueError, "`boxes` must have shape (1, 3, 4) or (1, 3, 2, 4), as `scores`"),
    ((BOXES[..., :3], SCORES, 0.5), {}, ValueError, "`boxes` must have shape (1, 3, 4) or (1, 3, 2, 4), as `scores`"),
    ((BOXES > 0, SCORES, 0.5), {}, TypeError, "`boxes` must be float64, float32, float16 or an integer dtype, got boo"),
    ((BOXES, SCORES.astype(int), 0.5), {}, TypeError, "`scores` must be float64, float32 or float16, got int64"),
    ((BOXES, SCORES.tolist(), 0.5), {}, TypeError, "`scores` must be an array, got list"),
    ((BOXES, SCORES, 50), {}, ValueError, "`iou_threshold` must be from 0 to 1, got 50"),
    ((BOXES, SCORES, NAN), {}, ValueError, "`iou_threshold` must be from 0 to 1, got nan"),
    ((BOXES, SCORES, 0.5), {"score_threshold": NAN}, ValueError, "`score_threshold` must be a number, got nan"),
    ((BOXES, SCORES, 0.5), {"score_threshold": "1"}, TypeError, "`score_threshold` must be a Python or NumPy number"),
    ((BOXES, SCORES, 0.5), {"score_threshold": SCORES}, ValueError, "`score_threshold` must have shape (2,), as `scor"),
    ((BOXES, SCORES, 0.5), {"score_threshold": np.zeros(3)}, ValueError, "`score_threshold` must have shape (2,)"),
    ((BOXES, SCORES, 0.5), {"score_threshold": np.zeros(2, int)}, TypeError, "`score_threshold` must be float64"),
    ((BOXES, SCORES, 0.5), {"score_threshold": [0, 1]}, TypeError, "`score_threshold` must be a number or an array of"),
    ((BOXES, SCORES, 0.5), {"objectness": SCORES}, ValueError, "`objectness` must have shape (1, 3), as `scores`, got"),
    ((BOXES, SCORES, 0.5), {"objectness": [[1]]}, TypeError, "`objectness` must be an array, got list"),
    ((BOXES, SCORES, 0.5), {"objectness": np.ones((1, 3), int)}, TypeError, "`objectness` must be float64"),
    *(
        ((BOXES, SCORES, 0.5), {name: value}, error, f"`{name}` must be {text}")
        for name in ("max_candidates", "max_per_class", "max_output")
        for value, error, text in ((-1, ValueError, ">= 0, got -1"), (1.5, TypeError, "an integer, got float"))
    ),
    ((BOXES, SCORES, 0.5), {"padded": True}, ValueError, "`max_output` must be an integer where `padded` is True"),
    ((BOXES, SCORES, 0.5), {"padded": "yes"}, TypeError, "`padded` must be True or False, got str"),
    ((BOXES, SCORES, 0.5), {"multi_label": "yes"}, TypeError, "`multi_label` must be True or False, got str"),
    ((BOXES, SCORES, 0.5), {"class_agnostic": None}, TypeError, "`class_agnostic` must be True or False, got None"),
    ((BOXES, SCORES, 0.5), {"metric": "giou"}, ValueError, "`metric` must be one of iou"),
    ((BOXES, SCORES, 0.5), {"metric": None}, TypeError, "`metric` must be a str"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "options", "error", "text"), REFUSED)
def test_refused(args, options, error, text):
    with pytest.raises(error, match=re.escape(text)):
        cvops.multiclass_nms(*args, **options)
