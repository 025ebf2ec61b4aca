"""Pooling of regions of interest (RoIs) in JAX programs, and its gradients."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import cvops

from .. import _roi
from .._checks import as_sampling_ratio, check_boxes_of_images, check_rois, flag, pair, positive
from ._ffi import foreign
from ._traced import TRACED, Array, Rois, array_of, result_of, varying_alike

if TYPE_CHECKING:
    from .._types import Integer, Ints, Number


class _Pooling(NamedTuple):
    """What JAX has to know of an operator that pools."""

    forward: Any
    backward: Any
    position_sensitive: bool = False
    has_argmax: bool = False


_ROI_ALIGN = _Pooling(
    foreign("cvops.roi_align", cvops.roi_align), foreign("cvops.roi_align_backward", cvops.roi_align_backward)
)
_ROI_POOL = _Pooling(
    foreign("cvops.roi_pool", cvops.roi_pool),
    foreign("cvops.roi_pool_backward", cvops.roi_pool_backward),
    has_argmax=True,
)
_PS_ROI_ALIGN = _Pooling(
    foreign("cvops.ps_roi_align", cvops.ps_roi_align),
    foreign("cvops.ps_roi_align_backward", cvops.ps_roi_align_backward),
    position_sensitive=True,
)
_PS_ROI_POOL = _Pooling(
    foreign("cvops.ps_roi_pool", cvops.ps_roi_pool),
    foreign("cvops.ps_roi_pool_backward", cvops.ps_roi_pool_backward),
    position_sensitive=True,
)


def roi_align(
    input: Array,
    boxes: Rois,
    output_size: Ints,
    spatial_scale: Number = 1.0,
    sampling_ratio: Integer = -1,
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
    options = {
        "sampling_ratio": as_sampling_ratio(sampling_ratio, "sampling_ratio"),
        "aligned": flag(aligned, "aligned"),
    }
    return _pool(_ROI_ALIGN, input, boxes, output_size, spatial_scale, options)


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
    return _pool(_ROI_POOL, input, boxes, output_size, spatial_scale, {})


def ps_roi_align(
    input: Array,
    boxes: Rois,
    output_size: Ints,
    spatial_scale: Number = 1.0,
    sampling_ratio: Integer = -1,
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
    options = {"sampling_ratio": as_sampling_ratio(sampling_ratio, "sampling_ratio")}
    return _pool(_PS_ROI_ALIGN, input, boxes, output_size, spatial_scale, options)


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
    return _pool(_PS_ROI_POOL, input, boxes, output_size, spatial_scale, {})


def _pool(
    operator: _Pooling, input: Any, boxes: Any, output_size: Any, spatial_scale: Any, options: dict[str, Any]
) -> Any:
    features, rois = _roi._features_and_rois(input, joined(boxes), TRACED)
    if isinstance(boxes, (list, tuple)):
        check_boxes_of_images(boxes, len(features))
    size = pair(output_size, "output_size")
    if operator.position_sensitive:
        _roi._check_channels(features, size)
    options = {"spatial_scale": positive(spatial_scale, "spatial_scale"), **options}
    return _pooled(operator, size, features.shape, tuple(options.items()), *varying_alike(features, rois))


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


# The shape is not that of a residual, because the features are not kept for the gradient.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _pooled(operator: _Pooling, size: tuple[int, int], shape: Any, options: Any, features: Any, rois: Any) -> Any:
    result = _result(operator, size, features, rois)
    return operator.forward(result, features, rois, output_size=size, **dict(options))


def _result(operator: _Pooling, size: tuple[int, int], features: Any, rois: Any) -> Any:
    parts = size[0] * size[1] if operator.position_sensitive else 1
    return result_of((rois.shape[0], features.shape[1] // parts, *size), features.dtype)


def _pooled_forward(
    operator: _Pooling, size: tuple[int, int], shape: Any, options: Any, features: Any, rois: Any
) -> Any:
    if not operator.has_argmax:
        return _pooled(operator, size, shape, options, features, rois), (rois,)
    result = _result(operator, size, features, rois)
    results = result, result_of(result.shape, np.int32)
    pooled, argmax = operator.forward(results, features, rois, output_size=size, return_argmax=True, **dict(options))
    return pooled, (rois, argmax)


def _pooled_backward(
    operator: _Pooling, size: tuple[int, int], shape: Any, options: Any, residuals: Any, grad: Any
) -> Any:
    gradient = operator.backward(result_of(shape, grad.dtype), grad, *residuals, input_shape=shape, **dict(options))
    return gradient, None


_pooled.defvjp(_pooled_forward, _pooled_backward)
