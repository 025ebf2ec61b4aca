"""The operators of `cvops.torch`: values, gradients, and what PyTorch's transformations make of them."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cvops
from tests import compare, reference, reference_deform, reference_roi, torch_calls
from tests.torch_calls import (
    BOXES,
    CALLS,
    DEFORM,
    IDXS,
    MAP,
    POOLING,
    RAGGED,
    REGISTERED,
    ROIS,
    SCORES,
    registered_call,
)

pytestmark = torch_calls.quiet
DIFFERENTIABLE = (*POOLING, "deform_conv2d")
every_function = pytest.mark.parametrize("name", CALLS)


@pytest.fixture(autouse=True)
def forget_compiled(torch):
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def close(got, want, bound=None):
    """Raise unless a tensor has these values, up to what its dtype allows."""
    values = got.detach().double().numpy()
    assert values.shape == want.shape
    if bound is None:
        bound = compare.TOLERANCES[str(got.dtype).removeprefix("torch.")]
    want = want.astype(np.float64)
    assert np.abs(values - want).max(initial=0) <= bound * max(1, np.abs(want).max(initial=0))


def check(name, got):
    want = torch_calls.want(name)
    (compare.same if want.dtype.kind == "i" else compare.close)(got.detach(), want, got.detach())


# ----------------------------------------------------------------------------------------------------------- values


@every_function
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_values(torch_ops, torch, name, dtype):
    got = getattr(torch_ops, name)(*torch_calls.tensors(name, getattr(torch, dtype)))
    want = torch_calls.want(name, dtype)
    (compare.same if want.dtype.kind == "i" else compare.close)(got, want, got)


@every_function
def test_bfloat16(torch_ops, torch, name):
    args = torch_calls.tensors(name, torch.bfloat16)
    got = getattr(torch_ops, name)(*args)
    rounded = [arg.float().numpy() if getattr(arg, "dtype", None) == torch.bfloat16 else arg for arg in args]
    want = CALLS[name][1](*(arg.numpy() if isinstance(arg, torch.Tensor) else arg for arg in rounded))
    if want.dtype.kind == "i":
        np.testing.assert_array_equal(got.numpy(), want)
    else:
        assert got.dtype == (
            torch.bfloat16 if name in (*DIFFERENTIABLE, "box_convert", "clip_boxes_to_image") else torch.float32
        )
        close(got, want, 8e-3)  # rounded once to 8 bits of mantissa; the measures are of float32


@pytest.mark.parametrize("name", ["nms", "batched_nms"])
def test_what_nms_adds(torch_ops, torch, name):
    args, options = torch_calls.tensors(name), {"score_threshold": 0.2, "max_output": 4}
    want = getattr(reference, name)(*CALLS[name][0], **options)
    assert len(want) == 4
    compare.same(getattr(torch_ops, name)(*args, **options), want, args[0])
    keep, count = getattr(torch_ops, name)(*args, score_threshold=0.6, padded=True)
    want = getattr(reference, name)(*CALLS[name][0], score_threshold=0.6)
    compare.same(keep, np.pad(want, (0, len(BOXES) - len(want)), constant_values=-1), args[0])
    compare.same(count, np.array(len(want)), args[0])
    keep, _ = getattr(torch_ops, name)(*args, max_output=3, padded=True)
    assert keep.shape == (3,)


@pytest.mark.parametrize("name", POOLING)
def test_lists_of_boxes(torch_ops, torch, name):
    order = np.argsort(ROIS[:, 0], kind="stable")
    want = CALLS[name][1](MAP, ROIS[order], 2)
    for dtype in (torch.float32, torch.float16):
        boxes = [torch.from_numpy(ROIS[ROIS[:, 0] == i, 1:]).to(dtype) for i in range(2)]
        for given in (boxes, tuple(boxes)):
            close(getattr(torch_ops, name)(torch.from_numpy(MAP), given, 2), want)
    none = torch.zeros(0, 4)
    assert getattr(torch_ops, name)(torch.zeros(0, 4, 3, 3), [], 2).shape[0] == 0
    assert getattr(torch_ops, name)(torch.zeros(2, 4, 3, 3), [none, none], 2).shape[0] == 0


def test_lists_of_more_images_than_16_bits_count(torch_ops, torch):
    maps = torch.arange(2051.0).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    pooled = torch_ops.roi_align(maps, [torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float16)] * 2051, 1)
    assert torch.equal(pooled.flatten(), torch.arange(2051.0))


def test_layouts_and_views(torch_ops, torch):
    """Whatever strides, signs and histories tensors have."""
    maps = torch.from_numpy(MAP).to(memory_format=torch.channels_last)
    check("roi_align", torch_ops.roi_align(maps, *torch_calls.tensors("roi_align")[1:]))
    signs = torch.complex(torch.zeros(MAP.shape), torch.from_numpy(-MAP)).conj().imag
    assert signs.is_neg()
    check("roi_align", torch_ops.roi_align(signs, *torch_calls.tensors("roi_align")[1:]))
    boxes = torch.nn.Parameter(torch.from_numpy(BOXES))
    check("nms", torch_ops.nms(boxes * 1, torch.from_numpy(SCORES).requires_grad_(), 0.3))
    with torch.inference_mode():
        check("nms", torch_ops.nms(*torch_calls.tensors("nms")))


# -------------------------------------------------------------------------------------------------------- gradients


def doubles(torch, name):
    """The arguments in float64, those that have a gradient requiring it; and these."""
    args = torch_calls.tensors(name, torch.float64)
    if name in POOLING:
        args[0].requires_grad_()
        return args, args[:1]
    wanted = [arg.requires_grad_() for arg in args if isinstance(arg, torch.Tensor)]
    return args, wanted


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradcheck(torch_ops, torch, name):
    args, wanted = doubles(torch, name)
    places = [i for i, arg in enumerate(args) if any(arg is one for one in wanted)]

    def function(*inputs):
        given = list(args)
        for place, one in zip(places, inputs, strict=True):
            given[place] = one
        return getattr(torch_ops, name)(*given)

    assert torch.autograd.gradcheck(function, wanted, fast_mode=True)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_deform_conv2d(torch_ops, torch, bias, mask):
    """Those that are wanted, in the dtype of each tensor."""
    given = {name: array for name, array in DEFORM.items() if (bias or name != "bias") and (mask or name != "mask")}
    arrays = {name: torch.from_numpy(array.copy()).requires_grad_(name != "weight") for name, array in given.items()}
    arrays["offset"] = arrays["offset"].detach().double().requires_grad_()
    output = torch_ops.deform_conv2d(**arrays, padding=1)
    grad = np.random.default_rng(3).normal(size=output.shape).astype(np.float32)
    output.backward(torch.from_numpy(grad))
    given["offset"] = given["offset"].astype(np.float64)
    want = reference_deform.deform_conv2d_backward(grad, **given, padding=1)
    for name, gradient in zip(("input", "offset", "weight", "bias", "mask"), want, strict=True):
        if name == "weight" or name not in arrays:
            continue
        assert arrays[name].grad.dtype == arrays[name].dtype
        close(arrays[name].grad, gradient, 1e-4)
    assert arrays["weight"].grad is None


@pytest.mark.parametrize("name", POOLING)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_gradients_of_pooling(torch_ops, torch, name, dtype):
    args = torch_calls.tensors(name)
    args[0] = args[0].to(getattr(torch, dtype)).requires_grad_()
    args[1] = args[1].requires_grad_()
    output = getattr(torch_ops, name)(*args)
    grad = np.random.default_rng(3).integers(-8, 9, output.shape).astype(np.float32)
    output.backward(torch.from_numpy(grad).to(output.dtype))
    options = list(CALLS[name][0][3:])
    places = (
        [reference_roi.roi_pool(args[0].detach().float().numpy(), ROIS, *args[2:])[1]] if name == "roi_pool" else []
    )
    want = getattr(reference_roi, f"{name}_backward")(grad, ROIS, *places, MAP.shape, *options)
    assert args[0].grad.dtype == args[0].dtype
    close(args[0].grad, want, 10 * compare.TOLERANCES[dtype])
    assert args[1].grad is None


def test_an_expanded_gradient(torch_ops, torch):
    args = torch_calls.tensors("roi_align")
    args[0].requires_grad_()
    torch_ops.roi_align(*args).sum().backward()
    ones = np.ones((len(ROIS), MAP.shape[1], 2, 3), np.float32)
    close(args[0].grad, reference_roi.roi_align_backward(ones, ROIS, MAP.shape, 0.5, 2, True))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_second_derivatives_are_refused(torch_ops, torch, name):
    args, (first, *_) = doubles(torch, name)
    (gradient,) = torch.autograd.grad(getattr(torch_ops, name)(*args).pow(2).sum(), first, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"`{name}` can be differentiated once, not twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "vmap of grad", "grad of vmap"])
def test_derivatives_of_torch_func_are_refused(torch_ops, torch, name, transform):
    args = [arg.detach() if isinstance(arg, torch.Tensor) else arg for arg in doubles(torch, name)[0]]

    def total(first):
        return getattr(torch_ops, name)(first, *args[1:]).sum()

    func, stack = torch.func, torch.stack([args[0]] * 2)
    calls = {
        "vmap of grad": lambda: func.vmap(func.grad(total))(stack),
        "grad of vmap": lambda: func.grad(lambda stack: func.vmap(total)(stack).sum())(stack),
    }
    error = r"cvops has no (forward-mode )?derivatives.*use torch\.autograd\.grad"
    with pytest.raises(NotImplementedError, match=error):
        calls.get(transform, lambda: getattr(func, transform)(total)(args[0]))()


def test_forward_mode_is_refused(torch_ops, torch):
    args = torch_calls.tensors("roi_align")
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        torch_ops.roi_align(torch.autograd.forward_ad.make_dual(args[0], args[0]), *args[1:])


def test_operators_without_a_gradient_say_so(torch, torch_ops):
    boxes = torch.from_numpy(BOXES).requires_grad_()
    with pytest.raises(NotImplementedError, match=r"torch\.ops\.cvops\.box_iou has no gradient"):
        torch.ops.cvops.box_iou(boxes, boxes).sum().backward()
    args = torch_calls.tensors("roi_pool")
    with pytest.raises(NotImplementedError, match="return_argmax=True"):
        torch.ops.cvops.roi_pool(args[0].requires_grad_(), *args[1:], False)[0].sum().backward()


def test_maxima_are_recorded_only_where_a_gradient_is_wanted(torch_ops, torch, monkeypatch):
    import cvops._cpu

    recorded, roi_pool = [], cvops._cpu.roi_pool
    monkeypatch.setattr(cvops._cpu, "roi_pool", lambda *args: recorded.append(args[-1]) or roi_pool(*args))
    args = torch_calls.tensors("roi_pool", torch.float64)  # for a few RoIs of float32 there is a way of its own
    torch_ops.roi_pool(*args)
    torch_ops.roi_pool(args[0].requires_grad_(), *args[1:])
    with torch.no_grad():
        torch_ops.roi_pool(*args)
    assert recorded == [False, True, False]


# --------------------------------------------------------------------------------------------- registered operators


def test_every_registered_operator_is_checked(torch_ops, torch):
    schemas = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("cvops::")}
    assert schemas == {f"cvops::{name}" for name in REGISTERED}


@pytest.mark.parametrize("name", REGISTERED)
def test_opcheck(torch_ops, torch, name):
    torch.library.opcheck(getattr(torch.ops.cvops, name).default, registered_call(name))


def test_opcheck_without_what_is_optional(torch_ops, torch):
    *tensors, _, _, _, _, _ = registered_call("deform_conv2d")
    tensors[1] = tensors[1].detach()[..., 1:-1, 1:-1].contiguous().requires_grad_()
    torch.library.opcheck(torch.ops.cvops.deform_conv2d.default, tensors)
    grad, input, offset, *others = registered_call("deform_conv2d_backward")
    mixed = [grad, input, offset.double(), *others[:-1], [True, True, False, False, True]]
    torch.library.opcheck(torch.ops.cvops.deform_conv2d_backward.default, mixed)
    no_argmax = [torch.from_numpy(MAP), torch.from_numpy(ROIS), [2, 3], 0.5, False]
    torch.library.opcheck(torch.ops.cvops.roi_pool.default, no_argmax)


# -------------------------------------------------------------------------------------------------- transformations


@every_function
def test_compile(torch_ops, torch, name):
    """The whole call is one graph, which gives the same; twice, with sizes that change."""
    function, args = getattr(torch_ops, name), torch_calls.tensors(name)
    graphs = []
    check(name, torch.compile(function, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)(*args))
    assert len(graphs) == 1
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    check(name, compiled(*args))
    if isinstance(args[0], torch.Tensor) and name not in ("deform_conv2d", "masks_to_boxes", *POOLING):
        fewer = [arg[:7] if isinstance(arg, torch.Tensor) and len(arg) == len(BOXES) else arg for arg in args]
        want = CALLS[name][1](*(arg.numpy() if isinstance(arg, torch.Tensor) else arg for arg in fewer))
        close(compiled(*fewer), want, 1e-5)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_of_a_training_step(torch_ops, torch, name, dynamic):
    args, wanted = doubles(torch, name)

    def loss(*args):
        return (getattr(torch_ops, name)(*args) * 2).sin().sum()

    want = torch.autograd.grad(loss(*args), wanted)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")(*args), wanted)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


def detect(torch_ops, maps, boxes, scores):
    """What a detector does last: nms, then pooling of what it keeps."""
    keep = torch_ops.nms(boxes, scores, 0.3)
    return torch_ops.roi_align(maps[:1].relu(), [boxes[keep]], 2, 0.1), scores[keep]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles C++")
def test_compile_by_the_default_compiler(torch_ops, torch):
    args = [torch.from_numpy(array) for array in (MAP, BOXES, SCORES)]
    pooled, scores = torch.compile(lambda *args: detect(torch_ops, *args), fullgraph=True)(*args)
    keep = torch_calls.want("nms")
    compare.same(scores, SCORES[keep], scores)
    want = reference_roi.roi_align(np.maximum(MAP[:1], 0), [BOXES[keep]], 2, 0.1)
    compare.close(pooled, want, pooled)


def test_calls_from_a_frame_that_torch_gave_up_compiling(torch_ops, torch):
    args = torch_calls.tensors("roi_align")

    def function(maps):
        for _ in range(2):
            torch._dynamo.graph_break()  # in a loop: torch runs the function as it is, and looks into what it calls
            result = torch.ops.cvops.roi_align(maps, *args[1:])
            result.sum().backward()
        return result

    check("roi_align", torch.compile(function, backend="eager")(args[0].requires_grad_()))


def test_export(torch_ops, torch):
    class Detector(torch.nn.Module):
        def forward(self, maps, boxes, scores):
            return detect(torch_ops, maps, boxes, scores)

    args = tuple(torch.from_numpy(array) for array in (MAP, BOXES, SCORES))
    some = torch.export.Dim("boxes", min=2)
    program = torch.export.export(Detector(), args, dynamic_shapes=({}, {0: some}, {0: some}))
    assert {"cvops.nms.default", "cvops.roi_align.default"} <= {str(node.target) for node in program.graph.nodes}
    for length in (24, 7):
        pooled, scores = program.module()(args[0], args[1][:length], args[2][:length])
        keep = reference.nms(BOXES[:length], SCORES[:length], 0.3)
        compare.same(scores, SCORES[keep], scores)
        want = reference_roi.roi_align(np.maximum(MAP[:1], 0), [BOXES[keep]], 2, 0.1)
        compare.close(pooled, want, pooled)


@every_function
def test_vmap(torch_ops, torch, name):
    args = torch_calls.tensors(name)
    in_dims = [0 if isinstance(arg, torch.Tensor) else None for arg in args]
    stacked = [torch.stack([arg, arg]) if isinstance(arg, torch.Tensor) else arg for arg in args]
    mapped = torch.func.vmap(getattr(torch_ops, name), in_dims=tuple(in_dims))
    if name in RAGGED:
        # remove_small_boxes is made of torch's own operators, which refuse it in torch's words.
        error = RuntimeError if name == "remove_small_boxes" else NotImplementedError
        with pytest.raises(error, match=r"dynamic shape|data-dependent|different number of boxes.*padded=True"):
            mapped(*stacked)
        return
    for one in mapped(*stacked):
        check(name, one.clone())  # aligned anew


def test_vmap_over_one_argument_or_another_axis(torch_ops, torch):
    args = torch_calls.tensors("roi_align")
    maps = torch.stack([args[0], args[0] * 2], 3)
    got = torch.func.vmap(lambda maps: torch_ops.roi_align(maps, *args[1:]), in_dims=3)(maps)
    check("roi_align", got[0].clone())
    check("roi_align", got[1] / 2)


@pytest.mark.parametrize("name", POOLING)
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_through_vmap(torch_ops, torch, name, compiled):
    """Of tensors outside, which autograd records; only torch.func's own gradients are not to be had."""
    args = torch_calls.tensors(name)
    stacked = torch.stack([args[0], args[0] * 2]).requires_grad_()
    want = torch.autograd.grad(sum(getattr(torch_ops, name)(one, *args[1:]).sin().sum() for one in stacked), stacked)

    def mapped(stacked):
        return torch.func.vmap(lambda maps: getattr(torch_ops, name)(maps, *args[1:]))(stacked)

    function = torch.compile(mapped, fullgraph=True, backend="aot_eager") if compiled else mapped
    torch.testing.assert_close(torch.autograd.grad(function(stacked).sin().sum(), stacked), want)


def test_vmap_of_padded_nms(torch_ops, torch):
    boxes, scores, idxs, _ = torch_calls.tensors("batched_nms")
    stacked = [torch.stack([array, array.flip(0)]) for array in (boxes, scores, idxs)]
    keep, count = torch.func.vmap(lambda *args: torch_ops.batched_nms(*args, 0.3, padded=True))(*stacked)
    want = torch_calls.want("batched_nms")
    assert count.tolist() == [len(want)] * 2
    np.testing.assert_array_equal(keep[0, : len(want)].numpy(), want)
    np.testing.assert_array_equal(keep[1, : len(want)].numpy(), len(BOXES) - 1 - want)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast(torch_ops, torch, dtype):
    """Computed in float32 whatever dtypes meet; the result is of the dtype of the first tensor."""
    dtype = getattr(torch, dtype)
    input, offset, weight, bias = (
        torch.from_numpy(DEFORM[name].copy()) for name in ("input", "offset", "weight", "bias")
    )
    weight.requires_grad_()
    rounded = input.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        got = torch_ops.deform_conv2d(rounded, offset, weight, bias, padding=1)
        assert got.dtype == dtype
        pooled = torch_ops.roi_align(rounded, torch.from_numpy(ROIS), 2)
        assert pooled.dtype == dtype
    want = reference_deform.deform_conv2d(
        rounded.detach().float().numpy(), *(DEFORM[n] for n in ("offset", "weight", "bias")), padding=1
    )
    close(got, want, 8e-3)
    got.sum().backward()
    assert (weight.grad.dtype, rounded.grad.dtype) == (torch.float32, dtype)
    with pytest.raises(TypeError, match=f"`weight` must be {dtype}".replace("torch.", "") + ", the dtype of `input`"):
        torch_ops.deform_conv2d(rounded, offset, weight, bias, padding=1)


# --------------------------------------------------------------------------------------------------------- zero-copy


@pytest.mark.parametrize("name", [name for name in REGISTERED if "iou" not in name])
def test_kernels_work_on_the_memory_of_the_tensors(torch_ops, torch, monkeypatch, name):
    """The backend gets the addresses of the tensors, and what it returns is the memory of the result."""
    import cvops._cpu

    function = f"lean_{name}" if name in ("nms", "batched_nms") else name.removesuffix("_padded")
    original, seen = getattr(cvops._cpu, function), []

    def spy(*args):
        result = original(*args)
        seen.append((addresses(args), addresses([result])))
        return result

    def addresses(values):
        found = set()
        for value in values:
            if isinstance(value, np.ndarray):
                found.add(value.ctypes.data)
            elif isinstance(value, (list, tuple)):
                found |= addresses(value)
        return found

    def pointers(values):
        found = set()
        for value in values:
            if isinstance(value, torch.Tensor):
                found.add(value.data_ptr())
            elif isinstance(value, (list, tuple)):
                found |= pointers(value)
        return found

    args = registered_call(name)
    getattr(torch.ops.cvops, name)(*args)  # the first call of a process takes another way
    monkeypatch.setattr(cvops._cpu, function, spy)
    result = getattr(torch.ops.cvops, name)(*args)
    ((given, returned),) = seen
    assert pointers(args) <= given
    assert pointers([result]) <= returned


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory(torch_ops, torch):
    """A map of 256 MB is not copied; the gradient takes as much, and what cvops needs to compute it."""

    def kilobytes(field):
        return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    def taken(call):
        """Megabytes at the peak of a call."""
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present
        before = kilobytes("VmRSS")
        result = call()
        return (kilobytes("VmHWM") - before) / 1024, result

    maps = torch.ones(1, 64, 1024, 1024, requires_grad=True)
    rois = torch.tensor([[0.0, 0, 0, 100, 100]])
    torch_ops.roi_align(maps[:, :, :8, :8], rois, 7).sum().backward()  # kernels are there
    maps.grad = None
    peak, pooled = taken(lambda: torch_ops.roi_align(maps, rois, 7))
    assert peak < 32
    peak, _ = taken(lambda: torch.autograd.grad(pooled.sum(), maps))
    assert peak < 2 * 256


@every_function
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("library", ["torch-cuda"])
def test_on_a_gpu(torch_ops, torch, library, name, dtype):
    """The same there, in memory of torch's caching allocator, on its current stream."""
    host = torch_calls.tensors(name, getattr(torch, dtype))
    args = [arg.cuda() if isinstance(arg, torch.Tensor) else arg for arg in host]
    with torch.cuda.stream(torch.cuda.Stream()):
        got = getattr(torch_ops, name)(*args)
        before = torch.cuda.memory_allocated()
        again = getattr(torch_ops, name)(*args)
        assert torch.cuda.memory_allocated() >= before + again.numel() * again.element_size()
    assert (got.device.type, got.dtype) == ("cuda", getattr(torch_ops, name)(*host).dtype)
    close(got.cpu(), getattr(torch_ops, name)(*host).double().numpy(), 1e-4 if dtype == "float32" else 1e-2)


# ------------------------------------------------------------------------------------------------------------ errors

BAD_CALLS = {
    "nms": [(BOXES[:, :3], SCORES, 0.5), (BOXES, SCORES[:3], 0.5), (BOXES, SCORES, -1.0), (BOXES, SCORES, "half"),
            (BOXES, SCORES.astype(int), 0.5), (BOXES > 3, SCORES, 0.5), (BOXES, SCORES, np.array([0.5, 0.5])),
            (BOXES, SCORES, 1.5), (BOXES, SCORES, np.nan)],
    "batched_nms": [(BOXES, SCORES, IDXS[:3], 0.5), (BOXES, SCORES, IDXS / 2, 0.5)],
    "roi_align": [(MAP[0], ROIS, 2), (MAP, ROIS[:, 1:], 2), (MAP, ROIS, 0), (MAP, ROIS, (2, 2, 2)), (MAP, ROIS, 2, 0.0),
                  (MAP, ROIS, 2, "x"), (MAP, ROIS, 2, 1.0, 1.5), (MAP.astype(int), ROIS, 2), (MAP, ROIS + 2, 2),
                  (MAP, [ROIS[:, 1:]], 2), (MAP, [ROIS, ROIS], 2), (MAP[0], [ROIS[:, 1:]], 2)],
    "roi_pool": [(MAP, ROIS, None), (MAP, ROIS[:, 1:], 2)],
    "ps_roi_align": [(MAP, ROIS, 5)],
    "ps_roi_pool": [(MAP, ROIS, 5)],
    "deform_conv2d": [(MAP, MAP, MAP), (MAP[0], MAP, MAP), (MAP, MAP, MAP.astype("d")),
                      (*(DEFORM[n] for n in ("input", "offset", "weight", "bias")), 0)],
    "box_area": [(BOXES[:, :3],), (BOXES, "xyxyr"), (BOXES, "cxcywhr"), (BOXES > 3,)],
    "box_iou": [(BOXES[:, :3], BOXES), (BOXES, BOXES[0]), (np.stack([BOXES] * 2), np.stack([BOXES] * 3)),
                (BOXES, BOXES, "x")],
    "generalized_box_iou": [(BOXES, BOXES[0])],
    "distance_box_iou": [(BOXES, BOXES, -1.0), (BOXES, BOXES, "x")],
    "complete_box_iou": [(BOXES, BOXES[:, :2])],
    "box_convert": [(BOXES, "xyxy", "no"), (BOXES, "xywhr", "xyxy"), (BOXES[:, 1:], "xyxy", "xywh")],
    "clip_boxes_to_image": [(BOXES, 3), (BOXES, (1, 2, 3)), (BOXES, (-1, 2)), (BOXES, ("a", 2)),
                            (BOXES[:, 1:], (3, 3))],
    "remove_small_boxes": [(BOXES[None], 1.0), (BOXES, "x")],
    "masks_to_boxes": [(MAP,)],
}  # fmt: skip


@pytest.mark.parametrize(("name", "args"), [(name, args) for name, calls in BAD_CALLS.items() for args in calls])
def test_errors_are_those_of_the_plain_functions(torch_ops, torch, name, args):
    def tensor(value):
        if isinstance(value, list):
            return [tensor(one) for one in value]
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) and value.ndim else value

    given = list(map(tensor, args))
    with pytest.raises((TypeError, ValueError)) as plain:
        getattr(cvops, name)(*given)
    with pytest.raises(plain.type, match=re.escape(str(plain.value).replace(".astype", ".to"))):
        getattr(torch_ops, name)(*given)


@every_function
def test_what_is_no_tensor(torch_ops, torch, name):
    args = torch_calls.tensors(name)
    names = list(inspect.signature(getattr(torch_ops, name)).parameters)
    for i, arg in enumerate(args):
        if isinstance(arg, torch.Tensor):
            for wrong in (arg.numpy(), None if names[i] not in ("bias", "mask") else 3, object()):
                kind = "None" if wrong is None else type(wrong).__name__
                with pytest.raises(TypeError, match=f"`{names[i]}` must be a tensor, got {kind}"):
                    getattr(torch_ops, name)(*args[:i], wrong, *args[i + 1 :])


def test_plain_functions_name_this_module(torch):
    boxes = torch.from_numpy(BOXES).requires_grad_()
    with pytest.raises(TypeError, match=r"`boxes` requires grad: use cvops\.torch"):
        cvops.nms(boxes, torch.from_numpy(SCORES), 0.5)


def test_dynamo_is_not_imported_by_a_call(torch):
    code = (
        "import sys, torch, cvops.torch; b = torch.rand(3, 4); cvops.torch.nms(b, b[:, 0], 0.5)"
        "; assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_every_public_name_is_documented_with_an_example(torch_ops):
    for name in torch_ops.__all__:
        text = inspect.getdoc(getattr(torch_ops, name))
        assert ">>> " in text, name
