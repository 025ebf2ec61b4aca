"""deform_conv2d and its gradients on large images: how much memory they take, and that parts are put together right."""

from __future__ import annotations

import tracemalloc
from typing import Any, NamedTuple

import numpy as np
import pytest

import cvops
from tests import compare
from tests import reference_deform as reference

CALLS = {
    # No copy of the image fits: in another layout or in working precision, it would take 256 MB.
    "64 channels": ((1, 64, 1024, 1024), 4, "float32"),
    "64 channels in channels-last order": ((1, 64, 1024, 1024), 4, "float32"),
    "64 channels of 16 bits": ((1, 64, 1024, 1024), 4, "float16"),
    "95 MB for offsets and masks in working precision": ((1, 4, 800, 1100), 1, "float16"),
    "7 images of 13 MB": ((7, 16, 512, 400), 3, "float32"),
}


class Call(NamedTuple):
    """The arrays and the stride of a call, and the output pixels (image, row, column) at which to look."""

    arrays: dict[str, Any]
    stride: int
    places: list[tuple[int, int, int]]

    def around(self, place):
        """The call on nothing but what one output pixel reads: arrays, and where they lie in the input and results."""
        n, row, column = place
        top, left = row * self.stride, column * self.stride
        one = np.s_[n : n + 1, :, row : row + 1, column : column + 1]
        patch = np.s_[n : n + 1, :, top : top + 4, left : left + 4]
        parts = {"input": patch, "offset": one, "mask": one}
        arrays = {name: array[parts[name]] if name in parts else array for name, array in self.arrays.items()}
        return arrays, patch, one


def call(name):
    """The call of this name, after the same one on a corner of the image, which compiles the kernels."""
    random = np.random.default_rng(0)
    shape, stride, dtype = CALLS[name]
    batch, channels, height, width = shape
    if "channels-last" in name:
        image = random.random((batch, height, width, channels), np.float32).transpose(0, 3, 1, 2)
    else:
        image = random.random(shape, np.float32)
    size = reference.output_size((height, width), (3, 3), stride)
    arrays = {
        "input": image.astype(dtype, copy=False),
        "offset": random.integers(0, 256, (batch, 18, *size), np.uint8).astype(dtype),
        "weight": random.uniform(-1, 1, (3, channels, 3, 3)).astype(dtype),
        "mask": random.integers(0, 256, (batch, 9, *size), np.uint8).astype(dtype),
    }
    for counts in (arrays["offset"], arrays["mask"]):
        counts /= 256  # below 1, and never rounded, whatever it is added to
    few = {name: array[:, :, :9, :9] for name, array in arrays.items()}
    few["input"] = arrays["input"][:, :, : 8 * stride + 3, : 8 * stride + 3]
    cvops.deform_conv2d_backward(cvops.deform_conv2d(**few, stride=stride), **few, stride=stride)
    random_places = zip(*(random.integers(0, n, 20).tolist() for n in (batch, *size)), strict=True)
    return Call(arrays, stride, [(0, 0, 0), (batch - 1, size[0] - 1, size[1] - 1), *random_places])


def within_bounds(function, *args, weight, **options):
    """The results of the call, when it took at most 64 MB and a float32 copy of the weight beyond them."""
    tracemalloc.start()
    try:
        results = function(*args, weight=weight, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    own = sum(array.nbytes for array in (results if isinstance(results, tuple) else [results]) if array is not None)
    assert peak - own <= 64 * 2**20 + 4 * weight.size
    return results


def near(got, want):
    tolerance = compare.TOLERANCES[got.dtype.name]
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(1, np.abs(want).max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_deform_conv2d(name):
    large = call(name)
    got = within_bounds(cvops.deform_conv2d, **large.arrays, stride=large.stride)
    for place in large.places:
        arrays, _, one = large.around(place)
        near(got[one], reference.deform_conv2d(**arrays))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith("64 channels ")])
def test_backward(name):
    """Of a gradient that is 0 but for a few pixels."""
    large, random = call(name), np.random.default_rng(1)
    shape, weight = large.arrays["mask"].shape, large.arrays["weight"]
    grad = np.zeros((shape[0], 3, *shape[2:]), weight.dtype)
    for n, row, column in large.places:
        grad[n, :, row, column] = random.uniform(-1, 1, 3)
    gradients = within_bounds(cvops.deform_conv2d_backward, grad, **large.arrays, stride=large.stride)
    of_input, of_offset, of_weight, _, of_mask = gradients
    want_of_weight = np.zeros(weight.shape)
    for place in set(large.places):
        arrays, patch, one = large.around(place)
        want = reference.deform_conv2d_backward(grad[one], **arrays)
        of_input[patch] -= want[0]
        near(of_offset[one], want[1])
        near(of_mask[one], want[4])
        want_of_weight += want[2]
    near(of_weight, want_of_weight)
    near(np.array([of_input.min(), of_input.max()]), np.zeros(2))
    elsewhere = ~grad.any(1, keepdims=True)
    assert not (of_offset * elsewhere).any()
    assert not (of_mask * elsewhere).any()


@pytest.mark.parametrize("wanted", [(), ("bias",)])
def test_what_is_not_wanted_takes_no_memory(wanted):
    random = np.random.default_rng(0)
    image, offset = random.random((1, 16, 200, 200), np.float32), np.zeros((1, 18, 200, 200), np.float32)
    weight, bias = random.random((8, 16, 3, 3), np.float32), np.zeros(8, np.float32)
    grad = random.random((1, 8, 200, 200), np.float32)

    def peak():
        tracemalloc.start()
        try:
            cvops.deform_conv2d_backward(grad, image, offset, weight, bias, padding=1, wanted=wanted)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak()  # imports what it needs
    assert peak() < 100_000
