"""What heads predict, and boxes: against the reference, torchvision's coder, and every edge by name."""

from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cvops
from tests import compare, data, strategies
from tests import reference_decode as reference
from tests.libraries import to_numpy

INF = math.inf
ANCHORS = np.array([[0, 0, 10, 20], [4, -8, 12, 8], [100, 50, 103, 90]], np.float32)
DELTAS = np.array([[0, 0, 0, 0], [0.5, -0.25, 0.125, 1], [-1, 2, -0.5, 3]], np.float32)
WEIGHTS = (10, 10.0, 5, np.float32(5))
DTYPES = (*strategies.FLOATS, *strategies.INTEGERS)
# dtype of what keeps it -> dtype of the result
RESULTS = {dtype: dtype for dtype in strategies.FLOATS} | {
    dtype: "float64" if dtype.endswith(("32", "64")) else "float32" for dtype in strategies.INTEGERS
}


def some(*shape, seed=0):
    """Boxes (*shape, 4), not inverted, and deltas of the same shape."""
    random = np.random.default_rng(seed)
    corner, size = random.uniform(-50, 400, (*shape, 2)), random.uniform(1, 200, (*shape, 2))
    return np.concatenate([corner, corner + size], -1).astype("f4"), random.normal(0, 1, (*shape, 4)).astype("f4")


# A call of each, of arrays and options: for the tests of the frameworks' adapters.
ANCHORS, DELTAS = some(7)
ORDINARY = {
    "decode_boxes": ((DELTAS, ANCHORS, (10, 10, 5, 5)), {"clip": 0.125}),
    "encode_boxes": ((ANCHORS, some(7, seed=1)[0]), {}),
    "distance_to_boxes": ((ANCHORS[:, :2], DELTAS), {}),
    "scale_boxes": ((ANCHORS, (640, 640), (480, 853)), {"letterbox": True}),
}


def check(name, *args, on=cvops, like=None, **options):
    """Call the function and compare with the reference, which gets the values that arrays of other libraries hold."""
    values = [to_numpy(arg) if hasattr(arg, "__dlpack__") else arg for arg in args]
    got, want = getattr(on, name)(*args, **options), getattr(reference, name)(*values, **options)
    compare.close(got, want, args[0] if like is None else like)


# --------------------------------------------------------------------------------------------------------- by hand


def test_the_reference_by_hand():
    """An anchor of 8 x 16 around (8, 0): moved by half a width, a quarter of a height, twice as wide."""
    anchor, delta = np.array([[4.0, -8, 12, 8]]), np.array([[0.5, -0.25, math.log(2), 0]])
    box = [[4, -12, 20, 4]]
    np.testing.assert_allclose(reference.decode_boxes(delta, anchor), box)
    np.testing.assert_allclose(reference.decode_boxes(delta * [10, 10, 5, 5], anchor, (10, 10, 5, 5)), box)
    np.testing.assert_allclose(reference.encode_boxes(np.array(box, float), anchor), delta)
    wide = reference.decode_boxes(np.array([[0, 0, 9.0, 0]]), anchor)
    np.testing.assert_allclose(wide, [[8 - 250, -8, 8 + 250, 8]])  # exp(log(1000 / 16)) is 62.5
    np.testing.assert_allclose(
        reference.distance_to_boxes(np.array([[4.0, 12]]), np.array([[[1.0, 2, 3, 4]]])), [[[3, 10, 7, 16]]]
    )
    points = reference.make_points([(2, 1), (1, 1)], [8, (16, 4)])
    assert points.tolist() == [[4, 4], [4, 12], [2, 8]]
    anchors = reference.make_anchors([(1, 2)], [(8, 16)], scales=(10, 15), ratios=(1, 4))
    # Halves of 5, 7.5, 2.5 by 10 and 3.75 by 15; halves are rounded to even.
    base = [[-5, -5, 5, 5], [-8, -8, 8, 8], [-2, -10, 2, 10], [-4, -15, 4, 15]]
    assert anchors.tolist() == base + [[a + 16, b, c + 16, d] for a, b, c, d in base]
    boxes = np.array([[0.0, 80, 640, 560]])
    for letterbox, want in [
        (False, [0, 30, 320, 210]), (True, [0, 0, 320, 240]), ("topleft", [0, 40, 320, 280]),
    ]:  # fmt: skip
        assert reference.scale_boxes(boxes, (640, 640), (240, 320), letterbox=letterbox).tolist() == [want]


# -------------------------------------------------------------------------------------------- against the reference


@pytest.mark.parametrize(
    ("of_deltas", "of_anchors"),
    [
        ((0, 4), (0, 4)), ((4,), (4,)), ((3, 4), (3, 4)), ((2, 3, 4), (3, 4)), ((3, 5, 4), (3, 1, 4)), ((3, 4), (1, 4)),
        ((2, 3, 5, 4), (3, 1, 4)), ((2, 3, 5, 4), (2, 1, 5, 4)), ((1, 4), (3, 4)), ((3, 4), (2, 3, 4)),
        ((2, 0, 4), (0, 4)), ((3, 2, 4), (1, 1, 4)), ((3, 4), (4,)),
    ],
)  # fmt: skip
def test_shapes_broadcast(array, of_deltas, of_anchors):
    anchors, boxes = some(*of_anchors[:-1])[0], some(*of_deltas[:-1], seed=1)[0]
    check("decode_boxes", array(some(*of_deltas[:-1])[1]), array(anchors))
    check("encode_boxes", array(boxes), array(anchors))


@pytest.mark.parametrize("clip", [None, 0, -0.5, 0.75, INF, -INF, 4.135])
def test_weights_and_clip(ops, clip):
    anchors, deltas = some(40)
    check("decode_boxes", deltas * 9, anchors, WEIGHTS, clip=clip, on=ops)
    check("encode_boxes", some(40, seed=2)[0], anchors, list(WEIGHTS), on=ops)


@pytest.mark.parametrize("other", ["float64", "float32", "float16", "int64", "uint8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(ops, dtype, other):
    """Integers are small and positive, so that every dtype holds them."""
    anchors = np.array([[0, 1, 10, 21], [4, 8, 12, 16]]).astype(other)
    values = np.array([[1, 2, 3, 1], [0, 1, 2, 3]]).astype(dtype)
    boxes = np.array([[1, 2, 9, 30], [4, 5, 6, 7]]).astype(dtype)
    check("decode_boxes", values, anchors, on=ops)
    check("encode_boxes", boxes, anchors, on=ops)
    check("distance_to_boxes", anchors[:, :2], values, on=ops)
    check("scale_boxes", boxes, (100, 50), (30, 70), letterbox=True, on=ops)
    for got in (
        ops.decode_boxes(values, anchors), ops.encode_boxes(boxes, anchors), ops.scale_boxes(boxes, (9, 9), (7, 7)),
        ops.distance_to_boxes(anchors[:, :2], values),
    ):  # fmt: skip
        assert got.dtype == RESULTS[dtype]


@pytest.mark.parametrize("shape", [(0, 4), (3, 4), (2, 3, 4), (2, 0, 4), (0, 3, 4)])
def test_distance_to_boxes(array, shape):
    points, distances = array(some(shape[-2])[0][:, :2]), array(some(*shape[:-1], seed=3)[1])
    check("distance_to_boxes", points, distances)


@pytest.mark.parametrize("letterbox", [False, True, "center", "topleft"])
@pytest.mark.parametrize(
    ("from_size", "to_size"), [((640, 640), (480, 853)), ([320, 640.5], (1080, 99)), ((3, 4), (3, 4))]
)
def test_scale_boxes(array, from_size, to_size, letterbox):
    for shape in ((0,), (), (7,), (2, 3)):
        check("scale_boxes", array(some(*shape)[0]), from_size, to_size, letterbox=letterbox)


MAPS = [([], []), ([(3, 5)], [8]), ([(4, 2), (2, 1), (0, 3)], [8, (16, 12.5), 3]), ([[1, 1]], [np.int64(2)])]


@pytest.mark.parametrize(("sizes", "strides"), MAPS)
@pytest.mark.parametrize("like", [None, "float32", "float64"])
def test_points_and_anchors(array, sizes, strides, like):
    if like:
        given, options, wanted = array(np.zeros(2, like)), {"like": array(np.zeros(2, like))}, None
        wanted = to_numpy(given).dtype
    else:
        given, options, wanted = np.zeros(0), {}, np.dtype("f4")
    for offset in (0.5, 0, -1.25):
        want = reference.make_points(sizes, strides, offset=offset, dtype=wanted)
        compare.same(cvops.make_points(sizes, strides, offset=offset, **options), want, given)
    for scales, ratios in (
        ((32, 45.5), (0.5, 1, 2)),
        ([(7,)] * len(sizes), (1.0,)),
        ((9,), [(1, 3)] * len(sizes)),
        ((), (1,)),
    ):
        want = reference.make_anchors(sizes, strides, scales=scales, ratios=ratios, dtype=wanted)
        compare.same(cvops.make_anchors(sizes, strides, scales=scales, ratios=ratios, **options), want, given)


def test_points_and_anchors_in_float16(ops):
    like = np.zeros((), np.float16)
    compare.same(
        ops.make_points([(1, 3)], [1000.5], like=like),
        np.float16([[500.25, 500.25], [1500.75, 500.25], [2501.25, 500.25]]),
        like,
    )
    want = reference.make_anchors([(2, 2)], [1000.5], scales=(33,), ratios=(2,), dtype=np.float16)
    compare.same(ops.make_anchors([(2, 2)], [1000.5], scales=(33,), ratios=(2,), like=like), want, like)


def test_scales_of_each_map():
    maps = {"sizes": [(1, 2), (2, 1)], "strides": [8, 16], "scales": ((8, 9), (16,)), "ratios": ((1,), (0.5, 2))}
    want = reference.make_anchors(**maps)
    assert want.shape == (8, 4)
    compare.same(cvops.make_anchors(**maps), want, want)


# ------------------------------------------------------------------------------------------------------ properties

_numbers = st.sampled_from([0, -0.0, INF, -INF, math.nan]) | st.integers(-32, 32).map(lambda value: value / 8)


@st.composite
def pairs(draw):
    """Deltas or boxes (L, 4) and anchors (L, 4), degenerate ones included, of any float dtypes."""
    length, dtypes = draw(st.integers(0, 20)), st.sampled_from(strategies.FLOATS)
    return [draw(hnp.arrays(np.float64, (length, 4), elements=_numbers)).astype(draw(dtypes)) for _ in range(2)]


@given(pairs(), st.sampled_from([None, math.log(1000 / 16), 0.5]))
def test_any_numbers(ops, pair, clip):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check("decode_boxes", *pair, clip=clip, on=ops)
        check("encode_boxes", *pair, on=ops)


@given(st.integers(0, 1000), st.sampled_from([(1, 1, 1, 1), (10, 10, 5, 5)]))
def test_decode_is_the_inverse_of_encode(ops, seed, weights):
    anchors, boxes = some(9, seed=seed)[0].astype("f8"), some(9, seed=seed + 1)[0].astype("f8")
    deltas = ops.encode_boxes(boxes, anchors, weights)
    np.testing.assert_allclose(ops.decode_boxes(deltas, anchors, weights, clip=None), boxes, atol=1e-9)


def test_a_letterbox_may_be_a_bool_of_numpy(ops):
    for letterbox in (False, True):
        got = ops.scale_boxes(ANCHORS, (640, 640), (480, 853), letterbox=np.bool_(letterbox))
        np.testing.assert_array_equal(got, ops.scale_boxes(ANCHORS, (640, 640), (480, 853), letterbox=letterbox))


@given(st.tuples(*[st.integers(1, 2000)] * 4), st.sampled_from([False, True, "topleft"]))
def test_scale_boxes_undoes_the_resizing(ops, sizes, letterbox):
    """The corners of the image come from where a resizing puts them."""
    (height, width), (to_height, to_width) = from_size, to_size = sizes[:2], sizes[2:]
    corners = np.array([[0.0, 0, width, height]])
    if letterbox:
        gain = min(height / to_height, width / to_width)
        left, top = ((width - gain * to_width) / 2, (height - gain * to_height) / 2) if letterbox is True else (0, 0)
        corners = np.array([[left, top, left + gain * to_width, top + gain * to_height]])
    got = ops.scale_boxes(corners, from_size, to_size, letterbox=letterbox)
    np.testing.assert_allclose(got, [[0, 0, to_width, to_height]], atol=1e-9 * max(sizes))


CALLS = {
    "decode_boxes": lambda boxes, deltas: cvops.decode_boxes(deltas, boxes),
    "encode_boxes": lambda boxes, deltas: cvops.encode_boxes(boxes[::-1], boxes),
    "distance_to_boxes": lambda boxes, deltas: cvops.distance_to_boxes(boxes[:, :2], deltas),
    "scale_boxes": lambda boxes, deltas: cvops.scale_boxes(boxes, (640, 480), (99, 1000), letterbox=True),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
def test_every_number_of_threads_gives_the_same(threads, call):
    given = some(200_003)
    threads(1)
    want = call(*given)
    for count in (2, 3):
        threads(count)
        assert call(*given).tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "of_anchors", [(1, 7, 1, 4), (5, 1, 3, 4), (7, 3, 4), (3, 4), (5, 7, 1, 4), (1, 4), (5, 1, 1, 4)]
)
def test_a_row_is_computed_alike_wherever_it_lies(of_anchors, dtype):
    """Sixteen rows are computed at a time: alone, last of many, and with anchors in any pattern, to the bit."""
    anchors, deltas = some(*of_anchors[:-1])[0].astype(dtype), some(5, 7, 3)[1].astype(dtype)
    of_rows = np.broadcast_to(anchors, deltas.shape)
    for name in ("decode_boxes", "encode_boxes"):
        function, values = getattr(cvops, name), deltas if name == "decode_boxes" else of_rows[::-1]
        got = function(values, anchors)
        for i in np.ndindex(got.shape[:-1]):
            assert got[i].tobytes() == function(values[i], of_rows[i]).tobytes()
        flat = [array.reshape(-1, 4) for array in (got, values, of_rows)]
        for length in (15, 16, 17, 31, 33):
            assert function(*(array[:length] for array in flat[1:])).tobytes() == flat[0][:length].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponentials_and_logarithms_are_exact_to_a_few_units(dtype):
    """Of any magnitude: exp of numbers whose result is subnormal, and log of subnormal numbers."""
    random, least, most = np.random.default_rng(0), *np.log([np.finfo(dtype).tiny, np.finfo(dtype).max])
    drawn = np.concatenate([random.uniform(-1, 1, 9999), random.uniform(1.2 * least, 0.999 * most, 9999)])
    numbers = drawn.astype(dtype)
    with np.errstate(all="ignore"):
        near_1 = 1 + random.normal(0, 1e-3, 999)
        sizes = np.concatenate([np.exp(numbers.astype(np.longdouble)), near_1]).astype(dtype)
        wanted = np.exp(numbers.astype(np.longdouble)) / 2, np.log(sizes.astype(np.longdouble))
    unit, centred = np.array([[0, 0, 1, 1]], dtype), np.array([[-0.5, -0.5, 0.5, 0.5]], dtype)
    deltas, boxes = np.zeros((len(numbers), 4), dtype), np.zeros((len(sizes), 4), dtype)
    deltas[:, 2:], boxes[:, 2:] = numbers[:, None], sizes[:, None]
    results = cvops.decode_boxes(deltas, centred, clip=None)[:, 2:], cvops.encode_boxes(boxes, unit)[:, 2:]
    for got, want, units in zip(results, wanted, (2, 3), strict=True):
        with np.errstate(all="ignore"):
            nearest = want.astype(dtype)
        finite = np.isfinite(nearest)
        np.testing.assert_array_equal(got[~finite, 1], nearest[~finite])
        assert got[:, 0].tobytes() == got[:, 1].tobytes()
        assert (abs(got[finite, 0] - want[finite]) <= units * np.spacing(abs(nearest[finite]))).all()


def test_degenerate_anchors_are_no_warning(ops):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty, boxes = np.array([[3, 3, 3, 3], [5, 5, 2, 1]], np.float32), ANCHORS[:2]
        deltas = ops.encode_boxes(boxes, empty)
        assert np.isinf(deltas[0]).all()
        assert np.isnan(deltas[1, 2:]).all()
        assert ops.decode_boxes(DELTAS[:2], empty)[0].tolist() == [3, 3, 3, 3]
        nan = np.full((1, 4), math.nan, np.float32)
        assert np.isnan(ops.decode_boxes(nan, ANCHORS[:1])).all()
        assert np.isnan(ops.decode_boxes(DELTAS[:1], nan)).all()


# ------------------------------------------------------------------------------------------------------- very many
# On the CPU, what kernels cannot read or write where it lies is copied in parts. Results have the bits of the whole.

every_dtype = pytest.mark.parametrize("dtype", strategies.few(["f2", "f8", "f4", "i4"], every=4))


@every_dtype
@pytest.mark.parametrize("name", ["decode_boxes", "encode_boxes"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((40,), (40,)), ((40,), (1,)), ((1,), (40,)), ((3, 20), (20,)), ((20, 3), (20, 1)), ((2, 5, 4), (2, 1, 4)),
        ((2, 1, 4), (1, 5, 1)), ((5, 4), (3, 1, 4)), ((0,), (1,)), ((2, 0), (2, 1)), ((), ()),
    ],
)  # fmt: skip
def test_coding_in_parts(monkeypatch, name, dtype, one, other):
    from cvops._cpu import _decode as kernels

    of_values, of_anchors = some(*one)[name == "decode_boxes"].astype(dtype), some(*other, seed=1)[0].astype(dtype)
    for values in data.layouts(of_values):
        for anchors in data.layouts(of_anchors):
            compare.same_in_parts(monkeypatch, kernels, "_ROWS", getattr(cvops, name), values, anchors)


@every_dtype
@pytest.mark.parametrize("shape", [(40,), (3, 20), (2, 3, 5), (0,), (2, 0)])
def test_distances_in_parts(monkeypatch, dtype, shape):
    from cvops._cpu import _decode as kernels

    points = some(shape[-1], seed=1)[0].astype(dtype)[:, :2]
    for distances in data.layouts(some(*shape)[0].astype(dtype)):
        compare.same_in_parts(monkeypatch, kernels, "_ROWS", cvops.distance_to_boxes, points, distances)


@every_dtype
@pytest.mark.parametrize("shape", [(40,), (3, 20), (2, 3, 5), (2, 0)])
def test_scaling_in_parts(monkeypatch, dtype, shape):
    from cvops._cpu import _decode as kernels

    for boxes in data.layouts(some(*shape)[0].astype(dtype)):
        compare.same_in_parts(monkeypatch, kernels, "_ROWS", cvops.scale_boxes, boxes, (9, 7), (30, 20))


# ----------------------------------------------------------------------------------------------------- torchvision


def test_torchvision_has_the_same_coder(torch, torchvision):
    from torchvision.models.detection._utils import BoxCoder

    (anchors, deltas), boxes = some(200), some(200, seed=1)[0]
    for weights in ((1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)):
        coder = BoxCoder(weights)
        want = coder.decode_single(torch.from_numpy(3 * deltas), torch.from_numpy(anchors)).numpy()
        compare.close(cvops.decode_boxes(3 * deltas, anchors, weights), want.copy(), boxes)
        want = coder.encode_single(torch.from_numpy(boxes), torch.from_numpy(anchors)).numpy()
        np.testing.assert_allclose(cvops.encode_boxes(boxes, anchors, weights), want, rtol=1e-5, atol=1e-5)


def test_torchvision_has_the_same_anchors(torch, torchvision):
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList

    sizes, scales, ratios = [(7, 9), (4, 5)], ((32, 40, 50.8), (64,)), ((0.5, 1.0, 2.0), (0.3, 1.0))
    images = ImageList(torch.zeros(1, 3, 56, 72), [(56, 72)])
    (want,) = AnchorGenerator(scales, ratios)(images, [torch.zeros(1, 1, *size) for size in sizes])
    strides = [(56 // height, 72 // width) for height, width in sizes]
    got = cvops.make_anchors(sizes, strides, scales=scales, ratios=ratios)
    np.testing.assert_array_equal(got, want.numpy())


# --------------------------------------------------------------------------------------------------------- refused

ONE = np.zeros((3, 4), np.float32)
REFUSED = [
    ("decode_boxes", (ONE[:, :3], ONE), {}, ValueError, "`deltas` must have shape (..., 4), got (3, 3)"),
    ("decode_boxes", (ONE, ONE[:, :2]), {}, ValueError, "`anchors` must have shape (..., 4), got (3, 2)"),
    ("decode_boxes", (ONE, ONE[:2]), {}, ValueError, "`deltas` and `anchors` must have shapes that broadcast, got (3,"),
    ("decode_boxes", (ONE > 0, ONE), {}, TypeError, "`deltas` must be float64, float32, float16 or an integer dtype,"),
    ("decode_boxes", (ONE, ONE + 0j), {}, TypeError, "`anchors` must be float64"),
    ("decode_boxes", ([[0.0] * 4], ONE), {}, TypeError, "`deltas` must be an array, got list"),
    ("decode_boxes", (ONE, None), {}, TypeError, "`anchors` must be an array, got None"),
    ("decode_boxes", (ONE, ONE, (1, 1, 1)), {}, ValueError, "`weights` must be four numbers, got (1, 1, 1)"),
    ("decode_boxes", (ONE, ONE, 3), {}, TypeError, "`weights` must be four numbers, got int"),
    ("decode_boxes", (ONE, ONE, (1, 0, 1, 1)), {}, ValueError, "`weights` must be finite and > 0, got 0"),
    ("decode_boxes", (ONE, ONE, (1, 1, INF, 1)), {}, ValueError, "`weights` must be finite and > 0, got inf"),
    ("decode_boxes", (ONE, ONE, (1, 1, "1", 1)), {}, TypeError, "`weights` must be a Python or NumPy number, got str"),
    ("decode_boxes", (ONE, ONE), {"clip": math.nan}, ValueError, "`clip` must be a number, got nan"),
    ("decode_boxes", (ONE, ONE), {"clip": "4"}, TypeError, "`clip` must be a Python or NumPy number, got str"),
    ("encode_boxes", (ONE[0, :3], ONE), {}, ValueError, "`boxes` must have shape (..., 4), got (3,)"),
    ("encode_boxes", (ONE, ONE[:2]), {}, ValueError, "`boxes` and `anchors` must have shapes that broadcast, got"),
    ("encode_boxes", (ONE, ONE, (1, -1, 1, 1)), {}, ValueError, "`weights` must be finite and > 0, got -1"),
    ("distance_to_boxes", (ONE, ONE), {}, ValueError, "`points` must have shape (L, 2) and `distances` (..., L, 4), g"),
    ("distance_to_boxes", (ONE[:2, :2], ONE), {}, ValueError, "`points` must have shape (L, 2) and `distances` (...,"),
    ("distance_to_boxes", (ONE[:, :2], ONE[0]), {}, ValueError, "`points` must have shape (L, 2) and `distances`"),
    ("distance_to_boxes", (ONE[:, :2], ONE[:, :3]), {}, ValueError, "`distances` must have shape (..., 4), got (3, 3)"),
    ("distance_to_boxes", (ONE[:, :2] > 0, ONE), {}, TypeError, "`points` must be float64"),
    ("scale_boxes", (ONE[:, 1:], (1, 1), (1, 1)), {}, ValueError, "`boxes` must have shape (..., 4), got (3, 3)"),
    ("scale_boxes", (ONE, 640, (1, 1)), {}, TypeError, "`from_size` must be (height, width), got int"),
    ("scale_boxes", (ONE, (1, 1, 1), (1, 1)), {}, ValueError, "`from_size` must be (height, width), got (1, 1, 1)"),
    ("scale_boxes", (ONE, (1, 1), (0, 1)), {}, ValueError, "`to_size` must be finite and > 0, got 0"),
    ("scale_boxes", (ONE, (1, 1), (1, 1)), {"letterbox": "centre"}, ValueError, "`letterbox` must be True, False, 'ce"),
    ("scale_boxes", (ONE, (1, 1), (1, 1)), {"letterbox": None}, TypeError, "`letterbox` must be True, False, 'center'"),
    ("make_points", (3, [8]), {}, TypeError, "`sizes` must be a list with an entry for each map, got int"),
    ("make_points", ([(1, 1)], 8), {}, TypeError, "`strides` must be a list with an entry for each map, got int"),
    ("make_points", ([(1, 1)], []), {}, ValueError, "`strides` must have an entry for each of the 1 maps of `sizes`,"),
    ("make_points", ([3], [8]), {}, TypeError, "`sizes` must be (height, width), got int"),
    ("make_points", ([(1, -1)], [8]), {}, ValueError, "`sizes` must be >= 0, got -1"),
    ("make_points", ([(1, 1)], [0]), {}, ValueError, "`strides` must be finite and > 0, got 0"),
    ("make_points", ([(1, 1)], [(1, 2, 3)]), {}, ValueError, "`strides` must be a number or (y, x) for each map"),
    ("make_points", ([(1, 1)], [8]), {"offset": math.nan}, ValueError, "`offset` must be a number, got nan"),
    ("make_points", ([(1, 1)], [8]), {"like": np.zeros(3, int)}, TypeError, "`like` must be float64, float32 or float"),
    ("make_points", ([(1, 1)], [8]), {"like": "torch"}, TypeError, "`like` must be an array, got str"),
    ("make_anchors", ([(1, 1)], [8]), {"scales": 3, "ratios": (1,)}, TypeError, "`scales` must be a tuple of numbers,"),
    ("make_anchors", ([(1, 1)], [8]), {"scales": (3,), "ratios": (0,)}, ValueError, "`ratios` must be finite and > 0,"),
    (
        "make_anchors", ([(1, 1)], [8]), {"scales": ((3,), (4,)), "ratios": (1,)}, ValueError,
        "`scales` must have a tuple for each of the 1 maps, got 2",
    ),
    (
        "make_anchors", ([(1, 1)] * 2, [8] * 2), {"scales": ((3,), 4), "ratios": (1,)}, TypeError,
        "`scales` must be a tuple of numbers, or a list of one for each map, got int",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "options", "error", "text"), REFUSED)
def test_refused(name, args, options, error, text):
    with pytest.raises(error, match=re.escape(text)):
        getattr(cvops, name)(*args, **options)
