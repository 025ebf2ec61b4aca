"""The decoders of `cvops.torch`: answers of the reference, derivatives, torch.compile and torch.func."""

from __future__ import annotations

import numpy as np
import pytest

import cvops
from tests import compare, torch_calls
from tests import reference_decode as reference
from tests.test_decode import ANCHORS, ORDINARY, REFUSED, some

pytestmark = torch_calls.quiet
every_function = pytest.mark.parametrize("name", ORDINARY)


def Head(torch, torch_ops):
    """A module from deltas, anchors, scores and an image to detections in pixels of another."""

    class Head(torch.nn.Module):
        def forward(self, deltas, anchors, scores, image):
            boxes = torch_ops.decode_boxes(deltas, anchors, weights=(10, 10, 5, 5), clip=None)
            found = torch_ops.multiclass_nms(boxes, scores, 0.5, score_threshold=0.3, max_output=7)
            kept = boxes[found.image, found.box]
            size = image.shape[-2:]
            return torch_ops.scale_boxes(kept, (96.0, 128.0), size, letterbox=True), found.image, found.label

    return Head().eval()


def head_arguments(torch, images, length):
    deltas, anchors = torch.randn(images, length, 4), torch.rand(length, 4) * 60
    anchors[:, 2:] = anchors[:, :2] + 20
    return deltas, anchors, torch.rand(images, length, 3), torch.zeros(1, 3, 48 + images, 70)


def arrays_of(name):
    return [arg for arg in ORDINARY[name][0] if isinstance(arg, np.ndarray)]


def function_of_tensors(torch_ops, name):
    """The function of its tensors alone."""
    (args, options), count = ORDINARY[name], len(arrays_of(name))
    return lambda *tensors: getattr(torch_ops, name)(*tensors, *args[count:], **options)


@every_function
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int32", "uint8"])
def test_answers_of_the_reference(torch_ops, torch, name, dtype):
    values = [abs(value).astype(dtype) for value in arrays_of(name)]
    args, options = ORDINARY[name]
    want = getattr(reference, name)(*values, *args[len(values) :], **options)
    got = function_of_tensors(torch_ops, name)(*map(torch.from_numpy, values))
    compare.close(got, want, torch.from_numpy(values[0]))


@every_function
def test_bfloat16(torch_ops, torch, name):
    tensors = [torch.from_numpy(value).bfloat16() for value in arrays_of(name)]
    got, want = (function_of_tensors(torch_ops, name)(*some) for some in (tensors, [t.float() for t in tensors]))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want.bfloat16())


@every_function
def test_derivatives(torch_ops, torch, name):
    tensors = [torch.from_numpy(value).double().requires_grad_() for value in arrays_of(name)]
    torch.autograd.gradcheck(function_of_tensors(torch_ops, name), tensors, check_forward_ad=True)
    torch.autograd.gradgradcheck(function_of_tensors(torch_ops, name), tensors)


def test_derivatives_at_the_clip(torch_ops, torch):
    """As torch.clamp, so that no weight is updated by half."""
    deltas = torch.tensor([[0.0, 0, 1, 1.5], [0, 0, 0.5, 1]], requires_grad=True)
    torch_ops.decode_boxes(deltas, torch.tensor([0.0, 0, 10, 20]), clip=1)[:, 2:].sum().backward()
    want = [[10, 20, 5 * np.e, 0], [10, 20, 5 * np.sqrt(np.e), 10 * np.e]]
    torch.testing.assert_close(deltas.grad, torch.tensor(want, dtype=torch.float32))


@every_function
def test_transforms_and_compile(torch_ops, torch, name):
    function, values = function_of_tensors(torch_ops, name), [torch.from_numpy(value) for value in arrays_of(name)]
    want = function(*values)
    batches = [torch.stack([value, value.flip(0)]) for value in values]
    torch.testing.assert_close(torch.func.vmap(function)(*batches)[0], want)
    torch.testing.assert_close(
        torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")(*values), want
    )


SHAPES_AND_NUMBERS = [
    row for row in REFUSED if row[0] in ORDINARY and all(isinstance(arg, np.ndarray) for arg in row[1][:1])
]


@pytest.mark.parametrize(("name", "args", "options", "error", "text"), SHAPES_AND_NUMBERS)
def test_refused_as_in_cvops(torch_ops, torch, name, args, options, error, text):
    args = [torch.from_numpy(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    with pytest.raises(error) as plain:
        getattr(cvops, name)(*args, **options)
    with pytest.raises(error) as raised:
        getattr(torch_ops, name)(*args, **options)
    expected = str(plain.value).replace("must be an array", "must be a tensor")
    assert str(raised.value).partition(", ")[0].partition(":")[0] == expected.partition(", ")[0].partition(":")[0]


def test_numbers_in_tensors(torch_ops, torch):
    """As in every function of cvops.torch."""
    deltas, anchors = map(torch.from_numpy, some(7))
    ten, five, half = torch.tensor(10), torch.tensor([5.0]), torch.tensor(0.5, dtype=torch.float16)
    for function in (torch_ops.decode_boxes, torch_ops.encode_boxes):
        got = function(deltas, anchors, (ten, 10, five, np.float32(5)))
        torch.testing.assert_close(got, function(deltas, anchors, (10, 10, 5, 5)), rtol=0, atol=0, equal_nan=True)
    got = torch_ops.decode_boxes(deltas, anchors, clip=half)
    assert torch.equal(got, torch_ops.decode_boxes(deltas, anchors, clip=0.5))
    want = torch_ops.scale_boxes(anchors, (640, 512), (480, 853), letterbox=True)
    for sizes in (
        (torch.tensor([640, 512]), (480, torch.tensor(853.0))),
        ((torch.tensor([640]), 512), torch.tensor([480.0, 853.0])),
        (np.array([640, 512]), torch.Size([480, 853])),
    ):
        assert torch.equal(torch_ops.scale_boxes(anchors, *sizes, letterbox=True), want)
    with pytest.raises(TypeError, match=r"`to_size` must be a number, got a tensor that requires grad"):
        torch_ops.scale_boxes(anchors, (640, 512), (480, torch.tensor(853.0, requires_grad=True)))
    with pytest.raises(TypeError, match="`weights` must be a number, got a tensor that requires grad"):
        torch_ops.encode_boxes(deltas, anchors, (1, 1, 1, torch.tensor(1.0, requires_grad=True)))
    with pytest.raises(ValueError, match=r"`from_size` must be \(height, width\)"):
        torch_ops.scale_boxes(anchors, torch.tensor([640, 512, 3]), (480, 853))


class Scaled:
    def __new__(cls, torch, torch_ops, letterbox):
        class Module(torch.nn.Module):
            def forward(self, boxes, input, image):
                return torch_ops.scale_boxes(boxes, input.shape[-2:], image.shape[-2:], letterbox=letterbox)

        return Module()


@pytest.mark.parametrize("letterbox", [False, True, "topleft"])
@pytest.mark.parametrize("way", ["compile", "export"])
def test_sizes_of_any_image(torch_ops, torch, letterbox, way):
    """One program for images of all sizes, whichever of their axes decides."""
    module, boxes = Scaled(torch, torch_ops, letterbox), torch.from_numpy(ANCHORS)
    shapes = [(64, 96), (100, 64), (31, 33)], [(50, 40), (70, 90), (20, 10)]
    images = [(torch.zeros(1, 3, *one), torch.zeros(1, 3, *other)) for one, other in zip(*shapes, strict=True)]
    if way == "compile":
        program = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    else:
        any_size = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        dynamic = {"boxes": {0: torch.export.Dim.DYNAMIC}, "input": any_size, "image": any_size}
        program = torch.export.export(module, (boxes, *images[0]), dynamic_shapes=dynamic).module()
    for both in images:
        torch.testing.assert_close(program(boxes, *both), module(boxes, *both))
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["make_points", "make_anchors"])
def test_points_like_a_tensor_without_values(torch, name):
    """`cvops.torch` has no such function to be named."""
    options = {"scales": (32,), "ratios": (1,)} if name == "make_anchors" else {}
    like = torch.zeros(1, requires_grad=True)
    with pytest.raises(TypeError, match=r"^`like` requires grad: pass like.detach\(\)$"):
        getattr(cvops, name)([(1, 2)], [8], like=like, **options)
    with torch._subclasses.FakeTensorMode():
        fake = torch.zeros(1)
    with pytest.raises(TypeError, match=r"^`like` is a FakeTensor .*: call this outside, and pass the result in$"):
        getattr(cvops, name)([(1, 2)], [8], like=fake, **options)

    def inside(x):
        with pytest.raises(TypeError, match=r"^`like` is traced by torch.func: call this outside, and pass the"):
            getattr(cvops, name)([(1, 2)], [8], like=x, **options)
        return x

    torch.func.vmap(inside)(torch.zeros(1))
