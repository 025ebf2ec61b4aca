"""Operations on boxes in plain JAX: they run on every device and have gradients of every order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _boxes
from .._checks import INTEGERS, check_batched_boxes, number
from ._traced import TRACED, array_of


def box_area(boxes: Any, fmt: str = "xyxy") -> Any:
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
    return _boxes._area(_real(native), fmt, TRACED)


def box_iou(boxes1: Any, boxes2: Any, fmt: str = "xyxy") -> Any:
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
    return _overlaps(boxes1, boxes2, fmt)[2]


def generalized_box_iou(boxes1: Any, boxes2: Any, *, fmt: str = "xyxy") -> Any:
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
    one, two, iou, union = _overlaps(boxes1, boxes2, fmt)
    hull = jnp.maximum(jnp.maximum(one[..., 2:], two[..., 2:]) - jnp.minimum(one[..., :2], two[..., :2]), 0)
    hull_area = hull[..., 0] * hull[..., 1]
    return iou - (hull_area - union) / hull_area


def distance_box_iou(boxes1: Any, boxes2: Any, eps: float = 1e-7, *, fmt: str = "xyxy") -> Any:
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
    one, two, iou, _ = _overlaps(boxes1, boxes2, fmt)
    return iou - _distance(one, two, number(eps, "eps", 0.0))


def complete_box_iou(boxes1: Any, boxes2: Any, eps: float = 1e-7, *, fmt: str = "xyxy") -> Any:
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
    eps = number(eps, "eps", 0.0)
    one, two, iou, _ = _overlaps(boxes1, boxes2, fmt)
    angles = [jnp.arctan((boxes[..., 2] - boxes[..., 0]) / (boxes[..., 3] - boxes[..., 1])) for boxes in (one, two)]
    v = 4 / np.pi**2 * (angles[0] - angles[1]) ** 2
    alpha = jax.lax.stop_gradient(v / (1 - iou + v + eps))  # as the loss is defined, and as torchvision has it
    return iou - _distance(one, two, eps) - alpha * v


def box_convert(boxes: Any, in_fmt: str, out_fmt: str) -> Any:
    """Boxes in another format: `cvops.box_convert` in plain JAX.

    Parameters
    ----------
    boxes, in_fmt, out_fmt
        As in `cvops.box_convert`.

    Returns
    -------
    converted : array of shape (..., 4), dtype of `boxes`

    Raises
    ------
    TypeError, ValueError
        As `cvops.box_convert`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> cvops.jax.box_convert(jnp.array([[10, 20, 30, 60]]), "xyxy", "cxcywh").tolist()
    [[20, 40, 20, 40]]
    """
    native = array_of(boxes, "boxes")
    real = _real(native) if native.dtype.char in INTEGERS else native
    return _boxes._converted(real, in_fmt, out_fmt, TRACED).astype(native.dtype)


def clip_boxes_to_image(boxes: Any, size: tuple[int, int]) -> Any:
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
    return _boxes._clipped(array_of(boxes, "boxes"), size, TRACED)


def masks_to_boxes(masks: Any) -> Any:
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
    return _boxes._boxes_of(array_of(masks, "masks"), TRACED)


def _real(boxes: Any) -> Any:
    """Boxes as floating-point numbers: integers become what JAX has for float64, or float32 if they are short."""
    if boxes.dtype.char in INTEGERS:
        dtype = np.float64 if boxes.dtype.itemsize >= 4 else np.float32
        return boxes.astype(jax.dtypes.canonicalize_dtype(dtype))
    return boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))


def _overlaps(boxes1: Any, boxes2: Any, fmt: str) -> tuple[Any, Any, Any, Any]:
    """Corners (..., N, 1, 4) and (..., 1, M, 4), IoU and union (..., N, M)."""
    sets = array_of(boxes1, "boxes1"), array_of(boxes2, "boxes2")
    for native, name in zip(sets, ("boxes1", "boxes2"), strict=True):
        check_batched_boxes(native, name)
    one, area1, two, area2 = _boxes._pair(TRACED, _real(sets[0]), _real(sets[1]), fmt)
    one, two = one[..., :, None, :], two[..., None, :, :]
    sides = jnp.maximum(jnp.minimum(one[..., 2:], two[..., 2:]) - jnp.maximum(one[..., :2], two[..., :2]), 0)
    inter = sides[..., 0] * sides[..., 1]
    union = area1[..., :, None] + area2[..., None, :] - inter
    return one, two, inter / union, union


def _distance(one: Any, two: Any, eps: float) -> Any:
    """Squared distance of the centres over the squared diagonal of the smallest box around both."""
    hull = jnp.maximum(jnp.maximum(one[..., 2:], two[..., 2:]) - jnp.minimum(one[..., :2], two[..., :2]), 0)
    apart = (one[..., :2] + one[..., 2:]) / 2 - (two[..., :2] + two[..., 2:]) / 2
    return (apart**2).sum(-1) / ((hull**2).sum(-1) + eps)
