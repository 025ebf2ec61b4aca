"""What PyTorch knows of cvops: the operators `torch.ops.cvops.*`, each with all that its transformations ask for.

A kernel is the plain function of cvops on the same memory, for CPU and CUDA tensors alike. Fake kernels tell shapes to
torch.compile and torch.export; gradients are operators too, so that both see them. The functions in _ops.py are how
these operators are called.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import cvops

from .. import _deform_conv
from .._arrays import name_conversion
from .._checks import rounded

Sizes = Any  # int[] of a schema

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
    return tensor if dtype is None else tensor.to(dtype)


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


def _register(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    vmap: Callable[..., Any] | None = None,
    mixes_dtypes: bool = False,
) -> None:
    """Make `kernel` the operator of this schema; `setup` keeps for `backward` what that needs.

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


# --------------------------------------------------------------------------------------------------------- gradients


def _once_only(name: str) -> dict[str, Any]:
    """Second derivatives, which cvops has not: an error, where torch would warn and go on without them."""

    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(f"`{name}` can be differentiated once, not twice: its gradient has no gradient")

    return {"setup": lambda ctx, **_: None, "backward": backward}


def _no_gradient(name: str) -> dict[str, Any]:
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(f"torch.ops.cvops.{name} has no gradient: cvops.torch.{name} has")

    return {"setup": lambda ctx, **_: None, "backward": backward}


# --------------------------------------------------------------------------------------------------------------- nms

_OPTIONS = "*, float? score_threshold=None, SymInt? max_output=None"


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, **options: Any) -> Any:
    return as_tensor(cvops.nms(to_native(boxes), to_native(scores), iou_threshold, **_rounded(scores, **options)))


def _nms_padded(boxes: Tensor, scores: Tensor, iou_threshold: float, **options: Any) -> Any:
    options = _rounded(scores, **options)
    return tuple(map(as_tensor, cvops.nms(to_native(boxes), to_native(scores), iou_threshold, **options, padded=True)))


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, **options: Any) -> Any:
    options = _rounded(scores, **options)
    return as_tensor(cvops.batched_nms(to_native(boxes), to_native(scores), to_native(idxs), iou_threshold, **options))


def _batched_nms_padded(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, **options: Any) -> Any:
    native, options = (to_native(boxes), to_native(scores), to_native(idxs)), _rounded(scores, **options)
    return tuple(map(as_tensor, cvops.batched_nms(*native, iou_threshold, **options, padded=True)))


def _rounded(scores: Tensor, *, score_threshold: float | None = None, **options: Any) -> dict[str, Any]:
    """The options, with the threshold as the dtype of the scores has it, of which `to_native` may leave nothing."""
    code = {torch.float16: "e", torch.bfloat16: "E"}.get(scores.dtype)
    if score_threshold is not None and code is not None:
        score_threshold = rounded(score_threshold, code)
    return {"score_threshold": score_threshold, **options}


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


def _require(condition: bool, name: str, wanted: str, got: Tensor) -> None:
    """Raise where there are no values and so no plain function that would; only for what the shapes below need."""
    if not condition:
        raise ValueError(f"`{name}` must have {wanted}, got {tuple(got.shape)}")


_DETECTIONS = "Tensor boxes, Tensor scores, float iou_threshold"
_CLASSES = "Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold"
_register(f"nms({_DETECTIONS}, {_OPTIONS}) -> Tensor", nms, _kept, vmap=_ragged("nms"))
_register(f"batched_nms({_CLASSES}, {_OPTIONS}) -> Tensor", _batched_nms, _kept, vmap=_ragged("batched_nms"))
_register(f"nms_padded({_DETECTIONS}, {_OPTIONS}) -> (Tensor, Tensor)", _nms_padded, _kept_padded)
_register(f"batched_nms_padded({_CLASSES}, {_OPTIONS}) -> (Tensor, Tensor)", _batched_nms_padded, _kept_padded)


# ------------------------------------------------------------------------------------------------------- RoI pooling


def roi_align(
    input: Tensor,
    boxes: Tensor,
    output_size: Sizes,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    pooled = cvops.roi_align(
        to_native(input), to_native(boxes), _pair(output_size), spatial_scale, sampling_ratio, aligned
    )
    return as_tensor(pooled, input.dtype)


def roi_align_backward(
    grad: Tensor,
    boxes: Tensor,
    input_shape: Sizes,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    shape = tuple(input_shape)
    gradient = cvops.roi_align_backward(
        to_native(grad), to_native(boxes), shape, spatial_scale, sampling_ratio, aligned
    )
    return as_tensor(gradient, grad.dtype)


def roi_pool(
    input: Tensor, boxes: Tensor, output_size: Sizes, spatial_scale: float = 1.0, return_argmax: bool = True
) -> tuple[Tensor, Tensor]:
    size = _pair(output_size)
    if not return_argmax:
        pooled = cvops.roi_pool(to_native(input), to_native(boxes), size, spatial_scale)
        return as_tensor(pooled, input.dtype), input.new_empty(0, dtype=torch.int32)
    pooled, argmax = cvops.roi_pool(to_native(input), to_native(boxes), size, spatial_scale, return_argmax=True)
    return as_tensor(pooled, input.dtype), as_tensor(argmax)


def roi_pool_backward(
    grad: Tensor, boxes: Tensor, argmax: Tensor, input_shape: Sizes, spatial_scale: float = 1.0
) -> Tensor:
    gradient = cvops.roi_pool_backward(
        to_native(grad), to_native(boxes), to_native(argmax), tuple(input_shape), spatial_scale
    )
    return as_tensor(gradient, grad.dtype)


def ps_roi_align(
    input: Tensor, boxes: Tensor, output_size: Sizes, spatial_scale: float = 1.0, sampling_ratio: int = -1
) -> Tensor:
    pooled = cvops.ps_roi_align(to_native(input), to_native(boxes), _pair(output_size), spatial_scale, sampling_ratio)
    return as_tensor(pooled, input.dtype)


def ps_roi_align_backward(
    grad: Tensor, boxes: Tensor, input_shape: Sizes, spatial_scale: float = 1.0, sampling_ratio: int = -1
) -> Tensor:
    gradient = cvops.ps_roi_align_backward(
        to_native(grad), to_native(boxes), tuple(input_shape), spatial_scale, sampling_ratio
    )
    return as_tensor(gradient, grad.dtype)


def ps_roi_pool(input: Tensor, boxes: Tensor, output_size: Sizes, spatial_scale: float = 1.0) -> Tensor:
    return as_tensor(
        cvops.ps_roi_pool(to_native(input), to_native(boxes), _pair(output_size), spatial_scale), input.dtype
    )


def ps_roi_pool_backward(grad: Tensor, boxes: Tensor, input_shape: Sizes, spatial_scale: float = 1.0) -> Tensor:
    gradient = cvops.ps_roi_pool_backward(to_native(grad), to_native(boxes), tuple(input_shape), spatial_scale)
    return as_tensor(gradient, grad.dtype)


def _pair(size: Sizes) -> tuple[int, int]:
    height, width = size
    return height, width


def _pooled(input: Tensor, boxes: Tensor, output_size: Sizes, *_: Any) -> Tensor:
    _require_rois(input, boxes)
    return input.new_empty((boxes.shape[0], input.shape[1], *output_size))


def _pooled_with_argmax(
    input: Tensor, boxes: Tensor, output_size: Sizes, spatial_scale: float = 1.0, return_argmax: bool = True
) -> tuple[Tensor, Tensor]:
    pooled = _pooled(input, boxes, output_size)
    return pooled, pooled.new_empty(pooled.shape if return_argmax else 0, dtype=torch.int32)


def _pooled_by_position(input: Tensor, boxes: Tensor, output_size: Sizes, *_: Any) -> Tensor:
    _require_rois(input, boxes)
    bins = output_size[0] * output_size[1]
    _require(input.shape[1] % bins == 0, "input", f"a multiple of {bins} channels", input)
    return input.new_empty((boxes.shape[0], input.shape[1] // bins, *output_size))


def _require_rois(input: Tensor, boxes: Tensor) -> None:
    _require(input.dim() == 4, "input", "shape (N, C, H, W)", input)
    _require(boxes.dim() == 2 and boxes.shape[1] == 5, "boxes", "shape (K, 5)", boxes)


def _keep_boxes(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    input, boxes, _, *ctx.options = inputs
    ctx.save_for_backward(boxes)
    ctx.input_shape = input.shape


def _keep_boxes_and_argmax(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    input, boxes, _, ctx.spatial_scale, ctx.return_argmax = inputs
    ctx.save_for_backward(boxes, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.input_shape = input.shape


def _backward_by(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (boxes,) = ctx.saved_tensors
        operator = getattr(torch.ops.cvops, name)
        return operator(grad, boxes, ctx.input_shape, *ctx.options), None, None, *(None for _ in ctx.options)

    return backward


def _roi_pool_gradient(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    if not ctx.return_argmax:
        raise NotImplementedError("`roi_pool` has a gradient only with return_argmax=True")
    boxes, argmax = ctx.saved_tensors
    gradient = torch.ops.cvops.roi_pool_backward(grad, boxes, argmax, ctx.input_shape, ctx.spatial_scale)
    return gradient, None, None, None, None


def _of_input_shape(grad: Tensor, boxes: Tensor, input_shape: Sizes, *_: Any) -> Tensor:
    return grad.new_empty(tuple(input_shape))


def _register_pooling(name: str, options: str, kernel: Any, kernel_backward: Any, fake: Any) -> None:
    _register(
        f"{name}(Tensor input, Tensor boxes, SymInt[2] output_size, {options}) -> Tensor",
        kernel,
        fake,
        setup=_keep_boxes,
        backward=_backward_by(f"{name}_backward"),
    )
    _register(
        f"{name}_backward(Tensor grad, Tensor boxes, SymInt[4] input_shape, {options}) -> Tensor",
        kernel_backward,
        _of_input_shape,
        **_once_only(name),
    )


_SCALE, _SAMPLES, _ALIGNED = "float spatial_scale=1.0", "int sampling_ratio=-1", "bool aligned=False"
_register_pooling("roi_align", f"{_SCALE}, {_SAMPLES}, {_ALIGNED}", roi_align, roi_align_backward, _pooled)
_register_pooling("ps_roi_align", f"{_SCALE}, {_SAMPLES}", ps_roi_align, ps_roi_align_backward, _pooled_by_position)
_register_pooling("ps_roi_pool", _SCALE, ps_roi_pool, ps_roi_pool_backward, _pooled_by_position)
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
    **_once_only("roi_pool"),
)


# --------------------------------------------------------------------------------------------------- pyramid pooling


def _multiscale_roi_align(
    maps: list[Tensor],
    boxes: Tensor,
    output_size: Sizes,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> Tensor:
    _require_one_dtype({f"features[{i}]": tensor for i, tensor in enumerate(maps)})
    pooled = cvops.multiscale_roi_align(
        [*map(to_native, maps)], to_native(boxes), _pair(output_size), scales=scales, sampling_ratio=sampling_ratio,
        canonical_scale=canonical_scale, canonical_level=canonical_level, aligned=aligned,
    )  # fmt: skip
    return as_tensor(pooled, maps[0].dtype)


def _multiscale_roi_align_backward(
    grad: Tensor,
    boxes: Tensor,
    images: int,
    heights: Sizes,
    widths: Sizes,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> list[Tensor]:
    shapes = [(images, grad.shape[1], *size) for size in zip(heights, widths, strict=True)]
    gradients = cvops.multiscale_roi_align_backward(
        to_native(grad), to_native(boxes), shapes, scales=scales, sampling_ratio=sampling_ratio,
        canonical_scale=canonical_scale, canonical_level=canonical_level, aligned=aligned,
    )  # fmt: skip
    return [as_tensor(gradient, grad.dtype) for gradient in gradients]


def _pooled_of_levels(maps: list[Tensor], boxes: Tensor, output_size: Sizes, *_: Any) -> Tensor:
    return _pooled(maps[0], boxes, output_size)


def _keep_sizes(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    maps, boxes, _, *ctx.options = inputs
    ctx.save_for_backward(boxes)
    ctx.sizes = maps[0].shape[0], [m.shape[2] for m in maps], [m.shape[3] for m in maps]


def _multiscale_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (boxes,) = ctx.saved_tensors
    gradients = torch.ops.cvops.multiscale_roi_align_backward(grad, boxes, *ctx.sizes, *ctx.options)
    return gradients, None, None, *(None for _ in ctx.options)


def _of_map_shapes(grad: Tensor, boxes: Tensor, images: int, heights: Sizes, widths: Sizes, *_: Any) -> list[Tensor]:
    return [grad.new_empty((images, grad.shape[1], *size)) for size in zip(heights, widths, strict=True)]


_LEVELS = "float[] scales, int sampling_ratio, bool aligned, float canonical_scale, int canonical_level"
_register(
    f"multiscale_roi_align(Tensor[] maps, Tensor boxes, SymInt[2] output_size, {_LEVELS}) -> Tensor",
    _multiscale_roi_align,
    _pooled_of_levels,
    setup=_keep_sizes,
    backward=_multiscale_gradient,
    mixes_dtypes=True,
)
_register(
    "multiscale_roi_align_backward(Tensor grad, Tensor boxes, SymInt images, SymInt[] heights, SymInt[] widths,"
    f" {_LEVELS}) -> Tensor[]",
    _multiscale_roi_align_backward,
    _of_map_shapes,
    **_once_only("MultiScaleRoIAlign"),
)


# -------------------------------------------------------------------------------------------- deformable convolution


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = (1, 1),
    padding: Sizes = (0, 0),
    dilation: Sizes = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    _require_one_dtype({"input": input, "weight": weight, "bias": bias})
    output = cvops.deform_conv2d(
        to_native(input),
        to_native(offset),
        to_native(weight),
        _optional(bias),
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        _optional(mask),
    )
    return as_tensor(output, input.dtype)


def deform_conv2d_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    mask: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of the dtypes of their tensors; what is not wanted is an empty tensor."""
    tensors, like = (input, offset, weight, bias, mask), grad
    if any(tensor is not None and tensor.dtype != grad.dtype for tensor in tensors):
        grad = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
    names = [name for name, is_wanted in zip(_deform_conv._GRADIENTS, wanted, strict=True) if is_wanted]
    gradients = cvops.deform_conv2d_backward(
        to_native(grad),
        to_native(input),
        to_native(offset),
        to_native(weight),
        _optional(bias),
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        _optional(mask),
        wanted=names,
    )
    return tuple(
        like.new_empty(0) if gradient is None or tensor is None else as_tensor(gradient, tensor.dtype)
        for gradient, tensor in zip(gradients, tensors, strict=True)
    )


def _require_one_dtype(tensors: dict[str, Tensor | None]) -> None:
    """Raise unless all have the dtype of the first: the plain functions do not see 16-bit types."""
    (first_name, first), *others = ((name, tensor) for name, tensor in tensors.items() if tensor is not None)
    for name, tensor in others:
        if tensor.dtype != first.dtype:
            wanted, got = (str(one.dtype).removeprefix("torch.") for one in (first, tensor))
            raise TypeError(f"`{name}` must be {wanted}, the dtype of `{first_name}`, got {got}")


def _optional(tensor: Tensor | None) -> Any:
    return None if tensor is None else to_native(tensor)


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


def _of_their_shapes(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    mask: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
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
    **_once_only("deform_conv2d"),
)


# ------------------------------------------------------------------------------------------------------------- boxes


def _register_measure(name: str, options: str) -> None:
    function = getattr(cvops, name)

    def kernel(boxes1: Tensor, boxes2: Tensor, *eps: float, fmt: str = "xyxy") -> Any:
        return as_tensor(function(to_native(boxes1), to_native(boxes2), *eps, fmt=fmt))

    schema = f"{name}(Tensor boxes1, Tensor boxes2, {options}*, str fmt='xyxy') -> Tensor"
    _register(schema, kernel, _measured, **_no_gradient(name))


def _measured(boxes1: Tensor, boxes2: Tensor, *eps: float, fmt: str = "xyxy") -> Tensor:
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        _require(boxes.dim() >= 2 and boxes.shape[-1] == 4, name, "shape (..., N, 4)", boxes)
    batch = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    wide = torch.float64, torch.int64, torch.int32, torch.uint64, torch.uint32
    double = any(boxes.dtype in wide for boxes in (boxes1, boxes2))
    dtype = torch.float64 if double else torch.float32
    return boxes1.new_empty((*batch, boxes1.shape[-2], boxes2.shape[-2]), dtype=dtype)


_register_measure("box_iou", "")
_register_measure("generalized_box_iou", "")
_register_measure("distance_box_iou", "float eps=1e-07, ")
_register_measure("complete_box_iou", "float eps=1e-07, ")
