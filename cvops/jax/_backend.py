"""JAX as a backend: the formulas on its arrays, and calls of `cvops` when a program runs.

While JAX traces, shapes and dtypes are known and values are not. Functions have the names and the arguments of those of
the CPU backend. Each operator that has no formula is registered with XLA under a name that is for good.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import cvops

from .. import _box_formulas, _deform_conv, _multiclass
from .._arrays import WithBackend, backend_of
from .._boxes import corners_and_area
from .._checks import kind, working_dtype
from .._decode import result_dtype
from ._ffi import differentiable, foreign

Array: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]
Function: TypeAlias = Callable[..., Any]

xp = jnp


def asarray(value: Any, name: str) -> Array:
    """`value` as a JAX array."""
    value = value.array if isinstance(value, WithBackend) else value
    if not isinstance(value, (jax.Array, np.ndarray)) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"`{name}` must be an array, got {kind(value)}: use jnp.asarray")
    dtype = value.dtype
    if jnp.issubdtype(dtype, jax.dtypes.extended) or dtype.hasobject or dtype == np.longdouble or dtype.char in "SUVMm":
        raise TypeError(f"`{name}` must be an array of numbers, got {dtype}")
    return jnp.asarray(value if dtype.isnative else value.astype(dtype.newbyteorder("=")))


def copy(array: Array) -> Array:
    """`array`, which nobody writes to."""
    return array


def canonical(dtype: Any) -> np.dtype[Any]:
    """`dtype` as far as JAX has it: 32 bits while 64-bit types are off."""
    found: np.dtype[Any] = jax.dtypes.canonicalize_dtype(dtype)
    return found


def current_gpu() -> int | None:
    """Not None: as on a GPU nothing waits for values, although the device is any."""
    return 0


def rois_of_images(boxes: Sequence[Array], dtype: str) -> Array:
    """Boxes (L_i, 4) of each image as RoIs (K, 5)."""
    rows = [jnp.pad(array.astype(dtype), ((0, 0), (1, 0)), constant_values=i) for i, array in enumerate(boxes)]
    return jnp.concatenate([jnp.zeros((0, 5), dtype), *rows])


# ---------------------------------------------------------------------------------------------------------- formulas


def _measure(formula: Function) -> Function:
    """A function of the backend: a measure of each box with each."""

    def measure(boxes1: Array, boxes2: Array, fmt: str, *eps: float) -> Array:
        dtype = canonical(working_dtype(boxes1, boxes2)).char
        (one, area1), (two, area2) = (corners_and_area(boxes, fmt, dtype, jnp) for boxes in (boxes1, boxes2))
        return formula(one[..., :, None, :], two[..., None, :, :], area1[..., :, None], area2[..., None, :], *eps)

    return measure


def _decoder(formula: Function, arrays: int, like: int = 0) -> Function:
    """A function of the backend: a formula of the first arguments in working precision, in the dtype of one of them."""

    def decoder(*args: Any) -> Array:
        dtype = canonical(working_dtype(*args[:arrays]))
        values = formula(*(array.astype(dtype) for array in args[:arrays]), *args[arrays:])
        return values.astype(canonical(result_dtype(args[like])))

    return decoder


_measures = _box_formulas.measures(jnp, jax.lax.stop_gradient)
box_iou = _measure(_measures.box_iou)
generalized_box_iou = _measure(_measures.generalized_box_iou)
distance_box_iou = _measure(_measures.distance_box_iou)
complete_box_iou = _measure(_measures.complete_box_iou)

_decoders = _box_formulas.decoders(jnp)
decode_boxes = _decoder(_decoders.decoded, 2)
encode_boxes = _decoder(_decoders.encoded, 2)
distance_to_boxes = _decoder(_decoders.around, 2, like=1)
scale_boxes = _decoder(_decoders.moved, 1)

# ----------------------------------------------------------------------------------------- indices, without gradients


def _suppression(name: str, public: Function) -> Function:
    """A function of the backend: `public`, registered under this name."""
    call, options = foreign(name, public), ("iou_threshold", "score_threshold", "max_output", "padded")

    def suppress(*args: Any) -> Any:
        named = dict(zip(options, args[-4:], strict=True))
        return _indices(call, [(named["max_output"],), ()], *args[:-4], **named)

    return suppress


def _indices(call: Function, shapes: Sequence[Shape], *arrays: Array | None, **options: Any) -> Any:
    return call([(shape, np.int64) for shape in shapes], *map(jax.lax.stop_gradient, arrays), **options)


nms = _suppression("cvops.nms", cvops.nms)
batched_nms = _suppression("cvops.batched_nms", cvops.batched_nms)


def multiclass_nms(boxes: Array, scores: Array, objectness: Array | None, *args: Any) -> Any:
    options = _multiclass.Options(*args)._asdict()
    floors = options.pop("score_threshold") if isinstance(options["score_threshold"], jax.Array) else None
    if floors is not None and scores.dtype == jnp.bfloat16:  # computed in float32, where nobody would round them
        floors = jax.lax.reduce_precision(floors, exponent_bits=8, mantissa_bits=7)
    options["metric"] = _multiclass.METRICS.index(options["metric"])  # XLA has numbers alone
    shape = len(boxes), options["max_output"]
    return _indices(_multiclass_nms, [shape, shape, shape[:1]], boxes, scores, objectness, floors, **options)


def _multiclass_nms_of_arrays(boxes: Any, scores: Any, objectness: Any, floors: Any, **options: Any) -> Any:
    options["metric"] = _multiclass.METRICS[options["metric"]]
    if floors is not None:
        options["score_threshold"] = floors
    return cvops.multiclass_nms(boxes, scores, objectness=objectness, **options)


_multiclass_nms = foreign("cvops.multiclass_nms", _multiclass_nms_of_arrays)

# -------------------------------------------------------------------------------------------- pooling and convolution


def _pooling(
    name: str, public: Function, public_backward: Function, *, by_position: bool = False, has_argmax: bool = False
) -> Function:
    """A function of the backend: `public`, registered under this name, and its gradient by the map."""
    _, _, _, *names = inspect.signature(public).parameters

    def backward(grad: Any, *kept: Any, input_shapes: Shape, output_size: Any, **options: Any) -> Any:
        return (public_backward(grad, *kept, input_shape=input_shapes, **options),)

    call = differentiable(name, public, backward, has_argmax=has_argmax)

    def pool(features: Array, rois: Array, size: tuple[int, int], *args: Any) -> Array:
        shape = len(rois), features.shape[1] // (math.prod(size) if by_position else 1), *size
        options = {name: value for name, value in zip(names, args, strict=True) if name != "return_argmax"}
        return call(shape, (features,), (rois,), output_size=size, **options)

    return pool


roi_align = _pooling("cvops.roi_align", cvops.roi_align, cvops.roi_align_backward)
roi_pool = _pooling("cvops.roi_pool", cvops.roi_pool, cvops.roi_pool_backward, has_argmax=True)
ps_roi_align = _pooling("cvops.ps_roi_align", cvops.ps_roi_align, cvops.ps_roi_align_backward, by_position=True)
ps_roi_pool = _pooling("cvops.ps_roi_pool", cvops.ps_roi_pool, cvops.ps_roi_pool_backward, by_position=True)


def multiscale_roi_align(
    features: Sequence[Array], rois: Array, size: tuple[int, int], scales: Any, area_limits: Any, *args: Any
) -> Array:
    shape = len(rois), features[0].shape[1], *size
    # Without those limits that are NaN, the last ones: XLA would take each NaN for another option.
    options = {"scales": tuple(scales), "area_limits": tuple(limit for limit in area_limits if limit == limit)}
    options |= dict(zip(("sampling_ratio", "aligned"), args, strict=True))
    return _multiscale_roi_align(shape, tuple(features), (rois,), output_size=size, **options)


def _multiscale_forward(*arrays: Any, output_size: Any, **options: Any) -> Any:
    with backend_of() as cpu:
        *maps, rois = (cpu.asarray(array, "features") for array in arrays)
        return cpu.multiscale_roi_align(maps, rois, output_size, *_levels(**options))


def _multiscale_backward(grad: Any, rois: Any, *, input_shapes: Shape, output_size: Any, **options: Any) -> Any:
    with backend_of() as cpu:
        shapes = [input_shapes[i : i + 4] for i in range(0, len(input_shapes), 4)]
        arrays = cpu.asarray(grad, "grad"), cpu.asarray(rois, "boxes")
        return tuple(cpu.multiscale_roi_align_backward(*arrays, shapes, *_levels(**options)))


def _levels(scales: Any, area_limits: Any, sampling_ratio: int, aligned: bool) -> tuple[Any, ...]:
    missing = len(scales) - 1 - len(area_limits)
    return scales, [*area_limits, *[math.nan] * missing], sampling_ratio, aligned


_multiscale_roi_align = differentiable("cvops.multiscale_roi_align", _multiscale_forward, _multiscale_backward)


def deform_conv2d(
    input: Array, offset: Array, weight: Array, bias: Any, stride: Any, padding: Any, dilation: Any, mask: Any
) -> Array:
    shape, arrays = (len(input), len(weight), *offset.shape[2:]), (input, offset, weight, bias, mask)
    return _deform_conv2d(shape, arrays, (), stride=stride, padding=padding, dilation=dilation)


def _deform_conv2d_forward(*arrays: Any, **options: Any) -> Any:
    return cvops.deform_conv2d(**dict(zip(_deform_conv.GRADIENTS, arrays, strict=True)), **options)


def _deform_conv2d_backward(grad: Any, *arrays: Any, input_shapes: Shape, **options: Any) -> Any:
    named = {name: array for name, array in zip(_deform_conv.GRADIENTS, arrays, strict=True) if array is not None}
    gradients: Any = cvops.deform_conv2d_backward(grad, **named, **options, wanted=named)
    return tuple(gradient for gradient in gradients if gradient is not None)


_deform_conv2d = differentiable(
    "cvops.deform_conv2d", _deform_conv2d_forward, _deform_conv2d_backward, keeps_inputs=True
)
