"""The modules of `cvops.torch`: values, gradients and state dicts."""

from __future__ import annotations

import copy
import re
import sys

import numpy as np
import pytest

import cvops
from tests import compare, reference_deform, reference_roi, torch_calls
from tests.torch_calls import DEFORM, MAP, ROIS

pytestmark = torch_calls.quiet
MAPS = {"p2": MAP, "p3": MAP[:, :, ::2, ::2].copy(), "p4": MAP[:, :, ::4, ::4].copy()}
IMAGES = [(34, 40), (36, 38)]
# In pixels: from tiny to the whole image.
BOXES = [
    np.array([[1, 2, 9, 8], [0, 0, 38, 34], [5, 5, 25, 30]], np.float32),
    np.array([[3, 3, 20, 30], [3, 3, 3, 3]], np.float32),
]
OPTIONS = {"canonical_scale": 16, "canonical_level": 3}


def tensors(torch, arrays):
    if isinstance(arrays, dict):
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    return [torch.from_numpy(array.copy()) for array in arrays]


# ---------------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize(
    ("module", "name", "options"),
    [
        ("RoIAlign", "roi_align", (0.5, 2)),
        ("RoIAlign", "roi_align", (0.5, 2, True)),
        ("RoIPool", "roi_pool", (0.5,)),
        ("PSRoIAlign", "ps_roi_align", (0.5, 2)),
        ("PSRoIPool", "ps_roi_pool", (0.5,)),
    ],
)
def test_pooling(torch_ops, torch, module, name, options):
    layer = getattr(torch_ops, module)((2, 3), *options)
    assert repr(layer) == repr(getattr(cvops, module)((2, 3), *options))
    want = torch_calls.CALLS[name][1](MAP, ROIS, (2, 3), *options)
    maps = torch.from_numpy(MAP)
    compare.close(layer(maps, torch.from_numpy(ROIS)), want, maps)
    assert not layer.state_dict()


@pytest.mark.parametrize("names", [["p2", "p3", "p4"], ["p4", "p2"], ["p3"]])
def test_multiscale_roi_align(torch_ops, torch, names):
    pool = torch_ops.MultiScaleRoIAlign(names, (2, 3), 2, **OPTIONS)
    maps = {name: tensor.requires_grad_() for name, tensor in tensors(torch, MAPS).items()}
    pooled = pool(maps, tensors(torch, BOXES), IMAGES)
    want = cell_by_cell(names)
    compare.close(pooled.detach(), want, pooled.detach())
    pooled.sum().backward()
    ones = np.ones(want.shape, np.float32)
    for name in MAPS:
        if name not in names:
            assert maps[name].grad is None
            continue
        scale, rows = of_level(names, name)
        want = reference_roi.roi_align_backward(
            ones[rows], reference_roi.as_rois(BOXES)[rows], MAPS[name].shape, scale, 2
        )
        np.testing.assert_allclose(maps[name].grad.numpy(), want, atol=1e-5)


def of_level(names, name):
    """The scale of a map, and which boxes are pooled from it."""
    scales = {one: reference_roi.scale_of(MAPS[one].shape[2], IMAGES) for one in names}
    order = sorted(scales.values(), reverse=True)
    levels = [
        reference_roi.level_of(roi[1:], order, OPTIONS["canonical_scale"], OPTIONS["canonical_level"], np.float32)
        for roi in reference_roi.as_rois(BOXES)
    ]
    return scales[name], np.array([order[level] == scales[name] for level in levels])


def cell_by_cell(names):
    want = np.full((5, 12, 2, 3), np.nan, np.float32)
    for name in names:
        scale, rows = of_level(names, name)
        want[rows] = reference_roi.roi_align(MAPS[name], reference_roi.as_rois(BOXES)[rows], (2, 3), scale, 2)
    return want


def test_multiscale_roi_align_as_the_plain_class(torch_ops, torch):
    """Options that are not torchvision's, RoIs in one tensor, 16 bits, and errors."""
    maps, rois = tensors(torch, MAPS), torch.from_numpy(reference_roi.as_rois(BOXES))
    options = {**OPTIONS, "aligned": True, "scales": [0.3, 0.1, 0.05]}
    want = cvops.MultiScaleRoIAlign(list(MAPS), 2, 2, **options)(MAPS, BOXES, [])
    got = torch_ops.MultiScaleRoIAlign(list(MAPS), 2, 2, **options)(maps, rois, [])
    np.testing.assert_array_equal(got.numpy(), want)
    half = {name: tensor.bfloat16() for name, tensor in maps.items()}
    pool = torch_ops.MultiScaleRoIAlign(list(MAPS), 2, 2, **options)
    assert pool(half, rois, []).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert pool({**half, "p3": maps["p3"]}, rois, []).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="must be bfloat16, the dtype of"):
        pool({**half, "p3": maps["p3"]}, rois, [])
    with pytest.raises(KeyError, match="`features` must have 'p9'"):
        torch_ops.MultiScaleRoIAlign(["p9"], 2, 2)(maps, rois, IMAGES)
    with pytest.raises(ValueError, match=re.escape("`image_shapes` must have at least one (height, width)")):
        torch_ops.MultiScaleRoIAlign(["p2"], 2, 2)(maps, rois, [])
    with pytest.raises(ValueError, match="`boxes` must have shape"):
        pool(maps, rois[:, 1:], [])
    with pytest.raises(ValueError, match="`output_size` must be >= 1, got 0"):
        torch_ops.MultiScaleRoIAlign(["p2"], 0, 2)


@pytest.mark.parametrize("how", ["plain", "scripted", "compiled"])
def test_multiscale_roi_align_as_the_plain_function(torch_ops, torch, how):
    rois, maps = torch.from_numpy(reference_roi.as_rois(BOXES)), [*tensors(torch, MAPS).values()]
    options = {"scales": [0.3, 0.1, 0.05], **OPTIONS}
    want = cvops.multiscale_roi_align([*MAPS.values()], BOXES, 2, **options)
    function = {"plain": lambda f: f, "scripted": torch.jit.script, "compiled": torch.compile}[how](
        torch_ops.multiscale_roi_align
    )
    maps = [each.requires_grad_() for each in maps]
    got = function(maps, rois, (2, 2), **options)
    np.testing.assert_array_equal(got.detach().numpy(), want)
    got.sum().backward()
    shapes = [each.shape for each in maps]
    gradients = cvops.multiscale_roi_align_backward(np.ones_like(want), BOXES, shapes, **options)
    for each, gradient in zip(maps, gradients, strict=True):
        np.testing.assert_array_equal(each.grad.numpy(), gradient)


def test_multiscale_roi_align_refuses(torch_ops, torch):
    rois, maps = torch.from_numpy(reference_roi.as_rois(BOXES)), [*tensors(torch, MAPS).values()]
    for features, error, text in [
        (maps[0], TypeError, "`features` must be a list of arrays, got Tensor"),
        ([], ValueError, "`features` must have a map to pool from, got none"),
        ([maps[0], None, maps[2]], TypeError, "`features[1]` must be a tensor, got None"),
    ]:
        with pytest.raises(error, match=re.escape(text)):
            torch_ops.multiscale_roi_align(features, rois, 2, scales=[0.3, 0.1, 0.05])
    with pytest.raises(ValueError, match="`scales` must have one number for each of 3 maps, got 1"):
        torch_ops.multiscale_roi_align(maps, rois, 2, scales=[0.3])


@pytest.mark.parametrize("names", [["p2", "same", "p3"], ["same", "p2"], ["p3", "p2", "same"], ["p2", "p2", "p3"]])
def test_maps_of_one_scale(torch_ops, torch, names):
    """The first named takes the boxes; the other has a gradient of zeros, not none."""
    maps = tensors(torch, {**MAPS, "same": MAPS["p2"] + 1})
    tensors_of_boxes = tensors(torch, BOXES)
    first = [name for i, name in enumerate(names) if name == "p3" or not {"p2", "same"} & set(names[:i])]
    want = torch_ops.MultiScaleRoIAlign(first, 2, 2, **OPTIONS)(maps, tensors_of_boxes, IMAGES)
    given = {name: tensor.requires_grad_() for name, tensor in maps.items()}
    for pool in (
        torch_ops.MultiScaleRoIAlign(names, 2, 2, **OPTIONS),
        torch.jit.script(torch_ops.MultiScaleRoIAlign(names, 2, 2, **OPTIONS)),
    ):
        got = pool(given, tensors_of_boxes, IMAGES)
        assert torch.equal(got, want)
        gradients = torch.autograd.grad(got.sum(), [given[name] for name in dict.fromkeys(names)])
        for name, gradient in zip(dict.fromkeys(names), gradients, strict=True):
            assert gradient.any() == (name in first)


@pytest.mark.parametrize("dynamic", [False, True])
def test_multiscale_roi_align_compiled(torch_ops, torch, dynamic):
    pool = torch_ops.MultiScaleRoIAlign(list(MAPS), (2, 3), 2, **OPTIONS)
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    maps = {name: tensor.requires_grad_() for name, tensor in tensors(torch, MAPS).items()}
    pooled = compiled(maps, tensors(torch, BOXES), IMAGES)
    compare.close(pooled.detach(), cell_by_cell(list(MAPS)), pooled.detach())
    got = torch.autograd.grad(pooled.sin().sum(), list(maps.values()))
    want = torch.autograd.grad(pool(maps, tensors(torch, BOXES), IMAGES).sin().sum(), list(maps.values()))
    torch.testing.assert_close(got, want)
    torch._dynamo.reset()


# ----------------------------------------------------------------------------------------------------- DeformConv2d


def test_deform_conv2d(torch_ops, torch):
    layer = torch_ops.DeformConv2d(4, 6, 3, padding=1, groups=2)
    assert repr(layer) == "DeformConv2d(4, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=2)"
    layer.load_state_dict(tensors(torch, {name: DEFORM[name] for name in ("weight", "bias")}))
    input, offset, mask = tensors(torch, [DEFORM[name] for name in ("input", "offset", "mask")])
    got = layer(input, offset, mask)
    compare.close(got.detach(), torch_calls.want("deform_conv2d"), input)
    got.sum().backward()
    want = reference_deform.deform_conv2d_backward(np.ones((2, 6, 9, 10), np.float32), **DEFORM, padding=1)
    np.testing.assert_allclose(layer.weight.grad, want[2], atol=1e-3)
    np.testing.assert_allclose(layer.bias.grad, want[3], atol=1e-3)
    assert torch_ops.DeformConv2d(4, 6, (3, 2), bias=False).bias is None
    with pytest.raises(ValueError, match="`groups` must divide the channels 4 and 6, got 3"):
        torch_ops.DeformConv2d(4, 6, 3, groups=3)


def test_initial_weights(torch_ops, torch):
    torch.manual_seed(0)
    layer = torch_ops.DeformConv2d(16, 40, 3)
    for parameter in layer.parameters():
        assert 0.9 / 12 < parameter.abs().max() <= 1 / 12
    network = torch_ops.FeaturePyramidNetwork([16], 40)
    assert 0.9 < network.inner_blocks[0][0].weight.abs().max() * (16 / 3) ** 0.5 <= 1
    assert not network.inner_blocks[0][0].bias.any()


# --------------------------------------------------------------------------------------------------- feature pyramids

EXTRA = {
    None: None,
    "pool": lambda torch_ops: torch_ops.LastLevelMaxPool(),
    "p6p7": lambda torch_ops: torch_ops.LastLevelP6P7(5, 5),
}


@pytest.mark.parametrize("extra", EXTRA)
def test_feature_pyramid_network(torch_ops, torch, extra):
    torch.manual_seed(0)
    maps = {"p2": MAP[:, :6], "p3": MAP[:, :7, ::2, ::2], "p4": MAP[:, :8, 1::4, ::4]}
    network = torch_ops.FeaturePyramidNetwork([6, 7, 8], 5, EXTRA[extra] and EXTRA[extra](torch_ops))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    parameters = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    want = reference_deform.feature_pyramid(maps, parameters, extra)
    got = network(tensors(torch, maps))
    assert list(got) == list(want)
    for name, array in want.items():
        compare.close(got[name].detach().clone(), array, got[name].detach().clone())


def test_an_extra_block_of_ones_own(torch_ops, torch):
    class Twice(torch_ops.ExtraFPNBlock):
        def forward(self, results, x, names):
            return [*results, 2 * results[-1]], [*names, "twice"]

    network = torch_ops.FeaturePyramidNetwork([12], 3, Twice())
    results = network({"p2": torch.from_numpy(MAP)})
    assert torch.equal(results["twice"], 2 * results["p2"])
    with pytest.raises(TypeError, match="`extra_blocks` must be an ExtraFPNBlock or None, got str"):
        torch_ops.FeaturePyramidNetwork([12], 3, "pool")
    with pytest.raises(ValueError, match="`maps` must hold 1 maps, got 2"):
        network({"p2": torch.from_numpy(MAP), "p3": torch.from_numpy(MAP)})
    with pytest.raises(ValueError, match="`in_channels_list` must be >= 1, got 0"):
        torch_ops.FeaturePyramidNetwork([0], 3)
    with pytest.raises(NotImplementedError):
        torch_ops.ExtraFPNBlock()([], [], [])


def test_older_state_dicts(torch_ops, torch):
    network = torch_ops.FeaturePyramidNetwork([6, 7], 5, torch_ops.LastLevelP6P7(5, 5))
    state = network.state_dict()
    older = {re.sub(r"(blocks\.\d)\.0", r"\1", name): tensor + 1 for name, tensor in state.items()}
    assert "inner_blocks.1.weight" in older
    network.load_state_dict(older)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, older[re.sub(r"(blocks\.\d)\.0", r"\1", name)])


# ------------------------------------------------------------------------------------------------------ torchvision


def same_modules(torch, one, other, *args):
    """The state dict of each goes into the other, strictly; then both give the same."""
    want = copy.deepcopy(one.state_dict())
    other.load_state_dict(want, strict=True)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    one.load_state_dict(other.state_dict(), strict=True)
    with torch.no_grad():
        results = [module.eval()(*args) for module in (one, other)]
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
    return results


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("extra", [None, "LastLevelMaxPool", "LastLevelP6P7"])
def test_torchvision_has_the_same_feature_pyramid_network(torch_ops, torch, norm, extra, torchvision):
    from torchvision.ops import feature_pyramid_network as peer

    norm_layer = torch.nn.BatchNorm2d if norm else None
    made = []
    for module in (torch_ops, peer):
        block = extra and getattr(module, extra)(*((5, 5) if extra == "LastLevelP6P7" else ()))
        made.append(module.FeaturePyramidNetwork([12, 12, 12], 5, block, norm_layer))
    assert list(made[0].state_dict()) == list(made[1].state_dict())
    results = same_modules(torch, *made, tensors(torch, MAPS))
    assert type(results[0]) is type(results[1])
    assert list(results[0]) == list(results[1])


@pytest.mark.parametrize("bias", [False, True])
def test_torchvision_has_the_same_deform_conv2d(torch_ops, torch, bias, torchvision):
    peer = torchvision.ops
    arguments = (4, 6, 3, 1, 1, 1, 2, bias)
    input, offset, mask = tensors(torch, [DEFORM[name] for name in ("input", "offset", "mask")])
    one, other = torch_ops.DeformConv2d(*arguments), peer.DeformConv2d(*arguments)
    same_modules(torch, one, other, input, offset, mask)
    assert repr(one) == repr(other)


def test_torchvision_has_the_same_multiscale_roi_align(torch_ops, torch, torchvision):
    peer = torchvision.ops
    args = tensors(torch, MAPS), tensors(torch, BOXES), IMAGES
    one, other = (module.MultiScaleRoIAlign(list(MAPS), 2, 2, **OPTIONS) for module in (torch_ops, peer))
    torch.testing.assert_close(one(*args), other(*args))
    assert repr(one) == repr(other)


def test_torchvision_has_the_same_signatures(torch_ops, torch, torchvision):
    """Its arguments come first, under their names and with their defaults; what is missing here is known."""
    import inspect

    peer = torchvision.ops
    for name in set(peer.__all__) & set(torch_ops.__all__):
        here, there = (inspect.signature(getattr(module, name)).parameters for module in (torch_ops, peer))
        names = [parameter for parameter in there if parameter != "self"]
        assert list(here)[: len(names)] == names, name
        for parameter in names:
            assert here[parameter].default == there[parameter].default, (name, parameter)


TORCHVISIONS_OWN = [
    *("StochasticDepth", "stochastic_depth", "FrozenBatchNorm2d", "Conv2dNormActivation", "Conv3dNormActivation"),
    *("SqueezeExcitation", "MLP", "Permute", "drop_block2d", "DropBlock2d", "drop_block3d", "DropBlock3d"),
]


def test_torchvision_has_no_other_names(torch_ops, torchvision):
    peer = torchvision.ops
    assert set(peer.__all__) - set(torch_ops.__all__) == set(TORCHVISIONS_OWN)
    for name in peer.__all__:
        assert name in torch_ops.__all__ or getattr(torch_ops, name) is getattr(peer, name)
        assert hasattr(torch_ops, name)


@pytest.mark.parametrize("name", TORCHVISIONS_OWN)
def test_torchvisions_own_layers_need_torchvision(torch_ops, monkeypatch, name):
    for module in ("torchvision", "torchvision.ops"):
        monkeypatch.setitem(sys.modules, module, None)  # as if not installed
    with pytest.raises(ImportError, match=rf"cvops\.torch\.{name} is torchvision's own: it needs torchvision"):
        getattr(torch_ops, name)
    with pytest.raises(ImportError, match="needs torchvision"):
        exec(f"from cvops.torch import {name}")
    assert name not in torch_ops.__all__
    assert name not in dir(torch_ops)


@pytest.mark.parametrize("name", ["MLPs", "frozenbatchnorm2d", "soft", "__wrapped__", "_C", "Conv2d"])
def test_unknown_names(torch_ops, name):
    with pytest.raises(AttributeError, match=rf"module 'cvops\.torch' has no attribute '{name}'"):
        getattr(torch_ops, name)
    assert not hasattr(torch_ops, name)


def test_refusals_of_multiscale_roi_align(torch_ops, torch):
    maps, boxes = torch.ones(1, 1, 4, 4), [torch.zeros(1, 4)]
    pool = torch_ops.MultiScaleRoIAlign
    for call, text in [
        (lambda: pool(3, 2, 2), "`featmap_names` must be a list of str, got int"),
        (lambda: pool([3], 2, 2), "`featmap_names` must be a list of str, got int in it"),
        (lambda: pool(["a"], 2, 2, scales=3), "`scales` must be a list of numbers, got int"),
        (lambda: pool(["a"], 2, 2, aligned=maps), "`aligned` must be True or False, got Tensor"),
        (lambda: pool(["a"], 2, 2)([maps], boxes, [(4, 4)]), "`features` must be a dict of arrays by name, got list"),
        (lambda: pool(["a"], 2, 2)(maps, boxes, [(4, 4)]), "`features` must be a dict of arrays by name, got Tensor"),
        (
            lambda: torch_ops.nms(boxes[0], torch.zeros(1), 0.5, padded=maps),
            "`padded` must be True or False, got Tensor",
        ),
        (lambda: torch_ops.roi_align(maps, boxes, 1, aligned=maps), "`aligned` must be True or False, got Tensor"),
    ]:
        with pytest.raises(TypeError, match=text):
            call()
    with pytest.raises(ValueError, match=r"`canonical_level` must be <= .*, got an integer of 1329 bits"):
        pool(["a"], 2, 2, canonical_level=10**400)


@pytest.mark.parametrize("dtype", ["bool", "int64", "complex64"])
def test_refused_dtypes_name_the_conversion_of_torch(torch_ops, torch, dtype):
    dtype = getattr(torch, dtype)
    maps, rois = torch.ones(1, 1, 4, 4), torch.zeros(1, 5)
    offset, weight = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 1, 1)
    calls = [
        lambda: torch_ops.roi_align(maps.to(dtype), rois, 2),
        lambda: torch_ops.roi_pool(maps, rois.to(dtype), 2),
        lambda: torch_ops.nms(rois[:, 1:], torch.zeros(1, dtype=dtype), 0.5),
        lambda: torch_ops.deform_conv2d(maps.to(dtype), offset, weight.to(dtype)),
    ]
    if dtype != torch.int64:
        calls += [
            lambda: torch_ops.nms(rois[:, 1:].to(dtype), torch.zeros(1), 0.5),
            lambda: torch_ops.box_area(rois[:, 1:].to(dtype)),
        ]
    for call in calls:
        with pytest.raises(TypeError, match=r": convert it with \.to$"):
            call()
