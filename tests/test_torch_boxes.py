"""Box functions and losses of `cvops.torch`: by the kernels and by PyTorch's formulas, which must agree."""

from __future__ import annotations

import numpy as np
import pytest

from tests import compare, reference, torch_calls
from tests.libraries import require
from tests.torch_calls import BOXES, CALLS

pytestmark = torch_calls.quiet
MEASURES = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")
EDGES = np.array(
    [[0, 0, 8, 9], [0, 0, 8, 9], [3, 3, 3, 3], [5, 5, 2, 2], [np.nan, 0, 1, 1], [0, 0, np.inf, 4], [-7, -3, 1, 2]],
    np.float32,
)


@pytest.fixture(scope="module")
def torch():
    return require("torch")


@pytest.fixture(scope="module")
def ops(torch):
    import cvops.torch

    return cvops.torch


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int16"])
def test_measures_with_and_without_gradients(ops, torch, name, dtype):
    values = (BOXES if "int" in dtype else np.concatenate([BOXES, EDGES])).astype(dtype)
    with np.errstate(all="ignore"):
        want = getattr(reference, name)(values, values[3:])
    boxes = torch.from_numpy(values)
    compare.close(getattr(ops, name)(boxes, boxes[3:]), want, boxes)
    if "float" in dtype:
        recorded = getattr(ops, name)(boxes.requires_grad_(), boxes[3:])
        compare.close(recorded.detach(), want, boxes)
        assert recorded.requires_grad


@pytest.mark.parametrize("fmt", ["xywh", "cxcywh"])
def test_formats(ops, torch, fmt):
    boxes = torch.from_numpy(BOXES)
    want = reference.box_iou(BOXES, BOXES[:4], fmt)
    compare.close(ops.box_iou(boxes, boxes[:4], fmt), want, boxes)
    compare.close(ops.box_iou(boxes.clone().requires_grad_(), boxes[:4], fmt).detach(), want, boxes)
    compare.close(ops.box_area(boxes, fmt), reference.box_area(BOXES, fmt), boxes)


def test_leading_dimensions(ops, torch):
    boxes = torch.from_numpy(BOXES)
    one, other = boxes.reshape(4, 1, 6, 4), boxes[:10].reshape(2, 5, 4)
    got = ops.complete_box_iou(one, other)
    assert got.shape == (4, 2, 6, 5)
    torch.testing.assert_close(ops.complete_box_iou(one.clone().requires_grad_(), other).detach(), got)


@pytest.mark.parametrize("name", [*MEASURES, "box_area", "box_convert", "clip_boxes_to_image"])
def test_gradcheck(ops, torch, name):
    args = torch_calls.tensors(name, torch.float64)
    boxes = [arg for arg in args if isinstance(arg, torch.Tensor)]
    options = args[len(boxes) :]
    if name == "complete_box_iou":  # the weight of a term counts as constant
        args = [box.requires_grad_() for box in boxes]
        (gradient,) = torch.autograd.grad(ops.complete_box_iou(*args).sum(), args[:1])
        assert gradient.isfinite().all()
        return
    check = torch.autograd.gradcheck(
        lambda *boxes: getattr(ops, name)(*boxes, *options), [b.requires_grad_() for b in boxes]
    )
    assert check


@pytest.mark.parametrize("name", [*MEASURES, "box_area", "box_convert", "clip_boxes_to_image"])
def test_torch_func(ops, torch, name):
    """What PyTorch computes itself has all derivatives."""
    boxes, *others = torch_calls.tensors(name, torch.float64)

    def total(boxes):
        return getattr(ops, name)(boxes, *others).pow(2).sum()

    (want,) = torch.autograd.grad(total(boxes.requires_grad_()), boxes)
    boxes = boxes.detach()
    torch.testing.assert_close(torch.func.grad(total)(boxes), want)
    compiled = torch.compile(lambda boxes: torch.func.grad(total)(boxes), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(boxes), want)
    torch._dynamo.reset()
    if name != "complete_box_iou":
        torch.testing.assert_close(torch.func.jacfwd(total)(boxes), want)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_clip_boxes_of_integers(ops, torch, dtype):
    boxes = (BOXES * 2).astype(dtype)
    got = ops.clip_boxes_to_image(torch.from_numpy(boxes), (300, 100.5))
    compare.same(got.clone(), reference.clip_boxes_to_image(boxes, (300, 100)), got.clone())


def test_conversions_are_copies(ops, torch):
    boxes = torch.from_numpy(BOXES)
    for fmt in ("xyxy", "xywh", "cxcywh"):
        got = ops.box_convert(boxes, fmt, fmt)
        assert torch.equal(got, boxes)
        assert got.data_ptr() != boxes.data_ptr()


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_masks_without_pixels(ops, torch, shape):
    assert torch.equal(ops.masks_to_boxes(torch.zeros(shape)), torch.zeros(shape[0], 4))


# ----------------------------------------------------------------------------------------------------------- losses


def pairs(name, values):
    """The loss of each box with its counterpart, from the diagonal of the measure."""
    measure = getattr(reference, name.removesuffix("_loss"))
    return 1 - np.diagonal(measure(values, np.roll(values, 1, 0)))


@pytest.mark.parametrize("name", ["generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_box_losses(ops, torch, name, dtype):
    boxes = torch.from_numpy(BOXES).to(getattr(torch, dtype))
    values = boxes.double().numpy()
    want, other = pairs(name, values), boxes.roll(1, 0)
    loss = getattr(ops, name)
    tolerance = 1e-9 if dtype == "float64" else 1e-5
    got = loss(boxes, other)
    assert got.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    np.testing.assert_allclose(got.numpy(), want, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(loss(boxes, other, "sum").item(), want.sum(), rtol=tolerance)
    np.testing.assert_allclose(loss(boxes, other, reduction="mean").item(), want.mean(), rtol=tolerance)
    assert loss(boxes[:0], other[:0], "mean").item() == 0
    assert loss(boxes[0], other[0]).shape == ()
    with pytest.raises(ValueError, match="`reduction` must be none, mean or sum, got 'all'"):
        loss(boxes, other, "all")
    with pytest.raises(ValueError, match=r"`boxes2` must have the shape of `boxes1`, \(24, 4\), got \(23, 4\)"):
        loss(boxes, other[1:])


@pytest.mark.parametrize("name", ["generalized_box_iou_loss", "distance_box_iou_loss"])
def test_gradients_of_box_losses(ops, torch, name):
    boxes = torch.from_numpy(BOXES).double()
    inputs = boxes.requires_grad_(), boxes.detach().roll(1, 0).requires_grad_()
    assert torch.autograd.gradcheck(getattr(ops, name), inputs)
    assert torch.autograd.gradgradcheck(getattr(ops, name), [x[:2].detach().requires_grad_() for x in inputs])


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2), (0.7, 1.5), (-1, 2), (0, 0)])
def test_sigmoid_focal_loss(ops, torch, alpha, gamma):
    random = np.random.default_rng(0)
    logits, targets = random.normal(0, 3, 40), random.integers(0, 2, 40).astype(float)
    probability = 1 / (1 + np.exp(-logits))
    right = np.where(targets == 1, probability, 1 - probability)
    want = -np.log(right) * (1 - right) ** gamma
    if alpha >= 0:
        want *= np.where(targets == 1, alpha, 1 - alpha)
    given = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(targets)
    np.testing.assert_allclose(ops.sigmoid_focal_loss(*given, alpha, gamma).detach(), want, rtol=1e-9)
    np.testing.assert_allclose(ops.sigmoid_focal_loss(*given, alpha, gamma, "mean").item(), want.mean(), rtol=1e-9)
    assert torch.autograd.gradcheck(lambda logits: ops.sigmoid_focal_loss(logits, given[1], alpha, gamma), given[:1])


def test_sigmoid_focal_loss_refuses(ops, torch):
    with pytest.raises(ValueError, match=r"`alpha` must be in \[0, 1\], or -1 for no weights, got 1.5"):
        ops.sigmoid_focal_loss(torch.zeros(2), torch.zeros(2), 1.5)


# ------------------------------------------------------------------------------------------------------ torchvision


@pytest.mark.parametrize("name", [name for name in CALLS if "box" in name])
def test_torchvision_gives_the_same(ops, torch, name):
    peer = require("torchvision").ops
    args = torch_calls.tensors(name)
    torch.testing.assert_close(getattr(ops, name)(*args), getattr(peer, name)(*args))


@pytest.mark.parametrize("name", ["generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_torchvision_has_the_same_losses(ops, torch, name, reduction):
    peer = require("torchvision").ops
    boxes, other = torch.from_numpy(BOXES), torch.from_numpy(BOXES).roll(1, 0)
    gradients = []
    for module in (ops, peer):
        one = boxes.clone().requires_grad_()
        loss = getattr(module, name)(one, other, reduction=reduction)
        gradients.append((loss.detach(), *torch.autograd.grad(loss.sum(), one)))
    torch.testing.assert_close(*gradients)


def test_torchvision_has_the_same_focal_loss(ops, torch):
    peer = require("torchvision").ops
    logits, targets = torch.linspace(-5, 5, 30), (torch.arange(30) % 3 == 0).float()
    torch.testing.assert_close(ops.sigmoid_focal_loss(logits, targets), peer.sigmoid_focal_loss(logits, targets))
