"""Box functions and losses of `cvops.torch`: by the kernels and by PyTorch's formulas, which must agree."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests import compare, reference, torch_calls
from tests.torch_calls import BOXES, CALLS

pytestmark = torch_calls.quiet
MEASURES = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")
EDGES = np.array(
    [[0, 0, 8, 9], [0, 0, 8, 9], [3, 3, 3, 3], [5, 5, 2, 2], [np.nan, 0, 1, 1], [0, 0, np.inf, 4], [-7, -3, 1, 2]],
    np.float32,
)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int16"])
def test_measures_with_and_without_gradients(torch_ops, torch, name, dtype):
    values = (BOXES if "int" in dtype else np.concatenate([BOXES, EDGES])).astype(dtype)
    with np.errstate(all="ignore"):
        want = getattr(reference, name)(values, values[3:])
    boxes = torch.from_numpy(values)
    compare.close(getattr(torch_ops, name)(boxes, boxes[3:]), want, boxes)
    if "float" in dtype:
        recorded = getattr(torch_ops, name)(boxes.requires_grad_(), boxes[3:])
        compare.close(recorded.detach(), want, boxes)
        assert recorded.requires_grad


@pytest.mark.parametrize("fmt", ["xywh", "cxcywh"])
def test_formats(torch_ops, torch, fmt):
    boxes = torch.from_numpy(BOXES)
    want = reference.box_iou(BOXES, BOXES[:4], fmt)
    compare.close(torch_ops.box_iou(boxes, boxes[:4], fmt), want, boxes)
    compare.close(torch_ops.box_iou(boxes.clone().requires_grad_(), boxes[:4], fmt).detach(), want, boxes)
    compare.close(torch_ops.box_area(boxes, fmt), reference.box_area(BOXES, fmt), boxes)


def test_leading_dimensions(torch_ops, torch):
    boxes = torch.from_numpy(BOXES)
    one, other = boxes.reshape(4, 1, 6, 4), boxes[:10].reshape(2, 5, 4)
    got = torch_ops.complete_box_iou(one, other)
    assert got.shape == (4, 2, 6, 5)
    torch.testing.assert_close(torch_ops.complete_box_iou(one.clone().requires_grad_(), other).detach(), got)


@pytest.mark.parametrize("name", [*MEASURES, "box_area", "box_convert", "clip_boxes_to_image"])
def test_gradcheck(torch_ops, torch, name):
    args = torch_calls.tensors(name, torch.float64)
    boxes = [arg for arg in args if isinstance(arg, torch.Tensor)]
    options = args[len(boxes) :]
    if name == "complete_box_iou":  # the weight of a term counts as constant
        args = [box.requires_grad_() for box in boxes]
        (gradient,) = torch.autograd.grad(torch_ops.complete_box_iou(*args).sum(), args[:1])
        assert gradient.isfinite().all()
        return
    check = torch.autograd.gradcheck(
        lambda *boxes: getattr(torch_ops, name)(*boxes, *options), [b.requires_grad_() for b in boxes]
    )
    assert check


@pytest.mark.parametrize("name", [*MEASURES, "box_area", "box_convert", "clip_boxes_to_image"])
def test_torch_func(torch_ops, torch, name):
    """What PyTorch computes itself has all derivatives."""
    boxes, *others = torch_calls.tensors(name, torch.float64)

    def total(boxes):
        return getattr(torch_ops, name)(boxes, *others).pow(2).sum()

    (want,) = torch.autograd.grad(total(boxes.requires_grad_()), boxes)
    boxes = boxes.detach()
    torch.testing.assert_close(torch.func.grad(total)(boxes), want)
    compiled = torch.compile(lambda boxes: torch.func.grad(total)(boxes), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(boxes), want)
    torch._dynamo.reset()
    if name != "complete_box_iou":
        torch.testing.assert_close(torch.func.jacfwd(total)(boxes), want)


INTEGERS = "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"
every_integer = pytest.mark.parametrize("dtype", INTEGERS)
FORMATS = "xyxy", "xywh", "cxcywh"


@every_integer
def test_clip_boxes_of_integers(torch_ops, torch, dtype):
    info = np.iinfo(dtype)
    boxes = np.concatenate([(BOXES % 100).astype(dtype), np.array([[info.min, info.max, info.max, info.min]], dtype)])
    for size in ((30, 50.5), (1e300, 0), (info.max, info.max - 1)):
        got = torch_ops.clip_boxes_to_image(torch.from_numpy(boxes), size)
        want = reference.clip_boxes_to_image(boxes, [int(side) for side in size])
        compare.same(got.clone(), want, got.clone())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_clip_boxes_to_an_image_beyond_the_dtype(torch_ops, torch, dtype):
    boxes = np.array([[-np.inf, -5, np.inf, np.nan], [1, 2, 3, 4]], dtype)
    for size in ((1e300, 1e5), (np.inf, 10.5)):
        got = torch_ops.clip_boxes_to_image(torch.from_numpy(boxes), size)
        with np.errstate(over="ignore"):
            want = reference.clip_boxes_to_image(boxes, [np.dtype(dtype).type(side) for side in size])
        compare.same(got, want, got)


@every_integer
def test_integers_become_floats_where_a_conversion_halves(torch_ops, torch, dtype):
    boxes = np.array([[3, 3, 20, 21], [50, 51, 21, 31], [10, 10, 31, 41]], dtype)
    given = torch.from_numpy(boxes)
    for in_fmt in FORMATS:
        for out_fmt in FORMATS:
            got = torch_ops.box_convert(given, in_fmt, out_fmt)
            compare.same(got.clone(), reference.box_convert(boxes, in_fmt, out_fmt), given)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_boxes_are_converted_in_float32(torch_ops, torch, dtype):
    boxes = torch.tensor([[60000, 2047, 60032, 2048], [-3, 0.1, 8, 0.3]]).to(getattr(torch, dtype))
    for in_fmt in FORMATS:
        for out_fmt in FORMATS:
            want = reference.box_convert(boxes.float().numpy(), in_fmt, out_fmt)
            assert torch.equal(torch_ops.box_convert(boxes, in_fmt, out_fmt), torch.from_numpy(want).to(boxes.dtype))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", *INTEGERS])
def test_one_dtype_of_areas_and_measures(torch_ops, torch, dtype):
    """The one that the plain functions have, also where torch.compile asks for it."""
    boxes = torch.tensor([[1, 2, 5, 9], [2, 3, 6, 8]], dtype=torch.float32).to(getattr(torch, dtype))
    wide = dtype.removeprefix("u") in ("float64", "int32", "int64")
    assert torch_ops.box_area(boxes).dtype == (torch.float64 if wide else torch.float32)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(boxes)
        for name in MEASURES:
            assert getattr(torch_ops, name)(fake, fake).dtype == (torch.float64 if wide else torch.float32)
    for name in MEASURES:
        got = getattr(torch_ops, name)(boxes, boxes)
        assert got.dtype == (torch.float64 if wide else torch.float32)
        assert torch.equal(got, getattr(torch_ops, name)(boxes.double(), boxes.double()).to(got.dtype)) or not wide


def test_conversions_are_copies(torch_ops, torch):
    boxes = torch.from_numpy(BOXES)
    for fmt in ("xyxy", "xywh", "cxcywh"):
        got = torch_ops.box_convert(boxes, fmt, fmt)
        assert torch.equal(got, boxes)
        assert got.data_ptr() != boxes.data_ptr()


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_masks_without_pixels(torch_ops, torch, shape):
    assert torch.equal(torch_ops.masks_to_boxes(torch.zeros(shape)), torch.zeros(shape[0], 4))


# ----------------------------------------------------------------------------------------------------------- losses


def pairs(name, values):
    """The loss of each box with its counterpart, from the diagonal of the measure."""
    measure = getattr(reference, name.removesuffix("_loss"))
    return 1 - np.diagonal(measure(values, np.roll(values, 1, 0)))


@pytest.mark.parametrize("name", ["generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_box_losses(torch_ops, torch, name, dtype):
    boxes = torch.from_numpy(BOXES).to(getattr(torch, dtype))
    values = boxes.double().numpy()
    want, other = pairs(name, values), boxes.roll(1, 0)
    loss = getattr(torch_ops, name)
    tolerance = 1e-9 if dtype == "float64" else 1e-5
    got = loss(boxes, other)
    assert got.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    np.testing.assert_allclose(got.numpy(), want, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(loss(boxes, other, "sum").item(), want.sum(), rtol=tolerance)
    np.testing.assert_allclose(loss(boxes, other, reduction="mean").item(), want.mean(), rtol=tolerance)
    assert loss(boxes[:0], other[:0], "mean").item() == 0
    assert loss(boxes[0], other[0]).shape == ()
    with pytest.raises(ValueError, match=r"`reduction` must be none, mean or sum, got 'all'"):
        loss(boxes, other, "all")
    with pytest.raises(ValueError, match=r"`boxes2` must have the shape of `boxes1`, \(24, 4\), got \(23, 4\)"):
        loss(boxes, other[1:])


@pytest.mark.parametrize("name", ["generalized_box_iou_loss", "distance_box_iou_loss"])
def test_gradients_of_box_losses(torch_ops, torch, name):
    boxes = torch.from_numpy(BOXES).double()
    inputs = boxes.requires_grad_(), boxes.detach().roll(1, 0).requires_grad_()
    assert torch.autograd.gradcheck(getattr(torch_ops, name), inputs)
    assert torch.autograd.gradgradcheck(getattr(torch_ops, name), [x[:2].detach().requires_grad_() for x in inputs])


LOSSES = "generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"
# Without height, without width, points, subnormal, inverted, far away, and the target itself; none may end a training.
DEGENERATE = [
    [12, 20, 28, 20], [12, 20, 12, 40], [12, 20, 12, 20], [10, 10, 10, 10], [0, 0, 0, 0], [0, 0, 1e-30, 0],
    [0, 0, 1e-30, 1e-30], [28, 40, 12, 20], [12, 40, 28, 20], [30, 50, 60, 90], [1e4, 1e4, 2e4, 2e4], [10, 10, 30, 50],
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_degenerate_boxes_are_finite(torch_ops, torch, name, dtype):
    boxes = torch.tensor(DEGENERATE, dtype=getattr(torch, dtype))
    for other in (boxes[-1:].expand(len(boxes), 4), boxes, boxes.roll(1, 0), boxes.roll(3, 0)):
        for reduction in ("none", "sum", "mean"):
            one, two = boxes.clone().requires_grad_(), other.clone().requires_grad_()
            # 1 / eps is a factor of gradients, and float16 ends at 65504.
            loss = getattr(torch_ops, name)(one, two, reduction, 1e-2 if dtype == "float16" else 1e-7)
            assert loss.isfinite().all()
            loss.sum().backward()
            assert one.grad.isfinite().all()
            assert two.grad.isfinite().all()


@pytest.mark.parametrize("name", ["generalized_box_iou", "distance_box_iou", "complete_box_iou"])
def test_gradients_of_measures_with_a_collapsed_box_are_finite(torch_ops, torch, name):
    target = torch.tensor([[10.0, 10, 30, 50]])
    boxes = torch.tensor(DEGENERATE, requires_grad=True)
    getattr(torch_ops, name)(boxes, target).sum().backward()
    assert boxes.grad.isfinite().all()
    gradient = torch.func.grad(lambda boxes: getattr(torch_ops, name)(boxes, target).sum())(boxes.detach())
    torch.testing.assert_close(gradient, boxes.grad)


def test_the_angle_of_complete_iou_is_differentiated(torch_ops, torch):
    """With its weight held constant, against finite differences; also where there is no height."""
    target = torch.tensor([[10.0, 10, 30, 50]], dtype=torch.float64)
    for box in ([12.0, 20, 28, 20], [12.0, 20, 12, 40], [12.0, 20, 28, 30]):
        boxes = torch.tensor([box], dtype=torch.float64, requires_grad=True)
        angle = torch_ops._boxes.measures.angle
        (got,) = torch.autograd.grad(angle(boxes).sum(), boxes)
        step = 1e-6 * torch.eye(4, dtype=torch.float64)
        want = [((angle(boxes + row) - angle(boxes - row)) / 2e-6).item() for row in step]
        torch.testing.assert_close(got[0], torch.tensor(want, dtype=torch.float64), atol=1e-8, rtol=1e-8)
    points = torch.zeros(1, 4, requires_grad=True)
    torch_ops._boxes.measures.angle(points).sum().backward()
    assert points.grad.tolist() == [[0, 0, 0, 0]]
    assert torch_ops.complete_box_iou(target, target).item() == 1


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("gamma", [0, 0.25, 0.5, 1, 1.5, 2, 5])
@pytest.mark.parametrize("alpha", [0.25, 0, 1, -1])
def test_gradients_of_saturated_logits_are_finite(torch_ops, torch, dtype, gamma, alpha):
    """Where the right class is certain, up to infinity, the loss and its gradient are 0."""
    dtype = getattr(torch, dtype)
    sizes = torch.tensor([8, 17, 30, 89, 104, 200, 800, 6e4, math.inf], dtype=torch.float64).to(dtype)
    for sign, target in ((1, 1), (-1, 0)):
        logits = (sign * sizes).requires_grad_()
        loss = torch_ops.sigmoid_focal_loss(logits, torch.full_like(logits, target), alpha, gamma)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert logits.grad.isfinite().all()
        assert loss[-3:].tolist() == [0, 0, 0]
        assert logits.grad[-3:].tolist() == [0, 0, 0]
    wrong = torch.tensor([-30.0, 30], dtype=dtype, requires_grad=True)
    torch_ops.sigmoid_focal_loss(wrong, torch.tensor([1, 0], dtype=dtype), 0.5, gamma).sum().backward()
    torch.testing.assert_close(wrong.grad, torch.tensor([-0.5, 0.5], dtype=dtype))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2), (0.7, 1.5), (-1, 2), (0, 0)])
def test_sigmoid_focal_loss(torch_ops, torch, alpha, gamma):
    random = np.random.default_rng(0)
    logits, targets = random.normal(0, 3, 40), random.integers(0, 2, 40).astype(float)
    probability = 1 / (1 + np.exp(-logits))
    right = np.where(targets == 1, probability, 1 - probability)
    want = -np.log(right) * (1 - right) ** gamma
    if alpha >= 0:
        want *= np.where(targets == 1, alpha, 1 - alpha)
    given = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(targets)
    np.testing.assert_allclose(torch_ops.sigmoid_focal_loss(*given, alpha, gamma).detach(), want, rtol=1e-9)
    np.testing.assert_allclose(
        torch_ops.sigmoid_focal_loss(*given, alpha, gamma, "mean").item(), want.mean(), rtol=1e-9
    )
    assert torch.autograd.gradcheck(
        lambda logits: torch_ops.sigmoid_focal_loss(logits, given[1], alpha, gamma), given[:1]
    )


def test_sigmoid_focal_loss_refuses(torch_ops, torch):
    with pytest.raises(ValueError, match=r"`alpha` must be in \[0, 1\], or -1 for no weights, got 1.5"):
        torch_ops.sigmoid_focal_loss(torch.zeros(2), torch.zeros(2), 1.5)
    for shape in ((1,), (3,), (2, 2)):
        with pytest.raises(ValueError, match=r"`targets` must have the shape of `inputs`, \(2,\), got \("):
            torch_ops.sigmoid_focal_loss(torch.zeros(2), torch.zeros(shape))
    for inputs, targets, name in (([0.0], torch.zeros(1), "inputs"), (torch.zeros(1), np.zeros(1), "targets")):
        with pytest.raises(TypeError, match=f"`{name}` must be a tensor, got "):
            torch_ops.sigmoid_focal_loss(inputs, targets)


# ------------------------------------------------------------------------------------------------------ torchvision


@pytest.mark.parametrize("name", [name for name in CALLS if "box" in name])
def test_torchvision_gives_the_same(torch_ops, torch, name, torchvision):
    peer = torchvision.ops
    args = torch_calls.tensors(name)
    torch.testing.assert_close(getattr(torch_ops, name)(*args), getattr(peer, name)(*args))


@pytest.mark.parametrize("name", ["generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_torchvision_has_the_same_losses(torch_ops, torch, name, reduction, torchvision):
    peer = torchvision.ops
    boxes, other = torch.from_numpy(BOXES), torch.from_numpy(BOXES).roll(1, 0)
    gradients = []
    for module in (torch_ops, peer):
        one = boxes.clone().requires_grad_()
        loss = getattr(module, name)(one, other, reduction=reduction)
        gradients.append((loss.detach(), *torch.autograd.grad(loss.sum(), one)))
    torch.testing.assert_close(*gradients)


def test_torchvision_has_the_same_focal_loss(torch_ops, torch, torchvision):
    peer = torchvision.ops
    logits, targets = torch.linspace(-5, 5, 30), (torch.arange(30) % 3 == 0).float()
    torch.testing.assert_close(torch_ops.sigmoid_focal_loss(logits, targets), peer.sigmoid_focal_loss(logits, targets))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_refuse_with_their_own_words(torch_ops, torch, name):
    boxes, large = torch.from_numpy(BOXES), torch.full((2000, 2), 123.25)
    loss = getattr(torch_ops, name)
    for eps in (10**400, -(10**400), 10**5000):
        with pytest.raises(ValueError, match=r"`eps` must be a number that a float holds, got an integer of .* bits"):
            loss(boxes, boxes, "sum", eps)
    for eps in ("1", None, [1.0], large, 1j):
        with pytest.raises(TypeError, match="`eps` must be a Python or NumPy number, got "):
            loss(boxes, boxes, "sum", eps)
    for reduction in (3, None, large, large.numpy(), ["sum"]):
        with pytest.raises(TypeError, match=r"`reduction` must be none, mean or sum, got \w+$"):
            loss(boxes, boxes, reduction)


def test_focal_loss_refuses_with_its_own_words(torch_ops, torch):
    logits, large = torch.zeros(3), torch.full((2000, 2), 123.25)
    for name in ("alpha", "gamma"):
        with pytest.raises(ValueError, match=f"`{name}` must be a number that a float holds"):
            torch_ops.sigmoid_focal_loss(logits, logits, **{name: 10**400})
        for value in ("1", None, [1.0], large, large.numpy()):
            with pytest.raises(TypeError, match=f"`{name}` must be a Python or NumPy number, got "):
                torch_ops.sigmoid_focal_loss(logits, logits, **{name: value})


@pytest.mark.parametrize("way", ["compile", "export"])
def test_clipping_to_any_image(torch_ops, torch, way):
    """One program for images of all sizes."""

    class Clipped(torch.nn.Module):
        def forward(self, boxes, image):
            return torch_ops.clip_boxes_to_image(boxes, image.shape[-2:])

    boxes, images = torch.from_numpy(BOXES), [torch.zeros(1, 3, *size) for size in ((20, 30), (50, 41), (7, 9))]
    if way == "compile":
        program = torch.compile(Clipped(), fullgraph=True, dynamic=True, backend="aot_eager")
    else:
        dynamic = {"boxes": None, "image": {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}}
        program = torch.export.export(Clipped(), (boxes, images[0]), dynamic_shapes=dynamic).module()
    for image in images:
        assert torch.equal(program(boxes, image), Clipped()(boxes, image))
    torch._dynamo.reset()
