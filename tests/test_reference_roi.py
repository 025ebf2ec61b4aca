"""The reference of the RoI operators: against values computed by hand, a second definition, and other libraries."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tests import peers_roi as peers
from tests import reference_roi as reference
from tests import strategies_roi as strategies

NAN, INF = math.nan, math.inf

# 4 rows of 5 pixels, each 10 * row + column: what a sample at (y, x) inside the map reads is 10 * y + x.
RAMP = np.add.outer(10.0 * np.arange(4), np.arange(5))[None, None]
ONES = np.ones_like(RAMP)


def box(*corners, dtype=np.float64):
    return np.array([[0, *corners]], dtype)


def align(maps, corners, *args, **options):
    return reference.roi_align(maps, box(*corners), *args, **options)[0, 0].tolist()


def pool(maps, corners, *args):
    values, places = reference.roi_pool(maps, box(*corners), *args)
    return values[0, 0].tolist(), places[0, 0].tolist()


def ps_align(maps, corners, *args, **options):
    return reference.ps_roi_align(maps, box(*corners), *args, **options)[0, 0].tolist()


def ps_pool(maps, corners, *args):
    return reference.ps_roi_pool(maps, box(*corners), *args)[0, 0].tolist()


# ------------------------------------------------------------------------------------------------------- roi_align


def test_roi_align_samples_the_middle_of_each_part():
    assert align(RAMP, [0, 0, 2, 2], 2, sampling_ratio=1) == [[5.5, 6.5], [15.5, 16.5]]
    assert align(RAMP, [0, 0, 2, 2], 2, sampling_ratio=1, aligned=True) == [[0, 1], [10, 11]]
    assert align(RAMP, [0, 0, 4, 2], (1, 2), sampling_ratio=1) == [[11, 13]]
    assert align(RAMP, [0, 0, 8, 4], (1, 2), 0.5, sampling_ratio=1) == [[11, 13]]


def test_roi_align_averages_the_samples_of_a_bin():
    corner = np.zeros_like(RAMP)
    corner[0, 0, 0, 0] = 1
    # Adaptive: rows 0.5 and 1.5, columns 0.5, 1.5 and 2.5. The first of them lies half way from the corner each way.
    assert align(corner, [0, 0, 3, 2], 1) == [[pytest.approx(0.25 / 6)]]
    assert align(RAMP, [0, 0, 3, 2], 1) == [[pytest.approx(11.5)]]
    # Rows and columns 0.25 and 0.75.
    assert align(corner, [0, 0, 1, 1], 1, sampling_ratio=2) == [[(0.75 + 0.25) ** 2 / 4]]


@pytest.mark.parametrize(("side", "samples"), [(0.8, 1), (1, 1), (1.01, 2), (2, 2), (2.5, 3)])
def test_the_adaptive_number_of_samples(side, samples):
    maps, corners = strategies.normal((1, 1, 9, 9), np.float64), [1, 1, 1 + 3 * side, 1 + 3 * side]
    for ratio in (-1, 0):
        assert align(maps, corners, 3, 1, ratio, True) == align(maps, corners, 3, 1, samples, True)
    assert align(maps, corners, 3, 1, samples, True) != align(maps, corners, 3, 1, samples + 1, True)


@pytest.mark.parametrize(("dtype", "samples"), [(np.float32, 3), (np.float64, 4)])
def test_the_adaptive_number_of_samples_is_decided_in_working_precision(dtype, samples):
    """3.4 - 0.4, both rounded to float32, is 3 in float32 and a little more in float64."""
    maps, roi = strategies.normal((1, 1, 9, 9), dtype), box(0.4, 0.4, 3.4, 3.4, dtype=np.float32)
    got, want = (reference.roi_align(maps, roi, 1, 1, ratio) for ratio in (-1, samples))
    np.testing.assert_array_equal(got, want)


def test_roi_align_reads_the_border_up_to_one_pixel_beyond():
    """Samples at -1.5, -1, ..., 5.5: those from -1 to the length of the map read its nearest pixels."""
    columns = np.array([1.0, 2, 3, 4, 5])[None, None, None] * np.ones((8, 1))
    got = align(columns, [-1.75, 3, 5.75, 4], (1, 15), sampling_ratio=1)
    assert got == [[0, 1, 1, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5, 5, 0]]
    rows = np.array([1.0, 2, 3, 4])[None, None, :, None]
    got = align(rows, [0, -1.75, 1, 5.25], (14, 1), sampling_ratio=1)
    assert got == [[0], [1], [1], [1], [1.5], [2], [2.5], [3], [3.5], [4], [4], [4], [0], [0]]


def test_a_sample_beyond_the_border_counts_in_the_mean():
    # Rows 3 and 5 of 4.
    assert align(ONES, [0, 2, 1, 6], (2, 1), sampling_ratio=1) == [[1], [0]]
    assert align(ONES, [0, 2, 1, 6], 1, sampling_ratio=2) == [[0.5]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_where_the_border_ends_is_decided_by_one_rounding(dtype):
    for last, beyond in [(-1, -2), (4, 5)]:
        for corner, want in [(dtype(last), 1), (np.nextafter(dtype(last), dtype(beyond)), 0)]:
            # Aligned, the middle of a box of height 1 is its first corner.
            roi = box(1, corner, 2, corner + dtype(1), dtype=dtype)
            assert reference.roi_align(ONES.astype(dtype), roi, 1, 1, 1, True).item() == want


@pytest.mark.parametrize(("height", "samples", "inside"), [(4.4444447, 5, 5), (6.8571434, 6, 3)])
def test_samples_are_computed_in_the_order_of_the_definition(height, samples, inside):
    """(i + 1/2) * height / samples in float32 is just 4 for the first, and one rounding above 4 for the second."""
    got = reference.roi_align(ONES.astype("f4"), box(0, 0, 1, height, dtype=np.float32), 1, 1, samples)
    assert got.item() == pytest.approx(inside / samples)


def test_roi_align_without_alignment_has_a_smallest_size():
    assert align(RAMP, [1, 2, 1, 2], 1) == [[26.5]]
    assert align(RAMP, [1, 2, 0, 0], 1) == [[26.5]]
    assert align(RAMP, [1, 1, 1.5, 3], 1) == [[21.5]]
    assert align(RAMP, [3, 2, 1, 1], (1, 2), sampling_ratio=1) == [[28.25, 28.75]]


def test_empty_and_inverted_aligned_boxes():
    for corners in ([1, 1, 1, 1], [1, 1, 3, 1], [3, 3, 1, 1], [1, 3, 3, 1], [3, 1, 1, 3]):
        assert align(ONES, corners, 2, aligned=True) == [[0, 0], [0, 0]]
    # Backwards from 2.5 to 0.5 in both axes; and all samples at one place.
    assert align(RAMP, [3, 3, 1, 1], 2, sampling_ratio=1, aligned=True) == [[22, 21], [12, 11]]
    assert align(RAMP, [1.5, 1.5, 1.5, 1.5], 1, sampling_ratio=3, aligned=True) == [[pytest.approx(11)]]


@pytest.mark.parametrize("value", [NAN, INF, -INF, 3e38])
@pytest.mark.parametrize("column", [1, 2, 3, 4])
def test_a_coordinate_that_is_not_finite_after_scaling(value, column):
    rois = box(0, 0, 2, 2, dtype=np.float32)
    rois[0, column] = value
    maps = np.ones((1, 4, 4, 5), np.float32)
    pooled, argmax = reference.roi_pool(maps, rois, 2, 2)
    assert (argmax == -1).all()
    assert np.isnan(pooled).all()
    for operator in ("roi_align", "ps_roi_align", "ps_roi_pool"):
        pooled = getattr(reference, operator)(maps, rois, 2, 2)
        assert np.isnan(pooled).all()
        gradient = getattr(reference, operator + "_backward")(np.ones_like(pooled), rois, maps.shape, 2)
        assert not gradient.any()


def test_corners_are_moved_to_within_2_to_the_30():
    # From -2**30 to 2**30, though the box ends at 3 * 2**30: the middle is 0.
    assert align(RAMP, [-(2.0**30), 0, 3 * 2.0**30, 1], 1, sampling_ratio=1) == [[5]]
    assert pool(RAMP, [-(2.0**30), 0, 3 * 2.0**30, 0], (1, 2)) == ([[0, 4]], [[0, 4]])


def test_too_many_samples():
    line = np.array([[[[0.0, 1, 0]]]])
    # Of 65 536 samples at 0.5, 1.5, ... two lie half a pixel from the middle one.
    assert align(line, [0, 0, 2**16, 1], 1) == [[1 / 2**16]]
    assert align(line, [0, 0, 2**17, 1], (1, 2)) == [[1 / 2**16, 0]]
    for corners in ([0, 0, 2**16 + 0.5, 1], [0, 0, 1, 2**16 + 0.5], [0, 0, 1e30, 0]):
        for aligned in (False, True):
            assert np.isnan(align(line, corners, 1, aligned=aligned)).all()
            assert not reference.roi_align_backward(
                np.ones((1, 1, 1, 1)), box(*corners), line.shape, 1, -1, aligned
            ).any()
    # As many samples in [0, 1]: the mean of x over it.
    assert align(line, [0, 0, 1, 1], 1, sampling_ratio=2**16) == [[pytest.approx(0.5)]]
    assert np.isnan(align(line, [0, 0, 1, 1], 1, sampling_ratio=2**16 + 1)).all()


# ---------------------------------------------------------------------------------------------------- ps_roi_align


def test_ps_roi_align_reads_a_channel_for_each_bin():
    # Channel i is constant i + 1; two output channels of 2 x 3 bins.
    maps = np.ones((1, 12, 4, 5)) * np.arange(1, 13)[:, None, None]
    got = reference.ps_roi_align(maps, box(0.5, 0.5, 3, 3), (2, 3))
    np.testing.assert_allclose(got, np.arange(1, 13).reshape(1, 2, 2, 3), rtol=1e-15)


def test_ps_roi_align_is_shifted_by_half_a_pixel_and_has_no_smallest_size():
    assert ps_align(RAMP, [1, 1, 2, 3], 1) == [[pytest.approx(16)]]  # rows 1 and 2, column 1
    assert ps_align(RAMP, [1, 1, 2, 1], 1) == [[0]]
    assert ps_align(RAMP, [2, 2, 1, 1], 1) == [[0]]
    assert ps_align(RAMP, [2, 2, 1, 1], 1, sampling_ratio=1) == [[11]]


# -------------------------------------------------------------------------------------------------------- roi_pool


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_half_away_from_zero(dtype):
    halves = [-2.5, -1.5, -0.5, -0.0, 0.5, 1.5, 2.5, 2**22 + 0.5, 2**30]
    want = [-3, -2, -1, 0, 1, 2, 3, 2**22 + 1, 2**30]
    assert [reference.half_away(dtype(value)) for value in halves] == want
    for value, below in [(0.5, 0), (1.5, 1), (2.5, 2)]:  # adding 0.5 to the first would round to 1
        assert reference.half_away(np.nextafter(dtype(value), dtype(0))) == below
        assert reference.half_away(-np.nextafter(dtype(value), dtype(0))) == -below


def test_roi_pool_bins_share_pixels():
    # Columns 0 to 2 in two bins of 1.5: 0 and 1, 1 and 2.
    assert pool(-RAMP, [0, 0, 2, 0], (1, 2)) == ([[0, -1]], [[0, 1]])
    assert pool(RAMP, [0, 0, 2, 0], (1, 2)) == ([[1, 2]], [[1, 2]])
    # Rows 1 to 3: 1 and 2, 2 and 3. Columns 3 and 4: one each.
    assert pool(RAMP, [3, 1, 4, 3], 2) == ([[23, 24], [33, 34]], [[13, 14], [18, 19]])


def test_limits_of_bins_are_computed_in_the_order_of_the_definition():
    """7 * (1 / 7) is 1 in float32; 6 * (1 / 7) + 1 / 7 is more, and would be a second pixel for the last bin."""
    for size_of_one in (box(1, 0, 1, 0, dtype=np.float32), box(1, 0, 1, 0)):
        values, places = reference.roi_pool(RAMP.astype(size_of_one.dtype), size_of_one, (1, 7))
        assert (values.tolist(), places.tolist()) == ([[[[1] * 7]]], [[[[1] * 7]]])


def test_roi_pool_rounds_corners_and_includes_them():
    assert pool(RAMP, [0.5, 1.4, 0.5, 1.4], 1) == ([[11]], [[6]])
    assert pool(RAMP, [1.5, 1.5, 2.4, 2.4], 1) == ([[22]], [[12]])
    assert pool(RAMP, [3, 3, 5, 5], 1, 0.5) == ([[33]], [[18]])
    assert pool(RAMP, [-0.5, -0.5, -0.5, -0.5], 1) == ([[0]], [[-1]])  # at -1
    assert pool(RAMP, [3, 3, 1, 1], 1) == ([[33]], [[18]])  # inverted: one pixel


def test_roi_pool_clips_bins_and_leaves_empty_ones_at_zero():
    # Columns -2 to 1 in four bins; one pixel, ten times.
    assert pool(RAMP + 1, [-2, 0, 1, 0], (1, 4)) == ([[0, 0, 1, 2]], [[-1, -1, 0, 1]])
    assert pool(RAMP + 1, [3, 2, 3, 2], (1, 10)) == ([[24] * 10], [[13] * 10])
    assert pool(-ONES, [5, 4, 9, 9], 2) == ([[0, 0], [0, 0]], [[-1, -1], [-1, -1]])


def test_roi_pool_takes_the_first_maximum_and_the_first_nan():
    assert pool(ONES, [1, 1, 3, 3], 1) == ([[1]], [[6]])
    maps = ONES.copy()
    maps[0, 0, 2, 1] = maps[0, 0, 2, 3] = 2
    assert pool(maps, [0, 0, 4, 3], 1) == ([[2]], [[11]])
    maps[0, 0, 2, 4] = maps[0, 0, 3, 0] = NAN
    values, places = pool(maps, [0, 0, 4, 3], 1)
    assert (math.isnan(values[0][0]), places) == (True, [[14]])
    assert pool(-INF * ONES, [1, 1, 3, 3], 1) == ([[-INF]], [[6]])


# ----------------------------------------------------------------------------------------------------- ps_roi_pool


def test_ps_roi_pool_averages_a_channel_for_each_bin():
    # Columns 0 to 3 in three bins of 4/3: 0 and 1, 1 and 2, 2 and 3 of channels 0, 1, 2; rows 0 and 1.
    maps = np.concatenate([RAMP, 100 + RAMP, 200 + RAMP], 1)
    assert ps_pool(maps, [0, 0, 4, 2], (1, 3)) == [[5.5, 106.5, 207.5]]


def test_ps_roi_pool_excludes_the_second_corner_and_the_last_pixels():
    assert ps_pool(RAMP, [1, 1, 2, 2], 1) == [[11]]
    assert ps_pool(RAMP, [1, 1, 1, 1], 1) == [[11]]  # at least one pixel
    assert ps_pool(RAMP, [0, 0, 5, 4], 1) == [[11.5]]  # rows 0 to 2, columns 0 to 3
    assert ps_pool(RAMP, [4, 0, 5, 1], 1) == [[0]]
    assert ps_pool(ONES[..., :1], [0, 0, 1, 4], 1) == [[0]]


# --------------------------------------------------------------------------------------------- a second definition


def literal_sample(image, y, x):
    height, width = image.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x, total = max(y, 0), max(x, 0), 0.0
    for row, column in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
        weight = (1 - abs(y - row)) * (1 - abs(x - column))
        total += weight * image[min(row, height - 1), min(column, width - 1)]
    return total


def literal_align_bin(image, corners, output_size, scale, ratio, aligned, p, q):
    """One bin of one channel, sample after sample."""
    x1, y1, x2, y2 = (corner * scale - 0.5 * aligned for corner in corners)
    height, width = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1), max(x2 - x1, 1))
    bin_height, bin_width = height / output_size[0], width / output_size[1]
    rows = ratio if ratio > 0 else math.ceil(bin_height)
    columns = ratio if ratio > 0 else math.ceil(bin_width)
    total, number = 0, 0
    for i, j in itertools.product(range(rows), range(columns)):
        y = y1 + p * bin_height + (i + 0.5) * bin_height / rows
        x = x1 + q * bin_width + (j + 0.5) * bin_width / columns
        total, number = total + literal_sample(image, y, x), number + 1
    return total / max(number, 1)


def literal_pool_bin(shape, corners, output_size, scale, more, p, q):
    """The pixels (row, column) of one bin: all of the map, asked one by one whether they belong to it."""
    x1, y1, x2, y2 = (int(math.copysign(math.floor(abs(corner * scale) + 0.5), corner)) for corner in corners)

    def belongs(pixel, start, end, bins, i, length):
        size_of_bin = max(end - start + more, 1) / bins
        return math.floor(i * size_of_bin) <= pixel - start < math.ceil((i + 1) * size_of_bin) and pixel < length

    return [
        (y, x)
        for y, x in np.ndindex(shape)
        if belongs(y, y1, y2, output_size[0], p, shape[0] - 1 + more)
        and belongs(x, x1, x2, output_size[1], q, shape[1] - 1 + more)
    ]


@pytest.fixture(params=strategies.KINDS)
def kind(request):
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("output_size", [(1, 1), (2, 3), (5, 2)])
def test_align_bins_one_by_one(kind, output_size):
    height, width = output_size
    maps = strategies.normal((2, 2 * height * width, 5, 6), np.float64)
    rois = strategies.rois(kind, 3, maps.shape, 0.5, np.float64)
    for ratio, aligned in itertools.product([-1, 2], [False, True]):
        got = reference.roi_align(maps, rois, output_size, 0.5, ratio, aligned)
        for k, c, p, q in np.ndindex(got.shape):
            image = maps[int(rois[k, 0]), c]
            want = literal_align_bin(image, rois[k, 1:], output_size, 0.5, ratio, aligned, p, q)
            assert got[k, c, p, q] == pytest.approx(want, abs=1e-12)
        got = reference.ps_roi_align(maps, rois, output_size, 0.5, ratio)
        for k, c, p, q in np.ndindex(got.shape):
            image = maps[int(rois[k, 0]), c * height * width + p * width + q]
            want = literal_align_bin(image, rois[k, 1:], output_size, 0.5, ratio, True, p, q)
            assert got[k, c, p, q] == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("output_size", [(1, 1), (2, 3), (5, 2)])
def test_pool_bins_one_by_one(kind, output_size):
    height, width = output_size
    maps = strategies.normal((2, 2 * height * width, 5, 6), np.float64)
    rois = strategies.rois(kind, 6, maps.shape, 0.5, np.float64)
    pooled, argmax = reference.roi_pool(maps, rois, output_size, 0.5)
    for k, c, p, q in np.ndindex(pooled.shape):
        image = maps[int(rois[k, 0]), c]
        pixels = literal_pool_bin(image.shape, rois[k, 1:], output_size, 0.5, 1, p, q)
        y, x = max(pixels, key=image.__getitem__, default=(0, -1))
        want = (image[y, x], 6 * y + x) if pixels else (0, -1)
        assert (pooled[k, c, p, q], argmax[k, c, p, q]) == want
    pooled = reference.ps_roi_pool(maps, rois, output_size, 0.5)
    for k, c, p, q in np.ndindex(pooled.shape):
        image = maps[int(rois[k, 0]), c * height * width + p * width + q]
        pixels = literal_pool_bin(image.shape, rois[k, 1:], output_size, 0.5, 0, p, q)
        want = sum(image[pixel] for pixel in pixels) / max(len(pixels), 1)
        assert pooled[k, c, p, q] == pytest.approx(want, abs=1e-12)


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.slow
@pytest.mark.parametrize("output_size", [(1, 1), (2, 3)])
def test_gradients_are_those_of_the_forwards(kind, output_size):
    """Pixel by pixel: by how much the results change, each times its gradient, with the pixel."""
    maps = strategies.normal((1, math.prod(output_size), 4, 5), np.float64)
    rois = strategies.rois(kind, 2, maps.shape, 1, np.float64)
    calls = [("roi_align", ratio, aligned) for ratio in (-1, 2) for aligned in (False, True)]
    for operator, *options in [*calls, ("ps_roi_align", -1), ("ps_roi_align", 2), ("ps_roi_pool",), ("roi_pool",)]:
        before = after = getattr(reference, operator)(maps, rois, output_size, 1, *options)
        argmax = []
        if operator == "roi_pool":
            before, argmax = before[0], [before[1]]
        grad, want = strategies.normal(before.shape, np.float64), np.zeros_like(maps)
        for pixel in np.ndindex(maps.shape):
            moved = maps.copy()
            moved[pixel] += 1e-6  # less than the distance of any two pixels
            after = getattr(reference, operator)(moved, rois, output_size, 1, *options)
            after = after[0] if argmax else after
            want[pixel] = ((after - before) * grad).sum() / 1e-6
        got = getattr(reference, operator + "_backward")(grad, rois, *argmax, maps.shape, 1, *options)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-8)


def test_roi_pool_backward_adds_up():
    rois = np.array([[1, 0, 0, 1, 1], [1, 1, 1, 2, 2], [0, 9, 9, 9, 9]], np.float32)
    grad, argmax = np.array([1.0, 2, 4]).reshape(3, 1, 1, 1), np.array([6, 6, -1]).reshape(3, 1, 1, 1)
    got = reference.roi_pool_backward(grad, rois, argmax, (2, 1, 4, 5))
    assert (got[1, 0, 1, 1], got.sum()) == (3, 3)


# --------------------------------------------------------------------------------------------------- dtypes, boxes


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_results_have_the_dtype_of_the_map_and_gradients_that_of_the_gradient(dtype):
    maps, rois = np.ones((1, 1, 4, 5), dtype), box(0, 0, 2, 2)
    pooled, argmax = reference.roi_pool(maps, rois, 1)
    assert (pooled.dtype, argmax.dtype) == (dtype, "int32")
    assert reference.roi_pool_backward(pooled, rois, argmax, maps.shape).dtype == dtype
    for operator in ("roi_align", "ps_roi_align", "ps_roi_pool"):
        assert getattr(reference, operator)(maps.astype(f">{maps.dtype.str[1:]}"), rois, 1).dtype == dtype
        assert getattr(reference, operator + "_backward")(pooled, rois, maps.shape).dtype == dtype


def test_lists_of_boxes():
    one, none = np.array([[1, 2, 3, 4]], "f4"), np.zeros((0, 4), "f2")
    got = reference.as_rois([none, one, none, one.astype("f8")])
    np.testing.assert_array_equal(got, [[1, 1, 2, 3, 4], [3, 1, 2, 3, 4]])
    assert got.dtype == "f8"
    assert reference.as_rois((one,)).dtype == reference.as_rois([none, none]).dtype == "f4"
    assert reference.as_rois([]).shape == (0, 5)


# -------------------------------------------------------------------------------------------------------- pyramids


def test_scale_of():
    assert reference.scale_of(100, [(800, 1333)]) == reference.scale_of(101, [(3, 9), (800, 3)]) == 1 / 8
    assert reference.scale_of(50, [(799, 1333)]) == 1 / 16
    # The root of 1/2 lies between 0.70 and 0.71.
    assert reference.scale_of(71, [(100, 1)]) == 1
    assert reference.scale_of(70, [(100, 1)]) == 1 / 2


def level(*corners, scales=(1 / 4, 1 / 8, 1 / 16, 1 / 32), canonical=(224, 4), real=np.float32):
    return -math.log2(scales[reference.level_of(corners, scales, *canonical, real)])


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_level_of(real):
    for side, want in [(1, 2), (55, 2), (111, 2), (112, 3), (223, 3), (224, 4), (447, 4), (448, 5), (896, 5), (1e9, 5)]:
        assert level(0, 0, side, side, real=real) == want
        assert level(-5, 7, side / 2 - 5, 2 * side + 7, real=real) == want
    assert level(0, 0, 224 * (1 - 1e-6), 224, real=real) == 4  # by the 1e-6 in the formula
    assert level(0, 0, 224 * (1 - 2e-6), 224, real=real) == 3


def test_level_of_boxes_without_area():
    for corners in ([5, 5, 5, 500], [500, 5, 5, 500], [NAN, 0, 900, 900], [-3e38, 0, 3e38, 0]):
        assert level(*corners) == 2
    assert level(900, 900, 0, 0) == 5  # inverted twice: a positive area
    assert level(-3e38, -3e38, 3e38, 3e38) == 5


def test_level_of_with_another_canonical_size():
    for side, want in [(99, 2), (100, 3), (200, 4)]:
        assert level(0, 0, side, side, canonical=(100, 3)) == want


def test_an_absent_level_is_pooled_at_the_nearest_coarser_one():
    for side, want in [(60, 2), (112, 5), (224, 5), (448, 5), (896, 6), (9999, 6)]:
        assert level(0, 0, side, side, scales=(1 / 32, 1 / 4, 1 / 64)) == want  # in no order
    for side, want in [(56, 2), (112, math.log2(30))]:  # levels 2, 1.58 and 4.91
        assert level(0, 0, side, side, scales=(1 / 4, 1 / 3, 1 / 30)) == want


def test_multiscale_roi_align_pools_every_box_at_its_level():
    maps = {"fine": np.full((2, 1, 32, 32), 2.0), "coarse": np.full((2, 1, 16, 16), 3.0), "unused": np.zeros(1)}
    boxes = [np.array([[0, 0, 128, 128], [0, 0, 50, 50.0]]), np.array([[9, 9, 99, 99], [0, 0, 127, 127.0]])]
    inputs = boxes, [(120, 90), (128, 128)], ["fine", "coarse"]
    got = reference.multiscale_roi_align(maps, *inputs, 1, 2, canonical_scale=128, canonical_level=3)
    np.testing.assert_allclose(got.ravel(), [3, 2, 2, 2], rtol=1e-15)
    gradients = reference.multiscale_roi_align_backward(
        np.ones(got.shape), maps, *inputs, 2, canonical_scale=128, canonical_level=3
    )
    np.testing.assert_allclose(gradients["fine"].sum((1, 2, 3)), [1, 2])
    np.testing.assert_allclose(gradients["coarse"].sum((1, 2, 3)), [1, 0])


# ------------------------------------------------------------------------------------------------- other libraries

# The kinds that torchvision and ONNX Runtime define as the reference does.
ORDINARY = [kind for kind in strategies.KINDS if kind not in ("empty", "inverted")]
SCALES = (1, 1 / 3, 1 / 16)


def assert_close(got, want):
    tolerance = 1e-10 if got.dtype == np.float64 else 1e-4
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ORDINARY, indirect=True)
@pytest.mark.parametrize("output_size", [(1, 1), (2, 3), (7, 7)])
def test_torchvision(torchvision, kind, output_size, dtype):
    maps = strategies.normal((2, 2 * math.prod(output_size), 9, 12), dtype)
    calls = [("roi_align", ratio, aligned) for ratio in (-1, 1, 3) for aligned in (False, True)]
    calls += [("ps_roi_align", ratio) for ratio in (-1, 1, 3)]
    for scale, (operator, *options) in itertools.product(SCALES, [*calls, ("roi_pool",), ("ps_roi_pool",)]):
        rois = strategies.rois(kind, 6, maps.shape, scale, dtype)
        got, argmax = getattr(reference, operator)(maps, rois, output_size, scale, *options), []
        if operator == "roi_pool":
            got, argmax = got[0], [got[1]]
        assert_close(got, peers.torchvision(operator, maps, rois, output_size, scale, *options))
        if operator != "ps_roi_pool":  # torchvision's gradient is not that of its forward
            grad = strategies.normal(got.shape, dtype)
            got = getattr(reference, operator + "_backward")(grad, rois, *argmax, maps.shape, scale, *options)
            assert_close(got, peers.torchvision_backward(operator, grad, maps, rois, output_size, scale, *options))


@pytest.mark.parametrize("kind", ORDINARY, indirect=True)
@pytest.mark.parametrize("output_size", [(1, 1), (2, 3), (7, 7)])
def test_onnxruntime(onnxruntime, kind, output_size):
    maps = strategies.normal((2, 3, 9, 12))
    for scale in SCALES:
        rois = strategies.rois(kind, 6, maps.shape, scale)
        for ratio, aligned in itertools.product([-1, 1, 3], [False, True]):
            want = peers.onnx_roi_align(maps, rois, output_size, scale, ratio, aligned)
            assert_close(reference.roi_align(maps, rois, output_size, scale, ratio, aligned), want)
        want = peers.onnx_roi_pool(maps, rois, output_size, scale)
        np.testing.assert_array_equal(reference.roi_pool(maps, rois, output_size, scale)[0], want)


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_levels_are_torchvisions(torch, torchvision, real):
    """Boxes about 30 roundings to both sides of where a level begins in float32."""
    mapper = torchvision.ops.poolers.LevelMapper(2, 6)
    sides = real(224) * real(2) ** np.arange(-2, 4, dtype=real)[:, None]
    around = sides * (1 + real(2**-23) * np.arange(-30, 31, dtype=real))
    boxes = np.zeros((around.size, 4), real)
    boxes[:, 2], boxes[:, 3] = around.ravel(), np.repeat(sides, 61)
    want = mapper([torch.from_numpy(boxes)]).numpy()
    got = [reference.level_of(box, [1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64], 224, 4, real) for box in boxes]
    np.testing.assert_array_equal(got, want)
