"""The RoI operators and their gradients: against the reference, and every edge by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cvops
from tests import compare
from tests import reference_roi as reference
from tests import strategies_roi as strategies
from tests.libraries import to_numpy
from tests.strategies import few

OPERATORS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module", params=OPERATORS)
def operator(request):
    return request.param


def options_of(operator, ratio, aligned):
    """Those of the two options that the operator has."""
    options = {"roi_align": {"sampling_ratio": ratio, "aligned": aligned}, "ps_roi_align": {"sampling_ratio": ratio}}
    return options.get(operator, {})


def channels_of(operator, bins, number):
    """Channels of the map for `number` channels of the result."""
    return number * bins if operator.startswith("ps") else number


def in_numpy(boxes):
    return [to_numpy(of_image) for of_image in boxes] if isinstance(boxes, list | tuple) else to_numpy(boxes)


def check_forward(ops, operator, maps, boxes, *args, **options):
    want = getattr(reference, operator)(to_numpy(maps), in_numpy(boxes), *args, **options)
    got = getattr(ops, operator)(maps, boxes, *args, **options)
    if operator != "roi_pool":
        compare.close(got, want, maps)
        return
    compare.same(got, want[0], maps)
    got = ops.roi_pool(maps, boxes, *args, return_argmax=True)
    assert type(got) is tuple
    compare.same(got[0], want[0], maps)
    compare.same(got[1], want[1], maps)


def argmax_of(operator, maps, boxes, *args):
    """What the gradient takes between the boxes and the shape: the argmax of roi_pool, nothing for the others."""
    return (reference.roi_pool(maps, boxes, *args)[1],) if operator == "roi_pool" else ()


def check_backward(ops, operator, grad, maps, boxes, scale, **options):
    """`grad` is one of the result for `maps`, whose values matter to roi_pool only."""
    inputs = *argmax_of(operator, maps, in_numpy(boxes), to_numpy(grad).shape[2:], scale), maps.shape, scale
    want = getattr(reference, operator + "_backward")(to_numpy(grad), in_numpy(boxes), *inputs, **options)
    compare.close(getattr(ops, operator + "_backward")(grad, boxes, *inputs, **options), want, grad)


# ------------------------------------------------------------------------------------------- against the reference

SIZES = [1, (1, 14), (2, 3), 4, (5, 2), 7, (6, 9), (8, 11), (10, 13), (12, 7), 14]
AXES = {
    "output_size": SIZES,
    "ratio": [-1, 0, 1, 2, 3, 7],
    "aligned": [False, True],
    "scale": [1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 3, 1, 2.5],
    "kind": [*strategies.KINDS, "all"],
    "images": [(1, 1, 1), (2, 1, 9), (1, 7, 1), (3, 5, 8), (2, 16, 23), (1, 33, 47)],
    "layout": list(strategies.LAYOUTS),
    "dtypes": ["f4 f4", "f8 f8", "f4 f8", "f8 f4", "f2 f2", "f2 f4", "f2 f8", "f4 f2", "f8 f2"],
    "form": ["array", "list", "tuple"],
    "count": [0, 1, 12],
}
CASES = strategies.pairwise(**AXES, channels=[1, 3, 16, 17, 31, 64, 100, 256, 1029])
PS_CASES = strategies.pairwise(**AXES, channels=[1, 2, 3, 5, 16, 21])


def check_case(ops, operator, output_size, ratio, aligned, scale, kind, images, layout, dtypes, form, count, channels):
    dtype, dtype_of_boxes = dtypes.split()
    height, width = output_size if isinstance(output_size, tuple) else (output_size, output_size)
    number, *sides = images
    channels = min(channels, ops.channels)
    maps = strategies.normal((number, channels_of(operator, height * width, channels), *sides), dtype)
    boxes = strategies.rois(kind, count, maps.shape, scale, dtype_of_boxes)
    if form != "array":
        boxes, _ = strategies.by_image(boxes, number)
        boxes = tuple(boxes) if form == "tuple" else boxes
    layout, options = strategies.LAYOUTS[layout], options_of(operator, ratio, aligned)
    check_forward(ops, operator, layout(maps), boxes, output_size, scale, **options)
    grad = strategies.normal((count, channels, height, width), dtype, seed=1)
    check_backward(ops, operator, layout(grad), maps, boxes, scale, **options)


@pytest.mark.parametrize("case", few(CASES, 3, strategies.has_its_own_kernels), ids=str)
def test_roi_align(ops, case):
    check_case(ops, "roi_align", **case)


@pytest.mark.parametrize("case", few(CASES, 3, strategies.has_its_own_kernels), ids=str)
def test_roi_pool(ops, case):
    check_case(ops, "roi_pool", **case)


@pytest.mark.parametrize("case", few(PS_CASES, 5, strategies.has_its_own_kernels), ids=str)
def test_ps_roi_align(ops, case):
    check_case(ops, "ps_roi_align", **case)


@pytest.mark.parametrize("case", few(PS_CASES, 3, strategies.has_its_own_kernels), ids=str)
def test_ps_roi_pool(ops, case):
    check_case(ops, "ps_roi_pool", **case)


@given(strategies.problems(), strategies.ratios, st.booleans())
def test_any_rois(ops, operator, problem, ratio, aligned):
    maps, rois, output_size, scale = problem
    check_forward(ops, operator, maps, rois, output_size, scale, **options_of(operator, ratio, aligned))


@pytest.mark.slow
@given(strategies.problems(), strategies.ratios, st.booleans(), st.sampled_from(list(strategies.LAYOUTS)))
def test_gradients_of_any_rois(ops, operator, problem, ratio, aligned, layout):
    maps, rois, output_size, scale = problem
    channels = maps.shape[1] // channels_of(operator, math.prod(output_size), 1)
    grad = strategies.LAYOUTS[layout](strategies.normal((len(rois), channels, *output_size), maps.dtype, seed=1))
    check_backward(ops, operator, grad, maps, rois, scale, **options_of(operator, ratio, aligned))


LARGE = {
    "roi_align": ((2, 70, 60, 80), 150, 7),
    "roi_pool": ((2, 70, 60, 80), 150, 7),
    "ps_roi_align": ((2, 21 * 49, 30, 40), 60, 7),
    "ps_roi_pool": ((2, 21 * 49, 30, 40), 60, 7),
}


@pytest.fixture(params=["contiguous", "channels-last"])
def large(request, operator):
    """(layout, shape of the maps, RoIs, output size): enough work to share among threads."""
    shape, count, output_size = LARGE[operator]
    return strategies.LAYOUTS[request.param], shape, strategies.rois("all", count, shape, 1 / 16), output_size


@pytest.mark.slow
@pytest.mark.parametrize("dtype", few(["float32", "float64"], every=2))
def test_many_rois(ops, operator, dtype, large):
    layout, (images, channels, *sides), rois, output_size = large
    bins = channels_of(operator, output_size**2, 1)
    channels = min(channels // bins, ops.channels // 5)
    maps = layout(strategies.normal((images, channels * bins, *sides), dtype))
    options = options_of(operator, 2, True)
    check_forward(ops, operator, maps, rois, output_size, 1 / 16, **options)
    grad = layout(strategies.normal((len(rois), channels, output_size, output_size), dtype))
    check_backward(ops, operator, grad, maps, rois, 1 / 16, **options)


@pytest.mark.parametrize("dtype", few(["float32", "float64"], every=2))
def test_the_number_of_threads_changes_no_bit(operator, dtype, large, threads):
    layout, shape, rois, output_size = large
    maps, options = layout(strategies.normal(shape, dtype)), options_of(operator, 2, True)
    threads(1)
    pooled = getattr(cvops, operator)(maps, rois, output_size, 1 / 16, **options)
    grad = layout(strategies.normal(pooled.shape, dtype))
    inputs = grad, rois, *argmax_of(operator, maps, rois, output_size, 1 / 16), shape, 1 / 16
    gradient = getattr(cvops, operator + "_backward")(*inputs, **options)
    for count in (2, 3, 2):
        threads(count)
        compare.same(getattr(cvops, operator)(maps, rois, output_size, 1 / 16, **options), pooled, maps)
        compare.same(getattr(cvops, operator + "_backward")(*inputs, **options), gradient, grad)


@pytest.mark.slow
def test_thousands_of_rois(ops, operator):
    maps = strategies.normal((3, channels_of(operator, 6, 2), 9, 11))
    rois = strategies.rois("all", ops.rois, maps.shape, 1 / 2)
    options = options_of(operator, -1, True)
    check_forward(ops, operator, maps, rois, (2, 3), 1 / 2, **options)
    check_backward(ops, operator, strategies.normal((ops.rois, 2, 2, 3)), maps, rois, 1 / 2, **options)


def test_lists_of_more_images_than_float16_counts(ops, operator):
    maps = strategies.normal((2100, channels_of(operator, 2, 1), 2, 2), np.float16)
    boxes = [np.array([[0, 0, 1, 1]] * (i % 700 == 1), np.float16).reshape(-1, 4) for i in range(2100)]
    boxes[2049] = boxes[2051] = boxes[1]
    check_forward(ops, operator, maps, boxes, (1, 2))
    check_backward(ops, operator, np.ones((5, 1, 1, 2), np.float16), maps, boxes, 1.0)


@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_few_rois_on_a_large_map(ops, operator, count):
    maps = strategies.normal((1, channels_of(operator, 49, 3), 130, 170))
    for kind in ("tiny", "inside", "whole"):
        rois = strategies.rois(kind, count, maps.shape, 1 / 4)
        check_forward(ops, operator, maps, rois, 7, 1 / 4, **options_of(operator, 2, False))


# ------------------------------------------------------------------------------------------------------ properties


def double_problem(operator, seed=0, count=10, output_size=(2, 3)):
    """(map, RoIs of every kind, a gradient) in float64."""
    shape = (2, channels_of(operator, math.prod(output_size), 2), 7, 9)
    rois = strategies.rois("all", count, shape, 1, np.float64)
    return strategies.normal(shape, np.float64, seed), rois, strategies.normal((count, 2, *output_size), np.float64)


@pytest.mark.parametrize(("ratio", "aligned"), [(-1, False), (-1, True), (2, False), (3, True)])
def test_the_gradient_is_the_transpose(ops, operator, ratio, aligned):
    """<op(x), g> = <x, op_backward(g)>: for the maximum too, as long as it is in the same place."""
    maps, rois, grad = double_problem(operator)
    options, argmax = options_of(operator, ratio, aligned), argmax_of(operator, maps, rois, grad.shape[2:])
    pooled = getattr(ops, operator)(maps, rois, grad.shape[2:], **options)
    gradient = getattr(ops, operator + "_backward")(grad, rois, *argmax, maps.shape, **options)
    assert abs(gradient).max() > 0.1
    np.testing.assert_allclose((pooled * grad).sum(), (maps * gradient).sum(), rtol=1e-12)


def test_the_gradient_is_a_limit_of_differences(ops, operator):
    maps, rois, grad = double_problem(operator)
    rois, grad = rois[:4], grad[:4]
    argmax = argmax_of(operator, maps, rois, grad.shape[2:])
    gradient = getattr(ops, operator + "_backward")(grad, rois, *argmax, maps.shape)
    before = getattr(ops, operator)(maps, rois, grad.shape[2:])
    for pixel in np.ndindex(maps.shape):
        moved = maps.copy()
        moved[pixel] += 1e-6  # less than the distance of any two pixels
        change = getattr(ops, operator)(moved, rois, grad.shape[2:]) - before
        assert (change * grad).sum() / 1e-6 == pytest.approx(gradient[pixel], abs=1e-8)


@pytest.mark.parametrize("operator", ["roi_align", "ps_roi_align", "ps_roi_pool"], indirect=True)
def test_linear(ops, operator):
    maps, rois, grad = double_problem(operator)
    other = double_problem(operator, seed=1)[0]
    function, output_size = getattr(ops, operator), grad.shape[2:]
    want = 2 * function(maps, rois, output_size) - 3 * function(other, rois, output_size)
    np.testing.assert_allclose(function(2 * maps - 3 * other, rois, output_size), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_constant_map_gives_that_constant(ops, operator, dtype):
    maps = np.full((1, channels_of(operator, 6, 20), 12, 15), 0.1, dtype)
    rois = np.array([[0, 1, 1, 13, 10], [0, 2.5, 3.3, 4.7, 8.9], [0, 0.5, 0.5, 14, 11]], np.float32)
    got = getattr(ops, operator)(maps, rois, (2, 3))
    compare.close(got, np.full((3, 20, 2, 3), 0.1, dtype), maps)


def test_rois_do_not_depend_on_each_other(ops, operator):
    maps, rois, grad = double_problem(operator, count=30)
    function, output_size = getattr(ops, operator), grad.shape[2:]
    together = function(maps, rois, output_size)
    for order in ([*range(29, -1, -1)], [3, 3, 17, 3], [0], [29]):
        compare.close(function(maps, rois[order], output_size), together[order], maps)


@pytest.mark.parametrize("kind", strategies.KINDS)
def test_the_maximum_is_where_argmax_says(ops, kind):
    maps = strategies.normal((2, 5, 9, 11))
    rois = strategies.rois(kind, 20, maps.shape)
    pooled, argmax = ops.roi_pool(maps, rois, (3, 4), return_argmax=True)
    of_roi = maps[rois[:, 0].astype(int)].reshape(20, 5, -1)
    there = np.take_along_axis(of_roi, np.maximum(argmax, 0).reshape(20, 5, -1), 2).reshape(pooled.shape)
    np.testing.assert_array_equal(pooled, np.where(argmax < 0, 0, there))
    assert (argmax >= 0).any() != (kind == "outside")


# ------------------------------------------------------------------------------------------------------- no RoIs


@pytest.mark.parametrize("shape", [(0, 18, 5, 7), (3, 18, 5, 7), (3, 0, 5, 7), (0, 0, 1, 1)])
def test_no_rois(ops, operator, shape):
    maps = strategies.normal(shape)
    channels = shape[1] // channels_of(operator, 6, 1)
    for boxes in (np.zeros((0, 5), np.float32), [np.zeros((0, 4))] * shape[0], (np.zeros((0, 4), "f2"),) * shape[0]):
        check_forward(ops, operator, maps, boxes, (2, 3))
        check_backward(ops, operator, np.zeros((0, channels, 2, 3), np.float32), maps, boxes, 1.0)


def test_no_channels(ops, operator):
    maps, rois = np.zeros((1, 0, 5, 7), np.float32), np.array([[0, 0, 0, 4, 4]], np.float32)
    check_forward(ops, operator, maps, rois, (2, 3))
    check_backward(ops, operator, np.zeros((1, 0, 2, 3), np.float32), maps, rois, 1.0)


# ----------------------------------------------------------------------------------------------- roi_align by name

# 4 rows of 5 pixels, each 10 * row + column: what a sample at (y, x) inside the map reads is 10 * y + x.
RAMP = np.add.outer(10.0 * np.arange(4), np.arange(5))[None, None]


def box(*corners, dtype=np.float64):
    return np.array([[0, *corners]], dtype)


def test_roi_align_by_hand(ops):
    compare.close(ops.roi_align(RAMP, box(0, 0, 2, 2), 2, 1.0, 1), np.array([[[[5.5, 6.5], [15.5, 16.5]]]]), RAMP)
    compare.close(ops.roi_align(RAMP, box(0, 0, 2, 2), 2, 1.0, 1, True), np.array([[[[0, 1.0], [10, 11]]]]), RAMP)
    compare.close(ops.roi_align(RAMP, box(0, 0, 6, 4), 1, 0.5), np.array([[[[11.5]]]]), RAMP)
    compare.close(ops.roi_align(RAMP, box(1, 2, 1, 2), 1), np.array([[[[26.5]]]]), RAMP)
    compare.close(ops.roi_align(RAMP, box(3, 3, 1, 1), 2, 1, 1, True), np.array([[[[22, 21], [12, 11.0]]]]), RAMP)


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["roi_align", "ps_roi_align"], indirect=True)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_where_the_border_ends_is_decided_by_one_rounding(ops, operator, dtype, ratio):
    """Samples on -1 and on the length of the map, and one rounding to both sides: read, or not."""
    maps = np.ones((1, channels_of(operator, 7, 1), 6, 6), dtype)
    middles = np.array([-1, 6, -0.5, 5, 6.5], dtype)
    middles = np.concatenate([middles, np.nextafter(middles, dtype(INF)), np.nextafter(middles, dtype(-INF))])
    rows = [[0, 1, middle - side, 3, middle + side] for middle in middles for side in dtype([0.5, 1, 3.5, 7 / 3, 9.1])]
    rois = np.array(rows, dtype)
    rois = np.concatenate([rois, rois[:, [0, 2, 1, 4, 3]]])
    for aligned in (False, True):
        for output_size in ((7, 1), (1, 7)):
            check_forward(ops, operator, maps, rois, output_size, 1, **options_of(operator, ratio, aligned))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_number_of_samples_is_decided_by_one_rounding(ops, dtype):
    """Sides of a whole number of samples for each of three bins, and one rounding more and less."""
    maps = strategies.normal((1, 2, 9, 9), dtype)
    sides = dtype([3, 6, 9, 12, 0.3, 3.3])
    sides = np.concatenate([sides, np.nextafter(sides, dtype(99)), np.nextafter(sides, dtype(0))])
    for start in dtype([0, 0.4, -1.7, 2.2]):
        rois = np.zeros((len(sides), 5), dtype)
        rois[:, 1:] = np.stack([0 * sides + start, 0 * sides, start + sides, sides], 1)
        for aligned in (False, True):
            check_forward(ops, "roi_align", maps, rois, 3, 1, sampling_ratio=-1, aligned=aligned)
        check_forward(ops, "ps_roi_align", np.repeat(maps, 9, 1), rois, 3, 1)


@pytest.mark.parametrize("operator", ["roi_align", "ps_roi_align"], indirect=True)
@pytest.mark.parametrize("ratio", [-1, 1, 2])
def test_empty_and_inverted_boxes(ops, operator, ratio):
    maps = strategies.normal((1, channels_of(operator, 6, 2), 8, 9))
    rows = [[1, 1, 1, 1], [1, 1, 3, 1], [1, 1, 1, 3], [5, 5, 1, 1], [1, 5, 5, 1], [5, 1, 1, 5], [2, 2, 2 - 1e-3, 2]]
    rois = np.array([[0, *row] for row in rows], np.float32)
    options = options_of(operator, ratio, True)
    check_forward(ops, operator, maps, rois, (2, 3), **options)
    check_backward(ops, operator, strategies.normal((len(rows), 2, 2, 3)), maps, rois, 1.0, **options)
    if ratio == -1:
        pooled = getattr(ops, operator)(maps, rois, (2, 3), **options)
        compare.same(pooled, np.zeros_like(pooled), maps)


@pytest.mark.parametrize("operator", ["roi_align", "ps_roi_align"], indirect=True)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_up_to_65_536_samples_along_an_axis_of_a_bin(ops, operator, dtype):
    maps = strategies.normal((1, channels_of(operator, 1, 2), 5, 6), dtype)
    most = 2**16
    sides = [(most, 2), (2, most), (most, most), (most + 0.5, 2), (2, most + 0.5), (most + 1, 0), (1e9, 1e9)]
    rois = np.array([[0, 0.5, 0.5, 0.5 + width, 0.5 + height] for width, height in sides], dtype)
    options = options_of(operator, -1, True)
    check_forward(ops, operator, maps, rois, 1, 1, **options)
    check_backward(ops, operator, np.ones((len(rois), 2, 1, 1), dtype), maps, rois, 1.0, **options)
    nan = np.isnan(getattr(ops, operator)(maps, rois, 1, 1, **options)).all((1, 2, 3))
    assert nan.tolist() == [False, False, False, True, True, True, True]


@pytest.mark.parametrize("operator", ["roi_align", "ps_roi_align"], indirect=True)
@pytest.mark.parametrize("ratio", [2**16, 2**16 + 1, 2**31, 2**63, 10**30])
def test_a_large_sampling_ratio(ops, operator, ratio):
    maps = strategies.normal((1, channels_of(operator, 2, 2), 5, 6))
    rois = np.array([[0, 0.5, 0.5, 4, 4], [0, 1, 1, 1, 1], [0, NAN, 1, 1, 1]], np.float32)
    check_forward(ops, operator, maps, rois, (1, 2), sampling_ratio=ratio)
    check_backward(ops, operator, np.ones((3, 2, 1, 2), np.float32), maps, rois, 1.0, sampling_ratio=ratio)
    assert np.isnan(getattr(ops, operator)(maps, rois[:1], (1, 2), sampling_ratio=ratio)).all() == (ratio > 2**16)


@pytest.mark.parametrize("operator", ["roi_align", "ps_roi_align"], indirect=True)
def test_every_sampling_ratio_below_one_is_adaptive(ops, operator):
    maps, rois, grad = double_problem(operator)
    want = getattr(ops, operator)(maps, rois, grad.shape[2:], sampling_ratio=-1)
    for ratio in (0, -2, -(2**40), np.int8(-3)):
        compare.same(getattr(ops, operator)(maps, rois, grad.shape[2:], sampling_ratio=ratio), want, maps)


# ------------------------------------------------------------------------------------------------ roi_pool by name


def check_pool(ops, values, maps, roi, output_size, places=None, scale=1.0):
    got = ops.roi_pool(maps, roi, output_size, scale, return_argmax=True)
    compare.same(got[0], np.array([[values]], maps.dtype), maps)
    if places is not None:
        compare.same(got[1], np.array([[places]], np.int32), maps)


def test_roi_pool_by_hand(ops):
    check_pool(ops, [[1, 2]], RAMP, box(0, 0, 2, 0), (1, 2), [[1, 2]])
    check_pool(ops, [[23, 24], [33, 34]], RAMP, box(3, 1, 4, 3), 2, [[13, 14], [18, 19]])
    check_pool(ops, [[33]], RAMP, box(3, 3, 5, 5), 1, [[18]], 0.5)
    check_pool(ops, [[33]], RAMP, box(3, 3, 1, 1), 1, [[18]])
    check_pool(ops, [[0, 0], [0, 0]], -1 - RAMP, box(5, 4, 9, 9), 2, [[-1, -1], [-1, -1]])


@pytest.mark.parametrize("operator", ["roi_pool", "ps_roi_pool"], indirect=True)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_corners_are_rounded_half_away_from_zero(ops, operator, dtype):
    maps = strategies.normal((1, channels_of(operator, 1, 2), 9, 9), dtype)
    halves = dtype([-1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
    corners = np.concatenate([halves, np.nextafter(halves, dtype(INF)), np.nextafter(halves, dtype(-INF))])
    rois = np.array([[0, corner, 1, 4, 6] for corner in corners] + [[0, 1, 1, 5, corner] for corner in corners], dtype)
    check_forward(ops, operator, maps, rois, 1)
    rois[:, 1:] *= 4
    check_forward(ops, operator, maps, rois, 1, 0.25)


@pytest.mark.parametrize("operator", ["roi_pool", "ps_roi_pool"], indirect=True)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bins", [3, 7, 11, 14])
def test_limits_of_bins_are_computed_in_working_precision(ops, operator, dtype, bins):
    """Every size up to five times the number of bins: some products fall just beside a whole number."""
    maps = strategies.normal((1, channels_of(operator, bins, 1), 1, 5 * bins + 3), dtype)
    maps = np.concatenate([maps, maps], 2)
    rois = np.array([[0, 1, 0, 1 + size, 1] for size in range(5 * bins)], dtype)
    check_forward(ops, operator, maps, rois, (1, bins))
    check_forward(ops, operator, maps.swapaxes(2, 3), rois[:, [0, 2, 1, 4, 3]], (bins, 1))


def test_the_first_maximum_wins(ops):
    maps = np.zeros((1, 2, 6, 7), np.float32)
    maps[0, 0, 2, 3] = maps[0, 0, 2, 5] = maps[0, 0, 4, 1] = 1
    maps[0, 1] = -0.0
    maps[0, 1, 3:] = 0.0  # equal to -0
    for dtype in ("float16", "float32", "float64"):
        _, argmax = ops.roi_pool(maps.astype(dtype), box(0, 1, 6, 5), 1, return_argmax=True)
        compare.same(argmax, np.array([2 * 7 + 3, 7], np.int32).reshape(1, 2, 1, 1), maps)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 16, 37])
def test_the_maximum_of_values_that_are_not_finite(ops, dtype, channels):
    """NaN wins, the first of them; a bin of nothing but -inf has a maximum like any other."""
    random = np.random.default_rng(0)
    for values in ([NAN, 1, INF, -INF, 0], [-INF], [-INF, np.finfo(dtype).min], [INF, 1], [-NAN, INF]):
        maps = random.choice(np.array(values, dtype), (2, channels, 8, 9))
        check_forward(ops, "roi_pool", maps, strategies.rois("all", 20, maps.shape), (3, 2))
        check_forward(ops, "roi_pool", maps, strategies.rois("inside", 20, maps.shape), 5)


def test_gradients_of_bins_with_one_maximum_add_up(ops):
    rois = np.array([[1, 0, 0, 1, 1], [1, 1, 1, 2, 2], [0, 9, 9, 9, 9]], np.float32)
    grad, argmax = np.array([1.0, 2, 4]).reshape(3, 1, 1, 1), np.array([6, 6, -1], np.int32).reshape(3, 1, 1, 1)
    want = np.zeros((2, 1, 4, 5))
    want[1, 0, 1, 1] = 3
    compare.same(ops.roi_pool_backward(grad, rois, argmax, (2, 1, 4, 5)), want, grad)


@pytest.mark.parametrize("outside", [-1, -2, 20, 21, 2**31 - 1, -(2**31)])
def test_an_argmax_outside_the_map_has_no_gradient(ops, outside):
    rois, grad = box(0, 0, 2, 2), np.ones((1, 2, 2, 2))
    argmax = np.array([0, outside, 19, outside, outside, outside, 7, 7], np.int32).reshape(1, 2, 2, 2)
    want = reference.roi_pool_backward(grad, rois, argmax, (1, 2, 4, 5))
    assert want.sum() == 4
    compare.same(ops.roi_pool_backward(grad, rois, argmax, (1, 2, 4, 5)), want, grad)


def test_roi_pool_returns_the_argmax_only_when_asked(ops):
    assert isinstance(ops.roi_pool(RAMP, box(0, 0, 2, 2), 1), np.ndarray)
    assert isinstance(ops.roi_pool(RAMP, box(0, 0, 2, 2), 1, return_argmax=False), np.ndarray)
    with pytest.raises(TypeError, match="positional"):
        ops.roi_pool(RAMP, box(0, 0, 2, 2), 1, 1.0, True)


def test_ps_roi_pool_by_hand(ops):
    # Columns 0 to 3 in three bins of 4/3: 0 and 1, 1 and 2, 2 and 3 of channels 0, 1, 2; rows 0 and 1.
    maps = np.concatenate([RAMP, 100 + RAMP, 200 + RAMP], 1)
    compare.close(ops.ps_roi_pool(maps, box(0, 0, 4, 2), (1, 3)), np.array([[[[5.5, 106.5, 207.5]]]]), maps)
    # The last row and column are never read.
    compare.close(ops.ps_roi_pool(RAMP, box(0, 0, 5, 4), 1), np.array([[[[11.5]]]]), RAMP)
    compare.close(ops.ps_roi_pool(RAMP, box(4, 0, 5, 1), 1), np.array([[[[0.0]]]]), RAMP)
    gradient = ops.ps_roi_pool_backward(np.ones((1, 1, 1, 1)), box(0, 0, 5, 4), (1, 1, 4, 5))
    want = np.zeros((1, 1, 4, 5))
    want[..., :3, :4] = 1 / 12
    compare.close(gradient, want, gradient)


def test_ps_roi_align_by_hand(ops):
    # Channel i is constant i + 1; two output channels of 2 x 3 bins.
    maps = np.ones((1, 12, 4, 5)) * np.arange(1, 13)[:, None, None]
    want = np.arange(1.0, 13).reshape(1, 2, 2, 3)
    compare.close(ops.ps_roi_align(maps, box(0.5, 0.5, 3, 3), (2, 3)), want, maps)
    compare.close(ops.ps_roi_align(RAMP, box(1, 1, 2, 3), 1), np.array([[[[16.0]]]]), RAMP)
    compare.same(ops.ps_roi_align(RAMP, box(1, 1, 2, 1), 1), np.array([[[[0.0]]]]), RAMP)


# --------------------------------------------------------------------------------------- coordinates out of reach


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_nan_and_infinite_coordinates(ops, operator, value, dtype):
    """NaN in all results of that RoI, no gradient of it, and nothing else changed."""
    shape = (2, channels_of(operator, 6, 3), 7, 8)
    maps = strategies.normal(shape, dtype)
    rois = strategies.rois("inside", 9, shape, 1, dtype)
    for row, columns in enumerate([[1], [2], [3], [4], [1, 3], [2, 4], [1, 2, 3, 4]], 1):
        rois[row, columns] = value
    options = options_of(operator, -1, True)
    pooled = getattr(ops, operator)(maps, rois, (2, 3), **options)
    assert np.isnan(pooled).all((1, 2, 3)).tolist() == [False, *[True] * 7, False]
    check_forward(ops, operator, maps, rois, (2, 3), **options)
    grad = strategies.normal(pooled.shape, dtype)
    check_backward(ops, operator, grad, maps, rois, 1.0, **options)
    if operator == "roi_pool":
        argmax = ops.roi_pool(maps, rois, (2, 3), return_argmax=True)[1]
        assert (argmax[1:8] == -1).all()
        assert (argmax[[0, 8]] >= 0).all()


@pytest.mark.parametrize("scale", [1e300, 1e39, 4.0, 5e-324])
def test_coordinates_that_overflow_by_the_scale(ops, operator, scale):
    """In float32: infinite, or 0 * inf; and for the last scale, which float32 rounds to 0, the origin."""
    maps = strategies.normal((1, channels_of(operator, 1, 2), 4, 5))
    rois = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 2, 3e38], [0, -3e38, 0, 2, 2]], np.float32)
    for boxes in (rois, rois.astype(np.float64)):
        check_forward(ops, operator, maps, boxes, 1, scale)
        check_backward(ops, operator, np.ones((4, 2, 1, 1), np.float32), maps, boxes, scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("output_size", few([1, 2, 7], every=2))
def test_huge_finite_coordinates(ops, operator, dtype, output_size):
    """Moved to within 2**30 cells of the origin before anything else."""
    maps = strategies.normal((1, channels_of(operator, output_size**2, 2), 6, 7), dtype)
    far = [2.0**30, 2.0**30 + 64, 2.0**31, 2.0**32, 2.0**62, 2.0**63, 2.0**64, 1e19, 3e38]
    far += [1e300, 1.7e308] if dtype is np.float64 else []
    rows = []
    for a in far:
        rows += [[0, -a, 1, a, 5], [0, 1, -a, 5, a], [0, 1, 1, a, a]]
        rows += [[0, -a, -a, 3, 3], [0, -a, 1, 0.75 * a, 5], [0, a, a, -a, -a]]
    rois = np.array(rows, dtype)
    for ratio in (-1, 1, 3):
        options = options_of(operator, ratio, True)
        check_forward(ops, operator, maps, rois, output_size, **options)
        grad = strategies.normal((len(rois), 2, output_size, output_size), dtype)
        check_backward(ops, operator, grad, maps, rois, 1.0, **options)


@pytest.mark.parametrize("operator", ["roi_pool", "ps_roi_pool"], indirect=True)
@pytest.mark.parametrize("output_size", [1, 2, 3, 7])
def test_sizes_beyond_the_integers_of_float32(ops, operator, output_size):
    """A size is a difference of integers, rounded once: not one of floats, rounded twice."""
    maps = strategies.normal((1, channels_of(operator, output_size**2, 2), 8, 8))
    far = -(2.0**24) - 2 * np.arange(12)
    rois = np.array([[0, low, low, high, high] for low in far for high in range(8)], np.float32)
    check_forward(ops, operator, maps, rois, output_size)
    check_forward(ops, operator, maps, np.concatenate([rois[:, :1], -rois[:, 3:], -rois[:, 1:3]], 1), output_size)


# ---------------------------------------------------------------------------------------- pixels that are not finite


# Two of the first image, apart from each other, and one of the second; no sample of theirs lies on a pixel.
APART = np.array([[0, 2.3, 2.2, 6.9, 7.7], [0, 8.7, 1.9, 11.6, 10.3], [1, 2.3, 2.2, 6.9, 7.7]], np.float32)


@pytest.mark.parametrize("operator", ["roi_align", "ps_roi_align", "ps_roi_pool"], indirect=True)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("ratio", [-1, 1, 2])
def test_a_pixel_that_is_not_finite_reaches_the_bins_that_read_it(ops, operator, value, ratio):
    """And no other bin, channel or image. A pixel is read where its gradient is not zero."""
    maps = strategies.normal((2, channels_of(operator, 12, 17), 12, 13))
    options = options_of(operator, ratio, True)
    want = getattr(reference, operator)(maps, APART, (3, 4), **options)
    channel = channels_of(operator, 12, 5)
    for y, x in [(4, 5), (2, 2), (9, 5), (4, 8), (5, 9), (0, 0), (11, 12)]:
        wrong, one = maps.copy(), np.zeros_like(maps)
        wrong[0, channel, y, x], one[0, channel, y, x] = value, 1
        got = getattr(ops, operator)(wrong, APART, (3, 4), **options)
        read = getattr(reference, operator)(one, APART, (3, 4), **options) > 0
        compare.close(got, np.where(read, np.float32(value), want), maps)


def test_a_gradient_that_is_nan_reaches_the_pixels_that_were_read(ops, operator):
    """And no other pixel, channel or image."""
    maps, grad = strategies.normal((2, channels_of(operator, 4, 17), 12, 13)), strategies.normal((3, 17, 2, 2), seed=1)
    argmax = argmax_of(operator, maps, APART, 2)
    for k, p, q in np.ndindex(3, 2, 2):
        wrong, one = grad.copy(), np.zeros_like(grad)
        wrong[k, 5, p, q], one[k, 5, p, q] = NAN, 1
        got = getattr(ops, operator + "_backward")(wrong, APART, *argmax, maps.shape)
        want = getattr(reference, operator + "_backward")(grad, APART, *argmax, maps.shape)
        read = getattr(reference, operator + "_backward")(one, APART, *argmax, maps.shape) > 0
        assert read.any()
        compare.close(got, np.where(read, np.float32(NAN), want), grad)


# ---------------------------------------------------------------------------------------------------- class forms


@pytest.mark.parametrize(
    ("name", "operator", "options"),
    [
        ("RoIAlign", "roi_align", {"sampling_ratio": 2, "aligned": False}),
        ("RoIAlign", "roi_align", {"sampling_ratio": -1, "aligned": True}),
        ("RoIPool", "roi_pool", {}),
        ("PSRoIAlign", "ps_roi_align", {"sampling_ratio": 1}),
        ("PSRoIPool", "ps_roi_pool", {}),
    ],
)
def test_class_forms(name, operator, options):
    pooler = getattr(cvops, name)((2, 3), 0.5, *options.values())
    text = "".join(f", {option}={value}" for option, value in options.items())
    assert repr(pooler) == f"{name}(output_size=(2, 3), spatial_scale=0.5{text})"
    maps = strategies.normal((2, 12, 7, 8))
    rois = strategies.rois("all", 10, maps.shape, 0.5)
    for boxes in (rois, [rois[:3, 1:], rois[3:, 1:]]):
        want = getattr(cvops, operator)(maps, boxes, (2, 3), 0.5, **options)
        compare.same(pooler(maps, boxes), want, maps)
        by_name = getattr(cvops, name)(output_size=(2, 3), spatial_scale=0.5, **options)
        compare.same(by_name(maps, boxes), want, maps)
    for attribute in ("output_size", "spatial_scale", "another"):
        with pytest.raises(AttributeError):
            setattr(pooler, attribute, 1)


def test_class_forms_of_roi_align_are_not_aligned_unless_asked():
    assert repr(cvops.RoIAlign(7, 1.0, -1)).endswith(", sampling_ratio=-1, aligned=False)")


@pytest.mark.parametrize("name", ["RoIAlign", "RoIPool", "PSRoIAlign", "PSRoIPool"])
def test_class_forms_take_one_number_for_both_sides(name):
    args = (0.5, 2) if name.endswith("Align") else (0.5,)
    maps = strategies.normal((1, 9, 7, 8))
    rois = strategies.rois("inside", 4, maps.shape, 0.5)
    pooler = getattr(cvops, name)
    compare.same(pooler(3, *args)(maps, rois), pooler((3, 3), *args)(maps, rois), maps)
