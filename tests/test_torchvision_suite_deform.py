"""torchvision's own tests of deform_conv2d (test/test_ops.py, TestDeformConv), on the functions of cvops.

The same call: 33 images, 6 channels in 2 groups and 3 offset groups, a kernel of 3 x 2, strides, paddings and
dilations that differ by axis; contiguous or not, with mask or without. Where torchvision raises RuntimeError, cvops
raises ValueError.
"""

from __future__ import annotations

import numpy as np
import pytest

import cvops
from tests import compare
from tests import reference_deform as reference
from tests.strategies import few

OPTIONS = {"stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)}
TOLERANCES = {"float64": (1e-5, 1e-5), "float32": (1e-5, 1e-5), "float16": (2e-3, 2e-3)}  # atol, rtol


def permuted(array):
    """The same values in the order of memory in which torchvision's test puts them."""
    if array.ndim != 4:
        return array
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def call(contiguous, mask, batch=33, dtype="float64"):
    """The arrays of the call."""
    random = np.random.default_rng(0)
    height, width = reference.output_size((5, 4), (3, 2), **OPTIONS)
    weight, bias = random.normal(size=(2, 3, 3, 2)), random.normal(size=2)
    arrays = {
        "input": random.random((batch, 6, 5, 4)),
        "offset": random.normal(size=(batch, 3 * 2 * 3 * 2, height, width)),
        "weight": weight,
        "bias": bias,
        "mask": random.normal(size=(batch, 3 * 3 * 2, height, width)),
    }
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    if not contiguous:
        arrays = {name: permuted(array) for name, array in arrays.items()}
    return arrays if mask else {**arrays, "mask": None}


def layer_of(arrays):
    layer = cvops.DeformConv2d(6, 2, (3, 2), **OPTIONS, groups=2)
    layer.load_state_dict({"weight": arrays["weight"], "bias": arrays["bias"]})
    return layer


@pytest.mark.parametrize("batch", [0, 33])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("contiguous", few([True, False], every=2))
def test_forward(contiguous, mask, dtype, batch):
    arrays = call(contiguous, mask, batch, dtype)
    want = reference.deform_conv2d(**arrays, **OPTIONS)
    atol, rtol = TOLERANCES[dtype]
    for got in (
        cvops.deform_conv2d(**arrays, **OPTIONS),
        layer_of(arrays)(arrays["input"], arrays["offset"], arrays["mask"]),
    ):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, atol=atol, rtol=rtol)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
def test_forward_of_other_sizes(contiguous, mask):
    """Another call of the same layer: nothing is kept from the call before."""
    large, small = call(contiguous, mask), call(contiguous, mask, batch=5)
    layer = layer_of(large)
    for arrays in (large, small, large):
        want = reference.deform_conv2d(**arrays, **OPTIONS)
        compare.close(layer(arrays["input"], arrays["offset"], arrays["mask"]), want, arrays["input"])


@pytest.mark.parametrize("batch", [0, 33])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
def test_backward(contiguous, mask, batch):
    """torchvision's gradcheck in its fast mode: the Jacobian, seen from both sides along random directions."""
    arrays = call(contiguous, mask, batch)
    random = np.random.default_rng(1)
    grad = random.normal(size=cvops.deform_conv2d(**arrays, **OPTIONS).shape)
    gradients = cvops.deform_conv2d_backward(permuted(grad), **arrays, **OPTIONS)
    step = 1e-6
    for (name, array), gradient in zip(arrays.items(), gradients, strict=True):
        if array is None:
            assert gradient is None
            continue
        for _ in range(3):
            direction = random.normal(size=array.shape)
            direction /= max(np.linalg.norm(direction), 1)
            ends = [cvops.deform_conv2d(**{**arrays, name: array + s * direction}, **OPTIONS) for s in (step, -step)]
            slope = np.vdot(grad, ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(np.vdot(gradient, direction), slope, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("contiguous", [True, False])
def test_the_gradient_of_an_expanded_one(contiguous):
    """The sum of the result has a gradient of stride 0."""
    arrays = call(contiguous, True)
    result = cvops.deform_conv2d(**arrays, **OPTIONS)
    one = np.broadcast_to(np.ones(()), result.shape)
    want = reference.deform_conv2d_backward(np.array(one), **arrays, **OPTIONS)
    for got, expected in zip(cvops.deform_conv2d_backward(one, **arrays, **OPTIONS), want, strict=True):
        compare.close(got, expected, one)


def test_wrong_sizes():
    arrays = call(True, True, batch=10)
    layer, (input, offset, _, _, mask) = layer_of(arrays), arrays.values()
    with pytest.raises(ValueError, match="`offset` must have shape"):
        layer(input, offset[:, :2], mask)
    with pytest.raises(ValueError, match="`mask` must have shape"):
        layer(input, offset, mask[:, :2])
    with pytest.raises(ValueError, match=r"`groups`.*7.*got 2"):
        cvops.DeformConv2d(7, 2, 3, groups=2)
    with pytest.raises(ValueError, match=r"`groups`.*3.*got 2"):
        cvops.DeformConv2d(6, 3, 3, groups=2)


def test_the_layer_without_a_bias():
    assert "bias=False" in repr(cvops.DeformConv2d(6, 2, (3, 2), bias=False))
    arrays = call(True, True)
    layer = cvops.DeformConv2d(6, 2, (3, 2), **OPTIONS, groups=2, bias=False)
    layer.load_state_dict({"weight": arrays["weight"]})
    arrays["bias"] = None
    want = reference.deform_conv2d(**arrays, **OPTIONS)
    compare.close(layer(arrays["input"], arrays["offset"], arrays["mask"]), want, arrays["input"])
