"""The RoI operators give the same answers as torchvision and ONNX Runtime, where they are installed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cvops
from tests import compare, data
from tests import peers_roi as peers
from tests import strategies_roi as strategies

OPERATORS = {
    "roi_align": [(-1, False), (-1, True), (2, False), (2, True), (7, True)],
    "ps_roi_align": [(-1,), (2,), (7,)],
    "roi_pool": [()],
    "ps_roi_pool": [()],
}
SCALES = (1, 1 / 3, 1 / 16)


@pytest.fixture(scope="module", params=OPERATORS)
def operator(request):
    return request.param


# The peers refuse empty and inverted boxes with adaptive sampling; with a fixed ratio they take them.
def defined(operator, kind, options):
    return kind not in ("empty", "inverted") or operator.endswith("pool") or options[0] > 0


def check(operator, maps, rois, output_size, scale, *options):
    """Result and gradient against torchvision's: by tolerance, the maximum exactly."""
    want = peers.torchvision(operator, maps, rois, output_size, scale, *options)
    same_as = compare.same if operator == "roi_pool" else compare.close
    same_as(getattr(cvops, operator)(maps, rois, output_size, scale, *options), want, maps)
    if operator == "ps_roi_pool":
        return  # torchvision's gradient is not that of its forward
    grad = strategies.normal(want.shape, want.dtype, seed=1)
    argmax = ()
    if operator == "roi_pool":
        argmax = (cvops.roi_pool(maps, rois, output_size, scale, return_argmax=True)[1],)
    want = peers.torchvision_backward(operator, grad, maps, rois, output_size, scale, *options)
    compare.close(getattr(cvops, operator + "_backward")(grad, rois, *argmax, maps.shape, scale, *options), want, grad)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", strategies.KINDS)
@pytest.mark.parametrize("output_size", [1, (2, 3), 7])
def test_torchvision(torchvision, operator, output_size, kind, dtype):
    bins = output_size[0] * output_size[1] if isinstance(output_size, tuple) else output_size**2
    maps = strategies.normal((2, 3 * bins if operator.startswith("ps") else 17, 9, 12), dtype)
    for scale, options in itertools.product(SCALES, OPERATORS[operator]):
        if defined(operator, kind, options):
            check(operator, maps, strategies.rois(kind, 6, maps.shape, scale, dtype), output_size, scale, *options)


def test_lists_of_boxes_are_torchvisions(torchvision, operator, torch):
    maps = strategies.normal((3, 18, 9, 12))
    rois = strategies.rois("inside", 12, maps.shape, 0.5)
    lists, _ = strategies.by_image(rois, 3)
    function = getattr(torchvision.ops, operator)
    want = function(torch.from_numpy(maps), [torch.from_numpy(of_image) for of_image in lists], (2, 3), 0.5).numpy()
    compare.close(getattr(cvops, operator)(maps, lists, (2, 3), 0.5), want, maps)


@given(
    st.integers(0, 2**32),
    st.sampled_from([1, (2, 3), (5, 2)]),
    st.sampled_from([1, 1 / 3, 0.25]),
    st.sampled_from([np.float32, np.float64]),
)
def test_any_boxes_are_torchvisions(torchvision, operator, seed, output_size, scale, dtype):
    """Boxes with both sides at least a hundredth, on and around the map, some with corners half way between pixels."""
    random = np.random.default_rng(seed)
    channels = math.prod(output_size) if isinstance(output_size, tuple) else 1
    maps = strategies.normal((2, 2 * channels, *random.integers(1, 12, 2)), dtype, seed)
    corners = random.uniform(-6, 18, (8, 2)) / scale
    boxes = np.concatenate([corners, corners + random.uniform(0.01, 15, (8, 2)) / scale], 1)
    boxes[::2] = np.round(2 * boxes[::2]) / 2
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.01)
    rois = np.concatenate([random.integers(0, 2, (8, 1)), boxes], 1).astype(dtype)
    for options in OPERATORS[operator]:
        check(operator, maps, rois, output_size, scale, *options)


@pytest.mark.parametrize(
    ("operator", "shape", "output_size", "scale"),
    [
        ("roi_align", (1, 256, 50, 76), 7, 1 / 16),
        ("roi_align", (1, 64, 100, 152), 14, 1 / 8),
        ("roi_pool", (1, 256, 50, 76), 7, 1 / 16),
        ("ps_roi_align", (1, 1029, 38, 63), 7, 1 / 16),
        ("ps_roi_pool", (1, 1029, 38, 63), 7, 1 / 16),
    ],
    indirect=["operator"],
)
def test_boxes_of_a_detector(torchvision, operator, shape, output_size, scale):
    maps, rois = strategies.normal(shape), data.rois(50, *shape[2:], scale)
    check(operator, maps, rois, output_size, scale, *OPERATORS[operator][0])


# ----------------------------------------------------------------------------------------------------- class forms


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("RoIAlign", ((2, 3), 0.5, 2)),
        ("RoIAlign", ((2, 3), 0.5, -1, True)),
        ("RoIPool", ((2, 3), 0.5)),
        ("PSRoIAlign", ((2, 3), 0.5, 2)),
        ("PSRoIPool", ((2, 3), 0.5)),
    ],
)
def test_class_forms_are_torchvisions(torchvision, name, args, torch):
    theirs, ours = getattr(torchvision.ops, name)(*args), getattr(cvops, name)(*args)
    assert repr(ours) == repr(theirs)
    maps, rois = strategies.normal((2, 18, 9, 12)), strategies.rois("inside", 12, (2, 18, 9, 12), 0.5)
    compare.close(ours(maps, rois), theirs(torch.from_numpy(maps), torch.from_numpy(rois)).numpy(), maps)


# ------------------------------------------------------------------------------------------------------- pyramids


@pytest.mark.parametrize("args", [(["0", "1"], (7, 5), 2), (["feat1"], 7, -1), (("a", "b"), [2, 3], 0)])
def test_the_text_of_a_pooler_is_torchvisions(torchvision, args):
    assert repr(cvops.MultiScaleRoIAlign(*args)) == repr(torchvision.ops.MultiScaleRoIAlign(*args))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("levels", "options"),
    [
        ((2, 3, 4, 5), {}),
        ((3, 4, 5), {}),
        ((4, 5), {"canonical_scale": 100}),
        ((1, 2, 3, 4, 5, 6), {"canonical_level": 3}),
        ((2,), {}),
    ],
)
@pytest.mark.parametrize("ratio", [-1, 2])
def test_multiscale_roi_align_is_torchvisions(torchvision, ratio, levels, options, dtype, torch):
    """With consecutive levels, from fine to coarse."""
    height, width = 256, 384
    maps = {
        f"p{i}": strategies.normal((2, 5, height >> i, width >> i), dtype, seed=i) for i in range(1, 7)
    }  # more than are named
    names = [f"p{i}" for i in levels]
    boxes = [data.pyramid_boxes(60, height, width, seed).astype(dtype) for seed in (0, 1)]
    shapes = [(height, 320), (200, width)]
    tensors = {name: torch.from_numpy(array).requires_grad_() for name, array in maps.items()}
    theirs = torchvision.ops.MultiScaleRoIAlign(names, (7, 5), ratio, **options)
    pooled = theirs(tensors, [torch.from_numpy(of_image) for of_image in boxes], shapes)
    ours = cvops.MultiScaleRoIAlign(names, (7, 5), ratio, **options)
    compare.close(ours(maps, boxes, shapes), pooled.detach().numpy(), boxes[0])
    grad = strategies.normal(pooled.shape, dtype, seed=1)
    pooled.backward(torch.from_numpy(grad))
    for name, gradient in ours.backward(grad, maps, boxes, shapes).items():
        want = tensors[name].grad
        compare.close(gradient, np.zeros_like(maps[name]) if want is None else want.numpy(), grad)


# --------------------------------------------------------------------------------------------------- ONNX Runtime


@pytest.mark.parametrize("kind", strategies.KINDS)
@pytest.mark.parametrize("output_size", [(1, 1), (2, 3), (7, 7)])
def test_onnxruntime(onnxruntime, output_size, kind):
    maps = strategies.normal((2, 17, 9, 12))
    for scale in SCALES:
        rois = strategies.rois(kind, 6, maps.shape, scale)
        for ratio, aligned in OPERATORS["roi_align"]:
            if defined("roi_align", kind, (ratio,)):
                want = peers.onnx_roi_align(maps, rois, output_size, scale, ratio, aligned)
                compare.close(cvops.roi_align(maps, rois, output_size, scale, ratio, aligned), want, maps)
        want = peers.onnx_roi_pool(maps, rois, output_size, scale)
        compare.same(cvops.roi_pool(maps, rois, output_size, scale), want, maps)


@pytest.mark.parametrize(("shape", "output_size"), [((1, 256, 50, 76), (7, 7)), ((1, 64, 100, 152), (14, 14))])
def test_boxes_of_a_detector_in_onnxruntime(onnxruntime, shape, output_size):
    maps, rois = strategies.normal(shape), data.rois(50, *shape[2:], 1 / 16)
    for ratio, aligned in [(-1, True), (2, False)]:
        want = peers.onnx_roi_align(maps, rois, output_size, 1 / 16, ratio, aligned)
        compare.close(cvops.roi_align(maps, rois, output_size, 1 / 16, ratio, aligned), want, maps)
    want = peers.onnx_roi_pool(maps, rois, output_size, 1 / 16)
    compare.same(cvops.roi_pool(maps, rois, output_size, 1 / 16), want, maps)
