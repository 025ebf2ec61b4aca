"""Pooling of regions of interest (RoIs) in JAX programs, and its gradients."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _roi
from .._checks import check_boxes_of_images, check_rois, flag, pair, positive, ratio
from ._ffi import call
from ._traced import TRACED, Array, Rois, array_of, result_of

if TYPE_CHECKING:
    from .._types import Integer, Ints, Number


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
        As in `cvops.roi_align`; bfloat16 too. All but the arrays are part of the program.

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
    options = {"sampling_ratio": ratio(sampling_ratio, "sampling_ratio"), "aligned": flag(aligned, "aligned")}
    return _pool("roi_align", input, boxes, output_size, spatial_scale, options)


def roi_pool(input: Array, boxes: Rois, output_size: Ints, spatial_scale: Number = 1.0) -> jax.Array:
    """Pool each region of interest by the maximum of each bin: `cvops.roi_pool`, differentiable by `input`.

    Parameters
    ----------
    input, boxes, output_size, spatial_scale
        As in `cvops.roi_pool`; bfloat16 too.

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
    return _pool("roi_pool", input, boxes, output_size, spatial_scale, {})


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
        As in `cvops.ps_roi_align`; bfloat16 too.

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
    options = {"sampling_ratio": ratio(sampling_ratio, "sampling_ratio")}
    return _pool("ps_roi_align", input, boxes, output_size, spatial_scale, options)


def ps_roi_pool(input: Array, boxes: Rois, output_size: Ints, spatial_scale: Number = 1.0) -> jax.Array:
    """Position-sensitive RoI pooling: `cvops.ps_roi_pool`, differentiable by `input`.

    Parameters
    ----------
    input, boxes, output_size, spatial_scale
        As in `cvops.ps_roi_pool`; bfloat16 too.

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
    return _pool("ps_roi_pool", input, boxes, output_size, spatial_scale, {})


def _pool(operator: str, input: Any, boxes: Any, output_size: Any, spatial_scale: Any, options: dict[str, Any]) -> Any:
    features, rois = _roi._features_and_rois(input, joined(boxes), TRACED)
    if isinstance(boxes, (list, tuple)):
        check_boxes_of_images(boxes, len(features))
    size = pair(output_size, "output_size")
    if operator.startswith("ps_"):
        _roi._check_channels(features, size)
    options = {"spatial_scale": positive(spatial_scale, "spatial_scale"), **options}
    return _pooled(operator, size, json.dumps(options), features, rois)


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


# JSON, because what is not differentiated must be hashable.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _pooled(operator: str, size: tuple[int, int], options: str, features: Any, rois: Any) -> Any:
    result = _pooled_shape(operator, size, features, rois)
    options = json.dumps({"output_size": size, **json.loads(options)})
    return call(f"cvops:{operator}", result, {"input": features, "boxes": rois}, options)


def _pooled_shape(operator: str, size: tuple[int, int], features: Any, rois: Any) -> Any:
    parts = size[0] * size[1] if operator.startswith("ps_") else 1
    return result_of((len(rois), features.shape[1] // parts, *size), features.dtype)


def _pooled_forward(operator: str, size: tuple[int, int], options: str, features: Any, rois: Any) -> Any:
    like = jnp.empty((0, *features.shape), features.dtype)  # remembers the shape and costs nothing
    if operator != "roi_pool":
        return _pooled(operator, size, options, features, rois), (rois, None, like)
    result = _pooled_shape(operator, size, features, rois)
    options = json.dumps({"output_size": size, "return_argmax": True, **json.loads(options)})
    arrays = {"input": features, "boxes": rois}
    pooled, argmax = call("cvops:roi_pool", (result, result_of(result.shape, np.int32)), arrays, options)
    return pooled, (rois, argmax, like)


def _pooled_backward(operator: str, size: tuple[int, int], options: str, residuals: Any, grad: Any) -> Any:
    rois, argmax, like = residuals
    shape = like.shape[1:]
    arrays = {"grad": grad, "boxes": rois} | ({} if argmax is None else {"argmax": argmax})
    options = json.dumps({"input_shape": shape, **json.loads(options)})
    gradient = call(f"cvops:{operator}_backward", result_of(shape, grad.dtype), arrays, options)
    return gradient, jnp.zeros_like(rois)


_pooled.defvjp(_pooled_forward, _pooled_backward)
