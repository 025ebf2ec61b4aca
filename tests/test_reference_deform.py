"""The reference of deform_conv2d and the pyramid: against values computed by hand, and against torchvision."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest

from tests import compare
from tests import reference_deform as reference
from tests import strategies_deform as strategies
from tests.libraries import on_one_thread

INF, NAN = math.inf, math.nan


torch = pytest.fixture(scope="module", name="torch")(on_one_thread)


def maps(*rows, dtype=np.float64):
    """One image of one channel."""
    return np.array(rows, dtype)[None, None]


def at(y, x, dtype=np.float64):
    """The offset of a 1 x 1 kernel whose result is one pixel."""
    return np.array([y, x], dtype).reshape(1, 2, 1, 1)


ONE = np.ones((1, 1, 1, 1))


def sample(map, y, x, **options):
    """What is read at (y, x): the result of a kernel of 1 x 1 with a stride beyond the map."""
    return reference.deform_conv2d(map, at(y, x, map.dtype), ONE.astype(map.dtype), stride=9, **options).item()


def slopes(map, y, x):
    """How that changes with y and with x."""
    return reference.deform_conv2d_backward(ONE, map, at(y, x), ONE, stride=9)[1].ravel().tolist()


# ----------------------------------------------------------------------------------------------------- one sample


def test_a_sample_between_four_pixels():
    square = maps([1, 2], [3, 4])
    assert sample(square, 0.25, 0.5) == 2  # 1.5 in the upper row, 3.5 in the lower one
    assert slopes(square, 0.25, 0.5) == [2, 1]
    of_input = reference.deform_conv2d_backward(ONE, square, at(0.25, 0.5), ONE, stride=9)[0]
    np.testing.assert_array_equal(of_input, maps([0.375, 0.375], [0.125, 0.125]))


@pytest.mark.parametrize(
    ("x", "value", "slope"),
    [
        (-1.5, 0, 0),
        (-1, 0, 3),
        (-0.5, 1.5, 3),
        (0, 3, 7),
        (0.5, 6.5, 7),
        (1, 10, 90),
        (2, 100, -100),
        (2.25, 75, -100),
        (3, 0, 0),
        (4, 0, 0),
        (1e30, 0, 0),
        (INF, 0, 0),
        (-INF, 0, 0),
    ],
)
def test_a_sample_anywhere_along_a_row(x, value, slope):
    """Zeros lie around the map; at an integer the slope is that of the cell that begins there."""
    row, column = maps([3, 10, 100]), maps([3], [10], [100])
    assert sample(row, 0, x) == sample(column, x, 0) == value
    assert slopes(row, 0, x)[1] == slopes(column, x, 0)[0] == slope


def test_nan_and_infinite_pixels_count_only_inside():
    row = maps([NAN, 1, INF])
    assert sample(row, 0, -1) == sample(row, 0, 3) == sample(row, -1, 0) == sample(row, 1, 2) == 0
    assert math.isnan(sample(row, 0, -0.5))
    assert sample(row, 0, 1.5) == INF


@pytest.mark.parametrize("place", [(NAN, 0), (0, NAN), (NAN, INF), (-INF, NAN), (NAN, NAN)])
def test_a_nan_offset_makes_all_but_the_input_gradient_nan(place):
    square, mask = maps([1, 2], [3, 4]), ONE
    assert math.isnan(sample(square, *place))
    given = (square, at(*place), ONE, np.zeros(1), 9, 0, 1, mask)
    of_input, of_offset, of_weight, of_bias, of_mask = reference.deform_conv2d_backward(ONE, *given)
    assert not of_input.any()
    assert of_bias == 1
    assert np.isnan([*of_offset.flat, *of_weight.flat, *of_mask.flat]).all()


def test_the_mask_scales_the_sample():
    square = maps([1, 2], [3, 4])
    assert sample(square, 0.25, 0.5, mask=-3 * ONE) == -6
    assert math.isnan(sample(square, 0.25, 0.5, mask=NAN * ONE))
    given = (square, at(0.25, 0.5), 5 * ONE, None, 9, 0, 1, -3 * ONE)
    of_input, of_offset, of_weight, of_bias, of_mask = reference.deform_conv2d_backward(2 * ONE, *given)
    np.testing.assert_array_equal(of_input, -30 * maps([0.375, 0.375], [0.125, 0.125]))
    assert of_offset.ravel().tolist() == [-60, -30]
    assert (of_weight, of_bias, of_mask) == (-12, None, 20)


def test_what_lies_outside_is_decided_in_working_precision():
    """-1 + 2**-30 is -1 in float32, -1 + 2**-14 is -1 in float16."""
    for tiny, dtype, value in [(2**-30, "f4", 0), (2**-30, "f8", 1), (2**-14, "f2", 1)]:
        large = np.full((1, 1, 1, 1), 1 / tiny, dtype)
        weight = np.ones((1, 1, 1, 1), dtype)
        got = reference.deform_conv2d(large, at(tiny, 1, dtype), weight, stride=9, padding=1)
        assert (got.shape, got.dtype, got.item()) == ((1, 1, 1, 1), dtype, value)
        for wide in ("offset", "mask"):
            offset = at(tiny, 1, "f8" if wide == "offset" else dtype)
            mask = ONE.astype("f8" if wide == "mask" else dtype)
            got = reference.deform_conv2d(large, offset, weight, stride=9, padding=1, mask=mask)
            assert (got.dtype, got.item()) == (dtype, 1)


# ---------------------------------------------------------------------------------------------- order and geometry


def test_order_of_taps_and_of_the_two_coordinates():
    """A kernel of 2 x 3 on a map of zeros with one 1: only the tap that is moved there reads it."""
    map = np.zeros((1, 1, 20, 20))
    map[0, 0, 17, 15] = 1
    weight = np.array([[1, 10, 100], [1000, 10_000, 100_000]], float)[None, None]
    for i, j in np.ndindex(2, 3):
        offset = np.zeros((1, 12, 19, 18))
        offset[0, 2 * (3 * i + j), 4, 6] = 17 - (4 + i)
        offset[0, 2 * (3 * i + j) + 1, 4, 6] = 15 - (6 + j)
        got = reference.deform_conv2d(map, offset, weight)
        assert got[0, 0, 4, 6] == weight[0, 0, i, j]
        assert got.sum() == weight.sum() + weight[0, 0, i, j]  # the pixel itself is read by all taps, unmoved


def test_stride_padding_and_dilation():
    """y = row * 3 - 2 + i * 4, x = column * 2 - 1 + j * 5: which tap of which pixel reads the only 1?"""
    for y, x in itertools.product(range(9), range(10)):
        map = np.zeros((1, 1, 9, 10))
        map[0, 0, y, x] = 1
        weight = np.arange(1, 7, dtype=float).reshape(1, 1, 2, 3)
        got = reference.deform_conv2d(map, np.zeros((1, 12, 3, 1)), weight, None, (3, 2), (2, 1), (4, 5))
        want = np.zeros((3, 1))
        for row, i, j in itertools.product(range(3), range(2), range(3)):
            if (row * 3 - 2 + i * 4, -1 + j * 5) == (y, x):
                want[row, 0] = weight[0, 0, i, j]
        np.testing.assert_array_equal(got[0, 0], want)
    assert reference.output_size((9, 10), (2, 3), (3, 2), (2, 1), (4, 5)) == (3, 1)


def test_groups_and_offset_groups():
    """6 channels in 2 groups and 3 offset groups; each channel is a constant of its own power of ten."""
    map = 10.0 ** np.arange(6)[None, :, None, None] * np.ones((1, 6, 2, 2))
    weight = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 3, 5]], float)[:, :, None, None]
    offset = np.zeros((1, 6, 2, 2))
    assert reference.deform_conv2d(map, offset, weight)[0, :, 0, 0].tolist() == [321, 654, 987_000, 531_000]
    offset[0, 2:4] = 7  # channels 2 and 3 are read outside
    assert reference.deform_conv2d(map, offset, weight)[0, :, 0, 0].tolist() == [21, 54, 980_000, 530_000]
    mask = np.ones((1, 3, 2, 2))
    mask[0, 2] = 2  # channels 4 and 5 twice
    bias = np.array([0.25, 0, 0, 0.5])
    got = reference.deform_conv2d(map, offset, weight, bias, mask=mask)[0, :, 1, 1]
    assert got.tolist() == [21.25, 54, 1_960_000, 1_060_000.5]


# ----------------------------------------------------------------------------------------- equal to something else


def test_conv2d():
    nine = np.ones((1, 1, 3, 3))
    np.testing.assert_array_equal(reference.conv2d(nine, nine, padding=1), maps([4, 6, 4], [6, 9, 6], [4, 6, 4]))
    digits = np.arange(1, 10, dtype=float).reshape(1, 1, 3, 3)
    got = reference.conv2d(maps([1, 0, 0], [0, 0, 100], [0, 0, 0]), digits, np.array([0.5]), padding=1)
    np.testing.assert_array_equal(got, 0.5 + maps([5, 904, 800], [2, 601, 500], [0, 300, 200]))


@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_zero_offsets_are_the_plain_convolution(stride, groups):
    case = strategies.Case((2, 3), stride, (0, 2), (2, 1), groups, 2, mask=False, offsets="zero", size=(6, 7))
    arrays = case.arrays()
    got = reference.deform_conv2d(**arrays, **case.options)
    del arrays["offset"], arrays["mask"]
    np.testing.assert_allclose(got, reference.conv2d(**arrays, **case.options), atol=1e-12)


def test_integer_offsets_are_a_moved_map():
    case = strategies.Case(mask=False, offsets="zero")
    arrays = case.arrays()
    arrays["offset"][:, 0::2], arrays["offset"][:, 1::2] = 2, -1
    moved = np.zeros_like(arrays["input"])
    moved[:, :, :-2, 1:] = arrays["input"][:, :, 2:, :-1]
    inside = np.s_[:, :, 1:-1, 1:-1]  # where the zeros around the map do not move with it
    got = reference.deform_conv2d(**arrays, **case.options)
    want = reference.conv2d(moved, arrays["weight"], arrays["bias"], padding=1)
    np.testing.assert_allclose(got[inside], want[inside], atol=1e-12)


@pytest.mark.parametrize("name", strategies.NAMES)
@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 3)])
def test_gradients_by_finite_differences(name, groups, offset_groups):
    """The sum is of degree 2 along a line, within a cell."""
    case = strategies.Case((2, 3), (2, 1), 1, (1, 2), groups, offset_groups, offsets="fractions")
    arrays, grad = case.arrays(), case.grad()
    gradients = reference.deform_conv2d_backward(grad, **arrays, **case.options)
    gradient = dict(zip(strategies.NAMES, gradients, strict=True))[name]
    compare.gradient_fits(partial(reference.deform_conv2d, **case.options), arrays, name, grad, gradient)


@pytest.mark.parametrize("case", [c for c in strategies.CASES if c.batch and c.offsets != "NaN and infinite"], ids=str)
def test_torchvision(torch, torchvision, case):
    """In float64 throughout: torchvision takes one dtype only. It makes the gradient of an infinite offset NaN."""
    operators = torchvision.ops
    arrays = {name: array if array is None else array.astype(float) for name, array in case.arrays().items()}
    grad = case.grad().astype(float)
    tensors = {
        name: array if array is None else torch.tensor(array, requires_grad=True) for name, array in arrays.items()
    }
    result = operators.deform_conv2d(**tensors, **case.options)
    np.testing.assert_allclose(reference.deform_conv2d(**arrays, **case.options), result.detach(), atol=1e-10)
    result.backward(torch.tensor(grad))
    gradients = reference.deform_conv2d_backward(grad, **arrays, **case.options)
    for tensor, gradient in zip(tensors.values(), gradients, strict=True):
        assert (tensor is None) == (gradient is None)
        if tensor is not None:
            np.testing.assert_allclose(gradient, tensor.grad, atol=1e-10)


# ------------------------------------------------------------------------------------------------- feature pyramid


def test_upsampled():
    row = maps([10, 20, 30])
    assert reference.upsampled(row, (1, 6)).ravel().tolist() == [10, 10, 20, 20, 30, 30]
    assert reference.upsampled(row, (1, 5)).ravel().tolist() == [10, 10, 20, 20, 30]
    assert reference.upsampled(row, (1, 7)).ravel().tolist() == [10, 10, 10, 20, 20, 30, 30]
    assert reference.upsampled(row, (1, 2)).ravel().tolist() == [10, 20]
    np.testing.assert_array_equal(reference.upsampled(maps([1, 2]), (3, 2)), maps([1, 2], [1, 2], [1, 2]))
    # Pixel 41 of 82 would be pixel 1 of 2, but the ratio of 2 and 82 is rounded down.
    assert reference.upsampled(maps([1, 2]), (1, 82)).ravel().tolist() == [1] * 42 + [2] * 40


def test_upsampled_in_torch(torch):
    for given, wanted in itertools.product(range(1, 60), range(1, 120)):
        row = torch.arange(given, dtype=torch.float32).reshape(1, 1, 1, given)
        want = torch.nn.functional.interpolate(row, (1, wanted), mode="nearest")
        np.testing.assert_array_equal(reference.upsampled(row.numpy(), (1, wanted)), want)


def centre(weight):
    """A kernel of 3 x 3 that only scales."""
    kernel = np.zeros((1, 1, 3, 3))
    kernel[0, 0, 1, 1] = weight
    return kernel


def test_feature_pyramid():
    """Two maps of one channel; the laterals scale by 2 and 100, the layers by 1 and 10."""
    finest, coarsest = maps([1, 2, 3], [4, 5, 6]), maps([1, 2])
    parameters = {
        "inner_blocks.0.0.weight": np.full((1, 1, 1, 1), 2.0),
        "inner_blocks.0.0.bias": np.array([0.5]),
        "inner_blocks.1.0.weight": np.full((1, 1, 1, 1), 100.0),
        "inner_blocks.1.0.bias": np.array([0.0]),
        "layer_blocks.0.0.weight": centre(1),
        "layer_blocks.0.0.bias": np.array([0.25]),
        "layer_blocks.1.0.weight": centre(10),
        "layer_blocks.1.0.bias": np.array([0.0]),
    }
    given = {"z": finest, "a": coarsest}
    results = reference.feature_pyramid(given, parameters)
    assert list(results) == ["z", "a"]
    np.testing.assert_array_equal(results["z"], 0.75 + maps([102, 104, 206], [108, 110, 212]))
    np.testing.assert_array_equal(results["a"], maps([1000, 2000]))

    results = reference.feature_pyramid(given, parameters, "pool")
    assert list(results) == ["z", "a", "pool"]
    np.testing.assert_array_equal(results["pool"], maps([1000]))

    extra = {f"extra_blocks.{name}.bias": np.array([bias]) for name, bias in [("p6", -1500.0), ("p7", 7.0)]}
    extra |= {"extra_blocks.p6.weight": centre(1), "extra_blocks.p7.weight": centre(3)}
    results = reference.feature_pyramid(given, {**parameters, **extra}, "p6p7")
    assert list(results) == ["z", "a", "p6", "p7"]
    assert (results["p6"].item(), results["p7"].item()) == (-500, 7)  # 7 without the -500: rectified


def test_p6_of_another_number_of_channels_is_made_from_the_last_input():
    given = {"only": np.ones((1, 2, 1, 1))}
    parameters = {
        "inner_blocks.0.0.weight": np.full((1, 2, 1, 1), 10.0),
        "inner_blocks.0.0.bias": np.array([0.0]),
        "layer_blocks.0.0.weight": centre(1),
        "layer_blocks.0.0.bias": np.array([0.0]),
        "extra_blocks.p6.weight": np.concatenate([centre(3), centre(4)], 1),
        "extra_blocks.p6.bias": np.array([0.0]),
        "extra_blocks.p7.weight": centre(1),
        "extra_blocks.p7.bias": np.array([0.0]),
    }
    results = reference.feature_pyramid(given, parameters, "p6p7")
    assert [result.item() for result in results.values()] == [20, 7, 7]


@pytest.mark.parametrize("extra_blocks", [None, "pool", "p6p7"])
@pytest.mark.parametrize("sizes", [[(8, 12), (4, 6), (2, 3)], [(13, 9), (7, 5), (4, 3)], [(15, 11), (7, 5), (3, 2)]])
def test_torchvision_pyramid(torch, torchvision, sizes, extra_blocks):
    operators = torchvision.ops
    blocks = operators.feature_pyramid_network
    extra = {
        None: lambda: None,
        "pool": blocks.LastLevelMaxPool,
        "p6p7": lambda: blocks.LastLevelP6P7(3 if sizes[0] == (8, 12) else 5, 5),
    }[extra_blocks]()
    channels = [4, 6, 3]
    pyramid = operators.FeaturePyramidNetwork(channels, 5, extra).double()
    random = np.random.default_rng(0)
    parameters = {name: random.normal(size=tensor.shape) for name, tensor in pyramid.state_dict().items()}
    pyramid.load_state_dict({name: torch.from_numpy(array) for name, array in parameters.items()})
    given = {f"map {c}": random.normal(size=(2, c, *size)) for c, size in zip(channels, sizes, strict=True)}
    with torch.no_grad():
        want = pyramid({name: torch.from_numpy(map) for name, map in given.items()})
    got = reference.feature_pyramid(given, parameters, extra_blocks)
    assert list(got) == list(want)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=1e-10)
