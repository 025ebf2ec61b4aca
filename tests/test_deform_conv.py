"""deform_conv2d and its gradients: against the reference, and every edge by name."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given

import cvops
from tests import compare, strategies_deform
from tests import reference_deform as reference
from tests.libraries import to_numpy
from tests.strategies import few
from tests.strategies_deform import CASES, FLOATS, LARGE, NAMES, Case
from tests.strategies_roi import LAYOUTS


def convert(arrays, to):
    """The arrays by name, each passed through `to`."""
    return {name: None if array is None else to(array) for name, array in arrays.items()}


def check_forward(case, to=np.asarray):
    arrays = convert(case.arrays(), to)
    got = cvops.deform_conv2d(**arrays, **case.options)
    want = reference.deform_conv2d(**convert(arrays, to_numpy), **case.options)
    assert want.shape == case.output_shape
    compare.close(got, want, arrays["input"])


def check_backward(case, to=np.asarray, wanted=NAMES, grad=None):
    arrays, grad = convert(case.arrays(), to), to(case.grad() if grad is None else grad)
    got = cvops.deform_conv2d_backward(grad, **arrays, **case.options, wanted=wanted)
    want = reference.deform_conv2d_backward(to_numpy(grad), **convert(arrays, to_numpy), **case.options)
    assert type(got) is tuple
    for name, one, expected in zip(NAMES, got, want, strict=True):
        if name not in wanted or arrays[name] is None:
            assert one is None, name
        else:
            compare.close(one, expected, grad)


# ------------------------------------------------------------------------------------------- against the reference


@pytest.mark.parametrize("case", few(CASES, every=3), ids=str)
def test_deform_conv2d(ops, case):
    check_forward(case, ops.array)


@pytest.mark.parametrize("case", few(CASES, every=3), ids=str)
def test_backward(ops, case):
    check_backward(case, ops.array)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", few(LARGE, every=3), ids=str)
def test_sizes_around_vectors_and_blocks(ops, case, dtype):
    check_forward(case._replace(dtype=dtype, offset_dtype="float32", mask_dtype="float32"), ops.array)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", few(LARGE, every=3), ids=str)
def test_backward_of_sizes_around_vectors_and_blocks(ops, case, dtype):
    check_backward(case._replace(dtype=dtype), ops.array)


@given(strategies_deform.cases())
def test_any_call(ops, case):
    check_forward(case, ops.array)


@given(strategies_deform.cases())
def test_backward_of_any_call(ops, case):
    check_backward(case, ops.array)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("mask", [True, False])
def test_every_library(array, mask, dtype):
    """The result is an array of the caller's library."""
    case = Case((2, 3), (2, 1), 1, 1, 2, 3, batch=3, mask=mask, bias=mask, dtype=dtype)
    check_forward(case, array)
    check_backward(case, array)


def test_results_follow_the_first_array(torch):
    case = Case(dtype="float32")
    arrays, grad = case.arrays(), case.grad()
    others = {**arrays, "input": torch.from_numpy(arrays["input"])}
    want = reference.deform_conv2d(**arrays, padding=1)
    compare.close(cvops.deform_conv2d(**others, padding=1), want, others["input"])
    want = reference.deform_conv2d_backward(grad, **arrays, padding=1)
    for one, expected in zip(cvops.deform_conv2d_backward(grad, **others, padding=1), want, strict=True):
        compare.close(one, expected, grad)


@pytest.mark.parametrize("offset_dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(ops, layout, offset_dtype):
    def to(array):
        return LAYOUTS[layout](array) if array.ndim == 4 else array

    case = Case((3, 2), (1, 2), 1, 1, 2, 2, dtype="float32", offset_dtype=offset_dtype)
    arrays, grad = case.arrays(), case.grad()
    laid_out = convert(arrays, to)
    want = reference.deform_conv2d(**arrays, **case.options)
    compare.close(ops.deform_conv2d(**laid_out, **case.options), want, arrays["input"])
    want = reference.deform_conv2d_backward(grad, **arrays, **case.options)
    for one, expected in zip(ops.deform_conv2d_backward(to(grad), **laid_out, **case.options), want, strict=True):
        compare.close(one, expected, grad)


@pytest.mark.parametrize(
    "to", [lambda a: a[::-1].copy()[::-1], lambda a: np.repeat(a, 2)[::2], lambda a: a.astype(">f8")]
)
def test_layouts_of_the_bias(ops, to):
    case = Case()
    arrays = case.arrays()
    want = reference.deform_conv2d(**arrays, **case.options)
    got = ops.deform_conv2d(**{**arrays, "bias": to(arrays["bias"])}, **case.options)
    compare.close(got, want, arrays["input"])


def test_a_gradient_of_stride_zero(ops):
    """What the sum of the result has for a gradient in most libraries."""
    case = Case(dtype="float32")
    arrays = case.arrays()
    grad = np.broadcast_to(np.float32(0.5), case.output_shape)
    want = reference.deform_conv2d_backward(np.array(grad), **arrays, **case.options)
    for one, expected in zip(ops.deform_conv2d_backward(grad, **arrays, **case.options), want, strict=True):
        compare.close(one, expected, grad)


def test_nothing_is_written_into_the_arguments(ops):
    for case in (Case(dtype="float64"), Case(dtype="float32"), Case((1, 1), padding=0, dtype="float32")):
        arrays = {**case.arrays(), "grad": case.grad()}
        before = {name: array.copy() for name, array in arrays.items()}
        ops.deform_conv2d_backward(**arrays, **case.options)
        del arrays["grad"]
        ops.deform_conv2d(**arrays, **case.options)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, before[name])


# ----------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtypes", few(itertools.product(FLOATS, FLOATS, FLOATS), every=4), ids="-".join)
def test_dtypes_of_offset_and_mask_are_free(ops, dtypes):
    dtype, offset, mask = dtypes
    case = Case(dtype=dtype, offset_dtype=offset, mask_dtype=mask, offset_groups=2)
    check_forward(case, ops.array)
    check_backward(case, ops.array)


@pytest.mark.parametrize("dtypes", [*itertools.product(FLOATS, FLOATS)], ids="-".join)
def test_gradients_have_the_dtype_of_grad(ops, dtypes):
    dtype, of_grad = dtypes
    case = Case(dtype=dtype)
    check_backward(case, ops.array, grad=case.grad().astype(of_grad))


@pytest.mark.parametrize(
    ("dtypes", "tiny", "read"),
    [
        ({}, 2**-30, 0),
        ({"offset": "f8"}, 2**-30, 1),
        ({"mask": "f8"}, 2**-30, 1),
        ({"input": "f8", "weight": "f8"}, 2**-30, 1),
        ({"input": "f2", "weight": "f2", "offset": "f2", "mask": "f2"}, 2**-14, 1),
    ],
)
def test_what_lies_outside_is_decided_in_working_precision(ops, dtypes, tiny, read):
    """-1 + 2**-30 is -1 in float32: outside. In float64 it is not, nor -1 + 2**-14 for 16-bit arguments."""
    arrays = {
        "input": np.full((1, 1, 1, 1), 1 / tiny),
        "offset": np.array([tiny, 1]).reshape(1, 2, 1, 1),
        "weight": np.ones((1, 1, 1, 1)),
        "mask": np.ones((1, 1, 1, 1)),
    }
    arrays = {name: array.astype(dtypes.get(name, "f4")) for name, array in arrays.items()}
    got = ops.deform_conv2d(**arrays, stride=9, padding=1)
    compare.same(got, np.full((1, 1, 1, 1), read, arrays["input"].dtype), arrays["input"])


def test_sums_of_16_bit_arguments_are_float32(ops):
    """2048 + 1 is 2048 in float16: a sum of 4096 ones would end there."""
    ones = np.ones((1, 4096, 1, 1), np.float16)
    half = np.full((1, 4096, 1, 1), 0.5, np.float16)
    got = ops.deform_conv2d(ones, np.zeros((1, 2, 1, 1), np.float16), half)
    compare.same(got, np.full((1, 1, 1, 1), 2048, np.float16), ones)
    of_weight = ops.deform_conv2d_backward(
        np.ones((4096, 1, 1, 1), np.float16),
        np.full((4096, 1, 1, 1), 0.5, np.float16),
        np.zeros((4096, 2, 1, 1), np.float16),
        np.ones((1, 1, 1, 1), np.float16),
        wanted=["weight"],
    )[2]
    compare.same(of_weight, np.full((1, 1, 1, 1), 2048, np.float16), ones)


# ------------------------------------------------------------------------------------------------- offsets by name


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), ((3, 1), (2, 1), (1, 2))])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (2, 3)])
@pytest.mark.parametrize("groups", [1, 2, "C"])
def test_zero_offsets_are_a_plain_convolution(ops, kernel, groups, stride, padding, dilation, dtype):
    case = Case(kernel, stride, padding, dilation, groups, size=(11, 12), offsets="zero", mask=False, dtype=dtype)
    arrays = case.arrays()
    got = ops.deform_conv2d(**arrays, **case.options)
    input, weight, bias = arrays["input"], arrays["weight"], arrays["bias"]
    compare.close(got, reference.conv2d(input, weight, bias, **case.options), input)


@pytest.mark.parametrize("dtype", FLOATS)
def test_integer_offsets_read_a_moved_map(ops, dtype):
    case = Case(offsets="zero", padding=0, mask=False, size=(9, 8), dtype=dtype)
    arrays = case.arrays()
    arrays["offset"][:, 0::2], arrays["offset"][:, 1::2] = -2, 3
    moved = np.zeros_like(arrays["input"])
    moved[:, :, 2:, :-3] = arrays["input"][:, :, :-2, 3:]
    want = reference.conv2d(moved, arrays["weight"], arrays["bias"])
    compare.close(ops.deform_conv2d(**arrays), want, arrays["input"])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [100, -100, 6e4, -6e4, 1e30, -1e30, math.inf, -math.inf])
@pytest.mark.parametrize("axis", [0, 1])
def test_offsets_that_lead_outside(ops, axis, value, dtype):
    """Only the bias is left, and nothing depends on input, offset, weight and mask."""
    case = Case(dtype=dtype, offset_dtype="float32")
    arrays = case.arrays()
    arrays["offset"][:, axis::2] = value
    got = ops.deform_conv2d(**arrays, **case.options)
    want = np.broadcast_to(arrays["bias"][:, None, None], case.output_shape)
    compare.same(got, want, arrays["input"])
    *gradients, of_bias, of_mask = ops.deform_conv2d_backward(case.grad(), **arrays, **case.options)
    assert not any(gradient.any() for gradient in [*gradients, of_mask])
    assert of_bias.all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["offset", "mask"])
def test_nan_makes_its_pixel_nan_and_no_other(ops, name, dtype):
    case = Case(dtype=dtype, offset_groups=2)
    arrays = case.arrays()
    want = reference.deform_conv2d(**arrays, **case.options)
    arrays[name][1, 7, 2, 3] = math.nan
    want[1, :, 2, 3] = math.nan
    compare.close(ops.deform_conv2d(**arrays, **case.options), want, arrays["input"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_nan_offset_beside_an_infinite_one(ops, dtype):
    case = Case((1, 1), padding=0, dtype=dtype, mask=False)
    arrays = case.arrays()
    arrays["offset"][:, 0, 0, :4], arrays["offset"][:, 1, 0, :4] = math.nan, [0, 1e9, math.inf, -math.inf]
    arrays["offset"][:, 0, 1, :4], arrays["offset"][:, 1, 1, :4] = [0, 1e9, math.inf, -math.inf], math.nan
    got = ops.deform_conv2d(**arrays)
    assert np.isnan(got[:, :, :2, :4]).all()
    assert np.isfinite(got[:, :, 2:]).all()


def test_a_nan_mask_where_the_sample_is_outside(ops):
    case = Case((1, 1), padding=0, offsets="all outside")
    arrays = case.arrays()
    arrays["mask"][0, 0, 1, 1] = math.nan
    got = ops.deform_conv2d(**arrays)
    assert np.isnan(got[0, :, 1, 1]).all()
    assert np.isnan(got).sum() == case.outputs


ROW = [3.0, 10.0, 100.0]


def along(axis, dtype):
    """The map with ROW along an axis, and the offset and weight of a result of one pixel."""
    map = np.array(ROW, dtype).reshape((1, 1, 1, 3) if axis else (1, 1, 3, 1))
    return map, np.zeros((1, 2, 1, 1), dtype), np.ones((1, 1, 1, 1), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("place", "value", "slope", "shares"),
    [
        (-1.5, 0, 0, [0, 0, 0]),
        (-1, 0, 3, [0, 0, 0]),
        (-0.75, 0.75, 3, [0.25, 0, 0]),
        (0, 3, 7, [1, 0, 0]),
        (0.5, 6.5, 7, [0.5, 0.5, 0]),
        (1, 10, 90, [0, 1, 0]),
        (1.75, 77.5, 90, [0, 0.25, 0.75]),
        (2, 100, -100, [0, 0, 1]),
        (2.75, 25, -100, [0, 0, 0.25]),
        (3, 0, 0, [0, 0, 0]),
        (4, 0, 0, [0, 0, 0]),
    ],
)
def test_a_sample_anywhere_along_a_row(ops, axis, place, value, slope, shares, dtype):
    """Zeros lie around the map; at an integer the slope is that of the cell that begins there."""
    map, offset, weight = along(axis, dtype)
    offset[0, axis] = place
    mask = np.full((1, 1, 1, 1), 2, dtype)
    compare.same(ops.deform_conv2d(map, offset, weight, stride=9), np.full((1, 1, 1, 1), value, dtype), map)
    gradients = ops.deform_conv2d_backward(weight, map, offset, weight, mask=mask, stride=9)
    across = 0 if place in (-1, 3) else -value  # the pixels on the row are also the upper ones of a cell
    want = [across, slope] if axis else [slope, across]
    compare.same(gradients[0], 2 * np.array(shares, dtype).reshape(map.shape), map)
    compare.same(gradients[1], 2 * np.array(want, dtype).reshape(1, 2, 1, 1), map)
    compare.same(gradients[2], np.full((1, 1, 1, 1), 2 * value, dtype), map)
    compare.same(gradients[4], np.full((1, 1, 1, 1), value, dtype), map)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [0, 1])
def test_nan_and_infinite_pixels_far_from_a_sample_do_not_matter(ops, axis, dtype):
    """At -1 and at the length of the map, a sample is outside."""
    _, offset, weight = along(axis, dtype)
    map = np.array([math.inf, 3, 10, math.nan], dtype).reshape((1, 1, 1, 4) if axis else (1, 1, 4, 1))
    for place, value in [(-1, 0), (-1.5, 0), (1, 3), (1.5, 6.5), (4, 0), (-math.inf, 0), (-0.5, math.inf)]:
        offset[0, axis] = place
        assert ops.deform_conv2d(map, offset, weight, stride=9).item() == value
    offset[0, axis] = 2.5
    assert math.isnan(ops.deform_conv2d(map, offset, weight, stride=9).item())


# ---------------------------------------------------------------------------------------------------- empty and tiny


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_batch_of_none(array, dtype):
    case = Case(batch=0, dtype=dtype, offset_groups=2)
    check_forward(case, array)
    check_backward(case, array)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (0, 3), (3, 0)])
def test_tiny_maps(ops, size):
    """A side of none has results where there is padding."""
    for dtype in FLOATS:
        case = Case(size=size, padding=2, dtype=dtype)
        check_forward(case, ops.array)
        check_backward(case, ops.array)


def test_one_result_as_large_as_the_padded_map(ops):
    case = Case((5, 4), padding=(2, 1), dilation=(2, 1), size=(5, 2))
    assert case.output_shape[2:] == (1, 1)
    check_forward(case, ops.array)
    check_backward(case, ops.array)


@pytest.mark.parametrize("numbers", [[2, 1], (np.int8(2), np.int64(1)), np.uint8(2)])
def test_options_may_be_any_integers(ops, numbers):
    case = Case(stride=numbers, padding=numbers, dilation=numbers, size=(8, 8))
    check_forward(case, ops.array)
    check_backward(case, ops.array)


def test_options_by_position(ops):
    case = Case((3, 2), (2, 1), (1, 0), (1, 2), 2, 3, dtype="float32")
    input, offset, weight, bias, mask = case.arrays().values()
    positional = input, offset, weight, bias, (2, 1), (1, 0), (1, 2), mask
    compare.close(ops.deform_conv2d(*positional), reference.deform_conv2d(*positional), input)
    got = ops.deform_conv2d_backward(case.grad(), *positional, wanted=["offset"])[1]
    compare.close(got, reference.deform_conv2d_backward(case.grad(), *positional)[1], input)
    with pytest.raises(TypeError, match="positional"):
        ops.deform_conv2d_backward(case.grad(), *positional, ["offset"])


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "case",
    [
        Case(offsets="fractions"),
        Case((2, 3), (2, 1), (1, 0), (1, 2), 2, 3, size=(6, 7), offsets="fractions"),
        Case((1, 1), 1, 0, 1, "C", "C", offsets="fractions"),
        Case((5, 5), 3, 2, 1, channels=20, outputs=34, size=(7, 9), offsets="fractions"),
    ],
    ids=str,
)
def test_gradients_by_finite_differences(ops, case, name):
    """Along a line within a cell, the sum is a polynomial of degree 2."""
    arrays, grad = case.arrays(), case.grad()
    gradient = ops.deform_conv2d_backward(grad, **arrays, **case.options)[NAMES.index(name)]
    compare.gradient_fits(partial(ops.deform_conv2d, **case.options), arrays, name, grad, gradient, seed=1)


@given(strategies_deform.cases(dtypes=["float64"], offsets=[o for o in strategies_deform.OFFSETS if "NaN" not in o]))
def test_linear_gradients_are_adjoint(ops, case):
    """<op(x), g> == <x, backward(g)> for each argument in which the operator is linear."""
    arrays, grad = case.arrays(), case.grad()
    gradients = dict(zip(NAMES, ops.deform_conv2d_backward(grad, **arrays, **case.options), strict=True))
    without_bias = ops.deform_conv2d(**{**arrays, "bias": None}, **case.options)
    total = np.vdot(without_bias, grad)
    size = np.abs(without_bias * grad).sum()
    for name in ("input", "weight", "mask") if case.mask else ("input", "weight"):
        assert abs(np.vdot(arrays[name], gradients[name]) - total) <= 1e-10 * max(1, size)
    if case.bias:
        np.testing.assert_allclose(gradients["bias"], grad.sum((0, 2, 3)), rtol=1e-12, atol=1e-12)


@given(strategies_deform.cases(dtypes=["float64"], offsets=[o for o in strategies_deform.OFFSETS if "NaN" not in o]))
def test_the_operator_is_linear_in_the_input(ops, case):
    arrays = case.arrays()
    arrays["bias"] = None
    other = np.random.default_rng(1).normal(size=arrays["input"].shape)
    one, two, both = (
        ops.deform_conv2d(**{**arrays, "input": input}, **case.options)
        for input in (arrays["input"], other, 3 * arrays["input"] - other)
    )
    np.testing.assert_allclose(both, 3 * one - two, atol=1e-10 * max(1, np.abs(both).max(initial=0)))


SUBSETS = [names for count in range(6) for names in itertools.combinations(NAMES, count)]


@pytest.mark.parametrize("wanted", few(SUBSETS, every=3), ids=lambda names: "+".join(names) or "none")
def test_wanted(ops, wanted):
    check_backward(Case(dtype="float32", groups=2), ops.array, wanted=wanted)
    check_backward(Case(dtype="float64", bias=False, mask=False), ops.array, wanted=wanted)


@pytest.mark.parametrize(
    "wanted", [["mask", "input"], {"mask", "input"}, ("input", "mask", "input"), {"input": 1, "mask": 2}]
)
def test_wanted_is_any_collection_of_names(ops, wanted):
    check_backward(Case(), ops.array, wanted=wanted)


@pytest.mark.parametrize("wanted", [[None], ["input", 0]])
def test_wanted_names_that_are_not_text(ops, wanted):
    case = Case()
    with pytest.raises(TypeError, match=r"`wanted` must be a list of str, got (None|int) in it"):
        ops.deform_conv2d_backward(case.grad(), **case.arrays(), **case.options, wanted=wanted)


@pytest.mark.parametrize("wanted", [["grad"], ("input", "masks"), ("Weight",), [""], "grad"])
def test_wanted_names_that_are_unknown(ops, wanted):
    case = Case()
    with pytest.raises(ValueError, match=r"`wanted` .*input.*offset.*weight.*bias.*mask.*got") as raised:
        ops.deform_conv2d_backward(case.grad(), **case.arrays(), **case.options, wanted=wanted)
    assert repr(wanted if isinstance(wanted, str) else wanted[-1])[:2] in str(raised.value)


# --------------------------------------------------------------------------------------------------------- threads

THREADED = [
    Case(channels=64, outputs=64, size=(40, 30), dtype="float32"),
    Case(channels=24, outputs=34, size=(30, 40), groups=2, offset_groups=3, dtype="float32", mask=False),
    Case(channels=20, outputs=70, size=(33, 31), batch=1, dtype="float64", offsets="NaN and infinite"),
    Case((1, 1), padding=0, channels=100, outputs=50, size=(20, 30), batch=5, dtype="float16"),
    Case(channels=300, outputs=16, size=(9, 10), batch=11, stride=2, dtype="float32"),
]


@pytest.mark.parametrize("case", THREADED, ids=str)
def test_every_number_of_threads_gives_the_same_bits(threads, case):
    arrays, grad = case.arrays(), case.grad()
    bits = set()
    for count in (1, 2, 3, 2):
        threads(count)
        result = cvops.deform_conv2d(**arrays, **case.options)
        gradients = cvops.deform_conv2d_backward(grad, **arrays, **case.options)
        bits.add(b"".join(array.tobytes() for array in (result, *gradients) if array is not None))
    assert len(bits) == 1


@pytest.mark.parametrize("case", THREADED[:2], ids=str)
def test_threads_and_the_reference(threads, case):
    threads(3)
    check_forward(case._replace(size=(13, 17)))
    check_backward(case._replace(size=(13, 17)))
