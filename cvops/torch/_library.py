"""What PyTorch knows of cvops: the operators `torch.ops.cvops.*`, each with all that its transformations ask for.

A kernel is the plain function of cvops on the same memory, for CPU and CUDA tensors alike. Fake kernels tell shapes to
torch.compile and torch.export; gradients are operators too, so that both see them. The functions in _ops.py are how
these operators are called.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import cvops

from .. import _deform_conv
from .._arrays import name_conversion
from .._checks import ADAPTIVE, rounded

Sizes = Any  # int[] of a schema
Kernel = Callable[..., Any]

# Kept for the life of the process: its end would take the operators away.
_library = torch.library.Library("cvops", "FRAGMENT")
# Kernels read arrays of any strides, so that no layout has to be kept for them; results are contiguous.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)
_AUTOCAST = {
    device: torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}")) for device in ("CPU", "CUDA")
}


def to_native(tensor: Tensor) -> Any:
    """The memory of `tensor`, without its history, as the functions of cvops take it: on the CPU as a NumPy array.

    Tensors themselves would cost the look for what may hide in them, which the dispatcher has dealt with already.
    """
    tensor = _at_least_32_bits(tensor.detach())
    return tensor.numpy() if tensor.is_cpu else tensor


def _at_least_32_bits(tensor: Tensor) -> Tensor:
    """On the CPU float32 in place of 16 bits: that backend has no bfloat16, and torch converts faster than it does."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) and tensor.is_cpu else tensor


def as_tensor(result: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A result of cvops as a tensor on the same memory, then in `dtype`."""
    tensor: Tensor = result if isinstance(result, Tensor) else torch.from_numpy(result)
    return tensor if dtype is None or tensor.dtype == dtype else tensor.to(dtype)


def untraced(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel` hidden from torch.compile, which looks into whatever is called from a frame that it gave up on."""
    hidden = None

    def call(*args: Any, **options: Any) -> Any:
        nonlocal hidden
        try:
            if "torch._dynamo" not in sys.modules:  # to import it takes longer than torch itself
                return kernel(*args, **options)
            hidden = hidden or torch.compiler.disable(kernel)
            return hidden(*args, **options)
        except TypeError as error:
            name_conversion(error, ".to")
            raise

    return call


def _in_words_of_torch(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel`, whose errors name the conversion of tensors, not that of the arrays as which it sees their memory."""

    def call(*args: Any, **options: Any) -> Any:
        try:
            return kernel(*args, **options)
        except TypeError as error:
            raise TypeError(str(error).replace(".astype", ".to")) from error.__cause__

    return call


def _probes() -> tuple[Callable[[], Any], ...]:
    """What PyTorch answers with something true while a mode, a transform, a tracer or a profiler looks on."""
    try:
        return (
            torch._C._len_torch_dispatch_stack,
            torch._C._len_torch_function_stack,
            torch._C._functorch.peek_interpreter_stack,
            torch._C._get_tracing_state,
            torch._C._autograd._profiler_enabled,
        )
    except AttributeError:  # another version of PyTorch
        return (lambda: True,)


_PROBES = _probes()
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # kernels refuse none of them


def is_unwatched(*tensors: Tensor) -> bool:
    """Whether the dispatcher would do nothing but call the kernel, on tensors that NumPy can see as they are.

    The dispatcher takes longer than nms of ten boxes. Once torch.compile is in use, it looks into what is called here.
    """
    for tensor in tensors:
        if type(tensor) is not Tensor or tensor.dtype is not torch.float32 or not tensor.is_cpu:
            return False
        if _has_more_than_values(tensor):
            return False
    return _nobody_looks_on()


def needs_only_the_kernel(*tensors: Tensor) -> bool:
    """Whether the dispatcher would do nothing but call the kernel, on these tensors of the CPU or a GPU."""
    for tensor in tensors:
        if type(tensor) is not Tensor or tensor.dtype not in _FLOATS or not (tensor.is_cuda or tensor.is_cpu):
            return False
        if _has_more_than_values(tensor):
            return False
    return _nobody_looks_on()


def _has_more_than_values(tensor: Tensor) -> bool:
    """Whether a tensor is sparse, recorded, or stands for others: the dispatcher has work to do then."""
    return (
        tensor.layout is not torch.strided
        or tensor.requires_grad
        or tensor.is_neg()
        or torch._is_functional_tensor(tensor)
    )


def _nobody_looks_on() -> bool:
    return "torch._dynamo" not in sys.modules and not any(probe() for probe in _PROBES)


def _register(
    schema: str,
    kernel: Kernel,
    fake: Callable[..., Any],
    *,
    setup: Callable[..., None] = lambda ctx, **_: None,
    backward: Callable[..., Any] | None = None,
    vmap: Callable[..., Any] | None = None,
    mixes_dtypes: bool = False,
) -> Any:
    """Make `kernel` the operator of this schema, and return it; `setup` keeps for `backward` what that needs.

    PyTorch keeps operators for the life of the process. Where this module is imported a second time, what is registered
    now takes the place of what the first import has registered, for everybody who calls or has compiled the operator.
    """
    name = schema.partition("(")[0]
    qualified = f"cvops::{name}"
    if not hasattr(torch.ops.cvops, name):
        _library.define(schema, tags=_TAGS)
    elif getattr(torch.ops.cvops, name).default._schema != torch._C.parse_schema(f"cvops::{schema}"):
        raise ImportError(f"another version of cvops.torch has registered {qualified} in this process: restart it")
    for device in ("CPU", "CUDA"):
        with warnings.catch_warnings():  # PyTorch 2.13 warns of the first kernel that takes the place of another
            warnings.simplefilter("ignore")
            _library.impl(name, untraced(_in_words_of_torch(kernel)), device)
    torch.library.register_fake(qualified, fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup, lib=_library)
    operator = getattr(torch.ops.cvops, name).default
    torch.library.register_vmap(qualified, vmap or _one_by_one(operator), lib=_library)
    if mixes_dtypes:
        for device, keys in _AUTOCAST.items():
            _library.impl(name, _in_float32(operator, keys), f"Autocast{device}")
    return operator


def _in_float32(operator: Any, keys: Any) -> Callable[..., Tensor]:
    """The operator under autocast, where the tensors of a call may differ in dtype: the result is as the first one."""

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        return [cast(one) for one in value] if isinstance(value, list) else value

    def call(first: Any, *others: Any) -> Tensor:
        dtype = (first[0] if isinstance(first, list) else first).dtype
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(cast(first), *map(cast, others)).to(dtype)

    return call


# ------------------------------------------------------------------------------------------------------------- vmap


def _one_by_one(operator: Any) -> Callable[..., Any]:
    """The rule that calls the operator for each element of the batch: one call keeps all threads or the GPU busy."""

    def rule(info: Any, in_dims: Any, *args: Any, **options: Any) -> Any:
        def of(value: Any, dim: Any, i: int) -> Any:
            if isinstance(dim, int):
                return value.select(dim, i)
            return [of(*pair, i) for pair in zip(value, dim, strict=True)] if isinstance(dim, (list, tuple)) else value

        results = [
            operator(*(of(value, dim, i) for value, dim in zip(args, in_dims, strict=True)), **options)
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return (stacked, [0] * len(stacked)) if isinstance(results[0], list) else (tuple(stacked), (0,) * len(stacked))

    return rule


def _ragged(name: str) -> Callable[..., Any]:
    def rule(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"`{name}` keeps a different number of boxes in each: use padded=True under vmap")

    return rule


# ---------------------------------------------------------------------------------------------------------- kernels


def _kernel_of(function: Callable[..., Any], keeps_dtype: bool = True, **constant: Any) -> Kernel:
    """The function of cvops on the memory of tensors; the result gets the dtype of the first, if it keeps that."""

    def kernel(first: Tensor, *others: Any, **options: Any) -> Any:
        results = function(to_native(first), *map(_native, others), **options, **constant)
        if isinstance(results, tuple):
            return tuple(map(as_tensor, results))
        return as_tensor(results, first.dtype if keeps_dtype else None)

    return kernel


def _native(value: Any) -> Any:
    return to_native(value) if isinstance(value, Tensor) else value


def _require(condition: bool, name: str, wanted: str, got: Tensor) -> None:
    """Raise where there are no values and so no plain function that would; only for what the shapes below need."""
    if not condition:
        raise ValueError(f"`{name}` must have {wanted}, got {tuple(got.shape)}")


def _refused(text: str) -> Callable[..., Any]:
    """A gradient that cvops has not: an error, where torch would warn and go on without it."""

    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(text)

    return backward


def _once_only(name: str) -> Callable[..., Any]:
    return _refused(f"`{name}` can be differentiated once, not twice: its gradient has no gradient")


# --------------------------------------------------------------------------------------------------------------- nms


def _nms_kernel(function: Callable[..., Any], **constant: Any) -> Kernel:
    kernel = _kernel_of(function, keeps_dtype=False, **constant)

    def rounding(
        boxes: Tensor, scores: Tensor, *args: Any, score_threshold: float | None = None, **options: Any
    ) -> Any:
        # As the dtype of the scores has the threshold; `to_native` may leave nothing of that dtype.
        code = {torch.float16: "e", torch.bfloat16: "E"}.get(scores.dtype)
        if score_threshold is not None and code is not None:
            score_threshold = rounded(score_threshold, code)
        return kernel(boxes, scores, *args, score_threshold=score_threshold, **options)

    return rounding


def _kept(boxes: Tensor, scores: Tensor, *args: Any, **options: Any) -> Tensor:
    _require_detections(boxes, scores)
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _kept_padded(boxes: Tensor, scores: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    _require_detections(boxes, scores)
    size = options.get("max_output")
    keep = boxes.new_empty(boxes.shape[0] if size is None else size, dtype=torch.int64)
    return keep, boxes.new_empty((), dtype=torch.int64)


def _require_detections(boxes: Tensor, scores: Tensor) -> None:
    _require(boxes.dim() == 2 and boxes.shape[1] == 4, "boxes", "shape (L, 4)", boxes)
    _require(scores.dim() == 1, "scores", "shape (L,)", scores)


def _register_nms(function: Callable[..., Any], arguments: str) -> tuple[Kernel, Kernel]:
    """Register an operator and its padded form; return the kernels of both."""
    name, kernel = function.__name__, _nms_kernel(function)
    arguments += ", float iou_threshold, *, float? score_threshold=None, SymInt? max_output=None"
    _register(f"{name}({arguments}) -> Tensor", kernel, _kept, vmap=_ragged(name))
    padded = _nms_kernel(function, padded=True)
    _register(f"{name}_padded({arguments}) -> (Tensor, Tensor)", padded, _kept_padded)
    return kernel, padded


nms, nms_padded = _register_nms(cvops.nms, "Tensor boxes, Tensor scores")
_register_nms(cvops.batched_nms, "Tensor boxes, Tensor scores, Tensor idxs")


# ------------------------------------------------------------------------------------------------------- RoI pooling


def _pooled(input: Tensor, boxes: Tensor, output_size: Sizes, *_: Any) -> Tensor:
    _require_rois(input, boxes)
    return input.new_empty((boxes.shape[0], input.shape[1], *output_size))


def _pooled_by_position(input: Tensor, boxes: Tensor, output_size: Sizes, *_: Any) -> Tensor:
    _require_rois(input, boxes)
    bins = output_size[0] * output_size[1]
    _require(input.shape[1] % bins == 0, "input", f"a multiple of {bins} channels", input)
    return input.new_empty((boxes.shape[0], input.shape[1] // bins, *output_size))


def _require_rois(input: Tensor, boxes: Tensor) -> None:
    _require(input.dim() == 4, "input", "shape (N, C, H, W)", input)
    _require(boxes.dim() == 2 and boxes.shape[1] == 5, "boxes", "shape (K, 5)", boxes)


def _of_input_shape(grad: Tensor, boxes: Tensor, input_shape: Sizes, *_: Any) -> Tensor:
    return grad.new_empty(tuple(input_shape))


def _keep_boxes(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    input, boxes, _, *ctx.options = inputs
    ctx.save_for_backward(boxes)
    ctx.input_shape = input.shape


def _register_pooling(
    function: Callable[..., Any], gradient: Callable[..., Any], options: str, fake: Callable[..., Any]
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Register an operator that is differentiable by its input alone, and its gradient; return the kernels of both."""
    name, kernel, kernel_of_gradient = function.__name__, _kernel_of(function), _kernel_of(gradient)
    schema = f"{gradient.__name__}(Tensor grad, Tensor boxes, SymInt[4] input_shape, {options}) -> Tensor"
    operator = _register(schema, kernel_of_gradient, _of_input_shape, backward=_once_only(name))

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        of_input = operator(grad, *ctx.saved_tensors, ctx.input_shape, *ctx.options)
        return of_input, None, None, *(None for _ in ctx.options)

    schema = f"{name}(Tensor input, Tensor boxes, SymInt[2] output_size, {options}) -> Tensor"
    _register(schema, kernel, fake, setup=_keep_boxes, backward=backward)
    return kernel, kernel_of_gradient


_SCALE, _SAMPLES = "float spatial_scale=1.0", f"int sampling_ratio={ADAPTIVE}"
roi_align, roi_align_backward = _register_pooling(
    cvops.roi_align, cvops.roi_align_backward, f"{_SCALE}, {_SAMPLES}, bool aligned=False", _pooled
)
ps_roi_align, ps_roi_align_backward = _register_pooling(
    cvops.ps_roi_align, cvops.ps_roi_align_backward, f"{_SCALE}, {_SAMPLES}", _pooled_by_position
)
ps_roi_pool, ps_roi_pool_backward = _register_pooling(
    cvops.ps_roi_pool, cvops.ps_roi_pool_backward, _SCALE, _pooled_by_position
)
roi_pool_backward: Callable[..., Tensor] = _kernel_of(cvops.roi_pool_backward)


def roi_pool(
    input: Tensor, boxes: Tensor, output_size: Sizes, spatial_scale: float = 1.0, return_argmax: bool = True
) -> tuple[Tensor, Tensor]:
    """With an empty argmax where it is not wanted."""
    arguments = to_native(input), to_native(boxes), output_size, spatial_scale
    if not return_argmax:
        return as_tensor(cvops.roi_pool(*arguments), input.dtype), input.new_empty(0, dtype=torch.int32)
    pooled, argmax = cvops.roi_pool(*arguments, return_argmax=True)
    return as_tensor(pooled, input.dtype), as_tensor(argmax)


def _pooled_with_argmax(
    input: Tensor, boxes: Tensor, output_size: Sizes, spatial_scale: float = 1.0, return_argmax: bool = True
) -> tuple[Tensor, Tensor]:
    pooled = _pooled(input, boxes, output_size)
    return pooled, pooled.new_empty(pooled.shape if return_argmax else 0, dtype=torch.int32)


def _keep_boxes_and_argmax(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    input, boxes, _, ctx.spatial_scale, ctx.return_argmax = inputs
    ctx.save_for_backward(boxes, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.input_shape = input.shape


def _roi_pool_gradient(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    if not ctx.return_argmax:
        raise NotImplementedError("`roi_pool` has a gradient only with return_argmax=True")
    gradient = torch.ops.cvops.roi_pool_backward(grad, *ctx.saved_tensors, ctx.input_shape, ctx.spatial_scale)
    return gradient, None, None, None, None


_register(
    f"roi_pool(Tensor input, Tensor boxes, SymInt[2] output_size, {_SCALE}, bool return_argmax=True)"
    " -> (Tensor, Tensor)",
    roi_pool,
    _pooled_with_argmax,
    setup=_keep_boxes_and_argmax,
    backward=_roi_pool_gradient,
)
_register(
    f"roi_pool_backward(Tensor grad, Tensor boxes, Tensor argmax, SymInt[4] input_shape, {_SCALE}) -> Tensor",
    roi_pool_backward,
    lambda grad, boxes, argmax, input_shape, *_: grad.new_empty(tuple(input_shape)),
    backward=_once_only("roi_pool"),
)


# --------------------------------------------------------------------------------------------------- pyramid pooling

_LEVELS = "float[] scales, int sampling_ratio, bool aligned, float canonical_scale, int canonical_level"
_NAMES = [option.split()[1] for option in _LEVELS.split(", ")]


def _multiscale_roi_align(maps: list[Tensor], boxes: Tensor, output_size: Sizes, *options: Any) -> Tensor:
    _require_one_dtype({f"features[{i}]": tensor for i, tensor in enumerate(maps)})
    by_name = dict(zip(_NAMES, options, strict=True))
    pooled = cvops.multiscale_roi_align([*map(to_native, maps)], to_native(boxes), output_size, **by_name)
    return as_tensor(pooled, maps[0].dtype)


def _multiscale_roi_align_backward(
    grad: Tensor, boxes: Tensor, images: int, heights: Sizes, widths: Sizes, *options: Any
) -> list[Tensor]:
    shapes = [(images, grad.shape[1], *size) for size in zip(heights, widths, strict=True)]
    by_name = dict(zip(_NAMES, options, strict=True))
    gradients = cvops.multiscale_roi_align_backward(to_native(grad), to_native(boxes), shapes, **by_name)
    return [as_tensor(gradient, grad.dtype) for gradient in gradients]


def _keep_sizes(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    maps, boxes, _, *ctx.options = inputs
    ctx.save_for_backward(boxes)
    ctx.sizes = maps[0].shape[0], [m.shape[2] for m in maps], [m.shape[3] for m in maps]


def _multiscale_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    gradients = torch.ops.cvops.multiscale_roi_align_backward(grad, *ctx.saved_tensors, *ctx.sizes, *ctx.options)
    return gradients, None, None, *(None for _ in ctx.options)


def _of_map_shapes(grad: Tensor, boxes: Tensor, images: int, heights: Sizes, widths: Sizes, *_: Any) -> list[Tensor]:
    return [grad.new_empty((images, grad.shape[1], *size)) for size in zip(heights, widths, strict=True)]


def _require_one_dtype(tensors: dict[str, Tensor | None]) -> None:
    """Raise unless all have the dtype of the first: the plain functions do not see 16-bit types."""
    (first_name, first), *others = ((name, tensor) for name, tensor in tensors.items() if tensor is not None)
    for name, tensor in others:
        if tensor.dtype != first.dtype:
            wanted, got = (str(one.dtype).removeprefix("torch.") for one in (first, tensor))
            raise TypeError(f"`{name}` must be {wanted}, the dtype of `{first_name}`, got {got}")


_register(
    f"multiscale_roi_align(Tensor[] maps, Tensor boxes, SymInt[2] output_size, {_LEVELS}) -> Tensor",
    _multiscale_roi_align,
    lambda maps, boxes, output_size, *_: _pooled(maps[0], boxes, output_size),
    setup=_keep_sizes,
    backward=_multiscale_gradient,
    mixes_dtypes=True,
)
_register(
    "multiscale_roi_align_backward(Tensor grad, Tensor boxes, SymInt images, SymInt[] heights, SymInt[] widths,"
    f" {_LEVELS}) -> Tensor[]",
    _multiscale_roi_align_backward,
    _of_map_shapes,
    backward=_once_only("MultiScaleRoIAlign"),
)


# -------------------------------------------------------------------------------------------- deformable convolution


def deform_conv2d(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None, *others: Any) -> Tensor:
    _require_one_dtype({"input": input, "weight": weight, "bias": bias})
    output: Tensor = _convolve(input, offset, weight, bias, *others)
    return output


_convolve = _kernel_of(cvops.deform_conv2d)


def deform_conv2d_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Gradients of the dtypes of their tensors; what is not wanted is an empty tensor."""
    input, offset, weight, bias, *steps, mask, wanted = args
    tensors, like = (input, offset, weight, bias, mask), grad
    if any(tensor is not None and tensor.dtype != grad.dtype for tensor in tensors):
        grad = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
    names = [name for name, is_wanted in zip(_deform_conv._GRADIENTS, wanted, strict=True) if is_wanted]
    native = map(_native, (grad, input, offset, weight, bias, *steps, mask))
    gradients = cvops.deform_conv2d_backward(*native, wanted=names)
    return tuple(
        like.new_empty(0) if gradient is None or tensor is None else as_tensor(gradient, tensor.dtype)
        for gradient, tensor in zip(gradients, tensors, strict=True)
    )


def _convolved(input: Tensor, offset: Tensor, weight: Tensor, *_: Any) -> Tensor:
    for name, tensor in (("input", input), ("offset", offset), ("weight", weight)):
        _require(tensor.dim() == 4, name, "4 dimensions", tensor)
    return input.new_empty((input.shape[0], weight.shape[0], *offset.shape[2:]))


def _keep_tensors(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    input, offset, weight, bias, *ctx.steps, mask = inputs
    ctx.save_for_backward(input, offset, weight, bias, mask)


def _deform_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *tensors, mask = ctx.saved_tensors
    needed = [*ctx.needs_input_grad, *(False,) * 8]  # PyTorch leaves out arguments that are as their defaults
    wanted = [needed[i] for i in (0, 1, 2, 3, 7)]
    found = torch.ops.cvops.deform_conv2d_backward(grad, *tensors, *ctx.steps, mask, wanted)
    input, offset, weight, bias, mask = (
        one if is_wanted else None for one, is_wanted in zip(found, wanted, strict=True)
    )
    return input, offset, weight, bias, None, None, None, mask


def _of_their_shapes(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    input, offset, weight, bias, *_, mask, wanted = args
    return tuple(
        tensor.new_empty(tensor.shape) if is_wanted and tensor is not None else grad.new_empty(0)
        for tensor, is_wanted in zip((input, offset, weight, bias, mask), wanted, strict=True)
    )


_register(
    "deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias=None, SymInt[2] stride=1,"
    " SymInt[2] padding=0, SymInt[2] dilation=1, Tensor? mask=None) -> Tensor",
    deform_conv2d,
    _convolved,
    setup=_keep_tensors,
    backward=_deform_gradient,
    mixes_dtypes=True,
)
_register(
    "deform_conv2d_backward(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? bias, SymInt[2] stride,"
    " SymInt[2] padding, SymInt[2] dilation, Tensor? mask, bool[5] wanted)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    deform_conv2d_backward,
    _of_their_shapes,
    backward=_once_only("deform_conv2d"),
)


# ------------------------------------------------------------------------------------------------------------- boxes


def _measured(boxes1: Tensor, boxes2: Tensor, *eps: float, fmt: str = "xyxy") -> Tensor:
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        _require(boxes.dim() >= 2 and boxes.shape[-1] == 4, name, "shape (..., N, 4)", boxes)
    batch = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    wide = torch.float64, torch.int64, torch.int32, torch.uint64, torch.uint32
    double = any(boxes.dtype in wide for boxes in (boxes1, boxes2))
    dtype = torch.float64 if double else torch.float32
    return boxes1.new_empty((*batch, boxes1.shape[-2], boxes2.shape[-2]), dtype=dtype)


for _function, _options in (
    (cvops.box_iou, ""),
    (cvops.generalized_box_iou, ""),
    (cvops.distance_box_iou, "float eps=1e-07, "),
    (cvops.complete_box_iou, "float eps=1e-07, "),
):
    _name = _function.__name__
    _register(
        f"{_name}(Tensor boxes1, Tensor boxes2, {_options}*, str fmt='xyxy') -> Tensor",
        _kernel_of(_function, keeps_dtype=False),
        _measured,
        backward=_refused(f"torch.ops.cvops.{_name} has no gradient: cvops.torch.{_name} has"),
    )
