"""nms and batched_nms: against the reference, and every edge by name."""

from __future__ import annotations

import functools
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cvops
from tests import compare, data, libraries, reference, strategies
from tests.libraries import to_numpy

ROOT = Path(__file__).parent.parent
DETECTIONS = ("ssd_coco_astronaut", "ssd_coco_coffee", "ssd_coco_chelsea", "picodet_layout_zoo")
# Around the numbers of boxes at which a vector, a block or another way to sort begins.
SIZES = (0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1024, 1025, 1536, 1537)
MANY = libraries.BACKENDS["numpy"]
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99)

many = functools.cache(strategies.many)

PAIR = np.array([[0, 0, 2, 1], [1, 0, 3, 1]], np.float32)  # IoU 1/3
APART = np.arange(8, dtype=np.float32)[:, None] * 10 + np.array([0, 0, 1, 1], np.float32)  # 8 boxes, IoU 0


def scores(*values, dtype=np.float32):
    return np.array(values, dtype)


@pytest.fixture(autouse=True)
def _small_batches(small_batches):
    """So that `ops.many` boxes are several batches on CUDA."""


# ------------------------------------------------------------------------------------------- against the reference


@pytest.mark.parametrize(("threshold", "dtype"), [(0, "f4"), (0.5, "f4"), (0.5, "f8"), (0.9, "f4")])
@pytest.mark.parametrize("size", strategies.few(SIZES, every=2))
def test_nms(array, size, threshold, dtype):
    boxes, scores, _ = data.clustered(size)
    boxes, scores = array(boxes.astype(dtype)), array(scores.astype(dtype))
    got = cvops.nms(boxes, scores, threshold)
    compare.same(got, reference.nms_of_many(to_numpy(boxes), to_numpy(scores), threshold), boxes)


@pytest.mark.parametrize("size", strategies.few(SIZES, every=2))
def test_batched_nms(array, size):
    boxes, scores, idxs = data.clustered(size)
    boxes, scores, idxs = array(boxes), array(scores), array(idxs % 5)
    got = cvops.batched_nms(boxes, scores, idxs, 0.5)
    compare.same(got, reference.batched_nms_of_many(to_numpy(boxes), to_numpy(scores), to_numpy(idxs), 0.5), boxes)


options = st.fixed_dictionaries(
    {},
    optional={
        "score_threshold": st.sampled_from([-math.inf, -1, 0, 0.5, 1, math.inf]) | st.floats(0, 1),
        "max_output": st.integers(0, 50),
    },
)


@given(strategies.detections(), strategies.thresholds, options)
def test_nms_of_any_boxes(ops, detections, threshold, options):
    boxes, scores, _ = detections
    want = reference.nms(boxes, scores, threshold, **options)
    compare.same(ops.nms(boxes, scores, threshold, **options), want, boxes)


@given(strategies.detections(), strategies.thresholds, options)
def test_batched_nms_of_any_boxes(ops, detections, threshold, options):
    want = reference.batched_nms(*detections, threshold, **options)
    compare.same(ops.batched_nms(*detections, threshold, **options), want, detections[0])


@pytest.mark.slow
@given(strategies.detections(), st.sampled_from(THRESHOLDS) | st.floats(0.1, 0.999))
def test_nms_of_any_boxes_among_many(ops, detections, threshold):
    boxes, scores, _ = detections
    crowd = strategies.crowd(boxes.dtype)
    crowd = np.concatenate([np.repeat(crowd[:1], ops.many - len(crowd), 0), crowd])
    boxes = np.concatenate([boxes, crowd])
    scores = np.concatenate(
        [scores, np.full(len(crowd), 0.25, scores.dtype)]
    )  # some rank before the crowd, some behind
    want = reference.nms_of_many(boxes, scores, threshold)
    assert len(want) > 1400
    compare.same(ops.nms(boxes, scores, threshold), want, boxes)


@pytest.mark.parametrize("threshold", strategies.few(THRESHOLDS, every=7))
@pytest.mark.parametrize("name", strategies.few(strategies.many(1), every=2))
def test_nms_of_many_boxes(ops, name, threshold):
    crowd = strategies.crowd()
    boxes, scores = np.concatenate([many(ops.many - len(crowd))[name], crowd]), data.uniform_scores(ops.many)
    want = reference.nms_of_many(boxes, scores, threshold)
    assert len(want) > 1400
    compare.same(ops.nms(boxes, scores, threshold), want, boxes)


@pytest.mark.parametrize("threshold", [0, 0.05, 1])
def test_nms_of_many_boxes_at_the_ends_of_the_thresholds(ops, threshold):
    boxes, scores, _ = data.clustered(ops.many)
    compare.same(ops.nms(boxes, scores, threshold), reference.nms_of_many(boxes, scores, threshold), boxes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threshold", strategies.few([*THRESHOLDS, 0.999], every=4))
@pytest.mark.parametrize("pairs", [100, MANY // 2])
def test_nms_of_pairs_at_the_threshold(ops, pairs, threshold, dtype):
    boxes = strategies.pairs_at(threshold, pairs, dtype)
    scores = np.linspace(1, 0, len(boxes), dtype=dtype)
    want = reference.nms_of_many(boxes, scores, threshold)
    assert 1.1 * pairs < len(want) < 1.9 * pairs
    compare.same(ops.nms(boxes, scores, threshold), want, boxes)


@pytest.mark.slow
@pytest.mark.parametrize("others", [0, MANY])
@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9, 0.95, 0.99])
def test_nms_of_pairs_above_the_threshold_by_rounding(ops, threshold, others):
    pairs = strategies.pairs_above(threshold, 100)
    for columns in ([0, 1, 2, 3], [1, 0, 3, 2]):
        crowd = np.resize(strategies.crowd(), (others, 4))
        boxes = np.concatenate([pairs[:100, columns], crowd, pairs[100:, columns]])
        scores = np.linspace(1, 0, len(boxes), dtype=np.float32)
        want = reference.nms_of_many(boxes, scores, threshold)
        assert want.tolist() == [*range(100 + min(others, 1500))]
        compare.same(ops.nms(boxes, scores, threshold), want, boxes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clustered", "dense", "tiny to huge", "with NaN, inf, inverted and empty ones"])
def test_nms_of_20_000_boxes(ops, name):
    boxes, scores = many(20_000)[name], data.uniform_scores(20_000)
    compare.same(ops.nms(boxes, scores, 0.5), reference.nms_of_many(boxes, scores, 0.5), boxes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["identical", "dense", "six decades", "with NaN, inf, inverted and empty ones"])
@pytest.mark.parametrize("share", strategies.few([1, 3, 80, 5000], every=2))
def test_batched_nms_of_many_boxes(ops, name, share):
    """One large class and many small ones, 3 large ones, 80 small ones, and about as many classes as boxes."""
    boxes, scores = many(20_000)[name], data.uniform_scores(20_000)
    idxs = np.random.default_rng(0).integers(0, share, 20_000)
    if share == 1:
        idxs[::2] = np.arange(10_000) // 3
    want = reference.batched_nms_of_many(boxes, scores, idxs, 0.7)
    compare.same(ops.batched_nms(boxes, scores, idxs, 0.7), want, boxes)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 20, 1200])
@pytest.mark.parametrize("size", [200, 300, MANY])
def test_options_of_many_boxes(ops, size, limit):
    boxes, scores, idxs = data.clustered(size)
    likely = np.flatnonzero(scores > np.float32(0.1))
    want = likely[reference.nms_of_many(boxes[likely], scores[likely], 0.7)][:limit]
    compare.same(ops.nms(boxes, scores, 0.7, score_threshold=0.1, max_output=limit), want, boxes)
    want = likely[reference.batched_nms_of_many(boxes[likely], scores[likely], idxs[likely] % 2, 0.7)][:limit]
    got = ops.batched_nms(boxes, scores, idxs % 2, 0.7, score_threshold=0.1, max_output=limit)
    compare.same(got, want, boxes)


@pytest.mark.parametrize("percent", [50, 60, 70])
@pytest.mark.parametrize("name", DETECTIONS)
def test_batched_nms_of_real_detections(array, name, percent):
    with np.load(ROOT / "examples" / "data" / f"{name}.npz") as file:
        boxes, scores, labels, keep = (array(file[key]) for key in ("boxes", "scores", "labels", f"keep_0{percent}"))
    got = cvops.batched_nms(boxes, scores, labels, percent / 100)
    compare.same(got, to_numpy(keep).astype(np.int64), boxes)


@pytest.mark.parametrize("name", strategies.few(["clustered", "identical", "six decades", "dense"], every=4))
def test_every_number_of_threads_gives_the_same(threads, name):
    boxes, scores, idxs = many(20_000)[name], data.uniform_scores(20_000), data.clustered(20_000)[2]
    want = reference.nms_of_many(boxes, scores, 0.6), reference.batched_nms_of_many(boxes, scores, idxs, 0.6)
    for count in (1, 2, 3, 4):
        threads(count)
        compare.same(cvops.nms(boxes, scores, 0.6), want[0], boxes)
        compare.same(cvops.batched_nms(boxes, scores, idxs, 0.6), want[1], boxes)


# ------------------------------------------------------------------------------------------------------ properties


@given(strategies.detections(), st.floats(0, 1))
def test_kept_boxes_overlap_no_more_than_the_threshold_and_dropped_ones_do(ops, detections, threshold):
    boxes, scores, _ = detections
    keep = ops.nms(boxes, scores, threshold).tolist()
    (boxes,) = reference.working(boxes, scores)[:1]
    position = {index: place for place, index in enumerate(reference.rank(scores))}
    assert keep == sorted(keep, key=position.get)
    for i in range(len(boxes)):
        better = [j for j in keep if position[j] < position[i]]
        assert (i in keep) != any(float(reference.iou(boxes[j], boxes[i])) > threshold for j in better)


@given(strategies.boxes(), st.randoms(use_true_random=False), strategies.thresholds)
def test_the_order_of_boxes_does_not_matter(ops, boxes, random, threshold):
    scores = np.arange(len(boxes), dtype=np.float32)
    order = random.sample(range(len(boxes)), len(boxes))
    keep = ops.nms(boxes[order], scores[order], threshold)
    assert [order[i] for i in keep] == ops.nms(boxes, scores, threshold).tolist()


# ----------------------------------------------------------------------------------------------------------- order


def test_ties_are_ranked_by_index(ops):
    assert ops.nms(APART[:5], scores(0.5, 0.7, 0.5, 0.7, 0.5), 0.5).tolist() == [1, 3, 0, 2, 4]
    assert ops.nms(np.repeat(PAIR, 3, 0), scores(1, 1, 1, 1, 1, 1), 0.5).tolist() == [0, 3]


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_zero_and_minus_zero_are_a_tie(ops, dtype):
    assert ops.nms(APART[:4], scores(-0.0, 0.0, -0.0, 1, dtype=dtype), 0.5).tolist() == [3, 0, 1, 2]


@pytest.mark.parametrize("dtype", strategies.FLOATS)
@pytest.mark.parametrize("size", [8, 300, MANY])
def test_every_kind_of_score_has_its_rank(ops, dtype, size):
    info = np.finfo(dtype)
    kinds = [math.nan, -math.inf, info.min, -1, -info.smallest_subnormal, 0, info.smallest_subnormal, info.tiny, 1]
    kinds = np.array([*kinds, info.max, math.inf, -math.nan], dtype)
    scores = np.resize(kinds, size)
    boxes = np.arange(size, dtype=np.float32)[:, None] * 10 + np.array([0, 0, 1, 1], np.float32)
    want = [i for kind in kinds[10:0:-1] for i in np.flatnonzero(scores == kind)] + [*np.flatnonzero(np.isnan(scores))]
    assert ops.nms(boxes, scores, 0.5).tolist() == want


@pytest.mark.parametrize("bits", ["u4", "u8"])
@pytest.mark.parametrize("size", [5, 300])
def test_nan_of_every_bit_pattern_ranks_last(ops, bits, size):
    dtype = np.dtype(bits.replace("u", "f"))
    signalling = np.array([math.inf, -math.inf], dtype).view(bits) + 1
    all_ones = np.array([2**64 - 1], np.uint64).astype(bits)
    scores = np.resize(np.concatenate([signalling, all_ones, all_ones // 2]).view(dtype), size)
    scores[size // 2] = -math.inf
    boxes = np.zeros((size, 4), dtype)
    want = [size // 2, *(i for i in range(size) if i != size // 2)]
    assert ops.nms(boxes, scores, 0.5).tolist() == want
    assert ops.nms(boxes, scores, 0.5, score_threshold=-math.inf).tolist() == []


def test_nan_scores_rank_last_and_are_suppressed(ops):
    assert ops.nms(PAIR[[0, 0, 1]], scores(math.nan, -math.inf, math.nan), 0.5).tolist() == [1, 2]
    assert ops.nms(PAIR[[0, 0, 1]], scores(math.nan, math.nan, math.nan), 0.5).tolist() == [0, 2]


@pytest.mark.parametrize("size", [5, 300, MANY])
def test_scores_that_differ_in_the_last_bit_of_a_float64(ops, size):
    scores = 0.5 + np.random.default_rng(0).permutation(size) * 2.0**-53
    boxes = np.zeros((size, 4), np.float32)  # without area: all are kept
    assert ops.nms(boxes, scores, 0.5).tolist() == np.argsort(-scores).tolist()
    assert ops.batched_nms(boxes, scores, np.arange(size) % 3, 0.5).tolist() == np.argsort(-scores).tolist()


# ------------------------------------------------------------------------------------------------------- threshold


def test_an_iou_equal_to_the_threshold_is_kept(ops):
    half = np.array([[0, 0, 2, 2], [0, 0, 2, 1]], np.float32)
    assert ops.nms(half, scores(2, 1), 0.5).tolist() == [0, 1]
    assert ops.nms(half, scores(2, 1), math.nextafter(0.5, 0)).tolist() == [0]
    touching = np.array([[0, 0, 1, 1], [1, 0, 2, 1]], np.float32)
    assert ops.nms(touching, scores(2, 1), 0).tolist() == [0, 1]


def test_the_iou_is_compared_with_the_threshold_as_a_double(ops):
    """The float32 nearest to 3/5 lies above the double 0.6, that nearest to 7/10 below 0.7."""
    six = np.array([[0, 0, 10, 1], [0, 0, 6, 1]], np.float32)
    seven = np.array([[0, 0, 10, 1], [0, 0, 7, 1]], np.float32)
    assert ops.nms(six, scores(2, 1), 0.6).tolist() == [0]
    assert ops.nms(six, scores(2, 1), np.float32(0.6)).tolist() == [0, 1]
    assert ops.nms(seven, scores(2, 1), 0.7).tolist() == [0, 1]
    assert ops.nms(seven, scores(2, 1), np.float32(0.7)).tolist() == [0, 1]
    assert ops.nms(seven, scores(2, 1), np.nextafter(np.float32(0.7), 0)).tolist() == [0]


@pytest.mark.parametrize(
    ("boxes", "scores", "keep"),
    [
        *[(*dtypes.split(), [0]) for dtypes in ("f4 f4", "f2 f2", "f2 f4", "i1 f4", "u2 f2")],
        *[(*dtypes.split(), [0, 1]) for dtypes in ("f8 f8", "f4 f8", "f8 f4", "i4 f4", "u8 f2")],
    ],
)
def test_working_precision(ops, boxes, scores, keep):
    """IoU 1/3, which float32 rounds up: above the threshold 1/3 there, equal to it in float64."""
    got = ops.nms(PAIR.astype(boxes), np.array([2, 1], scores), 1 / 3)
    compare.same(got, np.array(keep), PAIR)
    got = ops.batched_nms(PAIR.astype(boxes), np.array([2, 1], scores), np.array([0, 0]), 1 / 3)
    compare.same(got, np.array(keep), PAIR)


@pytest.mark.parametrize("threshold", [1, 1.0, np.float32(1), np.int64(1)])
def test_a_threshold_of_one_keeps_everything(ops, threshold):
    assert ops.nms(PAIR[[0, 0, 1]], scores(1, 3, 2), threshold).tolist() == [1, 2, 0]


@pytest.mark.parametrize("threshold", [0, 0.0, -0.0, np.float16(0)])
def test_a_threshold_of_zero_drops_every_overlap(ops, threshold):
    assert ops.nms(np.concatenate([PAIR, APART[1:3]]), scores(4, 3, 2, 1), threshold).tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    "threshold",
    [-1e-300, -0.5, -math.inf, math.nan, np.float32(-1), 50, 1.5, math.inf, np.float32(1.5), np.nextafter(1, 2)],
)
def test_thresholds_outside_0_to_1(array, threshold):
    text = re.escape(f"`iou_threshold` must be from 0 to 1, got {threshold}") + "$"
    for length in (0, 2):
        boxes, values, idxs = array(PAIR[:length]), array(scores(2, 1)[:length]), array(np.array([0, 0])[:length])
        for padded in (False, True):
            with pytest.raises(ValueError, match=text):
                cvops.nms(boxes, values, threshold, padded=padded)
            with pytest.raises(ValueError, match=text):
                cvops.batched_nms(boxes, values, idxs, threshold, padded=padded)


@pytest.mark.parametrize("threshold", ["0.5", None, [0.5], 0.5j])
def test_thresholds_that_are_no_numbers(threshold):
    with pytest.raises(TypeError, match=f"`iou_threshold` must be .*, got {type(threshold).__name__}"):
        cvops.nms(PAIR, scores(2, 1), threshold)


# --------------------------------------------------------------------------------------------------- score_threshold


def test_score_threshold_keeps_scores_above_it(ops):
    boxes = np.concatenate([PAIR, PAIR])
    values = scores(0.25, 0.5, 0.75, 0.5)
    assert ops.nms(boxes, values, 0.2, score_threshold=0.25).tolist() == [2]
    assert ops.nms(boxes, values, 0.5, score_threshold=0.25).tolist() == [2, 1]
    assert ops.nms(boxes, values, 0.5, score_threshold=0.5).tolist() == [2]
    assert ops.nms(boxes, values, 0.5, score_threshold=0.75).tolist() == []


def kept_above(function, values, threshold, size):
    """The scores that pass a threshold, of `size` boxes that do not overlap; all forms must agree."""
    boxes = np.arange(size, dtype=np.float32)[:, None] * 10 + np.array([0, 0, 1, 1], np.float32)
    values = np.resize(values, size)
    keep = function("nms", boxes, values, 0.5, score_threshold=threshold)
    indices, count = function("nms", boxes, values, 0.5, score_threshold=threshold, padded=True)
    assert indices[: int(count)].tolist() == keep.tolist()
    assert set(indices[int(count) :].tolist()) <= {-1}
    assert function("batched_nms", boxes, values, np.arange(size), 0.5, score_threshold=threshold).tolist() == [*keep]
    return sorted(keep.tolist()), values


@pytest.mark.parametrize("dtype", strategies.FLOATS)
@pytest.mark.parametrize("size", [5, 300, MANY])
@pytest.mark.parametrize(
    "threshold", [0.05, 0.1, 0.3, 0.6, 0.7, 1 / 3, -0.1, 2049, 65519, 65520, 1e5, 1e39, -1e39, 1e-50]
)
def test_scores_at_the_threshold_are_dropped_in_their_own_dtype(ops, threshold, size, dtype):
    """As NumPy compares: it rounds the number to the dtype of the array, to infinity beyond its last."""
    with np.errstate(over="ignore"):
        at = np.dtype(dtype).type(threshold)
        infinity = at.dtype.type(math.inf)
        values = np.array([at, np.nextafter(at, -infinity), np.nextafter(at, infinity), math.nan, 0.5], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept, values = kept_above(
            lambda name, *args, **options: getattr(ops, name)(*args, **options), values, threshold, size
        )
    with np.errstate(all="ignore"):
        assert kept == np.flatnonzero(values > at).tolist()


def test_score_threshold_by_hand(ops):
    assert float(np.float32(0.3)) > 0.3
    assert ops.nms(APART[:2], scores(0.3, 0.7), 0.5, score_threshold=0.3).tolist() == [1]
    assert ops.nms(APART[:2], scores(0.1, 0.7), 0.5, score_threshold=0.7).tolist() == []
    assert ops.nms(APART[:2], scores(0.3, 0.7, dtype="f8"), 0.5, score_threshold=np.float32(0.3)).tolist() == [1]
    assert ops.nms(APART[:2], scores(0.3, 0.3000001, dtype="f8"), 0.5, score_threshold=0.3).tolist() == [1]
    # Half way between two float16: to the even one, and not by way of float32, which would come to rest half way.
    assert ops.nms(APART[:2], scores(2048, 2050, dtype="f2"), 0.5, score_threshold=2049).tolist() == [1]
    assert ops.nms(APART[:2], scores(2050, 2052, dtype="f2"), 0.5, score_threshold=2051).tolist() == []
    assert ops.nms(APART[:2], scores(2048, 2050, dtype="f2"), 0.5, score_threshold=2049 + 1e-9).tolist() == []


BFLOAT16 = [  # score, threshold, whether it passes
    (1.0, 1.0, False),
    (1.0078125, 1.0, True),
    (1.0, 1.00390625, False),  # half way to the next: to even, which is 1
    (1.0, 0.998046875, False),  # half way to the one before: to even
    (1.0078125, 1.0117187500000002, False),
    (1.015625, 1.01171875, False),  # half way: to even, which is 1.015625
    (1.0078125, 1.00390625 + 2**-40, False),  # by way of float32 it would be half way, and then 1
    (3.3e38, 3.4e38, False),  # infinite
    (math.inf, 1e300, False),
    (math.inf, 3.38e38, True),
    (0.30078125, 0.3, False),
    (0.302734375, 0.3, True),
]


@pytest.mark.parametrize(("score", "threshold", "passes"), BFLOAT16)
def test_score_threshold_of_bfloat16(emulated, score, threshold, passes, ml_dtypes):
    boxes, values = emulated(APART[:1]), emulated(np.array([score], ml_dtypes.bfloat16))
    assert float(values.values[0]) == pytest.approx(score, rel=0.01)
    assert len(cvops.nms(boxes, values, 0.5, score_threshold=threshold).tolist()) == passes
    assert cvops.nms(boxes, values, 0.5, score_threshold=threshold, padded=True)[1].tolist() == passes


@pytest.mark.parametrize(("score", "threshold", "passes"), BFLOAT16)
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_score_threshold_of_bfloat16_on_the_host(library, score, threshold, passes):
    """Where the kernels get float32."""
    if library == "torch":
        torch = libraries.require("torch")
        import cvops.torch as ops

        boxes, values = torch.from_numpy(APART[:1]), torch.tensor([score], dtype=torch.bfloat16)
        assert len(ops.nms(boxes, values, 0.5, score_threshold=threshold)) == passes
        assert ops.nms(boxes, values, 0.5, score_threshold=threshold, padded=True)[1] == passes
        idxs = torch.zeros(1, dtype=torch.int64)
        assert len(ops.batched_nms(boxes, values, idxs, 0.5, score_threshold=threshold)) == passes
        assert ops.batched_nms(boxes, values, idxs, 0.5, score_threshold=threshold, padded=True)[1] == passes
        return
    jax = libraries.require("jax")
    import cvops.jax as ops

    boxes, values = jax.numpy.asarray(APART[:1]), jax.numpy.asarray([score], jax.numpy.bfloat16)
    call = jax.jit(lambda boxes, values: ops.nms(boxes, values, 0.5, max_output=1, score_threshold=threshold)[1])
    assert call(boxes, values) == passes


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_score_threshold_drops_nan_scores(ops, dtype):
    values = scores(math.nan, -math.inf, math.inf, 0, dtype=dtype)
    assert ops.nms(APART[:4], values, 0.5, score_threshold=-math.inf).tolist() == [2, 3]
    assert ops.nms(APART[:4], values, 0.5, score_threshold=math.inf).tolist() == []
    assert ops.batched_nms(APART[:4], values, np.arange(4), 0.5, score_threshold=-1).tolist() == [2, 3]


def test_boxes_below_the_score_threshold_do_not_suppress(ops):
    values = np.array([0.1, 0.2], np.float32)
    assert ops.nms(PAIR[[0, 0]], values, 0.5, score_threshold=0.1).tolist() == [1]


# ----------------------------------------------------------------------------------------------- max_output, padded


@pytest.mark.parametrize(
    ("limit", "keep"), [(0, []), (1, [1]), (np.int8(2), [1, 3]), (4, [1, 3, 0, 2]), (10**30, [1, 3, 0, 2])]
)
def test_max_output_counts_what_survives(ops, limit, keep):
    boxes = np.concatenate([APART[:4], APART[:4]])
    values = scores(3, 5, 2, 4, 1, 1, 1, 4)
    assert ops.nms(boxes, values, 0.5, max_output=limit).tolist() == keep
    assert ops.batched_nms(boxes, values, np.resize([5, -5], 8), 0.5, max_output=limit).tolist() == keep


@pytest.mark.parametrize("size", strategies.few([4, 300, MANY], every=2))
@pytest.mark.parametrize("limit", strategies.few([None, 0, 3, 2 * MANY], every=3))
def test_padded(array, size, limit):
    boxes, scores, idxs = data.clustered(size)
    want = reference.nms_of_many(boxes, scores, 0.7)[:limit]
    indices = np.full(size if limit is None else limit, -1)
    indices[: len(want)] = want
    boxes, scores = array(boxes), array(scores)
    for got in (
        cvops.nms(boxes, scores, 0.7, max_output=limit, padded=True),
        cvops.batched_nms(boxes, scores, array(idxs * 0), 0.7, max_output=limit, padded=True),
    ):
        assert type(got) is tuple
        compare.same(got[0], indices, boxes)
        compare.same(got[1], np.array(len(want)), boxes)


def test_padded_without_survivors(ops):
    indices, count = ops.nms(APART, scores(*range(8)), 0.5, score_threshold=8, max_output=3, padded=True)
    assert (indices.tolist(), count.item()) == ([-1, -1, -1], 0)
    indices, count = ops.nms(APART[:0], scores(), 0.5, max_output=2, padded=True)
    assert (indices.tolist(), count.item()) == ([-1, -1], 0)
    indices, count = ops.batched_nms(APART[:0], scores(), np.array([], int), 0.5, padded=True)
    assert (indices.tolist(), count.item()) == ([], 0)


@pytest.mark.parametrize(("limit", "error"), [(-1, ValueError), (2.0, TypeError), ("2", TypeError), ([2], TypeError)])
def test_max_output_that_is_no_count(limit, error):
    with pytest.raises(error, match="`max_output` must be "):
        cvops.nms(PAIR, scores(2, 1), 0.5, max_output=limit)
    with pytest.raises(error, match="`max_output` must be "):
        cvops.batched_nms(PAIR, scores(2, 1), np.array([0, 0]), 0.5, max_output=limit)


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        cvops.nms(PAIR, scores(2, 1), 0.5, 0.1)
    with pytest.raises(TypeError, match="positional"):
        cvops.batched_nms(PAIR, scores(2, 1), np.array([0, 0]), 0.5, 0.1)


@pytest.mark.parametrize("size", [2000, 20_000, 40_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_result_holds_little_memory_beside_its_own(dtype, size):
    corners = np.random.default_rng(0).uniform(0, 1000, (size, 2)).astype(dtype)
    boxes, idxs = np.concatenate([corners, corners + dtype(50)], 1), np.arange(size) % 3
    ranks = (np.arange(size, dtype=dtype) + 1) / dtype(size)
    for threshold in (0.0, 0.99):
        for keep in (
            cvops.nms(boxes, ranks, 0.5, score_threshold=threshold),
            cvops.batched_nms(boxes, ranks, idxs, 0.5, score_threshold=threshold),
        ):
            owner = keep
            while getattr(owner, "base", None) is not None:
                owner = owner.base
            assert len(keep) > 0
            assert memoryview(owner).nbytes <= keep.nbytes + 1000


# --------------------------------------------------------------------------------------------------- unusual boxes


def test_no_boxes(array):
    boxes, scores, idxs = array(np.zeros((0, 4), np.float32)), array(np.zeros(0, np.float32)), array(np.zeros(0, int))
    compare.same(cvops.nms(boxes, scores, 0.5), np.zeros(0, np.int64), boxes)
    compare.same(cvops.batched_nms(boxes, scores, idxs, 0.5), np.zeros(0, np.int64), boxes)


@pytest.mark.parametrize("dtype", [*strategies.FLOATS, *strategies.INTEGERS])
def test_no_boxes_of_any_dtype(ops, dtype):
    compare.same(ops.nms(np.zeros((0, 4), dtype), scores(), 0.5), np.zeros(0, np.int64), PAIR)


def test_boxes_without_area_neither_suppress_nor_are_suppressed(ops):
    empty = np.array([[1, 1, 1, 5], [1, 1, 1, 5], [0, 0, 9, 9], [3, 3, 3, 3], [0, 0, 9, 0]], np.float32)
    assert ops.nms(empty, scores(5, 4, 3, 2, 1), 0).tolist() == [0, 1, 2, 3, 4]


def test_inverted_boxes_neither_suppress_nor_are_suppressed(ops):
    inverted = np.array(
        [[9, 9, 0, 0], [9, 9, 0, 0], [9, 0, 0, 9], [0, 9, 9, 0], [0, 0, 9, 9], [0, 0, 9, 9]], np.float32
    )
    assert ops.nms(inverted, scores(6, 5, 4, 3, 2, 1), 0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", range(4))
def test_a_nan_or_infinite_box_changes_nothing_for_others(ops, value, column):
    boxes = np.array([[0, 0, 9, 9]] * 4, np.float32)
    boxes[1, column] = value
    want = reference.nms(boxes, scores(1, 4, 3, 2), 0.5).tolist()
    assert want in ([1, 2], [1, 2, 0])
    assert ops.nms(boxes, scores(1, 4, 3, 2), 0.5).tolist() == want
    assert ops.batched_nms(boxes, scores(1, 4, 3, 2), np.zeros(4, int), 0.5).tolist() == want


# --------------------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("dtype", [*strategies.INTEGERS, *strategies.FLOATS])
def test_classes_may_be_any_integers(ops, dtype):
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.finfo(dtype)
    values = np.array([limits.min, 0, 1, limits.max], dtype)
    boxes, values = np.repeat(PAIR[:1], 40, 0), np.resize(values, 40)
    got = ops.batched_nms(boxes, np.arange(40, dtype=np.float32), values, 0.5)
    assert got.tolist() == ([39, 38, 37, 36] if len(set(values.tolist())) == 4 else [39, 38, 37])


def test_neighbouring_64_bit_classes_are_told_apart(ops):
    """Two of them are one float64."""
    same = PAIR[[0, 0, 0, 0]]
    for idxs in (
        np.array([2**63 + 1, 2**63, 2**64 - 1, 2**63 + 1], np.uint64),
        np.array([2**53, 2**53 + 1, -(2**63), 2**53]),
        np.array([-(2**63), 2**63 - 1, -(2**63) + 1, -(2**63)]),
    ):
        assert ops.batched_nms(same, scores(4, 3, 2, 1), idxs, 0.5).tolist() == [0, 1, 2]


def test_zero_and_minus_zero_are_one_class(ops):
    assert ops.batched_nms(PAIR[[0, 0]], scores(2, 1), np.array([-0.0, 0.0]), 0.5).tolist() == [0]


@pytest.mark.parametrize("value", [0.5, -1e-9, math.nan, math.inf, -math.inf])
def test_float_classes_hold_integers(array, value):
    idxs = array(np.array([0, value], np.float32))
    with pytest.raises(ValueError, match="`idxs` must hold integers"):
        cvops.batched_nms(array(PAIR), array(scores(2, 1)), idxs, 0.5)


@pytest.mark.parametrize("dtype", [bool, np.complex64, np.longdouble])
def test_classes_of_other_dtypes(dtype):
    with pytest.raises(TypeError, match=r"`idxs` must be .*, got (bool|complex64|float128|longdouble)"):
        cvops.batched_nms(PAIR, scores(2, 1), np.zeros(2, dtype), 0.5)


@pytest.mark.parametrize("name", ["clustered", "negative", "with NaN, inf, inverted and empty ones"])
def test_one_class_is_nms_and_a_class_for_each_box_keeps_all(ops, name):
    boxes, values = many(1000)[name], data.uniform_scores(1000)
    want = ops.nms(boxes, values, 0.5).tolist()
    assert ops.batched_nms(boxes, values, np.full(1000, -3), 0.5).tolist() == want
    assert ops.batched_nms(boxes, values, -np.arange(1000), 0.5).tolist() == np.argsort(-values).tolist()


def test_classes_of_boxes_with_negative_coordinates(ops):
    """Where classes are shifted apart by the largest coordinate, these two are shifted onto each other."""
    boxes = np.array([[-10, -10, -2, -2], [-9, -9, -1, -1]], np.float32)
    assert ops.batched_nms(boxes, scores(2, 1), np.array([0, 1]), 0.5).tolist() == [0, 1]
    assert ops.batched_nms(boxes, scores(2, 1), np.array([1, 1]), 0.5).tolist() == [0]


# --------------------------------------------------------------------------------------------------- refused inputs


@pytest.mark.parametrize("shape", [(4,), (2, 5), (2, 3), (1, 2, 4), (4, 0), ()])
def test_boxes_of_another_shape(array, shape):
    with pytest.raises(ValueError, match=re.escape(f"`boxes` must have shape (L, 4), got {shape}")):
        cvops.nms(array(np.zeros(shape, np.float32)), array(scores(2, 1)), 0.5)
    with pytest.raises(ValueError, match=re.escape(f"`boxes` must have shape (L, 4), got {shape}")):
        cvops.batched_nms(array(np.zeros(shape, np.float32)), array(scores(2, 1)), array(np.array([0, 0])), 0.5)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1), (1, 2), (0,), ()])
def test_lengths_that_do_not_match(array, shape):
    boxes, other = array(PAIR), array(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=r"`scores` must have shape \(2,\).*, got " + re.escape(str(shape))):
        cvops.nms(boxes, other, 0.5)
    with pytest.raises(ValueError, match=r"`scores` must have shape \(2,\).*, got " + re.escape(str(shape))):
        cvops.batched_nms(boxes, other, array(np.array([0, 0])), 0.5)
    with pytest.raises(ValueError, match=r"`idxs` must have shape \(2,\).*, got " + re.escape(str(shape))):
        cvops.batched_nms(boxes, array(scores(2, 1)), other, 0.5)


@pytest.mark.parametrize("shape", [(2, 80), (2, 1), (1, 2), (0, 5)])
def test_a_score_for_each_class(array, shape):
    text = rf"`scores` must have shape \(2,\).*, got {re.escape(str(shape))}: nms takes one score for each box;.*"
    with pytest.raises(ValueError, match=text):
        cvops.nms(array(PAIR), array(np.zeros(shape, np.float32)), 0.5)
    with pytest.raises(ValueError, match=text):
        cvops.batched_nms(array(PAIR), array(np.zeros(shape, np.float32)), array(np.array([0, 0])), 0.5)


@pytest.mark.parametrize("images", [0, 1, 2])
def test_scores_of_images(array, images):
    text = re.escape(f"`scores` must have shape (L,), got {(images, 2, 80)}: ") + ".*use multiclass_nms"
    values = array(np.zeros((images, 2, 80), np.float32))
    for boxes in (PAIR, np.zeros((images, 2, 4), np.float32)):
        with pytest.raises(ValueError, match=text):
            cvops.nms(array(boxes), values, 0.5)
        with pytest.raises(ValueError, match=text):
            cvops.batched_nms(array(boxes), values, array(np.array([0, 0])), 0.5)


@pytest.mark.parametrize("dtype", [bool, np.complex64, np.longdouble, "datetime64[s]", "U3", "V8"])
def test_boxes_and_scores_of_other_dtypes(dtype):
    wrong = np.zeros((2, 4), dtype)
    with pytest.raises(TypeError, match=r"`boxes` must be .*, got "):
        cvops.nms(wrong, scores(2, 1), 0.5)
    with pytest.raises(TypeError, match=r"`scores` must be .*, got "):
        cvops.nms(PAIR, wrong[:, 0], 0.5)


@pytest.mark.parametrize("dtype", strategies.INTEGERS)
def test_integer_scores(ops, dtype):
    with pytest.raises(TypeError, match=rf"`scores` must be .*, got {dtype}: .*\.astype"):
        ops.nms(PAIR, np.array([2, 1], dtype), 0.5)


# ----------------------------------------------------------------------------------------------- dangerous values

PYTHON = (sys.executable, "-W", "error", "-W", "ignore:`boxes` looks like xywh", "-X", "faulthandler", "-c")
_RUN = """
import sys
import numpy as np
from tests import host_emulation, libraries
ops = libraries.Operators(sys.argv[3])
nms = host_emulation.nms_module()
if ops.backend == "cupy":
    from cvops_cuda import _nms as nms
nms._BATCH = host_emulation.SMALL_BATCH
with np.load(sys.argv[1]) as inputs:
    results = {}
    for name, boxes in inputs.items():
        scores, idxs = np.cos(np.arange(len(boxes))), np.arange(len(boxes)) % 3
        scores[::5] = np.nan
        for threshold in (0, 0.1, 0.5, 0.99, 1):
            results[f"{name} {threshold}"] = ops.nms(boxes, scores.astype(np.float32), threshold)
            results[f"{name} {threshold} batched"] = ops.batched_nms(boxes, scores, idxs, threshold)
np.savez(sys.argv[2], **results)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "size"),
    [
        pytest.param(library, size, marks=pytest.mark.slow if size > 300 else ())
        for library, many in libraries.BACKENDS.items()
        for size in (5, 300, many)
    ],
)
def test_dangerous_values_do_not_crash(tmp_path, library, size):
    """In a process of its own, so that a crash or an endless loop is one failure and not the end of all tests."""
    libraries.CONVERTERS[library]([0.0])
    random = np.random.default_rng(0)
    largest = np.finfo(np.float32).max
    extremes = np.array([0, -0.0, 1, math.nan, math.inf, -math.inf, 1e-45, -1e-45, 1e-20, 1e19, largest, -largest])
    integers = np.iinfo(np.int64)
    sets = {
        "nan": np.full((size, 4), math.nan),
        "inf": np.full((size, 4), math.inf, np.float32),
        "everything": np.full((size, 4), [-math.inf, -math.inf, math.inf, math.inf], np.float32),
        "largest": np.full((size, 4), [-largest, -largest, largest, largest], np.float32),
        "extremes": random.choice(extremes, (size, 4)).astype(np.float32),
        "extremes of float64": random.choice([*extremes, 1e308, -1e308, 1e-308, 5e-324], (size, 4)),
        "inverted": data.clustered(size)[0][:, [2, 3, 0, 1]],
        "integers": random.choice([integers.min, -1, 0, 1, integers.max], (size, 4)),
        "slivers": np.array([-1e308, 0, 7e307, 1e-270]) * random.uniform(0.9, 1, (size, 1)),
    }
    if size > 300:
        sets = {name: np.concatenate([boxes, strategies.crowd(boxes.dtype)]) for name, boxes in sets.items()}
    np.savez(tmp_path / "in.npz", **sets)
    command = [*PYTHON, _RUN, tmp_path / "in.npz", tmp_path / "out.npz", library]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(tmp_path / "out.npz") as results:
        for name, boxes in sets.items():
            scores, idxs = np.cos(np.arange(len(boxes))), np.arange(len(boxes)) % 3
            scores[::5] = math.nan
            for threshold in (0.1, 0.5):
                want = reference.nms_of_many(boxes, scores.astype(np.float32), threshold)
                np.testing.assert_array_equal(results[f"{name} {threshold}"], want, name)
                want = reference.batched_nms_of_many(boxes, scores, idxs, threshold)
                np.testing.assert_array_equal(results[f"{name} {threshold} batched"], want, name)
