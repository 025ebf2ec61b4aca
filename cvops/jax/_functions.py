"""The public functions: here are their signatures, for type checkers, and what their help adds to that of `cvops`.

`of` makes functions of them: each marks its first array as JAX's, and the function of `cvops` does the rest on
`_backend.py`. A default that is "..." here is the one there.
"""
# ruff: noqa: PIE790
# mypy: disable-error-code="empty-body"

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

import cvops

from .._arrays import WithBackend
from .._box_formulas import area_of, columns
from .._boxes import dtypes_of_conversion, limits_of_clipping
from .._checks import check_batched_boxes, check_format, integer, working_dtype
from .._multiclass import PaddedSelection
from . import _backend

if TYPE_CHECKING:
    from .._decode import Letterbox
    from .._multiclass import Metric
    from .._types import Format, Integer, Ints, Number

Array: TypeAlias = jax.Array | np.ndarray[Any, Any]
Rois: TypeAlias = Array | Sequence[Array]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _traced(array: Any) -> Any:
    """The first array of a call, which tells where to compute: `backend_of` looks there."""
    return WithBackend(array, _backend)


def _traced_maps(maps: Any) -> Any:
    """The same of maps in a list or by name. What is neither is refused later."""
    if isinstance(maps, Mapping):
        return {name: _traced(array) for name, array in maps.items()}
    return [*map(_traced, maps)] if isinstance(maps, (list, tuple)) else maps


def of(public: Callable[..., Any], mark: Callable[[Any], Any] = _traced) -> Callable[[_Function], _Function]:
    """A decorator that makes of a signature the function that calls `public` with its first argument marked."""

    def made(signature: Any) -> Any:
        own, theirs = inspect.signature(signature), inspect.signature(public).parameters
        first_name, *_ = own.parameters

        @functools.wraps(signature)
        def call(*args: Any, **options: Any) -> Any:
            signature(*args, **options)  # does nothing but refuse what it does not take
            first, *others = args or [options.pop(first_name)]
            return public(mark(first), *others, **options)

        parameters = [
            each.replace(default=theirs[name].default) if each.default is ... else each
            for name, each in own.parameters.items()
        ]
        call.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return like(public)(call)

    return made


def like(public: Any) -> Callable[[_Function], _Function]:
    """A decorator that puts a docstring into that of `public`: what differs after the summary, and its example."""

    def documented(function: _Function) -> _Function:
        text, own = inspect.getdoc(public), inspect.getdoc(function)
        if text and own:  # python -OO has none
            summary, _, sections = text.partition("\n\n")
            differs, _, example = own.partition("\n\n")
            sections, _, _ = sections.partition("Examples\n--------\n")
            for name in inspect.signature(public).parameters.keys() - inspect.signature(function).parameters.keys():
                sections = re.sub(rf"(?m)^{name} : .*\n(    .*\n)+|, {name}$", "", sections)
            function.__doc__ = f"{summary}\n\n{differs}\n\n{sections}"
            if example:
                imports = ">>> import jax\n>>> import jax.numpy as jnp\n>>> import cvops.jax\n"
                function.__doc__ += f"Examples\n--------\n{imports}{example}\n"
        return function

    return documented


def _padded(public: Callable[..., Any]) -> Callable[..., Any]:
    """`public` with results of a length that is known when JAX traces."""

    @functools.wraps(public)
    def padded(*args: Any, max_output: Any, **options: Any) -> Any:
        return public(*args, max_output=integer(max_output, "max_output"), padded=True, **options)

    return padded


# ------------------------------------------------------------------------------------------------------- suppression


@of(_padded(cvops.nms))
def nms(
    boxes: Array, scores: Array, iou_threshold: Number, *, max_output: Integer, score_threshold: Number | None = ...
) -> tuple[jax.Array, jax.Array]:
    """In JAX always as with ``padded=True``: it returns `keep`, of length `max_output`, and `count`.

    >>> boxes = jnp.array([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    >>> keep, count = cvops.jax.nms(boxes, jnp.array([0.8, 0.9, 0.7]), 0.5, max_output=3)
    >>> keep.tolist(), int(count)
    ([1, 2, -1], 2)
    """
    ...


@of(_padded(cvops.batched_nms))
def batched_nms(
    boxes: Array, scores: Array, idxs: Array, iou_threshold: Number, *, max_output: Integer,
    score_threshold: Number | None = ...,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """In JAX always as with ``padded=True``: it returns `keep`, of length `max_output`, and `count`.

    >>> boxes = jnp.array([[0.0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10]])
    >>> keep, count = cvops.jax.batched_nms(boxes, jnp.array([0.8, 0.9, 0.7]), jnp.array([5, 5, 6]), 0.5, max_output=3)
    >>> keep.tolist(), int(count)
    ([1, 2, -1], 2)
    """
    ...


@of(_padded(cvops.multiclass_nms))
def multiclass_nms(
    boxes: Array, scores: Array, iou_threshold: Number, *, max_output: Integer,
    score_threshold: Number | Array | None = ..., max_candidates: Integer | None = ...,
    max_per_class: Integer | None = ..., multi_label: bool = ..., class_agnostic: bool = ...,
    objectness: Array | None = ..., metric: Metric = ...,
) -> PaddedSelection[jax.Array]:  # fmt: skip
    """In JAX always as with ``padded=True``: it returns a PaddedSelection.

    >>> boxes = jnp.array([[[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]]])
    >>> scores = jnp.array([[[0.8, 0.1], [0.9, 0.1], [0.1, 0.7]]])
    >>> found = cvops.jax.multiclass_nms(boxes, scores, 0.5, score_threshold=0.25, max_output=3)
    >>> found.box.tolist(), found.label.tolist(), found.count.tolist()
    ([[1, 2, -1]], [[0, 1, -1]], [2])
    """
    ...


# ------------------------------------------------------------------------------------------- pooling and convolution


@of(cvops.roi_align)
def roi_align(
    input: Array, boxes: Rois, output_size: Ints, spatial_scale: Number = ..., sampling_ratio: Integer = ...,
    aligned: bool = ...,
) -> jax.Array:  # fmt: skip
    """Differentiable by `input`; `boxes` have a gradient of 0. A wrong image index shows when the program runs.

    >>> boxes = jnp.array([[0, 0.0, 0.0, 2.0, 2.0]])
    >>> jax.grad(lambda x: cvops.jax.roi_align(x, boxes, 1, sampling_ratio=1).sum())(jnp.ones((1, 1, 3, 3))).tolist()
    [[[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]]
    """
    ...


@of(cvops.roi_pool)
def roi_pool(input: Array, boxes: Rois, output_size: Ints, spatial_scale: Number = ...) -> jax.Array:
    """Differentiable by `input`; `boxes` have a gradient of 0. It returns no argmax.

    >>> cvops.jax.roi_pool(jnp.arange(9.0).reshape(1, 1, 3, 3), jnp.array([[0, 0.0, 0.0, 1.0, 1.0]]), 1).tolist()
    [[[[4.0]]]]
    """
    ...


@of(cvops.ps_roi_align)
def ps_roi_align(
    input: Array, boxes: Rois, output_size: Ints, spatial_scale: Number = ..., sampling_ratio: Integer = ...
) -> jax.Array:
    """Differentiable by `input`; `boxes` have a gradient of 0.

    >>> features = jnp.arange(4.0).reshape(1, 4, 1, 1) * jnp.ones((6, 6))
    >>> cvops.jax.ps_roi_align(features, jnp.array([[0, 1.0, 1.0, 5.0, 5.0]]), 2).tolist()
    [[[[0.0, 1.0], [2.0, 3.0]]]]
    """
    ...


@of(cvops.ps_roi_pool)
def ps_roi_pool(input: Array, boxes: Rois, output_size: Ints, spatial_scale: Number = ...) -> jax.Array:
    """Differentiable by `input`; `boxes` have a gradient of 0.

    >>> features = jnp.arange(4.0).reshape(1, 4, 1, 1) * jnp.ones((6, 6))
    >>> cvops.jax.ps_roi_pool(features, jnp.array([[0, 1.0, 1.0, 5.0, 5.0]]), 2).tolist()
    [[[[0.0, 1.0], [2.0, 3.0]]]]
    """
    ...


@of(cvops.multiscale_roi_align, _traced_maps)
def multiscale_roi_align(
    features: Sequence[Array], boxes: Rois, output_size: Ints, *, scales: Sequence[Number],
    sampling_ratio: Integer = ..., canonical_scale: Number = ..., canonical_level: Integer = ...,
    aligned: bool = ...,
) -> jax.Array:  # fmt: skip
    """Differentiable by `features`; `boxes` have a gradient of 0.

    >>> maps, boxes = [jnp.zeros((1, 8, 64, 64)), jnp.zeros((1, 8, 32, 32))], jnp.array([[0, 0.0, 0.0, 20.0, 30.0]])
    >>> cvops.jax.multiscale_roi_align(maps, boxes, 7, scales=[0.25, 0.125]).shape
    (1, 8, 7, 7)
    """
    ...


@like(cvops.MultiScaleRoIAlign)
class MultiScaleRoIAlign(cvops.MultiScaleRoIAlign):
    """Its call is differentiable by the maps, and `backward` is for arrays outside of programs, as in `cvops`.

    >>> pool = cvops.jax.MultiScaleRoIAlign(["p2", "p3"], output_size=7, sampling_ratio=2)
    >>> features = {"p2": jnp.zeros((1, 8, 64, 64)), "p3": jnp.zeros((1, 8, 32, 32))}
    >>> pool(features, [jnp.array([[0.0, 0, 20, 30], [5, 5, 250, 250]])], image_shapes=[(256, 256)]).shape
    (2, 8, 7, 7)
    """

    @like(cvops.MultiScaleRoIAlign.__call__)
    def __call__(
        self, features: Mapping[str, Array], boxes: Rois, image_shapes: Sequence[Sequence[Integer]]
    ) -> jax.Array:
        """Differentiable by the maps; `boxes` have a gradient of 0."""
        return super().__call__(_traced_maps(features), boxes, image_shapes)


@of(cvops.deform_conv2d)
def deform_conv2d(
    input: Array, offset: Array, weight: Array, bias: Array | None = ..., stride: Ints = ..., padding: Ints = ...,
    dilation: Ints = ..., mask: Array | None = ...,
) -> jax.Array:  # fmt: skip
    """Differentiable by all its arrays.

    >>> image, offset = jnp.ones((1, 1, 3, 3)), jnp.zeros((1, 2, 3, 3))
    >>> cvops.jax.deform_conv2d(image, offset, jnp.full((2, 1, 1, 1), 3.0)).shape
    (1, 2, 3, 3)
    """
    ...


# ----------------------------------------------------------------------- boxes: plain JAX, of any order, on any device


@like(cvops.box_area)
def box_area(boxes: Array, fmt: Format = "xyxy") -> jax.Array:
    """Differentiable in any mode and order.

    >>> cvops.jax.box_area(jnp.array([[0.0, 0, 2, 3]])).tolist()
    [6.0]
    """
    check_format(fmt, "fmt")
    native = _backend.asarray(boxes, "boxes")
    check_batched_boxes(native, "boxes")
    return area_of(native.astype(_backend.canonical(working_dtype(native))), fmt)


@of(cvops.box_iou)
def box_iou(boxes1: Array, boxes2: Array, fmt: Format = ...) -> jax.Array:
    """Differentiable in any mode and order.

    >>> cvops.jax.box_iou(jnp.array([[0.0, 0, 2, 2]]), jnp.array([[1.0, 0, 2, 2]])).tolist()
    [[0.5]]
    """
    ...


@of(cvops.generalized_box_iou)
def generalized_box_iou(boxes1: Array, boxes2: Array, *, fmt: Format = ...) -> jax.Array:
    """Differentiable in any mode and order.

    >>> cvops.jax.generalized_box_iou(jnp.array([[0.0, 0, 1, 1]]), jnp.array([[3.0, 0, 4, 1]])).tolist()
    [[-0.5]]
    """
    ...


@of(cvops.distance_box_iou)
def distance_box_iou(boxes1: Array, boxes2: Array, eps: Number = ..., *, fmt: Format = ...) -> jax.Array:
    """Differentiable in any mode and order.

    >>> cvops.jax.distance_box_iou(jnp.array([[0.0, 0, 2, 2]]), jnp.array([[2.0, 0, 4, 2]])).round(3).tolist()
    [[-0.20000000298023224]]
    """
    ...


@of(cvops.complete_box_iou)
def complete_box_iou(boxes1: Array, boxes2: Array, eps: Number = ..., *, fmt: Format = ...) -> jax.Array:
    """Differentiable in any mode and order.

    >>> cvops.jax.complete_box_iou(jnp.array([[0.0, 0, 2, 2]]), jnp.array([[0.0, 0, 4, 2]])).shape
    (1, 1)
    """
    ...


@like(cvops.box_convert)
def box_convert(boxes: Array, in_fmt: Format, out_fmt: Format) -> jax.Array:
    """Differentiable in any mode and order.

    >>> cvops.jax.box_convert(jnp.array([[10, 20, 31, 60]]), "xyxy", "cxcywh").tolist()
    [[20.5, 40.0, 21.0, 40.0]]
    """
    native = _backend.asarray(boxes, "boxes")
    working, result = map(_backend.canonical, dtypes_of_conversion(native, in_fmt, out_fmt))
    if in_fmt == out_fmt:
        return native
    return jnp.stack(columns(native.astype(working), in_fmt, out_fmt), -1).astype(result)


@like(cvops.clip_boxes_to_image)
def clip_boxes_to_image(boxes: Array, size: Sequence[Number]) -> jax.Array:
    """Differentiable in any mode and order.

    >>> cvops.jax.clip_boxes_to_image(jnp.array([[-5, 10, 700, 90]]), (480, 640)).tolist()
    [[0, 10, 640, 90]]
    """
    native = _backend.asarray(boxes, "boxes")
    limits = limits_of_clipping(native, size)
    return jnp.minimum(jnp.maximum(native, native.dtype.type(0)), limits)


@of(cvops.masks_to_boxes)
def masks_to_boxes(masks: Array) -> jax.Array:
    """Boxes of masks have no gradient.

    >>> cvops.jax.masks_to_boxes(jnp.eye(4, dtype=bool)[None, 1:3]).tolist()
    [[1.0, 0.0, 2.0, 1.0]]
    """
    ...


@of(cvops.decode_boxes)
def decode_boxes(
    deltas: Array, anchors: Array, weights: Sequence[Number] = ..., *, clip: Number | None = ...
) -> jax.Array:
    """Differentiable in any mode and order.

    >>> cvops.jax.decode_boxes(jnp.array([[0.5, 0, 0, 0]]), jnp.array([[0.0, 0, 10, 20]])).tolist()
    [[5.0, 0.0, 15.0, 20.0]]
    """
    ...


@of(cvops.encode_boxes)
def encode_boxes(boxes: Array, anchors: Array, weights: Sequence[Number] = ...) -> jax.Array:
    """Differentiable in any mode and order.

    >>> cvops.jax.encode_boxes(jnp.array([[5.0, 0, 15, 20]]), jnp.array([[0.0, 0, 10, 20]])).tolist()
    [[0.5, 0.0, 0.0, 0.0]]
    """
    ...


@of(cvops.distance_to_boxes)
def distance_to_boxes(points: Array, distances: Array) -> jax.Array:
    """Differentiable in any mode and order.

    >>> cvops.jax.distance_to_boxes(jnp.array([[4.0, 4.0]]), jnp.array([[1.0, 2, 3, 4]])).tolist()
    [[3.0, 2.0, 7.0, 8.0]]
    """
    ...


@of(cvops.scale_boxes)
def scale_boxes(
    boxes: Array, from_size: Sequence[Number], to_size: Sequence[Number], *, letterbox: Letterbox = ...
) -> jax.Array:
    """Differentiable in any mode and order.

    >>> cvops.jax.scale_boxes(jnp.array([[0.0, 80, 640, 560]]), (640, 640), (240, 320), letterbox=True).tolist()
    [[0.0, 0.0, 320.0, 240.0]]
    """
    ...
