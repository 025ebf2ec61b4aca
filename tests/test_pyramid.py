"""multiscale_roi_align and its class: against the reference, and every edge by name."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cvops
from tests import compare
from tests import reference_roi as reference
from tests import strategies_roi as strategies
from tests.libraries import CONVERTERS, to_numpy
from tests.strategies import few

NAN, INF = math.nan, math.inf
IMAGE = (256, 320)


def pyramid(*levels, image=IMAGE, batch=2, channels=3, dtype=np.float32):
    """Maps by name, "p2" for level 2, as a network makes them of images of this size."""
    sides = {level: [math.ceil(side / 2**level) for side in image] for level in levels}
    return {f"p{level}": strategies.normal((batch, channels, *sides[level]), dtype, seed=level + 9) for level in levels}


def boxes_of_all_sizes(count, dtype=np.float32, image=IMAGE, seed=0):
    """Sides from 2 to 1000 pixels, and every eighth box empty, inverted or not finite."""
    random = np.random.default_rng(seed)
    centres, sides = random.uniform(0, 1, (count, 2)) * image[::-1], 2 * 500 ** random.uniform(0, 1, (count, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1)
    for i, odd in enumerate([[5, 5, 5, 90], [90, 9, 10, 300], [200, 200, 0, 0], [NAN, 0, 99, 99], [0, 0, INF, 9]]):
        boxes[8 * i + 7 :: 40] = odd
    return boxes.astype(dtype)


def split(boxes, batch):
    """The boxes as a list of one array for each image, all but the last of different lengths."""
    return np.split(boxes, [len(boxes) // (i + 2) for i in reversed(range(batch - 1))])


def check(
    ops, features, boxes, names, output_size=(2, 3), ratio=2, image_shapes=(IMAGE,), of_grad=np.asarray, **options
):
    """The result and the gradients against the reference. Give the features in any library to cvops itself as `ops`."""
    in_numpy = {name: to_numpy(features[name]) for name in names}
    inputs = in_numpy, [to_numpy(of_image) for of_image in boxes], list(image_shapes), names
    like = features[names[0]]
    pool = ops.MultiScaleRoIAlign(names, output_size, ratio, **options)
    want = reference.multiscale_roi_align(*inputs, output_size, ratio, **options)
    compare.close(pool(features, boxes, image_shapes), want, like)
    grad = of_grad(strategies.normal(want.shape, want.dtype, seed=9))
    want = reference.multiscale_roi_align_backward(to_numpy(grad), *inputs, ratio, **options)
    got = pool.backward(grad, features, boxes, image_shapes)
    assert list(got) == list(names)
    for name in names:
        compare.close(got[name], want[name], grad)


# ------------------------------------------------------------------------------------------- against the reference

CASES = strategies.pairwise(
    levels=[(2, 3, 4, 5), (5, 2, 4, 3), (6, 3), (3, 4), (4,), (2, 5, 6), (1, 2, 3, 4, 5, 6, 7)],
    output_size=[1, 7, (2, 3), (14, 14), (1, 5)],
    ratio=[-1, 0, 1, 2, 3],
    aligned=[False, True],
    canonical=[(224, 4), (100, 3), (64, 5), (224, 2)],
    channels=[1, 3, 16, 17, 100],
    batch=[1, 2, 3],
    count=[0, 1, 40],
    dtypes=["f4 f4", "f8 f8", "f2 f4", "f2 f2", "f4 f8", "f8 f4"],
    layout=list(strategies.LAYOUTS),
)


@pytest.mark.parametrize("case", few(CASES, 3, strategies.has_its_own_kernels), ids=str)
def test_multiscale_roi_align(ops, case):
    dtype, dtype_of_boxes = case["dtypes"].split()
    layout = strategies.LAYOUTS[case["layout"]]
    image, channels = (100, 140), min(case["channels"], ops.channels)
    features = pyramid(*case["levels"], image=image, batch=case["batch"], channels=channels, dtype=dtype)
    features = {name: layout(maps) for name, maps in features.items()}
    boxes = split(boxes_of_all_sizes(case["count"], dtype_of_boxes, image), case["batch"])
    check(
        ops,
        features,
        boxes,
        list(features),
        case["output_size"],
        case["ratio"],
        [image],
        layout,
        aligned=case["aligned"],
        canonical_scale=case["canonical"][0],
        canonical_level=case["canonical"][1],
    )


@given(
    st.lists(st.integers(-1, 7), min_size=1, max_size=5, unique=True),
    st.integers(0, 2**32),
    st.sampled_from([1, 56, 100, 224, 1000]),
    st.integers(-3, 9),
    st.booleans(),
    strategies.ratios,
)
def test_any_pyramid(ops, levels, seed, canonical_scale, canonical_level, aligned, ratio):
    image = (48, 36)
    features = pyramid(*levels, image=image, batch=1, channels=2)
    boxes = [boxes_of_all_sizes(10, seed=seed)]
    options = {"canonical_scale": canonical_scale, "canonical_level": canonical_level, "aligned": aligned}
    scales = [2.0**-level for level in levels]  # given: the smallest maps are larger than their scale says
    check(ops, features, boxes, list(features), 2, ratio, [image], scales=scales, **options)


@given(st.lists(st.floats(1e-3, 3), min_size=1, max_size=5, unique=True), st.integers(0, 2**32))
def test_any_scales(ops, scales, seed):
    features = {f"{i}": strategies.normal((1, 2, 9, 7), seed=i) for i in range(len(scales))}
    check(ops, features, [boxes_of_all_sizes(10, seed=seed)], list(features), scales=scales)


@given(st.lists(st.sampled_from([0.5, 0.25, 0.125]), min_size=2, max_size=7), st.integers(0, 2**32))
def test_maps_of_one_scale(ops, scales, seed):
    """The first named takes the boxes; the others have a gradient of zeros."""
    features = {f"{i}": strategies.normal((1, 2, 9, 7), seed=i) for i in range(len(scales))}
    boxes = [boxes_of_all_sizes(20, seed=seed)]
    check(ops, features, boxes, list(features), scales=scales)
    pool = ops.MultiScaleRoIAlign(list(features), 2, 2, scales=scales)
    gradients = pool.backward(np.ones((20, 2, 2, 2), np.float32), features, boxes, [])
    for i, scale in enumerate(scales):
        if scale in scales[:i]:
            assert not gradients[f"{i}"].any()


def test_maps_of_one_scale_by_their_shapes(ops):
    features = pyramid(2, 3, 4)
    others = {"also 2": features["p2"] + 9, "also 4": features["p4"][:, :, :, :-2] + 9}
    boxes = split(boxes_of_all_sizes(40), 2)
    for names in (["p2", "also 2", "p3", "also 4", "p4"], ["also 4", "p4", "p3", "p2", "also 2"], ["p4", "also 4"]):
        check(ops, {**features, **others}, boxes, names)


def test_maps_of_different_layouts(ops):
    features, boxes = pyramid(2, 3, 4), [boxes_of_all_sizes(40), boxes_of_all_sizes(7, seed=1)]
    layouts = dict(zip(features, ("channels-last", "contiguous", "sliced"), strict=True))
    features = {name: strategies.LAYOUTS[layouts[name]](maps) for name, maps in features.items()}
    check(ops, features, boxes, list(features))
    check(ops, features, boxes, ["p2"])


def test_bins_and_boxes_that_take_many_taps(ops):
    """Boxes across all of a long map in few bins, and small ones in many."""
    shapes = {"fine": (1, 40, 3, 700), "coarse": (1, 40, 2, 350)}
    features = {name: strategies.normal(shape) for name, shape in shapes.items()}
    boxes = [np.array([[0, 0, 699, 3], [300, 0, 310, 2], [690, 3, 5, 1], [20, 0, 600, 90]], np.float32)]
    for layout in ("contiguous", "channels-last"):
        maps = {name: strategies.LAYOUTS[layout](array) for name, array in features.items()}
        for output_size in (1, (2, 1), (1, 90)):
            check(ops, maps, boxes, ["fine", "coarse"], output_size, -1, scales=[1, 1 / 2], canonical_level=-1)
            check(ops, maps, boxes, ["fine", "coarse"], output_size, 300, scales=[1, 1 / 2], aligned=True)


def test_arrays_of_any_library(array):
    features = {name: array(maps) for name, maps in pyramid(2, 3, 4).items()}
    boxes = [array(boxes_of_all_sizes(40)), array(boxes_of_all_sizes(7, seed=1))]
    check(cvops, features, boxes, ["p2", "p3", "p4"], of_grad=array)
    check(cvops, features, tuple(boxes), ("p4", "p2"), of_grad=array, aligned=True)


def test_arrays_of_two_libraries():
    """The result follows the maps, gradients follow the gradient."""
    features = {name: CONVERTERS["torch"](maps) for name, maps in pyramid(2, 3, 4).items()}
    boxes = [boxes_of_all_sizes(40), boxes_of_all_sizes(7, seed=1)]
    check(cvops, features, boxes, ["p2", "p3", "p4"])
    check(cvops, features, boxes, ["p2", "p3", "p4"], of_grad=CONVERTERS["torch"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_number_of_threads_gives_the_same(threads, dtype):
    features = pyramid(2, 3, 4, 5, channels=70, dtype=dtype)
    boxes, shapes = [boxes_of_all_sizes(150), boxes_of_all_sizes(60, seed=1)], [IMAGE, IMAGE]
    pool = cvops.MultiScaleRoIAlign(["p2", "p3", "p4", "p5"], 7, 2)
    grad = strategies.normal((210, 70, 7, 7), dtype)
    threads(1)
    want, want_gradients = pool(features, boxes, shapes), pool.backward(grad, features, boxes, shapes)
    for count in (2, 3, 2):
        threads(count)
        compare.same(pool(features, boxes, shapes), want, want)
        for name, gradient in pool.backward(grad, features, boxes, shapes).items():
            compare.same(gradient, want_gradients[name], grad)


def test_the_pyramid_of_a_real_detector(ops):
    path = Path(__file__).parent.parent / "examples" / "data" / "nanodet_fpn_astronaut_small.npz"
    with np.load(path) as file:
        features, boxes = {name: file[name] for name in ("p3", "p4", "p5")}, file["rois"]
    names, shapes = list(features), [(416, 416)]
    levels = [reference.level_of(box, [1 / 8, 1 / 16, 1 / 32], 224, 4, np.float32) for box in boxes]
    assert set(levels) == {0, 1}  # the largest of them is not of level 5
    for options in ({}, {"aligned": True}, {"canonical_level": 5}, {"canonical_scale": 96}):
        check(ops, features, [boxes], names, 7, 2, shapes, **options)
        check(ops, features, [boxes], names, 7, -1, shapes, **options)
    pooled = ops.MultiScaleRoIAlign(names, 7, 2)(features, [boxes], shapes)
    for level, name in enumerate(names):
        chosen = np.flatnonzero(np.array(levels) == level)
        one_map = ops.roi_align(features[name], [boxes[chosen]], 7, 1 / 8 / 2**level, 2)
        compare.close(one_map, pooled[chosen], boxes)


# ---------------------------------------------------------------------------------------------------------- levels


def levels_of(ops, boxes, *levels, names=None, **options):
    """The level at which each box is pooled; the maps of the pyramid are constant."""
    features = {f"p{level}": np.full((1, 1, 512 >> level, 512 >> level), float(level)) for level in levels}
    dtype = np.asarray(boxes).dtype
    features = {name: maps.astype(dtype) for name, maps in features.items()}
    pool = ops.MultiScaleRoIAlign(names or list(features), 1, 1, **options)
    got = pool(features, [np.asarray(boxes)], [(512, 512)])[:, 0, 0, 0]
    assert (got == got.round()).all()
    return got.astype(int).tolist()


def squares(*sides, dtype=np.float32):
    return np.array([[9, 9, 9 + side, 9 + side] for side in sides], dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_levels_by_hand(ops, dtype):
    boxes = squares(1, 55, 56, 111, 112, 223, 224, 447, 448, 490, dtype=dtype)
    assert levels_of(ops, boxes, 2, 3, 4, 5) == [2, 2, 2, 2, 3, 3, 4, 4, 5, 5]
    assert levels_of(ops, boxes, 3, 4) == [3, 3, 3, 3, 3, 3, 4, 4, 4, 4]
    assert levels_of(ops, boxes, 4) == [4] * 10
    assert levels_of(ops, boxes, 1, 2, 3, canonical_level=2) == [1, 1, 1, 1, 1, 1, 2, 2, 3, 3]
    assert levels_of(ops, boxes, 2, 3, 4, canonical_scale=111) == [2, 2, 3, 4, 4, 4, 4, 4, 4, 4]


def test_only_the_area_counts(ops):
    boxes = [[0, 0, 112, 448], [0, 0, 448, 112], [-60, 200, 164, 424], [0, 0, 112, 447], [110, 0, 333, 224]]
    assert levels_of(ops, np.array(boxes, np.float32), 2, 3, 4, 5) == [4, 4, 4, 3, 3]


@pytest.mark.parametrize("dtypes", few(["f4 f4", "f8 f8", "f8 f4", "f4 f8", "f2 f4"], every=4))
def test_areas_around_the_limits_of_levels(ops, dtypes):
    """Boxes about 30 roundings of float32 to both sides of where a level begins."""
    dtype, dtype_of_boxes = (np.dtype(name).type for name in dtypes.split())
    real = np.float64 if "f8" in dtypes else np.float32
    sides = np.array([[56], [112], [224], [448]], dtype_of_boxes)
    around = sides * (1 + dtype_of_boxes(2**-23) * np.arange(-30, 31, dtype=dtype_of_boxes))
    boxes = np.zeros((around.size, 4), dtype_of_boxes)
    boxes[:, 2], boxes[:, 3] = around.ravel(), np.repeat(sides, 61)
    features = {f"p{level}": np.full((1, 1, 512 >> level, 512 >> level), level, dtype) for level in (1, 2, 3, 4, 5)}
    got = ops.MultiScaleRoIAlign(list(features), 1, 1)(features, [boxes], [(512, 512)])
    scales = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32]
    want = [1 + reference.level_of(box, scales, 224, 4, real) for box in boxes]
    assert len(set(want)) == 5
    assert got.ravel().tolist() == want


def test_boxes_without_area_are_pooled_at_the_finest_level(ops):
    boxes = [
        [100, 100, 100, 400],
        [100, 100, 400, 100],
        [400, 100, 100, 400],
        [100, 400, 400, 100],
        [100, 100, 100, 100],
    ]
    assert levels_of(ops, np.array(boxes, np.float32), 3, 4, 5) == [3] * 5
    assert levels_of(ops, np.array(boxes, np.float64), 5, 4, 3) == [3] * 5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_areas_that_overflow(ops, dtype):
    """Infinite: the coarsest level. Infinity times zero is NaN: the finest. What float32 rounds to zero: the finest."""
    most = float(np.finfo(dtype).max) / 2
    tiny = 1e-30 if dtype is np.float32 else 1e-200
    boxes = [[-most, -most, most, most], [-most, 3, most, 3], [3, 3, 3 + tiny, 3 + tiny], [0, 0, tiny, tiny]]
    boxes = np.array(boxes, dtype)
    assert levels_of(ops, boxes, 2, 3, 4) == [4, 2, 2, 2]
    assert levels_of(ops, boxes, 4, 3, 2) == [4, 2, 2, 2]


@pytest.mark.parametrize("wrong", [[NAN, 9, 400, 400], [9, 9, INF, 400], [-INF, 9, 400, 400], [-INF, -INF, INF, INF]])
def test_boxes_that_are_not_finite(ops, wrong):
    features = pyramid(2, 3, 4, batch=1)
    boxes = np.array([wrong, [9, 9, 200, 200], wrong], np.float32)
    check(ops, features, [boxes], ["p2", "p3", "p4"])
    pooled = ops.MultiScaleRoIAlign(["p2", "p3", "p4"], 2, 2)(features, [boxes], [IMAGE])
    assert np.isnan(pooled).all((1, 2, 3)).tolist() == [True, False, True]


def test_inverted_twice_is_a_positive_area(ops):
    assert levels_of(ops, np.array([[400, 400, 100, 100], [110, 110, 100, 100]], np.float32), 2, 3, 4) == [4, 2]


def test_an_absent_level_is_pooled_at_the_nearest_coarser_one(ops):
    """Not by position, which sends boxes to a wrong map, or to none."""
    boxes = squares(60, 112, 224, 448)
    assert levels_of(ops, boxes, 2, 3, 4, 5) == [2, 3, 4, 5]
    assert levels_of(ops, boxes, 2, 4, 5) == [2, 4, 4, 5]
    assert levels_of(ops, boxes, 2, 5) == [2, 5, 5, 5]
    assert levels_of(ops, boxes, 3, 5) == [3, 3, 5, 5]
    assert levels_of(ops, boxes, 1, 6) == [6, 6, 6, 6]


def test_the_example_of_torchvisions_documentation(ops):
    """Maps "feat1" and "feat3" of three, at scales 1/8 and 1/32: levels 3 and 5, between which no box is lost."""
    features = {f"feat{i + 1}": np.ones((1, 5, 64 >> i, 64 >> i), np.float32) for i in range(3)}
    boxes = np.array([[10, 10, 10 + side, 10 + side] for side in (30, 100, 150, 220, 225, 300, 450)], np.float32)
    pooled = ops.MultiScaleRoIAlign(["feat1", "feat3"], 3, 2)(features, [boxes], [(512, 512)])
    compare.close(pooled, np.ones((7, 5, 3, 3), np.float32), boxes)


def test_neither_the_order_of_the_dict_nor_that_of_the_names_matters(ops):
    features, boxes = pyramid(2, 3, 4, 5), split(boxes_of_all_sizes(40), 2)
    names = ["p2", "p3", "p4", "p5"]
    want = ops.MultiScaleRoIAlign(names, 3, 2)(features, boxes, [IMAGE] * 2)
    for order in (names[::-1], ["p4", "p2", "p5", "p3"]):
        shuffled = {name: features[name] for name in order}
        for listed in (names, order):
            compare.same(ops.MultiScaleRoIAlign(listed, 3, 2)(shuffled, boxes, [IMAGE] * 2), want, want)


def test_maps_that_are_not_named_are_left_alone(ops):
    features, boxes = pyramid(2, 3), split(boxes_of_all_sizes(40), 2)
    pool = ops.MultiScaleRoIAlign(["p2", "p3"], 3, 2)
    want = pool(features, boxes, [IMAGE])
    grad = np.ones_like(want)
    more = {"pool": None, **features, "p4": np.ones((7, 7), int)}
    compare.same(pool(more, boxes, [IMAGE]), want, want)
    assert list(pool.backward(grad, more, boxes, [IMAGE])) == ["p2", "p3"]


# ---------------------------------------------------------------------------------------------------------- scales


def test_scales_are_computed_anew_for_every_call(ops):
    """Of the largest image, whose height decides, to the nearest power of two."""
    pool = ops.MultiScaleRoIAlign(["a", "b"], 2, 2)
    features = {"a": strategies.normal((1, 3, 32, 40)), "b": strategies.normal((1, 3, 16, 20), seed=1)}
    boxes = [boxes_of_all_sizes(40)]
    results = []
    for shapes, a, b in [
        ([(256, 1)], 1 / 8, 1 / 16),
        ([(128, 999)], 1 / 4, 1 / 8),
        ([(64, 50), (256, 30), (100, 9999)], 1 / 8, 1 / 16),
        ([(362, 1)], 1 / 8, 1 / 16),
        ([(363, 1)], 1 / 16, 1 / 32),
        ([(8, 8)], 4, 2),
    ]:
        got = pool(features, boxes, shapes)
        want = ops.MultiScaleRoIAlign(["a", "b"], 2, 2, scales=[a, b])(features, boxes, [(1, 1)])
        compare.same(got, want, want)
        check(ops, features, boxes, ["a", "b"], 2, 2, shapes)
        results.append(got)
    assert np.array_equal(results[0], results[2], equal_nan=True)
    assert not np.array_equal(results[0], results[1], equal_nan=True)


def test_given_scales(ops):
    """In the order of the names; 1/3 lies between the levels 1 and 2."""
    features = {name: strategies.normal((1, 3, 30, 40), seed=i) for i, name in enumerate("abc")}
    boxes = [boxes_of_all_sizes(40)]
    for scales in ([1 / 16, 1 / 3, 1 / 4], (0.1, 0.2, 0.4), np.array([1, 2, 3]) / 8, [1, 2, 4]):
        check(ops, features, boxes, ["c", "a", "b"], image_shapes=[(1, 1)], scales=scales)
    # Levels 4, 1.58 and 2; a box of 224 x 224 is of level 3.
    pool = ops.MultiScaleRoIAlign(["c", "a", "b"], 1, 1, scales=[1 / 16, 1 / 3, 1 / 4], canonical_level=3)
    constant = {
        name: np.full((1, 1, 400, 400), value, np.float32) for name, value in zip("abc", (3, 4, 16), strict=True)
    }
    boxes = [squares(10, 111, 112, 223, 224, 448)]
    assert pool(constant, boxes, [(1, 1)]).ravel().tolist() == [3, 3, 4, 4, 16, 16]


def test_one_map_takes_all_boxes(ops):
    features, boxes = pyramid(3), [boxes_of_all_sizes(30), boxes_of_all_sizes(10, seed=2)]
    pooled = ops.MultiScaleRoIAlign(["p3"], 7, 2, aligned=True)(features, boxes, [IMAGE])
    compare.close(pooled, ops.roi_align(features["p3"], boxes, 7, 1 / 8, 2, True), pooled)


# ----------------------------------------------------------------------------------------------- boxes, gradients


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_no_boxes(ops, batch):
    features = pyramid(2, 3, batch=batch)
    check(ops, features, [np.zeros((0, 4), np.float32)] * batch, ["p2", "p3"])


def test_images_without_boxes(ops):
    features = pyramid(2, 3, 4, batch=4)
    none = np.zeros((0, 4), np.float32)
    check(ops, features, [none, boxes_of_all_sizes(9), none, boxes_of_all_sizes(3)], ["p2", "p3", "p4"])


def test_the_gradient_is_the_transpose(ops):
    features, boxes = pyramid(2, 3, 4, dtype=np.float64), split(boxes_of_all_sizes(40, np.float64)[:7], 2)
    pool = ops.MultiScaleRoIAlign(["p2", "p3", "p4"], (2, 3), -1)
    pooled = pool(features, boxes, [IMAGE])
    grad = strategies.normal(pooled.shape, np.float64, seed=5)
    gradients = pool.backward(grad, features, boxes, [IMAGE])
    assert all(abs(gradient).max() > 0.01 for gradient in gradients.values())
    total = sum((features[name] * gradient).sum() for name, gradient in gradients.items())
    np.testing.assert_allclose((pooled * grad).sum(), total, rtol=1e-12)


def test_a_map_that_no_box_is_pooled_from_has_a_gradient_of_zeros(ops):
    features = pyramid(2, 3, 4, batch=1)
    pool = ops.MultiScaleRoIAlign(["p2", "p3", "p4"], 2, 2)
    got = pool.backward(np.ones((1, 3, 2, 2), np.float32), features, [squares(150)], [IMAGE])
    assert got["p3"].any()
    for name in ("p2", "p4"):
        compare.same(got[name], np.zeros_like(features[name]), features[name])


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_gradient_without_strides(library):
    features, boxes = pyramid(2, 3, 4), [boxes_of_all_sizes(10), boxes_of_all_sizes(6)]

    def ones(array):
        one = CONVERTERS[library](np.float32([1.5]))
        return np.broadcast_to(one, array.shape) if library == "numpy" else one.expand(array.shape)

    check(cvops, features, boxes, ["p2", "p3", "p4"], of_grad=ones)


def test_a_gradient_of_another_dtype(ops):
    features, boxes = pyramid(2, 3, 4), [boxes_of_all_sizes(10), boxes_of_all_sizes(6)]
    for dtype in (np.float16, np.float64):
        check(ops, features, boxes, ["p2", "p3", "p4"], of_grad=lambda grad, dtype=dtype: grad.astype(dtype))


def test_nothing_is_written_into_inputs():
    features, boxes = pyramid(2, 3), [boxes_of_all_sizes(40), boxes_of_all_sizes(5)]
    before = {name: maps.copy() for name, maps in features.items()}, [of_image.copy() for of_image in boxes]
    names, shapes = ["p3", "p2"], [IMAGE, IMAGE]
    pool = cvops.MultiScaleRoIAlign(names, 2, 2)
    pooled = pool(features, boxes, shapes)
    grad = np.ones_like(pooled)
    pool.backward(grad, features, boxes, shapes)
    assert (names, shapes, list(features)) == (["p3", "p2"], [IMAGE, IMAGE], ["p2", "p3"])
    assert (grad == 1).all()
    for name, maps in features.items():
        np.testing.assert_array_equal(maps, before[0][name])
    for of_image, copy in zip(boxes, before[1], strict=True):
        np.testing.assert_array_equal(of_image, copy)


# ---------------------------------------------------------------------------------------------------- the functions

SCALES = {"p4": 1 / 16, "p2": 1 / 4, "p3": 1 / 8}
OPTIONS = {"canonical_scale": 100, "canonical_level": 3, "aligned": True}


@pytest.mark.parametrize("names", [["p2", "p3", "p4"], ["p4", "p2", "p3"], ["p3"]])
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["defaults", "options"])
@pytest.mark.parametrize("listed", [True, False], ids=["list", "rows"])
def test_the_functions(ops, names, options, listed):
    features = pyramid(2, 3, 4)
    boxes = split(boxes_of_all_sizes(40), 2)
    rows = np.concatenate([np.insert(of_image, 0, i, 1) for i, of_image in enumerate(boxes)])
    scales = [SCALES[name] for name in names]
    maps, given = [features[name] for name in names], boxes if listed else rows
    want = reference.multiscale_roi_align(features, boxes, [], names, (2, 3), -1, scales=scales, **options)
    compare.close(ops.multiscale_roi_align(maps, given, (2, 3), scales=scales, **options), want, maps[0])
    grad = strategies.normal(want.shape, seed=9)
    by_name = reference.multiscale_roi_align_backward(grad, features, boxes, [], names, -1, scales=scales, **options)
    got = ops.multiscale_roi_align_backward(grad, given, [each.shape for each in maps], scales=scales, **options)
    assert isinstance(got, list)
    for name, gradient in zip(names, got, strict=True):
        compare.close(gradient, by_name[name], grad)


def test_the_functions_over_libraries(array):
    features, boxes = [*pyramid(2, 3).values()], split(boxes_of_all_sizes(12), 2)
    maps, given = tuple(map(array, features)), tuple(map(array, boxes))
    options = {"scales": np.array([1 / 4, 1 / 8]), "sampling_ratio": 2}
    by_name, names = dict(zip(["p2", "p3"], features, strict=True)), ["p2", "p3"]
    want = reference.multiscale_roi_align(by_name, boxes, [], names, 2, 2, scales=[1 / 4, 1 / 8])
    compare.close(cvops.multiscale_roi_align(maps, given, 2, **options), want, maps[0])
    grad = strategies.normal(want.shape, seed=9)
    gradients = cvops.multiscale_roi_align_backward(array(grad), given, [each.shape for each in features], **options)
    wanted = reference.multiscale_roi_align_backward(grad, by_name, boxes, [], names, 2, scales=[1 / 4, 1 / 8])
    for name, gradient in zip(names, gradients, strict=True):
        compare.close(gradient, wanted[name], maps[0])


@pytest.mark.parametrize(("of_maps", "of_boxes", "value"), [("f4", "f4", 3), ("f8", "f4", 2), ("f4", "f8", 2)])
def test_any_argument_decides_the_precision_of_levels(ops, of_maps, of_boxes, value):
    """This box is large enough for the coarser level in float32 alone."""
    boxes = np.array([[0, 0, 0, 112, np.float32(112 * (1 - 15e-7))]], of_boxes)
    maps, options = [np.full((1, 1, 40, 40), value, of_maps) for value in (2, 3)], {"scales": [1 / 4, 1 / 8]}
    assert round(ops.multiscale_roi_align(maps, boxes, 1, **options).item(), 3) == value
    shapes = [each.shape for each in maps]
    gradients = ops.multiscale_roi_align_backward(np.ones((1, 1, 1, 1), of_maps), boxes, shapes, **options)
    assert [bool(gradient.any()) for gradient in gradients] == [value == 2, value == 3]


@pytest.mark.parametrize(
    ("error", "text", "changed"),
    [
        (TypeError, "`features` must be a list of arrays, got dict", {"features": pyramid(2, 3)}),
        (TypeError, "`features` must be a list of arrays, got ndarray", {"features": pyramid(2)["p2"]}),
        (ValueError, "`features` must have a map to pool from, got none", {"features": []}),
        (TypeError, "`features[1]` must be an array, got None", {"features": [pyramid(2)["p2"], None]}),
        (
            ValueError,
            "`features[0]` and `features[1]` must agree in N and C, got (2, 3, 64, 80) and (1, 3, 32, 40)",
            {"features": [pyramid(2)["p2"], pyramid(3, batch=1)["p3"]]},
        ),
        (ValueError, "`scales` must have one number for each of 2 maps, got 1", {"scales": [1]}),
        (ValueError, "`scales` must be finite and > 0, got 0", {"scales": [1, 0]}),
        (TypeError, "`scales` must be a list of numbers, got None", {"scales": None}),
        (ValueError, "`boxes` must be a list of one array for each image, 2, got 0", {"boxes": []}),
        (ValueError, "`output_size` must be >= 1, got 0", {"output_size": 0}),
        (TypeError, "`sampling_ratio` must be an integer, got float", {"sampling_ratio": 1.5}),
        (ValueError, "`canonical_scale` must be finite and > 0, got -1", {"canonical_scale": -1}),
        (TypeError, "`aligned` must be True or False, got str", {"aligned": "yes"}),
    ],
)
def test_the_functions_refuse(error, text, changed):
    call = {"features": [*pyramid(2, 3).values()], "boxes": [squares(10), squares(20, 30)], "output_size": 2}
    call |= {"scales": [1 / 4, 1 / 8]} | changed
    with pytest.raises(error, match=re.escape(text)):
        cvops.multiscale_roi_align(**call)
    if {"features", "output_size"}.isdisjoint(changed):
        del call["features"], call["output_size"]
        shapes = [maps.shape for maps in pyramid(2, 3).values()]
        with pytest.raises(error, match=re.escape(text)):
            cvops.multiscale_roi_align_backward(np.ones((3, 3, 2, 2), np.float32), input_shapes=shapes, **call)


@pytest.mark.parametrize(
    ("error", "text", "shapes"),
    [
        (TypeError, "`input_shapes` must be a list of (N, C, H, W), got int", 3),
        (TypeError, "`input_shapes[0]` must be (N, C, H, W), got int", (2, 3, 64, 80)),
        (ValueError, "`input_shapes` must have the shape of a map to pool from, got none", []),
        (ValueError, "`input_shapes[1]` must be (N, C, H, W), got (2, 3, 32)", [(2, 3, 64, 80), (2, 3, 32)]),
        (
            ValueError,
            "`input_shapes[0]` and `input_shapes[1]` must agree in N and C, got (2, 3, 64, 80) and (2, 4, 32, 40)",
            [(2, 3, 64, 80), (2, 4, 32, 40)],
        ),
    ],
)
def test_the_gradient_refuses(error, text, shapes):
    boxes, grad = [squares(10), squares(20, 30)], np.ones((3, 3, 2, 2), np.float32)
    with pytest.raises(error, match=re.escape(text)):
        cvops.multiscale_roi_align_backward(grad, boxes, shapes, scales=[1 / 4, 1 / 8])


# ------------------------------------------------------------------------------------------------- the object itself


def test_repr():
    assert repr(cvops.MultiScaleRoIAlign(["0"], (7, 7), 2)) == (
        "MultiScaleRoIAlign(featmap_names=['0'], output_size=(7, 7), sampling_ratio=2)"
    )
    assert "output_size=(7, 7)" in repr(cvops.MultiScaleRoIAlign(["0", "1"], 7, 2))
    assert "featmap_names=['0', '1']" in repr(cvops.MultiScaleRoIAlign(["0", "1"], 7, 2))


def test_it_cannot_be_changed():
    pool = cvops.MultiScaleRoIAlign(["0"], 7, 2)
    for name in ("featmap_names", "output_size", "scales", "another"):
        with pytest.raises(AttributeError):
            setattr(pool, name, None)


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        cvops.MultiScaleRoIAlign(["0"], 7, 2, 224)


# -------------------------------------------------------------------------------------------------- refused inputs


def refused(error, match, features=None, boxes=None, shapes=(IMAGE,), names=("p2", "p3"), size=2, ratio=2, **options):
    """Both calls raise `error`; whether the constructor does already is its business."""
    features = pyramid(2, 3) if features is None else features
    boxes = [squares(10), squares(20, 30)] if boxes is None else boxes
    with pytest.raises(error, match=match):
        cvops.MultiScaleRoIAlign(names, size, ratio, **options)(features, boxes, shapes)
    grad = np.ones((3, 3, 2, 2), np.float32)
    with pytest.raises(error, match=match):
        cvops.MultiScaleRoIAlign(names, size, ratio, **options).backward(grad, features, boxes, shapes)


def test_a_missing_map():
    refused(KeyError, r"p9.*p2.*p3", names=["p2", "p9"])
    refused(KeyError, "p2", features={})


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["p2", "p3", "also 3"], "p3"),
        (["p2", "also 3", "p3"], "also 3"),
        (["also 3", "p2", "p3", "p4"], "also 3"),
        (["p3", "also 3", "p4", "p2"], "p3"),
        (["p4", "p3", "p5", "also 3", "p2"], "p3"),  # on a GPU two launches
        (["p2", "p3", "p4", "p5", "also 5", "p6"], "p5"),
        (["p2", "p3", "p4", "p5", "also 5"], "p5"),
    ],
)
def test_the_first_of_two_maps_of_one_scale_takes_the_boxes(ops, names, first):
    features = pyramid(2, 3, 4, 5, 6)
    features |= {"also 3": features["p3"] + 1, "also 5": features["p5"] + 1}
    second = next(name for name in names if name[-1] == first[-1] and name != first)
    distinct = [name for name in names if name != second]
    boxes = [squares(10, 100, 200), squares(30, 250, 300, 3)]
    for scales in (None, [2.0 ** -int(name[-1]) for name in names]):
        options = {} if scales is None else {"scales": scales}
        few = {} if scales is None else {"scales": [2.0 ** -int(name[-1]) for name in distinct]}
        pool, without = ops.MultiScaleRoIAlign(names, 2, 2, **options), ops.MultiScaleRoIAlign(distinct, 2, 2, **few)
        want = without(features, boxes, [IMAGE])
        compare.same(pool(features, boxes, [IMAGE]), want, want)
        grad = np.random.default_rng(0).standard_normal(want.shape).astype("f")
        gradients = pool.backward(grad, features, boxes, [IMAGE])
        expected = without.backward(grad, features, boxes, [IMAGE])
        assert list(gradients) == names
        for name in distinct:
            compare.same(gradients[name], expected[name], grad)
        assert gradients[second].shape == features[second].shape
        assert not gradients[second].any()


def test_maps_that_do_not_fit_together():
    features = pyramid(2, 3)
    refused(ValueError, "p3", {**features, "p3": features["p3"][:1]})
    refused(ValueError, "p3", {**features, "p3": features["p3"][:, :2]})
    refused(TypeError, "p3", {**features, "p3": features["p3"].astype(np.float64)})


def test_maps_of_another_shape_or_dtype():
    features = pyramid(2, 3)
    refused(
        ValueError,
        r"p3.* must have shape \(N, C, H, W\).*, got \(2, 3, 32\)",
        {**features, "p3": features["p3"][..., 0]},
    )
    refused(ValueError, r"p3.* must", {**features, "p3": features["p3"][..., :0]})
    refused(TypeError, r"p2.*\.astype", {name: maps.astype(int) for name, maps in features.items()})
    refused(TypeError, "p3.* must be an array, got list", {**features, "p3": features["p3"].tolist()})


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_of_boxes_with_another_number_of_images(count):
    refused(ValueError, f"`boxes` must .*2, got {count}", boxes=[squares(10)] * count)


def test_boxes_of_another_shape_or_dtype():
    refused(ValueError, r"`boxes\[1\]` must have shape \(L, 4\), got \(1, 5\)", boxes=[squares(1), np.ones((1, 5))])
    refused(TypeError, r"`boxes\[0\]` must be .*\.astype", boxes=[squares(1, 2, 3).astype(int), squares(1)])
    refused(TypeError, r"`boxes\[1\]` must be an array, got list", boxes=[squares(1), [[0.0, 0, 1, 1]]])
    refused(TypeError, "`boxes` must be an array", boxes={0: squares(1)})


def test_image_shapes():
    refused(ValueError, "`image_shapes` must", shapes=[])
    for shapes in ([(256,)], [(256, 320, 3)], [(0, 320)], [(-256, 320)]):
        refused(ValueError, "`image_shapes` must", shapes=shapes)
    for shapes in (None, [256, 320], [(256.5, 320)], [("256", "320")], [None]):
        refused(TypeError, "`image_shapes` must", shapes=shapes)


def test_image_shapes_do_not_matter_where_scales_are_given(ops):
    features, boxes = pyramid(2, 3), [squares(10), squares(100, 200)]
    pool = ops.MultiScaleRoIAlign(["p2", "p3"], 2, 2, scales=[1 / 4, 1 / 8])
    want = pool(features, boxes, [IMAGE])
    for shapes in ([], [(1, 1)]):
        compare.same(pool(features, boxes, shapes), want, want)


def test_numbers():
    for size in (0, (2, 0), (2,), (1, 2, 3)):
        refused(ValueError, "`output_size` must", size=size)
    for size in (None, "7", 2.0):
        refused(TypeError, "`output_size` must", size=size)
    for ratio in (2.0, None, "2"):
        refused(TypeError, "`sampling_ratio` must", ratio=ratio)
    for scale in (0, -1, NAN, INF):
        refused(ValueError, "`canonical_scale` must", canonical_scale=scale)
        refused(ValueError, "`scales` must", scales=[1 / 4, scale])
    for scales in ([1 / 4], [1 / 4, 1 / 8, 1 / 16], []):
        refused(ValueError, "`scales` must", scales=scales)
    for level in (2.5, None, "4"):
        refused(TypeError, "`canonical_level` must", canonical_level=level)


def test_gradients_of_another_shape(ops):
    features, boxes = pyramid(2, 3), [squares(10), squares(20, 30)]
    pool = ops.MultiScaleRoIAlign(["p2", "p3"], 2, 2)
    for shape in [(3, 3, 2), (2, 3, 2, 2), (3, 4, 2, 2), (3, 3, 0, 2), (3, 3, 2, 2, 1), (3, 3, 3, 2)]:
        with pytest.raises(ValueError, match=r"`grad` must have shape .*, got " + re.escape(str(shape))):
            pool.backward(np.ones(shape, np.float32), features, boxes, [IMAGE])
    with pytest.raises(TypeError, match=r"`grad` must be .*\.astype"):
        pool.backward(np.ones((3, 3, 2, 2), int), features, boxes, [IMAGE])


def test_tensors_that_require_grad(torch):
    features = {name: torch.from_numpy(maps) for name, maps in pyramid(2, 3).items()}
    boxes = [torch.from_numpy(squares(10)), torch.from_numpy(squares(20, 30))]
    wrong = {**features, "p3": features["p3"].clone().requires_grad_()}
    refused(TypeError, r"p3.* requires grad: use cvops\.torch", wrong, boxes)
    refused(TypeError, r"`boxes\[1\]` requires grad", features, [boxes[0], boxes[1].clone().requires_grad_()])
