"""Pooling of regions of interest (RoIs) in JAX programs, and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

import cvops

from .. import _roi
from .._checks import ADAPTIVE, as_sampling_ratio, check_boxes_of_images, check_rois, flag, pair, positive
from ._ffi import differentiable
from ._traced import TRACED, Array, Rois, array_of

if TYPE_CHECKING:
    from .._types import Integer, Ints, Number


def roi_align(
    input: Array,
    boxes: Rois,
    output_size: Ints,
    spatial_scale: Number = 1.0,
    sampling_ratio: Integer = ADAPTIVE,
    aligned: bool = False,
) -> jax.Array:
    """Pool each region of interest by averaging bilinear samples: `cvops.roi_align`, differentiable by `input`.

    Parameters
    ----------
    input, boxes, output_size, spatial_scale, sampling_ratio, aligned
        As in `cvops.roi_align`; bfloat16 too. All but the arrays are part of the program. `boxes` have no gradient:
        it is 0.

    Returns
    -------
    pooled : array of shape (K, C, output height, output width), dtype of `input`

    Raises
    ------
    TypeError, ValueError
        As `cvops.roi_align`; a wrong image index when the program runs.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> boxes = jnp.array([[0, 0.0, 0.0, 2.0, 2.0]])
    >>> jax.grad(lambda x: cvops.jax.roi_align(x, boxes, 1, sampling_ratio=1).sum())(jnp.ones((1, 1, 3, 3))).tolist()
    [[[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]]
    """
    samples, from_centres = as_sampling_ratio(sampling_ratio, "sampling_ratio"), flag(aligned, "aligned")
    options: dict[str, Any] = {"sampling_ratio": samples, "aligned": from_centres}
    return _pool(_roi_align, input, boxes, output_size, spatial_scale, **options)


def roi_pool(input: Array, boxes: Rois, output_size: Ints, spatial_scale: Number = 1.0) -> jax.Array:
    """Pool each region of interest by the maximum of each bin: `cvops.roi_pool`, differentiable by `input`.

    Parameters
    ----------
    input, boxes, output_size, spatial_scale
        As in `cvops.roi_pool`; bfloat16 too. `boxes` have no gradient: it is 0.

    Returns
    -------
    pooled : array of shape (K, C, output height, output width), dtype of `input`

    Raises
    ------
    TypeError, ValueError
        As `roi_align`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> cvops.jax.roi_pool(jnp.arange(9.0).reshape(1, 1, 3, 3), jnp.array([[0, 0.0, 0.0, 1.0, 1.0]]), 1).tolist()
    [[[[4.0]]]]
    """
    return _pool(_roi_pool, input, boxes, output_size, spatial_scale)


def ps_roi_align(
    input: Array,
    boxes: Rois,
    output_size: Ints,
    spatial_scale: Number = 1.0,
    sampling_ratio: Integer = ADAPTIVE,
) -> jax.Array:
    """Position-sensitive RoIAlign: `cvops.ps_roi_align`, differentiable by `input`.

    Parameters
    ----------
    input, boxes, output_size, spatial_scale, sampling_ratio
        As in `cvops.ps_roi_align`; bfloat16 too. `boxes` have no gradient: it is 0.

    Returns
    -------
    pooled : array of shape (K, C, PH, PW), dtype of `input`

    Raises
    ------
    TypeError, ValueError
        As `cvops.ps_roi_align`; a wrong image index when the program runs.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> features = jnp.arange(4.0).reshape(1, 4, 1, 1) * jnp.ones((6, 6))
    >>> cvops.jax.ps_roi_align(features, jnp.array([[0, 1.0, 1.0, 5.0, 5.0]]), 2).tolist()
    [[[[0.0, 1.0], [2.0, 3.0]]]]
    """
    samples = as_sampling_ratio(sampling_ratio, "sampling_ratio")
    return _pool(_ps_roi_align, input, boxes, output_size, spatial_scale, True, sampling_ratio=samples)


def ps_roi_pool(input: Array, boxes: Rois, output_size: Ints, spatial_scale: Number = 1.0) -> jax.Array:
    """Position-sensitive RoI pooling: `cvops.ps_roi_pool`, differentiable by `input`.

    Parameters
    ----------
    input, boxes, output_size, spatial_scale
        As in `cvops.ps_roi_pool`; bfloat16 too. `boxes` have no gradient: it is 0.

    Returns
    -------
    pooled : array of shape (K, C, PH, PW), dtype of `input`

    Raises
    ------
    TypeError, ValueError
        As `ps_roi_align`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> features = jnp.arange(4.0).reshape(1, 4, 1, 1) * jnp.ones((6, 6))
    >>> cvops.jax.ps_roi_pool(features, jnp.array([[0, 1.0, 1.0, 5.0, 5.0]]), 2).tolist()
    [[[[0.0, 1.0], [2.0, 3.0]]]]
    """
    return _pool(_ps_roi_pool, input, boxes, output_size, spatial_scale, True)


def _pool(
    operator: Any,
    input: Any,
    boxes: Any,
    output_size: Any,
    spatial_scale: Any,
    position_sensitive: bool = False,
    **options: Any,
) -> Any:
    features, rois = _roi._features_and_rois(input, joined(boxes), TRACED)
    if isinstance(boxes, (list, tuple)):
        check_boxes_of_images(boxes, len(features))
    size = pair(output_size, "output_size")
    if position_sensitive:
        _roi._check_channels(features, size)
    scale = positive(spatial_scale, "spatial_scale")
    return operator((features,), (rois,), output_size=size, spatial_scale=scale, **options)


def joined(boxes: Any) -> Any:
    """Boxes (K, 5) of a list of boxes (L_i, 4) of each image."""
    if not isinstance(boxes, (list, tuple)):
        return boxes
    arrays = [array_of(array, name) for name, array in _roi.named_boxes(boxes).items()]
    for name, array in zip(_roi.named_boxes(boxes), arrays, strict=True):
        check_rois(array, name, 4)
    # Not in 16 bits, which would not hold the index of every image.
    dtype = jnp.result_type(jnp.float32, *arrays)
    rows = [
        jnp.concatenate([jnp.full((len(array), 1), image, dtype), array.astype(dtype)], 1)
        for image, array in enumerate(arrays)
    ]
    return jnp.concatenate([jnp.zeros((0, 5), dtype), *rows])


def _shape(inputs: Any, others: Any, *, output_size: tuple[int, int], **options: Any) -> tuple[int, ...]:
    return len(others[0]), inputs[0].shape[1], *output_size


def _shape_by_position(inputs: Any, others: Any, *, output_size: tuple[int, int], **options: Any) -> tuple[int, ...]:
    return len(others[0]), inputs[0].shape[1] // (output_size[0] * output_size[1]), *output_size


def _of_input(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The gradient as XLA asks for it: the shape of `grad` tells the size of the output."""

    def gradients(grad: Any, *kept: Any, input_shapes: Any, output_size: Any, **options: Any) -> Any:
        return (backward(grad, *kept, input_shape=input_shapes, **options),)

    return gradients


_roi_align = differentiable("cvops.roi_align", cvops.roi_align, _of_input(cvops.roi_align_backward), _shape)
_roi_pool = differentiable(
    "cvops.roi_pool", cvops.roi_pool, _of_input(cvops.roi_pool_backward), _shape, has_argmax=True
)
_ps_roi_align = differentiable(
    "cvops.ps_roi_align", cvops.ps_roi_align, _of_input(cvops.ps_roi_align_backward), _shape_by_position
)
_ps_roi_pool = differentiable(
    "cvops.ps_roi_pool", cvops.ps_roi_pool, _of_input(cvops.ps_roi_pool_backward), _shape_by_position
)
