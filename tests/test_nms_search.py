"""The ways that nms can go: each gives the same answer, on sets where one of them gives up as well."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cvops
from cvops._checks import lowered
from tests import data, reference, strategies

_nms = pytest.importorskip("cvops._cpu._nms")
_all = pytest.importorskip("cvops._cpu._nms_all")
_batches = pytest.importorskip("cvops._cpu._nms_batches")
_few = pytest.importorskip("cvops._cpu._nms_few")
_grid = pytest.importorskip("cvops._cpu._nms_grid")
_hash = pytest.importorskip("cvops._cpu._nms_hash")

THRESHOLDS = (0.3, 1 / 3, 0.4, 0.5, 0.7, 0.9, 0.99)


@given(st.floats(allow_nan=False) | st.floats(0, 1), st.sampled_from([np.float32, np.float64]))
def test_thresholds_are_lowered_to_working_precision(value, dtype):
    """No number in working precision lies between a threshold and what kernels of either backend compare with."""
    got = lowered(value, np.dtype(dtype).char)
    assert float(dtype(got)) == got <= value
    with np.errstate(over="ignore"):
        assert got == math.inf or float(np.nextafter(dtype(got), dtype(math.inf))) > value
    if 0 <= value <= 1:
        assert _all.lowered(value, np.empty(0, dtype)) == got


# ------------------------------------------------------------------------------------------------------------ grid


def search_grid(boxes, threshold, limit=None):
    """(whether the grid suits the boxes, which are in rank order; indices that it keeps)."""
    boxes = np.ascontiguousarray(boxes)
    kept, settled = np.empty(len(boxes), bool), np.zeros(1, int)
    limit = len(boxes) if limit is None else limit
    starts = np.array([0, len(boxes)])
    _grid.search_grid_range(0, 1, np.array([0]), boxes, starts, threshold, limit, kept, settled)
    return settled[0] == len(boxes), np.flatnonzero(kept)


def search_from(search, boxes, threshold, settled, kept):
    """The indices that a search keeps that goes on where `settled` boxes have their flags."""
    limit, starts, settled = len(boxes), np.array([0, len(boxes)]), np.array([settled])
    common = boxes, starts, threshold, limit, kept, settled
    if search == "grid":
        _grid.search_grid_range(0, 1, np.array([0]), *common)
        assert settled[0] == len(boxes)
    else:
        _hash.search_near_range(0, 1, np.array([0]), *common, *_hash.buckets(threshold, boxes.dtype))
    return np.flatnonzero(kept)


def falling(count, dtype=np.float32):
    return np.linspace(1, 0, count, dtype=dtype)


def mixed(count, dtype):
    """Clustered boxes with some that are large, moved far away, or no boxes at all."""
    random = np.random.default_rng(count)
    boxes = data.clustered(count)[0].astype(dtype)
    kind = random.integers(0, 40, count)
    boxes[kind == 0, :2] -= 300
    boxes[kind == 1] += 3000
    boxes[kind == 2] = boxes[kind == 2][:, [2, 3, 0, 1]]
    boxes[kind == 3, 0] = math.nan
    boxes[kind == 4, 3] = math.inf
    boxes[kind == 5] = np.round(boxes[kind == 5])
    return boxes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threshold", strategies.few(THRESHOLDS, every=3))
@pytest.mark.parametrize("size", [1, 2, 17, 300, 3000])
def test_the_grid_keeps_what_the_reference_keeps(size, threshold, dtype):
    for boxes in (mixed(size, dtype), np.round(data.clustered(size)[0] / 40).astype(dtype) * 40):
        suits, keep = search_grid(boxes, threshold)
        assert suits
        want = reference.nms_of_many(boxes, falling(size, dtype), threshold)
        np.testing.assert_array_equal(keep, want)
        _, keep = search_grid(boxes, threshold, size // 3)
        np.testing.assert_array_equal(keep, want[: size // 3])


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("name", strategies.few(strategies.many(1), every=3))
def test_the_grid_keeps_the_same_or_gives_up(name, threshold):
    boxes = strategies.many(2000)[name]
    suits, keep = search_grid(boxes, threshold)
    if suits:
        want = reference.nms_of_many(boxes, falling(2000, boxes.dtype), threshold)
        np.testing.assert_array_equal(keep, want)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_grid_at_the_farthest_that_a_suppressor_can_be(threshold, dtype):
    boxes = strategies.pairs_at(threshold, 1000, dtype)
    for scale in (1, 2.0**-20, 2.0**20):
        scaled = boxes * dtype(scale)
        suits, keep = search_grid(scaled, threshold)
        assert suits
        np.testing.assert_array_equal(keep, reference.nms_of_many(scaled, falling(2000, dtype), threshold))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
def test_the_grid_where_coordinates_are_rounded(threshold):
    """Boxes of a few units in the last place, far from the origin on either side."""
    random = np.random.default_rng(0)
    for dtype, far in ((np.float32, 2.0**24), (np.float64, 2.0**53)):
        corner = random.integers(0, 60, (2000, 2))
        boxes = np.concatenate([corner, corner + random.integers(1, 9, (2000, 2))], 1)
        for place in (far, -far, -30):
            moved = (boxes + place).astype(dtype)
            suits, keep = search_grid(moved, threshold)
            assert suits
            np.testing.assert_array_equal(keep, reference.nms_of_many(moved, falling(2000, dtype), threshold))


def test_what_the_grid_does_not_suit():
    """Too much work, areas that underflow, and nothing that says where boxes lie."""
    random = np.random.default_rng(0)
    corner = random.uniform(0, 3000, (5000, 2))
    sizes = np.where(np.arange(5000)[:, None] % 50, 1, 1e5)
    assert not search_grid(np.concatenate([corner, corner + sizes], 1).astype("f"), 0.5)[0]
    assert not search_grid(data.clustered(300)[0] * np.float32(1e-20), 0.5)[0]
    assert not search_grid(np.full((300, 4), np.nan, np.float32), 0.5)[0]
    assert not search_grid(data.clustered(300)[0].astype("d") * 1e300, 0.5)[0]
    assert search_grid(data.clustered(300)[0], 0.5)[0]


@pytest.mark.parametrize("work", [-1, 0, 1, 2, 4])
def test_every_budget_gives_the_same(monkeypatch, work):
    """The hash search takes over from the beginning, wherever the grid stops. Not compiled: its budget is constant."""
    monkeypatch.setattr(_few, "SOME", 0)  # nothing is compiled, and kept on disk, with another budget
    monkeypatch.setattr(_grid, "_WORK_PER_BOX", work)
    monkeypatch.setattr(_grid, "search_grid_range", _grid.search_grid_range.py_func)
    monkeypatch.setattr(_grid, "search_grid", _grid.search_grid.py_func)
    boxes, scores = strategies.many(1200)["tiny to huge"][:1200], data.uniform_scores(1200)
    boxes = np.concatenate([boxes, strategies.crowd()])
    scores = np.concatenate([scores, np.zeros(1500, np.float32)])
    with np.errstate(all="ignore"):
        got = cvops.nms(boxes, scores, 0.5)
    np.testing.assert_array_equal(got, reference.nms_of_many(boxes, scores, 0.5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("search", ["grid", "hash"])
def test_a_search_goes_on_where_another_gave_up(search, dtype):
    """Flags that are settled stay, whatever they are, and those that are not say nothing."""
    boxes = mixed(3000, dtype)
    want = reference.nms_of_many(boxes, falling(3000, dtype), 0.5)
    for settled in (0, 1, 15, 16, 17, 1000, 2999, 3000):
        for junk in (False, True):
            kept = np.full(3000, junk)
            kept[:settled] = np.isin(np.arange(settled), want)
            np.testing.assert_array_equal(search_from(search, boxes, 0.5, settled, kept), want)
    alone = np.arange(3000) < 500  # as if a caller wanted just these: the others are compared with them
    keep = search_from(search, boxes, 0.5, 1000, alone.copy())
    np.testing.assert_array_equal(keep[keep < 1000], np.arange(500))
    rest = np.concatenate([np.arange(500), np.arange(1000, 3000)])
    kept = np.ones(len(rest), bool)
    np.testing.assert_array_equal(keep, rest[search_from(search, boxes[rest], 0.5, 500, kept)])


@pytest.mark.parametrize("name", strategies.few(["six decades", "huge over small", "tiny to huge", "dense"], every=2))
@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_hostile_boxes_go_from_search_to_search(threshold, name):
    boxes, scores = strategies.many(9000)[name], data.uniform_scores(9000)
    with np.errstate(all="ignore"):
        want = reference.nms_of_many(boxes, scores, threshold)
    np.testing.assert_array_equal(cvops.nms(boxes, scores, threshold), want)
    np.testing.assert_array_equal(cvops.nms(boxes, scores, threshold, max_output=700), want[:700])


# --------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threshold", strategies.few([0.0, 0.02, 0.0999], every=3))
@pytest.mark.parametrize("size", [1, 16, 1023, 1024, 1025, 5000])
def test_batches_keep_what_the_reference_keeps(size, threshold, dtype):
    """Boxes on a lattice, of which most touch their neighbours, some overlap them, and some are no boxes at all."""
    random = np.random.default_rng(size)
    corner = 20.0 * np.stack(np.divmod(random.permutation(size), 70), 1)
    boxes = np.concatenate([corner, corner + random.choice([19, 20, 20.5, 26], (size, 1))], 1).astype(dtype)
    boxes[::97] = math.nan
    boxes[5::97] = boxes[5::97][:, [2, 3, 0, 1]]
    boxes[7::197, 2:] += 300
    want = reference.nms_of_many(boxes, falling(size, dtype), threshold)
    for limit in (size, size // 3, 0):
        kept = np.empty(size, bool)
        _batches.search_in_batches(boxes, threshold, limit, kept)
        np.testing.assert_array_equal(np.flatnonzero(kept), want[:limit])


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("name", strategies.many(1))
def test_batches_of_hostile_boxes(name, threshold):
    boxes = strategies.many(3000)[name]
    kept = np.empty(3000, bool)
    with np.errstate(all="ignore"):
        _batches.search_in_batches(boxes, threshold, 3000, kept)
    np.testing.assert_array_equal(
        np.flatnonzero(kept), reference.nms_of_many(boxes, falling(3000, boxes.dtype), threshold)
    )


def test_batches_are_the_same_for_every_number_of_threads(threads):
    corner = 20.0 * np.stack(np.divmod(np.random.default_rng(0).permutation(9000), 95), 1)
    boxes, scores = np.concatenate([corner, corner + 20.5], 1).astype("f"), data.uniform_scores(9000)
    want = reference.nms_of_many(boxes, scores, 0.01)
    assert len(want) > 2000
    for count in (1, 2, 3):
        threads(count)
        np.testing.assert_array_equal(cvops.nms(boxes, scores, 0.01), want)
        np.testing.assert_array_equal(cvops.batched_nms(boxes, scores, np.zeros(9000, int), 0.01), want)


# --------------------------------------------------------------------------------------------------------- float16


@pytest.mark.parametrize("shape", [(1 << 16,), (1 << 14, 4), (4, 1 << 14)])
def test_every_float16_is_the_same_number_in_float32(shape):
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(shape)
    for array in (halves, halves.T, halves[::-1], halves[::3]):
        got = _nms._as_real(array, "f")
        assert (got.dtype, got.flags.c_contiguous, got.flags.writeable) == (np.float32, True, False)
        with np.errstate(all="ignore"):
            want = array.astype(np.float32)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(np.signbit(got[~np.isnan(got)]), np.signbit(want[~np.isnan(want)]))


# ------------------------------------------------------------------------------------------------------ lean calls


@pytest.fixture
def general(monkeypatch):
    """Let a function call without the lean way."""

    def call(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(_few, "MOST", -1)
            return function(*arguments, **options)

    return call


def lean(function, *arguments, **options):
    """The result of a call, of which it is known that it went the lean way."""
    way = {cvops.nms: _few.lean_nms, cvops.batched_nms: _few.lean_batched_nms}[function]
    assert way(*arguments, options.get("score_threshold")) is not None
    return function(*arguments, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("size", [0, 1, 2, 10, 24, 25, 100, 300, 1000, _few.MOST])
@pytest.mark.parametrize("threshold", strategies.few([0.05, 0.0, 0.3, 0.5, 0.7], every=3))
def test_a_lean_call_gives_what_the_general_way_gives(general, size, threshold, dtype):
    boxes, scores, idxs = data.clustered(size)
    boxes, scores = boxes.astype(dtype), scores.astype(dtype) * dtype(1.1)  # in all bits of a float64
    for values in (scores, np.round(scores, 1), np.where(scores < 0.2, dtype(math.nan), scores)):
        for floor in (None, 0.3, float(scores[0]) if size else 0.5, math.inf, -math.inf, 2.0, 1e6):
            options = {"score_threshold": floor}
            for way, *rest in ((cvops.nms,), (cvops.batched_nms, idxs), (cvops.batched_nms, idxs % 3 - 2**40)):
                if size < 1000:  # of which never too many are kept
                    lean(way, boxes, values, *rest, threshold, **options)
                got = way(boxes, values, *rest, threshold, **options)
                want = general(way, boxes, values, *rest, threshold, **options)
                np.testing.assert_array_equal(got, want)
                assert (got.dtype, got.ndim, got.flags.writeable, got.ctypes.data % 64) == (np.int64, 1, True, 0)
                assert want.ctypes.data % 64 == 0


@pytest.mark.parametrize("size", [_few.FEW_KEPT, _few.FEW_KEPT + 1, _few.MOST, _few.MOST + 1])
def test_where_lean_calls_end(general, size):
    """As many are kept as are looked at in one go, or one more; as many boxes, or one more."""
    corner = 2.0 * np.arange(size)[:, None]
    boxes, scores = (corner + np.array([0, 0, 1, 1])).astype("f"), data.uniform_scores(size)
    for threshold in (0.05, 0.5, 1.0):
        want = np.argsort(-scores, kind="stable")
        np.testing.assert_array_equal(cvops.nms(boxes, scores, threshold), want)
        np.testing.assert_array_equal(general(cvops.nms, boxes, scores, threshold), want)
        idxs = np.arange(size) % 2
        np.testing.assert_array_equal(cvops.batched_nms(boxes, scores, idxs, threshold), want)


@pytest.mark.parametrize("name", strategies.many(1))
def test_lean_calls_of_hostile_boxes(general, name):
    boxes, scores = strategies.many(_few.MOST)[name], data.uniform_scores(_few.MOST)
    idxs = np.arange(_few.MOST) % 7
    for threshold in (0.0, 0.1, 0.5, 0.9, 1.0):
        np.testing.assert_array_equal(cvops.nms(boxes, scores, threshold), general(cvops.nms, boxes, scores, threshold))
        np.testing.assert_array_equal(
            cvops.batched_nms(boxes, scores, idxs, threshold),
            general(cvops.batched_nms, boxes, scores, idxs, threshold),
        )


BOXES, SCORES, IDXS = data.clustered(30)
UNALIGNED = np.frombuffer(b"\0" + BOXES.tobytes(), np.uint8)[1:].view(np.float32).reshape(30, 4)
ODD = np.zeros(30, [("boxes", "f", 4), ("score", "f"), ("tag", "u1")])  # 21 bytes each
ODD["boxes"], ODD["score"] = BOXES, SCORES
STRIDED = {
    "every second one": (BOXES.repeat(2, 0)[::2], SCORES.repeat(2)[::2]),
    "Fortran order": (np.asfortranarray(BOXES), SCORES),
    "rows of five": np.split(np.concatenate([BOXES, SCORES[:, None]], 1), [4], 1),
    "backwards": (BOXES[::-1].copy()[::-1], SCORES[::-1].copy()[::-1]),
    "backwards both ways": (BOXES[::-1, ::-1].copy()[::-1, ::-1], SCORES),
}
STRIDED["rows of five"][1] = STRIDED["rows of five"][1][:, 0]
NOT_PLAIN = {
    "unaligned boxes": (UNALIGNED, SCORES, 0.5),
    "boxes of odd strides": (ODD["boxes"], SCORES, 0.5),
    "scores of odd strides": (BOXES, ODD["score"], 0.5),
    "big-endian boxes": (BOXES.astype(">f4"), SCORES, 0.5),
    "float64 boxes": (BOXES.astype("d"), SCORES, 0.5),
    "float64 scores": (BOXES, SCORES.astype("d"), 0.5),
    "strided float16": (BOXES.astype("e").repeat(2, 0)[::2], SCORES.astype("e"), 0.5),
    "float16 scores": (BOXES, SCORES.astype("e"), 0.5),
    "float16 boxes": (BOXES.astype("e"), SCORES, 0.5),
    "a subclass": (BOXES.view(type("Kind", (np.ndarray,), {})), SCORES, 0.5),
    "big-endian scores": (BOXES, SCORES.astype(">f4"), 0.5),
    "integer boxes": (BOXES.astype("i4"), SCORES, 0.5),
    "a subclass of scores": (BOXES, SCORES.view(type("Kind", (np.ndarray,), {})), 0.5),
    "a threshold of NumPy": (BOXES, SCORES, np.float32(0.5)),
    "a double of NumPy": (BOXES, SCORES, np.float64(0.5)),
    "an array of one threshold": (BOXES, SCORES, np.array(0.5)),
    "an integer threshold": (BOXES, SCORES, 1),
}
WRONG = {
    "a threshold above 1": (BOXES, SCORES, 1.5),
    "a threshold below 0": (BOXES, SCORES, -0.1),
    "no threshold": (BOXES, SCORES, math.nan),
    "too few scores": (BOXES, SCORES[:-1], 0.5),
    "a column of scores": (BOXES, SCORES[:, None], 0.5),
    "five columns": (np.zeros((30, 5), np.float32), SCORES, 0.5),
    "one box": (BOXES[0], SCORES[:1], 0.5),
    "a list": (BOXES.tolist(), SCORES, 0.5),
    "a list of scores": (BOXES, SCORES.tolist(), 0.5),
    "a number as boxes": (np.array(1.0, "f"), SCORES, 0.5),
    "a number as scores": (BOXES, np.array(1.0, "f"), 0.5),
    "three axes": (BOXES[None], SCORES, 0.5),
    "objects": (BOXES.astype(object), SCORES, 0.5),
    "True": (BOXES, SCORES, True),
    "NumPy's True": (BOXES, SCORES, np.True_),
    "None": (BOXES, SCORES, None),
    "bool scores": (BOXES, SCORES > 0, 0.5),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_right_and_not_plain_goes_the_general_way(general, name):
    assert _few.lean_nms(*NOT_PLAIN[name], None) is None
    boxes, scores, threshold = NOT_PLAIN[name]
    want = general(cvops.nms, np.array(boxes), np.array(scores), threshold)
    np.testing.assert_array_equal(cvops.nms(boxes, scores, threshold), want)


@pytest.mark.parametrize("name", STRIDED)
def test_lean_calls_take_strides(general, name):
    boxes, scores = STRIDED[name]
    assert not (boxes.flags.c_contiguous and scores.flags.c_contiguous)
    for threshold in (0.3, 0.7):
        want = general(cvops.nms, BOXES, SCORES, threshold)
        np.testing.assert_array_equal(lean(cvops.nms, boxes, scores, threshold), want)
        want = general(cvops.batched_nms, BOXES, SCORES, IDXS, threshold)
        np.testing.assert_array_equal(lean(cvops.batched_nms, boxes, scores, IDXS, threshold), want)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_goes_the_general_way(name):
    assert _few.lean_nms(*WRONG[name], None) is None
    with pytest.raises((TypeError, ValueError), match=r"`(boxes|scores|iou_threshold)` must "):
        cvops.nms(*WRONG[name])


@pytest.mark.parametrize(
    "idxs", [IDXS.astype("i4"), IDXS.astype("u8"), IDXS.astype("f"), IDXS.repeat(2)[::2], IDXS.astype(">i8")]
)
def test_classes_that_are_not_plain(idxs):
    assert _few.lean_batched_nms(BOXES, SCORES, idxs, 0.5, None) is None
    want = lean(cvops.batched_nms, BOXES, SCORES, IDXS, 0.5)
    np.testing.assert_array_equal(cvops.batched_nms(BOXES, SCORES, idxs, 0.5), want)


@pytest.mark.parametrize("idxs", [IDXS[:-1], IDXS[:, None], IDXS > 0, IDXS.tolist(), IDXS + 0.5])
def test_classes_that_are_wrong(idxs):
    assert _few.lean_batched_nms(BOXES, SCORES, idxs, 0.5, None) is None
    with pytest.raises((TypeError, ValueError), match="`idxs` must "):
        cvops.batched_nms(BOXES, SCORES, idxs, 0.5)


@pytest.mark.parametrize("floor", [math.nan, "0.5", [0.5], True])
def test_score_thresholds_that_are_wrong(floor):
    assert _few.lean_nms(BOXES, SCORES, 0.5, floor) is None
    with pytest.raises((TypeError, ValueError), match="`score_threshold` must "):
        cvops.nms(BOXES, SCORES, 0.5, score_threshold=floor)


def test_read_only_arrays_are_plain_and_share_the_compilation():
    arrays = [array.copy() for array in (BOXES, SCORES, IDXS)]
    want = lean(cvops.nms, BOXES, SCORES, 0.5), lean(cvops.batched_nms, *arrays, 0.5)
    for array in arrays:
        array.setflags(write=False)
    np.testing.assert_array_equal(lean(cvops.nms, *arrays[:2], 0.5), want[0])
    np.testing.assert_array_equal(lean(cvops.batched_nms, *arrays, 0.5), want[1])
    for dtype in (np.float64, np.float16):
        boxes, scores = BOXES.astype(dtype), SCORES.astype(dtype)
        for writable in (True, False):
            boxes.setflags(write=writable)
            scores.setflags(write=writable)
            lean(cvops.nms, boxes, scores, 0.5), lean(cvops.batched_nms, boxes, scores, IDXS, 0.5)
    names = "nms_of_few", "batched_nms_of_few", "nms_of_few_float64", "batched_nms_of_few_float64", "_widened"
    for name in names:
        assert len(getattr(_few, name).signatures) == 1


def test_kernels_of_lean_calls_take_nothing_else():
    lean(cvops.nms, BOXES, SCORES, 0.5)
    for boxes, scores in ((BOXES.astype("d"), SCORES), (BOXES[0], SCORES), (BOXES, SCORES[:, None])):
        with pytest.raises(TypeError, match="No matching definition"):
            _few.nms_of_few(boxes, scores, 0.5, math.nan, 30)
