"""What heads predict, and boxes, as tensors: the formulas of `cvops`, which PyTorch differentiates and compiles."""

# Not `from __future__ import annotations`: TorchScript reads the annotations.
import math
from typing import Any

import torch
from torch import Tensor

from .. import _decode
from .._box_formulas import Fit, decoders, fitted
from . import _checks
from ._boxes import check_boxes, working_dtype
from ._checks import shape_text
from ._entry import entry
from ._types import Letterbox, Number, Numbers

_decoded, _encoded, _around, _moved = decoders(torch)


@entry()
def decode_boxes(
    deltas: Tensor, anchors: Tensor, weights: Numbers = (1, 1, 1, 1), clip: Number | None = _decode.CLIP
) -> Tensor:
    """Boxes from the deltas that a head predicts relative to anchors: `cvops.decode_boxes` for tensors.

    The result has gradients for both tensors.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.decode_boxes(torch.tensor([[0.5, 0, 0, 0]]), torch.tensor([[0.0, 0, 10, 20]]))
    tensor([[ 5.,  0., 15., 20.]])
    """
    if not torch.jit.is_scripting():
        clip = None if clip is None else _checks.number(clip, "clip")
    elif clip is not None and math.isnan(clip):
        raise ValueError(f"`clip` must be a number, got {clip}")
    _check_pair(deltas, "deltas", anchors, "anchors")
    dtype = working_dtype(deltas, anchors)
    return _finish(_decoded(deltas.to(dtype), anchors.to(dtype), _weights(weights), clip), deltas)


@entry()
def encode_boxes(boxes: Tensor, anchors: Tensor, weights: Numbers = (1, 1, 1, 1)) -> Tensor:
    """Deltas of boxes relative to anchors: `cvops.encode_boxes` for tensors.

    The result has gradients for both tensors.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.encode_boxes(torch.tensor([[5.0, 0, 15, 20]]), torch.tensor([[0.0, 0, 10, 20]]))
    tensor([[0.5000, 0.0000, 0.0000, 0.0000]])
    """
    _check_pair(boxes, "boxes", anchors, "anchors")
    dtype = working_dtype(boxes, anchors)
    return _finish(_encoded(boxes.to(dtype), anchors.to(dtype), _weights(weights)), boxes)


@entry()
def distance_to_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes from the distances of points to the four sides: `cvops.distance_to_boxes` for tensors.

    The result has gradients for both tensors.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.distance_to_boxes(torch.tensor([[4.0, 4.0]]), torch.tensor([[1.0, 2, 3, 4]]))
    tensor([[3., 2., 7., 8.]])
    """
    if not torch.jit.is_scripting():
        _checks.check_box_tensor(points, "points")
    check_boxes(distances, "distances")
    if points.dim() != 2 or points.shape[1] != 2 or distances.shape[-2:-1] != points.shape[:1]:
        shapes = f"{shape_text(points)} and {shape_text(distances)}"
        raise ValueError(f"`points` must have shape (L, 2) and `distances` (..., L, 4), got {shapes}")
    dtype = working_dtype(points, distances)
    return _finish(_around(points.to(dtype), distances.to(dtype)), distances)


@entry()
def scale_boxes(boxes: Tensor, from_size: Numbers, to_size: Numbers, letterbox: Letterbox = False) -> Tensor:
    """Boxes in the input of a network as boxes in the image: `cvops.scale_boxes` for tensors.

    The result has a gradient for the boxes.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.scale_boxes(torch.tensor([[0.0, 80, 640, 560]]), (640, 640), (240, 320), letterbox=True)
    tensor([[  0.,   0., 320., 240.]])
    """
    check_boxes(boxes, "boxes")
    return _finish(_moved(boxes.to(working_dtype(boxes, boxes)), _fit(from_size, to_size, letterbox)), boxes)


def _finish(values: Tensor, of_dtype: Tensor) -> Tensor:
    """In the dtype of `of_dtype` if that is a float, else in its working precision."""
    return values.to(of_dtype.dtype if of_dtype.is_floating_point() else working_dtype(of_dtype, of_dtype))


def _check_pair(one: Tensor, one_name: str, other: Tensor, other_name: str) -> None:
    check_boxes(one, one_name)
    check_boxes(other, other_name)
    if not torch.jit.is_scripting():
        _decode.check_broadcast(one.shape, one_name, other.shape, other_name)


def _weights(weights: Numbers) -> list[float]:
    if not torch.jit.is_scripting():
        return _decode.check_weights(_checks.numbers_in(weights, "weights"))
    return _positives(weights, 4, "weights", "four numbers")


def _fit(from_size: Numbers, to_size: Numbers, letterbox: Letterbox) -> Fit:
    given, wanted = _size(from_size, "from_size"), _size(to_size, "to_size")
    one_gain, centred = _gain_and_place(letterbox)
    gain_y, gain_x = given[0] / wanted[0], given[1] / wanted[1]
    if one_gain:
        if torch.jit.is_scripting():
            gain_y = gain_x = min(gain_y, gain_x)
        else:  # not min, which torch.export cannot decide
            gain_y = gain_x = torch.sym_min(gain_y, gain_x)
    return fitted(given, wanted, gain_y, gain_x, centred)


def _size(size: Numbers, name: str) -> list[float]:
    if not torch.jit.is_scripting():
        return _checks.positive_size(size, name)
    return _positives(size, 2, name, "(height, width)")


def _gain_and_place(letterbox: Letterbox) -> tuple[bool, bool]:
    if not torch.jit.is_scripting():
        return _decode.check_letterbox(letterbox)
    if isinstance(letterbox, str):
        if letterbox != "center" and letterbox != "topleft":
            raise ValueError(f"`letterbox` must be True, False, 'center' or 'topleft', got '{letterbox}'")
        one_gain, centred = True, letterbox == "center"
    else:
        one_gain = centred = letterbox
    return one_gain, centred


def _positives(values: Any, length: int, name: str, wanted: str) -> list[float]:
    """So many numbers > 0 in TorchScript, to which tuples and lists of int and of float are types of their own."""
    numbers: list[float] = []
    if torch.jit.isinstance(values, list[float]):
        numbers = values
    if torch.jit.isinstance(values, list[int]):
        numbers = [float(value) for value in values]
    if torch.jit.isinstance(values, tuple[int | float, int | float]):
        numbers = [float(values[0]), float(values[1])]
    if torch.jit.isinstance(values, tuple[int | float, int | float, int | float, int | float]):
        numbers = [float(values[0]), float(values[1]), float(values[2]), float(values[3])]
    if len(numbers) != length:
        raise ValueError(f"`{name}` must be {wanted}, got {values}")
    for number in numbers:
        if not 0 < number < math.inf:
            raise ValueError(f"`{name}` must be finite and > 0, got {number}")
    return numbers
