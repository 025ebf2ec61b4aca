"""What heads predict, and boxes, as tensors: the formulas of `cvops`, which PyTorch differentiates and compiles itself.

TorchScript cannot read them, since the namespace of an array library is a variable there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _decode
from . import _checks
from ._boxes import _working_dtype, check_boxes

if TYPE_CHECKING:
    from .._decode import Letterbox
    from ._types import Number


def decode_boxes(
    deltas: Tensor, anchors: Tensor, weights: Sequence[Number] = (1, 1, 1, 1), *, clip: Number | None = _decode.CLIP
) -> Tensor:
    """Boxes from the deltas that a head predicts relative to anchors: `cvops.decode_boxes` for tensors.

    Parameters
    ----------
    deltas, anchors : tensors of shape (..., L, 4), float or integer
        As in `cvops.decode_boxes`. The result has gradients for both.
    weights, clip
        As in `cvops.decode_boxes`.

    Returns
    -------
    boxes : tensor of shape (..., L, 4), dtype of `deltas`

    Raises
    ------
    TypeError, ValueError
        As `cvops.decode_boxes`.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.decode_boxes(torch.tensor([[0.5, 0, 0, 0]]), torch.tensor([[0.0, 0, 10, 20]]))
    tensor([[ 5.,  0., 15., 20.]])
    """
    check_boxes(deltas, "deltas")
    check_boxes(anchors, "anchors")
    _decode.check_broadcast(deltas.shape, "deltas", anchors.shape, "anchors")
    factors = _decode.check_weights(weights)
    bound = _decode.check_clip(clip)
    dtype = _working_dtype(deltas, anchors)
    return _finish(_decode.decoded(deltas.to(dtype), anchors.to(dtype), factors, bound, torch), deltas)


def encode_boxes(boxes: Tensor, anchors: Tensor, weights: Sequence[Number] = (1, 1, 1, 1)) -> Tensor:
    """Deltas of boxes relative to anchors: `cvops.encode_boxes` for tensors.

    Parameters
    ----------
    boxes, anchors : tensors of shape (..., L, 4), float or integer
        As in `cvops.encode_boxes`. The result has gradients for both.
    weights
        As in `cvops.encode_boxes`.

    Returns
    -------
    deltas : tensor of shape (..., L, 4), dtype of `boxes`

    Raises
    ------
    TypeError, ValueError
        As `cvops.encode_boxes`.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.encode_boxes(torch.tensor([[5.0, 0, 15, 20]]), torch.tensor([[0.0, 0, 10, 20]]))
    tensor([[0.5000, 0.0000, 0.0000, 0.0000]])
    """
    check_boxes(boxes, "boxes")
    check_boxes(anchors, "anchors")
    _decode.check_broadcast(boxes.shape, "boxes", anchors.shape, "anchors")
    factors, dtype = _decode.check_weights(weights), _working_dtype(boxes, anchors)
    return _finish(_decode.encoded(boxes.to(dtype), anchors.to(dtype), factors, torch), boxes)


def distance_to_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes from the distances of points to the four sides: `cvops.distance_to_boxes` for tensors.

    Parameters
    ----------
    points, distances : tensors of shapes (L, 2) and (..., L, 4), float or integer
        As in `cvops.distance_to_boxes`. The result has gradients for both.

    Returns
    -------
    boxes : tensor of shape (..., L, 4), dtype of `distances`

    Raises
    ------
    TypeError, ValueError
        As `cvops.distance_to_boxes`.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.distance_to_boxes(torch.tensor([[4.0, 4.0]]), torch.tensor([[1.0, 2, 3, 4]]))
    tensor([[3., 2., 7., 8.]])
    """
    _checks.check_box_tensor(points, "points")
    check_boxes(distances, "distances")
    _decode.check_shapes_of_distances(tuple(points.shape), tuple(distances.shape))
    dtype = _working_dtype(points, distances)
    return _finish(_decode.around(points.to(dtype), distances.to(dtype), torch), distances)


def scale_boxes(
    boxes: Tensor, from_size: Sequence[Number], to_size: Sequence[Number], *, letterbox: Letterbox = False
) -> Tensor:
    """Boxes in the input of a network as boxes in the image: `cvops.scale_boxes` for tensors.

    Parameters
    ----------
    boxes : tensor of shape (..., 4), float or integer
        As in `cvops.scale_boxes`. The result has a gradient for them.
    from_size, to_size, letterbox
        As in `cvops.scale_boxes`.

    Returns
    -------
    scaled : tensor of shape (..., 4), dtype of `boxes`

    Raises
    ------
    TypeError, ValueError
        As `cvops.scale_boxes`.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.scale_boxes(torch.tensor([[0.0, 80, 640, 560]]), (640, 640), (240, 320), letterbox=True)
    tensor([[  0.,   0., 320., 240.]])
    """
    check_boxes(boxes, "boxes")
    fit = _decode.check_fit(from_size, to_size, letterbox)
    return _finish(_decode.moved(boxes.to(_working_dtype(boxes, boxes)), fit, torch), boxes)


def _finish(values: Tensor, of_dtype: Tensor) -> Tensor:
    """In the dtype of `of_dtype` if that is a float, else in its working precision."""
    return values.to(of_dtype.dtype if of_dtype.is_floating_point() else _working_dtype(of_dtype, of_dtype))
