"""Calls of deform_conv2d and its gradient that are refused: each says what is expected and what is given."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cvops
from tests import libraries
from tests.strategies_deform import FLOATS, NAMES, Case

ROOT = Path(__file__).parent.parent

# input (2, 6, 5, 6), offset (2, 36, 3, 5), weight (4, 3, 3, 2), bias (4,), mask (2, 18, 3, 5), grad (2, 4, 3, 5)
GOOD = Case((3, 2), (2, 1), (1, 0), 1, groups=2, offset_groups=3, channels=6, outputs=4, size=(5, 6), dtype="float32")


def of(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def arguments(changes):
    """The arguments of a good call, some of them changed; and those of its gradient."""
    arguments = {**GOOD.arrays(), **GOOD.options, **changes}
    grad = arguments.pop("grad", GOOD.grad())
    return arguments, {"grad": grad, **arguments}


def check_refused(ops, error, name, facts, **changes):
    """Both functions (or the gradient alone, if `grad` is at fault) name the argument and say all the facts."""
    forward, backward = arguments(changes)
    calls = [(ops.deform_conv2d_backward, backward)]
    if name != "grad":
        calls.append((ops.deform_conv2d, forward))
    for function, wrong in calls:
        with pytest.raises(error) as raised:
            function(**wrong)
        text = str(raised.value)
        assert type(raised.value) is error
        assert f"`{name}`" in text
        assert [fact for fact in facts if fact not in text] == [], text


def test_the_call_that_the_next_tests_change_is_good(ops):
    forward, backward = arguments({})
    assert ops.deform_conv2d(**forward).shape == GOOD.output_shape
    assert len(ops.deform_conv2d_backward(**backward)) == 5


@pytest.mark.parametrize(
    ("name", "shape", "facts"),
    [
        ("input", (6, 5, 6), ["(N, C, H, W)"]),
        ("input", (1, 2, 6, 5, 6), ["(N, C, H, W)"]),
        ("input", (), ["(N, C, H, W)"]),
        ("weight", (3, 3, 2), ["kh, kw)"]),
        ("weight", (4, 3, 3, 2, 1), ["kh, kw)"]),
        ("weight", (4, 4, 3, 2), ["6"]),  # 4 channels do not divide 6
        ("weight", (4, 12, 3, 2), ["6"]),
        ("weight", (4, 0, 3, 2), []),
        ("weight", (5, 3, 3, 2), ["2"]),  # 5 results in 2 groups
        ("weight", (4, 3, 0, 2), []),
        ("weight", (4, 3, 3, 0), []),
        ("offset", (36, 3, 5), ["3, 5)"]),
        ("offset", (2, 35, 3, 5), ["12"]),
        ("offset", (2, 0, 3, 5), ["12"]),
        ("offset", (2, 48, 3, 5), ["6"]),  # 4 offset groups of 6 channels
        ("offset", (1, 36, 3, 5), ["(2, "]),
        ("offset", (5, 36, 3, 5), ["(2, "]),
        ("offset", (0, 36, 3, 5), ["(2, "]),
        ("offset", (2, 36, 5, 3), ["3, 5)"]),
        ("offset", (2, 36, 1, 1), ["3, 5)"]),
        ("mask", (18, 3, 5), ["(2, 18, 3, 5)"]),
        ("mask", (2, 12, 3, 5), ["(2, 18, 3, 5)"]),
        ("mask", (2, 36, 3, 5), ["(2, 18, 3, 5)"]),
        ("mask", (1, 18, 3, 5), ["(2, 18, 3, 5)"]),
        ("mask", (2, 18, 3, 6), ["(2, 18, 3, 5)"]),
        ("mask", (), ["(2, 18, 3, 5)"]),
        ("bias", (3,), ["(4,)"]),
        ("bias", (1,), ["(4,)"]),
        ("bias", (4, 1), ["(4,)"]),
        ("bias", (), ["(4,)"]),
        ("grad", (2, 4, 5, 3), ["(2, 4, 3, 5)"]),
        ("grad", (1, 4, 3, 5), ["(2, 4, 3, 5)"]),
        ("grad", (2, 6, 3, 5), ["(2, 4, 3, 5)"]),
        ("grad", (4, 3, 5), ["(2, 4, 3, 5)"]),
        ("grad", (), ["(2, 4, 3, 5)"]),
    ],
    ids=str,
)
def test_shapes(ops, name, shape, facts):
    check_refused(ops, ValueError, name, [*facts, "got ", str(shape)], **{name: of(*shape)})


def test_shapes_of_other_libraries(array):
    offset = array(of(2, 35, 3, 5))
    all_alike = {name: array(value) for name, value in [*GOOD.arrays().items(), ("grad", GOOD.grad())]}
    calls = [{**all_alike, "offset": offset}]
    if array not in [libraries.CONVERTERS[name] for name in libraries.CUDA]:
        calls.append({"offset": offset})
    for changes in calls:
        check_refused(cvops, ValueError, "offset", ["12", "(2, 35, 3, 5)"], **changes)


@pytest.mark.parametrize(
    ("name", "value", "facts"),
    [
        ("stride", 0, [">= 1", "got 0"]),
        ("stride", (2, 0), [">= 1", "0"]),
        ("stride", (0, 1), [">= 1", "0"]),
        ("stride", -1, [">= 1", "-1"]),
        ("dilation", 0, [">= 1", "got 0"]),
        ("dilation", (1, -3), [">= 1", "-3"]),
        ("padding", -1, [">= 0", "got -1"]),
        ("padding", (0, -2), [">= 0", "-2"]),
        ("stride", (1, 1, 1), ["(1, 1, 1)"]),
        ("padding", (), ["()"]),
        ("dilation", (1,), ["(1,)"]),
    ],
)
def test_options(ops, name, value, facts):
    check_refused(ops, ValueError, name, facts, **{name: value})


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("value", [1.0, (1, 1.5), "1", "11", None, True, np.array([1.0, 1.0]), math.nan, {"a": 1}])
def test_options_that_are_no_integers(ops, name, value):
    check_refused(ops, TypeError, name, ["integer"], **{name: value})


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"dilation": 4}, ["height", "got 5", "kernel 3", "padding 1", "dilation 4"]),
        ({"dilation": (1, 6)}, ["width", "got 6", "kernel 2", "padding 0", "dilation 6"]),
        ({"padding": 0, "input": of(2, 6, 2, 6)}, ["height", "got 2", "kernel 3", "padding 0"]),
        ({"input": of(2, 6, 0, 6)}, ["height", "got 0", "kernel 3", "padding 1"]),
        ({"input": of(2, 6, 5, 0)}, ["width", "got 0", "kernel 2", "padding 0"]),
    ],
)
def test_results_smaller_than_one_pixel(ops, changes, facts):
    """The kernel, with its dilation, is larger than the map with its padding."""
    check_refused(ops, ValueError, "input", facts, **changes)


@pytest.mark.parametrize("name", [*NAMES, "grad"])
@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint8, np.int64, np.complex64, np.longdouble, "U3", "M8[s]"])
def test_dtypes_that_are_no_floats(ops, name, dtype):
    given = arguments({})[1][name]
    wrong = np.zeros(given.shape, dtype)
    if ops.backend != "numpy" and (wrong.dtype.kind in "UM" or wrong.dtype == np.longdouble):
        pytest.skip("a GPU has no arrays of this dtype")
    check_refused(
        ops, TypeError, name, ["float64, float32 or float16", f"got {wrong.dtype}", ".astype"], **{name: wrong}
    )


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize(("dtype", "other"), [*itertools.permutations(FLOATS, 2)])
def test_weight_and_bias_have_the_dtype_of_the_input(ops, name, dtype, other):
    arrays = GOOD._replace(dtype=dtype, offset_dtype="float32", mask_dtype="float32").arrays()
    arrays[name] = arrays[name].astype(other)
    check_refused(ops, TypeError, name, [dtype, other], **arrays)


@pytest.mark.parametrize("name", [*NAMES, "grad"])
@pytest.mark.parametrize("value", [[[1.0]], (), 1.0, "array", np.float32(1), np.ma.zeros((2, 6, 5, 6))])
def test_arguments_that_are_no_arrays(ops, name, value):
    if ops.backend != "numpy" and isinstance(value, np.ma.MaskedArray):
        pytest.skip("a GPU has no masked arrays")
    check_refused(ops, TypeError, name, ["must be an array", f"got {type(value).__name__}"], **{name: value})


@pytest.mark.parametrize("name", ["input", "offset", "weight", "grad"])
def test_none_only_for_mask_and_bias(ops, name):
    check_refused(ops, TypeError, name, ["must be an array", "got None"], **{name: None})


@pytest.mark.parametrize("name", [*NAMES, "grad"])
def test_tensors_that_require_grad(name, torch):
    given = arguments({})[1]
    tensors = {key: torch.from_numpy(value) for key, value in given.items() if isinstance(value, np.ndarray)}
    tensors[name].requires_grad_()
    facts = ["requires grad", "cvops.torch", f"{name}.detach()"]
    check_refused(cvops, TypeError, name, facts, **tensors)
    check_refused(cvops, TypeError, name, facts, **{name: tensors[name]})


_DANGEROUS = """
import itertools, sys
import numpy as np
from tests.libraries import Operators

cvops = Operators(sys.argv[1])

def refused(*args, **options):
    try:
        cvops.deform_conv2d(*args, **options)
    except ValueError as error:
        return str(error)
    raise AssertionError("accepted")

ones = lambda *shape: np.ones(shape, np.float32)
for stride in (0, (0, 1), (1, 0), -1, -(2**31), -(2**63)):
    assert "`stride`" in refused(ones(1, 1, 3, 3), ones(1, 2, 3, 3), ones(1, 1, 1, 1), stride=stride)
assert "`dilation`" in refused(ones(1, 1, 3, 3), ones(1, 2, 3, 3), ones(1, 1, 1, 1), dilation=0)

# torchvision's documented example, as it stood for years: an input of one image, offsets for five.
text = refused(ones(1, 3, 10, 10), ones(5, 2 * 3 * 3, 8, 8), ones(5, 3, 3, 3))
assert "`offset`" in text and "(1, " in text and "(5, 18, 8, 8)" in text, text
assert "`mask`" in refused(ones(1, 3, 10, 10), ones(1, 18, 8, 8), ones(5, 3, 3, 3), mask=ones(5, 9, 8, 8))
assert "`offset`" in refused(ones(4, 3, 10, 10), ones(4, 18, 10, 10), ones(5, 3, 3, 3))

# Beyond what fits: huge options and huge offsets of every kind, forward and backward.
for huge in (2**30, 2**31, 2**40, 2**62, 2**63, 2**64):
    refused(ones(1, 1, 3, 3), ones(1, 8, 3, 3), ones(1, 1, 2, 2), dilation=huge)
    refused(ones(1, 1, 3, 3), ones(1, 2, 3, 3), ones(1, 1, 1, 1), padding=huge)
    try:
        result = cvops.deform_conv2d(ones(1, 1, 3, 3), ones(1, 2, 1, 1), ones(1, 1, 1, 1), stride=huge)
    except ValueError as error:
        assert huge > 2**30 and "`stride`" in str(error), error
    else:
        assert result.item() == 1
largest = float(np.finfo(np.float32).max)
values = [0, -0.0, 1e-45, -1e-45, -1, -1.0000001, 3, 2.9999998, 2**31, -(2**31), 2**32, 2.0**63, 2.0**64, -(2.0**64)]
values += [largest, -largest, np.inf, -np.inf, np.nan]
for dtype in (np.float32, np.float64):
    offset = np.array(list(itertools.product(values, values)), dtype).T.reshape(1, 2, len(values), len(values))
    for channels in (1, 16, 33):
        image = np.ones((1, channels, 3, 3), dtype)
        image = np.pad(image, ((0, 0), (0, 0), (0, len(values) - 3), (0, len(values) - 3)))
        weight = np.ones((1, channels, 1, 1), dtype)
        result = cvops.deform_conv2d(image, offset, weight)
        nan = np.isnan(offset).any(1)
        assert np.isnan(result[:, 0][nan]).all() and np.isfinite(result[:, 0][~nan]).all()
        for gradient in cvops.deform_conv2d_backward(np.ones_like(result), image, offset, weight)[:2]:
            assert np.isfinite(gradient[~np.isnan(gradient)]).all()
sys.stdout.write("alive")
"""


def test_dangerous_calls_do_not_crash(ops):
    """In a process of its own, so that a crash is one failure and not the end of all tests."""
    command = [sys.executable, "-W", "error", "-X", "faulthandler", "-c", _DANGEROUS, ops.backend]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr, done.returncode) == ("alive", "", 0)
