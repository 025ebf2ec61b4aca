"""What torch.compile and torch.export are told of each registered operator is what the operator returns."""

from __future__ import annotations

import numpy as np
import pytest

from tests import torch_calls
from tests.operators import OPERATORS
from tests.torch_calls import REGISTERED, registered_call

pytestmark = [*torch_calls.quiet, pytest.mark.usefixtures("torch_ops")]
FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")
DETECTIONS = ("nms", "nms_padded", "batched_nms", "batched_nms_padded")
MEASURES = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")
OF_ONE_DTYPE = [("deform_conv2d", place) for place in (0, 2, 3)]  # input, weight, bias
OF_ONE_PRECISION = [("deform_conv2d_backward", place) for place in (1, 3)]  # autocast mixes 16 bits with float32


def mapped(torch, function, args):
    """`args` with `function(place, tensor)` in place of each floating-point tensor, those in lists too."""
    places = iter(range(99))

    def of(value):
        if isinstance(value, list):
            return [of(one) for one in value]
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return function(next(places), value.detach())
        return value

    return [of(value) for value in args]


def described(torch, results, name):
    if isinstance(results, torch.Tensor):
        ragged = name in OPERATORS and OPERATORS[name].ragged  # of a length that nobody knows before
        shape = results.dim() if ragged else tuple(results.shape)
        return str(results.dtype), shape, results.stride(), str(results.device)
    return [described(torch, result, name) for result in results]


def same_as_fake(torch, name, args, **options):
    """Raise unless the fake kernel promises what the operator returns: dtype, shape, strides, device."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    operator = getattr(torch.ops.cvops, name)
    real = operator(*args, **options)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:

        def fake(value):
            if isinstance(value, (list, tuple)):
                return [fake(one) for one in value]
            return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

        promised = operator(*map(fake, args), **options)
    assert described(torch, promised, name) == described(torch, real, name)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", REGISTERED)
def test_one_dtype(torch, name, dtype):
    args = mapped(torch, lambda _, tensor: tensor.to(getattr(torch, dtype)), registered_call(name))
    same_as_fake(torch, name, args)


@pytest.mark.parametrize("name", [name for name in REGISTERED if "multiscale" not in name])
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_one_argument_of_another_dtype(torch, name, place, dtype):
    args = registered_call(name)
    others = mapped(torch, lambda i, tensor: tensor.to(getattr(torch, dtype)) if i == place else tensor, args)
    if (name, place) in OF_ONE_DTYPE or (dtype == "float64" and (name, place) in OF_ONE_PRECISION):
        with pytest.raises(TypeError, match="the dtype of `input`"):
            getattr(torch.ops.cvops, name)(*others)
        return
    same_as_fake(torch, name, others)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", [*DETECTIONS, *MEASURES])
def test_integers(torch, name, dtype):
    first, *others = registered_call(name)
    first = first.round().to(getattr(torch, dtype))
    same_as_fake(torch, name, [first, *others])
    if name in MEASURES:
        same_as_fake(torch, name, [first, first[:3]])
        same_as_fake(torch, name, [first.to(torch.uint8), first])
    else:
        idxs = [torch.arange(24).to(getattr(torch, dtype))] if "batched" in name else []
        same_as_fake(torch, name, [first, others[0], *idxs, 0.5], max_output=3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", REGISTERED)
def test_without_rows(torch, name, dtype):
    """No boxes, no RoIs, or no images."""

    def without(_, tensor):
        if "multiclass" in name:
            return (tensor[:, :0] if tensor.dim() > 1 else tensor).to(getattr(torch, dtype))
        rows = 0 if tensor.dim() in (1, 2) or "_backward" in name or "deform" in name else len(tensor)
        if "deform" in name and tensor.shape[0] == 6:  # weight and bias
            rows = 6
        return tensor[:rows].to(getattr(torch, dtype))

    args = mapped(torch, without, registered_call(name))
    args = [arg[:0] if isinstance(arg, torch.Tensor) and not arg.is_floating_point() else arg for arg in args]
    same_as_fake(torch, name, args)


@pytest.mark.parametrize("name", REGISTERED)
def test_strides(torch, name):
    """Results are contiguous whatever the arguments are."""

    def strided(_, tensor):
        return torch.stack([tensor, tensor], -1)[..., 0].transpose(0, -1).contiguous().transpose(0, -1)

    same_as_fake(torch, name, mapped(torch, strided, registered_call(name)))


@pytest.mark.parametrize("options", [{}, {"max_output": 0}, {"max_output": 5}, {"score_threshold": 0.5}])
@pytest.mark.parametrize("name", DETECTIONS)
def test_options_of_nms(torch, name, options):
    args = registered_call(name)
    same_as_fake(torch, name, args, **options)
    same_as_fake(torch, name, [arg[:0] if isinstance(arg, torch.Tensor) else arg for arg in args], **options)


@pytest.mark.parametrize("wanted", [(1, 0, 0, 0, 0), (0, 1, 0, 0, 1), (0, 0, 1, 1, 0), (0, 0, 0, 0, 0)])
@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_of_deform_conv2d_that_are_wanted(torch, wanted, mixed):
    *args, _ = registered_call("deform_conv2d_backward")
    if mixed:
        args[2] = args[2].double()
        args[0], args[1], args[3], args[4] = (args[i].bfloat16() for i in (0, 1, 3, 4))
    same_as_fake(torch, "deform_conv2d_backward", [*args, list(map(bool, wanted))])
    args[4] = args[8] = None
    same_as_fake(torch, "deform_conv2d_backward", [*args, list(map(bool, wanted))])


@pytest.mark.parametrize("shapes", [((0, 4), (3, 4)), ((0, 4), (0, 4)), ((2, 1, 3, 4), (5, 2, 4)), ((0, 3, 4), (2, 4))])
@pytest.mark.parametrize("name", MEASURES)
def test_shapes_of_measures(torch, name, shapes):
    for dtype in (torch.float16, torch.float32, torch.uint32):
        same_as_fake(torch, name, [torch.zeros(shape).to(dtype) for shape in shapes])


def test_maxima(torch):
    maps, rois = (torch.from_numpy(np.array(array)) for array in (torch_calls.MAP, torch_calls.ROIS))
    for given in (maps, maps.half()):
        for recorded in (False, True):
            same_as_fake(torch, "roi_pool", [given, rois, [2, 3], 0.5, recorded])
            same_as_fake(torch, "roi_pool", [given, rois[:0], [2, 3], 0.5, recorded])


@pytest.mark.parametrize("name", REGISTERED)
def test_one_tensor_on_meta(torch, name):
    """PyTorch asks the fake kernel then, whose result nobody would fill."""
    args = registered_call(name)
    tensors = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)]
    for place in tensors[1:] or tensors:
        given = [arg.to("meta") if i == place else arg for i, arg in enumerate(args)]
        with pytest.raises(ValueError, match=r"` is on cpu and `\w+` is on meta: move them to one device"):
            getattr(torch.ops.cvops, name)(*given)
