"""The cases of torchvision's own tests of its RoI operators, for these: their inputs, and the reference for answers.

Left out is what they test of torch itself (tracing, scripts, devices other than the CPU). Where they want
AssertionError or RuntimeError, it is a ValueError here; and there are no quantised arrays: their values are tested.
"""

from __future__ import annotations

import numpy as np
import pytest

import cvops
from tests import compare
from tests import reference_roi as reference
from tests.libraries import require, to_numpy

POOL_SIZE = 5
ROIS = np.array([[0, 0, 0, 9, 9], [0, 0, 5, 4, 9], [0, 5, 5, 9, 9], [1, 0, 0, 9, 9]])
POOLERS = {
    "roi_pool": lambda size: cvops.RoIPool((size, size), 1),
    "ps_roi_pool": lambda size: cvops.PSRoIPool((size, size), 1),
    "roi_align": lambda size: cvops.RoIAlign((size, size), spatial_scale=1, sampling_ratio=-1),
    "roi_align aligned": lambda size: cvops.RoIAlign((size, size), spatial_scale=1, sampling_ratio=-1, aligned=True),
    "ps_roi_align": lambda size: cvops.PSRoIAlign((size, size), spatial_scale=1, sampling_ratio=-1),
}


@pytest.fixture(params=["numpy", "torch"])
def like(request):
    """From a NumPy array to one of the library that shares its memory, and so its strides."""
    return np.asarray if request.param == "numpy" else require("torch").from_numpy


def answer(name, x, rois, *args, **options):
    operator, _, aligned = name.partition(" ")
    if aligned:
        options["aligned"] = True
    result = getattr(reference, operator)(to_numpy(x), to_numpy(rois), *args, **options)
    return result[0] if operator == "roi_pool" else result


def rand(shape, dtype, contiguous, seed=0):
    x = np.random.default_rng(seed).random(shape).astype(dtype)
    return x if contiguous else np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", POOLERS)
def test_forward(like, name, dtype, contiguous):
    x = like(rand((2, 2 * POOL_SIZE**2, 10, 10), dtype, contiguous))
    rois = like(ROIS.astype(dtype))
    compare.close(POOLERS[name](POOL_SIZE)(x, rois), answer(name, x, rois, POOL_SIZE), x)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("dtype_of_rois", ["float16", "float32"])
@pytest.mark.parametrize("name", POOLERS)
def test_autocast(like, name, dtype_of_rois, dtype):
    """The dtypes that mixed precision brings together."""
    x = like(rand((2, 2 * POOL_SIZE**2, 10, 10), dtype, contiguous=False))
    rois = like(ROIS.astype(dtype_of_rois))
    compare.close(POOLERS[name](POOL_SIZE)(x, rois), answer(name, x, rois, POOL_SIZE), x)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("operator", ["roi_pool", "ps_roi_pool", "roi_align", "ps_roi_align"])
def test_backward(operator, seed, contiguous):
    """All derivatives of all results, as differences: one more call of the operator for each pixel."""
    x = rand((1, 8, 5, 5), np.float64, contiguous, seed)
    rois = np.array([[0, 0, 0, 4, 4], [0, 0, 2, 3, 4], [0, 2, 2, 4, 4.0]])
    options = {"sampling_ratio": 1} if operator.endswith("align") else {}
    function, backward = getattr(cvops, operator), getattr(cvops, operator + "_backward")
    before = function(x, rois, 2, **options)
    argmax = [cvops.roi_pool(x, rois, 2, return_argmax=True)[1]] if operator == "roi_pool" else []
    differences = np.empty((x.size, before.size))
    for i, pixel in enumerate(np.ndindex(x.shape)):
        moved = x.copy()
        moved[pixel] += 1e-6
        differences[i] = (function(moved, rois, 2, **options) - before).ravel() / 1e-6
    units = np.eye(before.size).reshape(before.size, *before.shape)
    derivatives = [backward(unit, rois, *argmax, x.shape, **options).ravel() for unit in units]
    np.testing.assert_allclose(np.transpose(derivatives), differences, rtol=0, atol=1e-5)


@pytest.mark.parametrize("operator", ["roi_pool", "ps_roi_pool", "roi_align", "ps_roi_align"])
def test_boxes_shape(like, operator):
    x = like(np.linspace(1, 64, 64, dtype=np.float32).reshape(1, 1, 8, 8))
    with pytest.raises(ValueError, match="`boxes` must have shape"):
        getattr(cvops, operator)(x, like(np.array([[0, 0, 3, 3]], np.float32)), output_size=(2, 2))
    with pytest.raises(ValueError, match="must have shape"):
        getattr(cvops, operator)(x, [like(np.array([[0, 0, 3]], np.float32))], output_size=(2, 2))


@pytest.mark.parametrize("name", ["RoIPool", "RoIAlign"])
def test_boxes_list(like, name):
    """Two lists of five boxes, some of them inverted; one square of three bins a side."""
    x = like(rand((2, 1, 10, 10), np.float32, contiguous=True))
    of_image = like(np.ascontiguousarray(ROIS.T, np.float32))
    args = ([3, 3], 1.0, -1) if name == "RoIAlign" else ([3, 3], 1.0)
    got = getattr(cvops, name)(*args)(x, [of_image, of_image])
    operator = "roi_align" if name == "RoIAlign" else "roi_pool"
    rois = reference.as_rois([to_numpy(of_image)] * 2)
    assert tuple(got.shape) == (10, 1, 3, 3)
    compare.close(got, answer(operator, x, rois, 3), x)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("scale", "zero_point"), [(1, 0), (2, 10), (0.1, 50)])
@pytest.mark.parametrize(("lowest", "highest"), [(-128, 127), (0, 255), (-(2**31), 2**31 - 1)])
def test_quantised_values(aligned, scale, zero_point, lowest, highest):
    """200 boxes on a map of 10 x 10, most of them reaching outside, of values that 8 or 32 bits can hold."""

    def dequantised(values):
        whole = np.clip(np.round(values / scale) + zero_point, lowest, highest)
        return ((whole - zero_point) * scale).astype(np.float32)

    random = np.random.default_rng(0)
    x = dequantised(random.integers(50, 100, (1, 2, 10, 10)))
    boxes = random.integers(0, 5, (200, 4))
    boxes[:, 2:] += boxes[:, :2]
    rois = np.concatenate([np.zeros((200, 1)), dequantised(boxes)], 1).astype(np.float32)
    got = cvops.roi_align(x, rois, output_size=5, spatial_scale=1, sampling_ratio=-1, aligned=aligned)
    compare.close(got, reference.roi_align(x, rois, 5, 1, -1, aligned), x)


@pytest.mark.parametrize("name", POOLERS)
def test_deterministic(name):
    x = rand((2, 2 * POOL_SIZE**2, 10, 10), np.float32, contiguous=True)
    rois = ROIS.astype(np.float32)
    first = POOLERS[name](POOL_SIZE)(x, rois)
    for _ in range(3):
        compare.same(POOLERS[name](POOL_SIZE)(x, rois), first, x)


def test_msroialign_repr():
    names, output_size, sampling_ratio = ["0"], (7, 7), 2
    want = f"MultiScaleRoIAlign(featmap_names={names}, output_size={output_size}, sampling_ratio={sampling_ratio})"
    assert repr(cvops.MultiScaleRoIAlign(names, output_size, sampling_ratio)) == want
