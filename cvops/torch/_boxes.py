"""Box functions of torchvision.ops.

The pairwise measures are computed by cvops unless gradients are wanted or torch.func transforms the call: then, as all
else here, by PyTorch, which differentiates and compiles these formulas itself.
"""

# Not `from __future__ import annotations`: TorchScript reads the annotations.
import torch
from torch import Tensor
from torch.autograd import forward_ad

import cvops

from .. import _box_formulas
from .._box_formulas import area_of, columns
from .._checks import check_batches, check_format
from . import _checks
from ._checks import shape_text
from ._entry import entry
from ._library import register, require
from ._types import Format, Number, Size

measures = _box_formulas.measures(torch, torch.detach)
# TorchScript reads functions that are variables of a module, not those in a tuple.
_box_iou, _generalized_box_iou, _distance_box_iou, _complete_box_iou = measures[:4]


@entry()
def box_area(boxes: Tensor, fmt: Format = "xyxy") -> Tensor:
    """Area of each box: `cvops.box_area` for tensors.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.box_area(torch.tensor([[0.0, 0, 2, 3]]))
    tensor([6.])
    """
    check_boxes(boxes, "boxes")
    _check_fmt(fmt)
    return area_of(boxes.to(working_dtype(boxes, boxes)), fmt)


@entry(cvops.box_iou)
def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: Format = "xyxy") -> Tensor:
    """Intersection over union of each box of one set with each of another: `cvops.box_iou` for tensors.

    The result has gradients for both sets.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.box_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 4], [0, 0, 2, 1]]))
    tensor([[0.5000, 0.5000]])
    """
    _check_pair(boxes1, boxes2, fmt)
    if not _by_formula(boxes1, boxes2):
        return torch.ops.cvops.box_iou(boxes1, boxes2, fmt=fmt)
    return _box_iou(*_pair(boxes1, boxes2, fmt))


@entry(cvops.generalized_box_iou)
def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU less the empty share of the smallest box around both: `cvops.generalized_box_iou` for tensors.

    Boxes are corners: there is no `fmt`. The result has gradients for both sets.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.generalized_box_iou(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 4, 1]]))
    tensor([[-0.2500]])
    """
    _check_pair(boxes1, boxes2, "xyxy")
    if not _by_formula(boxes1, boxes2):
        return torch.ops.cvops.generalized_box_iou(boxes1, boxes2)
    return _generalized_box_iou(*_pair(boxes1, boxes2, "xyxy"))


@entry(cvops.distance_box_iou)
def distance_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """IoU less the squared distance of centres over the hull's diagonal: `cvops.distance_box_iou` for tensors.

    Boxes are corners: there is no `fmt`. The result has gradients for both sets.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.distance_box_iou(torch.tensor([[0.0, 0, 4, 3]]), torch.tensor([[0.0, 0, 4, 3]]))
    tensor([[1.]])
    """
    _check_pair(boxes1, boxes2, "xyxy")
    if not torch.jit.is_scripting():
        eps = _checks.number(eps, "eps", 0.0)
    if not _by_formula(boxes1, boxes2):
        return torch.ops.cvops.distance_box_iou(boxes1, boxes2, eps)
    return _distance_box_iou(*_pair(boxes1, boxes2, "xyxy"), eps)


@entry(cvops.complete_box_iou)
def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Distance IoU less a term for the difference of aspect ratios: `cvops.complete_box_iou` for tensors.

    Boxes are corners: there is no `fmt`. The result has gradients for both sets, in which the weight of the last term
    counts as a constant, as in the paper.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.complete_box_iou(torch.tensor([[0.0, 0, 4, 3]]), torch.tensor([[0.0, 0, 4, 3]]))
    tensor([[1.]])
    """
    _check_pair(boxes1, boxes2, "xyxy")
    if not torch.jit.is_scripting():
        eps = _checks.number(eps, "eps", 0.0)
    if not _by_formula(boxes1, boxes2):
        return torch.ops.cvops.complete_box_iou(boxes1, boxes2, eps)
    return _complete_box_iou(*_pair(boxes1, boxes2, "xyxy"), eps)


@entry()
def box_convert(boxes: Tensor, in_fmt: Format, out_fmt: Format) -> Tensor:
    """Boxes in another format: `cvops.box_convert` for tensors.

    The result has a gradient for the boxes.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.box_convert(torch.tensor([[10.0, 20, 30, 60]]), "xyxy", "cxcywh")
    tensor([[20., 40., 20., 40.]])
    """
    check_boxes(boxes, "boxes")
    _check_fmt(in_fmt, "in_fmt")
    _check_fmt(out_fmt, "out_fmt")
    if in_fmt == out_fmt:
        return boxes.clone()
    halves = in_fmt == "cxcywh" or out_fmt == "cxcywh"
    working = boxes.to(working_dtype(boxes, boxes)) if boxes.is_floating_point() or halves else _signed(boxes)
    converted = torch.stack(columns(working, in_fmt, out_fmt), -1)
    return converted if halves and not boxes.is_floating_point() else converted.to(boxes.dtype)


@entry()
def clip_boxes_to_image(boxes: Tensor, size: Size) -> Tensor:
    """Boxes with their corners moved into the image: `cvops.clip_boxes_to_image` for tensors.

    The result has a gradient for the boxes.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.clip_boxes_to_image(torch.tensor([[-5, 10, 700, 90]]), (480, 640))
    tensor([[  0,  10, 640,  90]])
    """
    check_boxes(boxes, "boxes")
    if not torch.jit.is_scripting():
        size = _checks.limits(size, boxes)
    height, width = size
    if boxes.dtype == torch.uint64:  # ordered as signed integers are, with zero moved to the least
        least = -(2**63)
        moved = _signed(boxes) + least
        x, y = moved[..., 0::2].clamp(max=width + least), moved[..., 1::2].clamp(max=height + least)
        return (torch.stack([x, y], -1).reshape(boxes.shape) - least).to(boxes.dtype)
    signed = _signed(boxes)
    x, y = signed[..., 0::2].clamp(0, width), signed[..., 1::2].clamp(0, height)
    return torch.stack([x, y], -1).reshape(boxes.shape).to(boxes.dtype)


@entry()
def remove_small_boxes(boxes: Tensor, min_size: Number) -> Tensor:
    """Indices of the boxes of which both sides are at least `min_size`: `cvops.remove_small_boxes` for tensors.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.remove_small_boxes(torch.tensor([[0.0, 0.0, 9.0, 1.0], [0.0, 0.0, 3.0, 2.0]]), 2)
    tensor([1])
    """
    check_boxes(boxes, "boxes")
    if not torch.jit.is_scripting():
        min_size = _checks.number(min_size, "min_size")
    if boxes.dim() != 2:
        raise ValueError(f"`boxes` must have shape (L, 4), got {shape_text(boxes)}")
    boxes = boxes.to(working_dtype(boxes, boxes))
    big = (boxes[:, 2] - boxes[:, 0] >= min_size) & (boxes[:, 3] - boxes[:, 1] >= min_size)
    return torch.where(big)[0]


@entry()
def masks_to_boxes(masks: Tensor) -> Tensor:
    """The smallest box around the nonzero pixels of each mask: `cvops.masks_to_boxes` for tensors.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> masks = torch.zeros(1, 6, 8)
    >>> masks[0, 2:5, 3:7] = 1
    >>> ops.masks_to_boxes(masks)
    tensor([[3., 2., 6., 4.]])
    """
    if not torch.jit.is_scripting():
        _checks.check_tensor(masks, "masks")
    if masks.dim() != 3:
        raise ValueError(f"`masks` must have shape (N, H, W), got {shape_text(masks)}")
    if masks.is_complex():
        raise TypeError("`masks` must be bool, integer or float, got a complex dtype")
    if masks.shape[1] == 0 or masks.shape[2] == 0:
        return torch.zeros((masks.shape[0], 4), dtype=torch.float32, device=masks.device)
    inside = masks != 0
    rows, columns = inside.any(2).int(), inside.any(1).int()
    last_row, last_column = masks.shape[1] - 1, masks.shape[2] - 1
    edges = [
        columns.argmax(1),
        rows.argmax(1),
        last_column - columns.flip(1).argmax(1),
        last_row - rows.flip(1).argmax(1),
    ]
    return torch.stack(edges, 1).float() * rows.amax(1, keepdim=True)


# --------------------------------------------------------------------------------------------------------- formulas


def _by_formula(boxes1: Tensor, boxes2: Tensor) -> bool:
    """Whether PyTorch has to compute a measure, since it records or transforms the call."""
    if not torch.jit.is_scripting():
        transformed = _checks.in_transform() or forward_ad._current_level >= 0
        if transformed:
            return True
    return torch.is_grad_enabled() and (boxes1.requires_grad or boxes2.requires_grad)


def working_dtype(boxes1: Tensor, boxes2: Tensor) -> torch.dtype:
    for boxes in (boxes1, boxes2):
        if boxes.dtype == torch.float64 or boxes.dtype == torch.int64 or boxes.dtype == torch.int32:
            return torch.float64
        if boxes.dtype == torch.uint64 or boxes.dtype == torch.uint32:
            return torch.float64
    return torch.float32


def _signed(boxes: Tensor) -> Tensor:
    """Boxes of a dtype that PyTorch computes with: it only stores unsigned integers of more than 8 bits."""
    if boxes.dtype == torch.uint16 or boxes.dtype == torch.uint32 or boxes.dtype == torch.uint64:
        return boxes.to(torch.int64)
    return boxes


def _pair(boxes1: Tensor, boxes2: Tensor, fmt: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Corners and areas of both sets, so that they broadcast to each box with each."""
    dtype = working_dtype(boxes1, boxes2)
    boxes1, boxes2 = boxes1.to(dtype).unsqueeze(-2), boxes2.to(dtype).unsqueeze(-3)
    corners1 = boxes1 if fmt == "xyxy" else torch.stack(columns(boxes1, fmt, "xyxy"), -1)
    corners2 = boxes2 if fmt == "xyxy" else torch.stack(columns(boxes2, fmt, "xyxy"), -1)
    return corners1, corners2, area_of(boxes1, fmt), area_of(boxes2, fmt)


def check_boxes(boxes: Tensor, name: str) -> None:
    if not torch.jit.is_scripting():
        _checks.check_box_tensor(boxes, name)
    if boxes.dim() < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"`{name}` must have shape (..., 4), got {shape_text(boxes)}")


def _check_pair(boxes1: Tensor, boxes2: Tensor, fmt: str) -> None:
    _check_fmt(fmt)
    check_boxes(boxes1, "boxes1")
    check_boxes(boxes2, "boxes2")
    if boxes1.dim() < 2:
        raise ValueError(f"`boxes1` must have shape (..., N, 4), got {shape_text(boxes1)}")
    if boxes2.dim() < 2:
        raise ValueError(f"`boxes2` must have shape (..., N, 4), got {shape_text(boxes2)}")
    if not torch.jit.is_scripting():
        check_batches(boxes1.shape[:-2], boxes2.shape[:-2])


def _check_fmt(fmt: str, name: str = "fmt") -> None:
    if not torch.jit.is_scripting():
        check_format(fmt, name)
    elif fmt != "xyxy" and fmt != "xywh" and fmt != "cxcywh":
        raise ValueError(f"`{name}` must be one of xyxy, xywh, cxcywh, got '{fmt}'")


# ----------------------------------------------------------------------------------------------------------- registered


def _measured(boxes1: Tensor, boxes2: Tensor, *eps: float, fmt: str = "xyxy") -> Tensor:
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        require(boxes.dim() >= 2 and boxes.shape[-1] == 4, name, "shape (..., N, 4)", boxes)
    batch = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    shape = *batch, boxes1.shape[-2], boxes2.shape[-2]
    return boxes1.new_empty(shape, dtype=working_dtype(boxes1, boxes2))


for _measure in (cvops.box_iou, cvops.generalized_box_iou, cvops.distance_box_iou, cvops.complete_box_iou):
    _text = f"torch.ops.cvops.{_measure.__name__} has no gradient: cvops.torch.{_measure.__name__} has"
    register(_measure, _measured, keeps_dtype=False, no_gradient=_text)
