"""Operations on boxes in plain JAX: they run on every device and have gradients of every order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _box_formulas, _boxes
from .._box_formulas import area_of
from .._checks import INTEGERS, check_batched_boxes, number, working_dtype
from ._traced import TRACED, Array, array_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._types import Format, Number

_measures = _box_formulas.measures(jnp, jax.lax.stop_gradient)


def box_area(boxes: Array, fmt: Format = "xyxy") -> jax.Array:
    """Area of each box: `cvops.box_area` in plain JAX.

    Parameters
    ----------
    boxes, fmt
        As in `cvops.box_area`.

    Returns
    -------
    area : array of shape (...), float64 | float32

    Raises
    ------
    TypeError, ValueError
        As `cvops.box_area`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> cvops.jax.box_area(jnp.array([[0.0, 0, 2, 3]])).tolist()
    [6.0]
    """
    _boxes._check_format(fmt, "fmt")
    native = array_of(boxes, "boxes")
    check_batched_boxes(native, "boxes")
    return area_of(_real(native), fmt)


def box_iou(boxes1: Array, boxes2: Array, fmt: Format = "xyxy") -> jax.Array:
    """Intersection over union of each box of one set with each of another: `cvops.box_iou` in plain JAX.

    Parameters
    ----------
    boxes1, boxes2, fmt
        As in `cvops.box_iou`.

    Returns
    -------
    iou : array of shape (..., N, M), float64 | float32

    Raises
    ------
    TypeError, ValueError
        As `cvops.box_iou`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> cvops.jax.box_iou(jnp.array([[0.0, 0, 2, 2]]), jnp.array([[1.0, 0, 2, 2]])).tolist()
    [[0.5]]
    """
    return _measures.box_iou(*_pair(boxes1, boxes2, fmt))


def generalized_box_iou(boxes1: Array, boxes2: Array, *, fmt: Format = "xyxy") -> jax.Array:
    """Generalized IoU of each pair of boxes: `cvops.generalized_box_iou` in plain JAX.

    Parameters
    ----------
    boxes1, boxes2, fmt
        As in `cvops.box_iou`.

    Returns
    -------
    giou : array of shape (..., N, M), float64 | float32

    Raises
    ------
    TypeError, ValueError
        As `cvops.box_iou`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> cvops.jax.generalized_box_iou(jnp.array([[0.0, 0, 1, 1]]), jnp.array([[3.0, 0, 4, 1]])).tolist()
    [[-0.5]]
    """
    return _measures.generalized_box_iou(*_pair(boxes1, boxes2, fmt))


def distance_box_iou(boxes1: Array, boxes2: Array, eps: Number = 1e-7, *, fmt: Format = "xyxy") -> jax.Array:
    """Distance IoU of each pair of boxes: `cvops.distance_box_iou` in plain JAX.

    Parameters
    ----------
    boxes1, boxes2, eps, fmt
        As in `cvops.distance_box_iou`.

    Returns
    -------
    diou : array of shape (..., N, M), float64 | float32

    Raises
    ------
    TypeError, ValueError
        As `cvops.distance_box_iou`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> cvops.jax.distance_box_iou(jnp.array([[0.0, 0, 2, 2]]), jnp.array([[2.0, 0, 4, 2]])).round(3).tolist()
    [[-0.20000000298023224]]
    """
    return _measures.distance_box_iou(*_pair(boxes1, boxes2, fmt), number(eps, "eps", 0.0))


def complete_box_iou(boxes1: Array, boxes2: Array, eps: Number = 1e-7, *, fmt: Format = "xyxy") -> jax.Array:
    """Complete IoU of each pair of boxes: `cvops.complete_box_iou` in plain JAX.

    Parameters
    ----------
    boxes1, boxes2, eps, fmt
        As in `cvops.complete_box_iou`.

    Returns
    -------
    ciou : array of shape (..., N, M), float64 | float32

    Raises
    ------
    TypeError, ValueError
        As `cvops.complete_box_iou`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> cvops.jax.complete_box_iou(jnp.array([[0.0, 0, 2, 2]]), jnp.array([[0.0, 0, 4, 2]])).shape
    (1, 1)
    """
    return _measures.complete_box_iou(*_pair(boxes1, boxes2, fmt), number(eps, "eps", 0.0))


def box_convert(boxes: Array, in_fmt: Format, out_fmt: Format) -> jax.Array:
    """Boxes in another format: `cvops.box_convert` in plain JAX.

    Parameters
    ----------
    boxes, in_fmt, out_fmt
        As in `cvops.box_convert`.

    Returns
    -------
    converted : array of shape (..., 4)
        Of the dtype of `boxes`; float64 or float32 where centres would bring halves into integers.

    Raises
    ------
    TypeError, ValueError
        As `cvops.box_convert`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> cvops.jax.box_convert(jnp.array([[10, 20, 31, 60]]), "xyxy", "cxcywh").tolist()
    [[20.5, 40.0, 21.0, 40.0]]
    """
    native = array_of(boxes, "boxes")
    working, result = _boxes._dtypes_of_conversion(native, in_fmt, out_fmt)
    if in_fmt == out_fmt:
        return native
    working, result = map(jax.dtypes.canonicalize_dtype, (working, result))
    return jnp.stack([*_boxes._columns(native.astype(working), in_fmt, out_fmt)], -1).astype(result)


def clip_boxes_to_image(boxes: Array, size: Sequence[Number]) -> jax.Array:
    """Boxes with their corners moved into the image: `cvops.clip_boxes_to_image` in plain JAX.

    Parameters
    ----------
    boxes, size
        As in `cvops.clip_boxes_to_image`; the size is Python numbers.

    Returns
    -------
    clipped : array of shape (..., 4), dtype of `boxes`

    Raises
    ------
    TypeError, ValueError
        As `cvops.clip_boxes_to_image`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> cvops.jax.clip_boxes_to_image(jnp.array([[-5, 10, 700, 90]]), (480, 640)).tolist()
    [[0, 10, 640, 90]]
    """
    native = array_of(boxes, "boxes")
    limits = _boxes._limits(native, size)
    return jnp.minimum(jnp.maximum(native, native.dtype.type(0)), limits)


def masks_to_boxes(masks: Array) -> jax.Array:
    """The smallest box around the nonzero pixels of each mask: `cvops.masks_to_boxes` in plain JAX.

    Parameters
    ----------
    masks
        As in `cvops.masks_to_boxes`.

    Returns
    -------
    boxes : array of shape (N, 4), float32

    Raises
    ------
    TypeError, ValueError
        As `cvops.masks_to_boxes`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> cvops.jax.masks_to_boxes(jnp.eye(4, dtype=bool)[None, 1:3]).tolist()
    [[1.0, 0.0, 2.0, 1.0]]
    """
    native = array_of(masks, "masks")
    _boxes._check_masks(native)
    return _boxes._edges(native, jnp) if native.size else jnp.zeros((len(native), 4), "f")


def _real(boxes: Any) -> Any:
    """Boxes as floating-point numbers: integers become what JAX has for float64, or float32 if they are short."""
    if boxes.dtype.char in INTEGERS:
        dtype = np.float64 if boxes.dtype.itemsize >= 4 else np.float32
        return boxes.astype(jax.dtypes.canonicalize_dtype(dtype))
    return boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))


def _pair(boxes1: Any, boxes2: Any, fmt: str) -> tuple[Any, Any, Any, Any]:
    """Corners and areas of both sets, so that they broadcast to each box with each."""
    sets = array_of(boxes1, "boxes1"), array_of(boxes2, "boxes2")
    for native, name in zip(sets, ("boxes1", "boxes2"), strict=True):
        check_batched_boxes(native, name)
    sets = _boxes._checked_sets(TRACED, _real(sets[0]), _real(sets[1]), fmt)
    dtype = working_dtype(*sets)
    (one, area1), (two, area2) = (_boxes.corners_and_area(boxes, fmt, dtype, jnp) for boxes in sets)
    return one[..., :, None, :], two[..., None, :, :], area1[..., :, None], area2[..., None, :]
