"""Losses of torchvision.ops, in PyTorch's own operators."""

# Not `from __future__ import annotations`: TorchScript reads the annotations.
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .._box_formulas import area_of, squared_distance
from . import _checks
from ._boxes import check_boxes, measures
from ._checks import shape_text
from ._entry import entry
from ._types import Reduction

_intersection, _hull, _aspect_penalty = measures.intersection, measures.hull, measures.aspect_penalty


@entry()
def generalized_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: Reduction = "none", eps: float = 1e-7
) -> Tensor:
    """One less the generalized IoU of each box with its counterpart [1]_.

    Parameters
    ----------
    boxes1, boxes2 : tensors of one shape (..., 4), float
        Corners ``x1, y1, x2, y2``. 16-bit boxes are computed in float32.
    reduction : {"none", "mean", "sum"}
        What to do with the losses of the boxes. The mean of none is 0.
    eps : float
        Added to denominators.

    Returns
    -------
    loss : tensor of shape (...), or () if reduced
        In [0, 2).

    Raises
    ------
    ValueError
        A shape does not fit, or `reduction` is unknown.

    References
    ----------
    .. [1] H. Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.generalized_box_iou_loss(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 4, 1]]))
    tensor([1.2500])
    """
    if not torch.jit.is_scripting():
        eps = _checks.number(eps, "eps")
    inter, union, width, height = _overlap_of_pairs(boxes1, boxes2)
    hull = width * height
    return _reduced(1 - inter / (union + eps) + (hull - union) / (hull + eps), reduction)


@entry()
def distance_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: Reduction = "none", eps: float = 1e-7) -> Tensor:
    """One less the distance IoU of each box with its counterpart [1]_.

    Parameters
    ----------
    boxes1, boxes2, reduction, eps
        As in `generalized_box_iou_loss`.

    Returns
    -------
    loss : tensor of shape (...), or () if reduced
        In [0, 2).

    Raises
    ------
    ValueError
        As `generalized_box_iou_loss`.

    References
    ----------
    .. [1] Z. Zheng et al., "Distance-IoU Loss", AAAI 2020.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.distance_box_iou_loss(torch.tensor([[0.0, 0, 4, 3]]), torch.tensor([[4.0, 0, 8, 3]]), "sum")
    tensor(1.2192)
    """
    if not torch.jit.is_scripting():
        eps = _checks.number(eps, "eps")
    return _reduced(_distance_loss(boxes1, boxes2, eps)[0], reduction)


@entry()
def complete_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: Reduction = "none", eps: float = 1e-7) -> Tensor:
    """One less the complete IoU of each box with its counterpart [1]_.

    Parameters
    ----------
    boxes1, boxes2, reduction, eps
        As in `generalized_box_iou_loss`.

    Returns
    -------
    loss : tensor of shape (...), or () if reduced
        At least 0.

    Raises
    ------
    ValueError
        As `generalized_box_iou_loss`.

    References
    ----------
    .. [1] Z. Zheng et al., "Distance-IoU Loss", AAAI 2020.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.complete_box_iou_loss(torch.tensor([[0.0, 0, 4, 3]]), torch.tensor([[4.0, 0, 8, 3]]), "mean")
    tensor(1.2192)
    """
    if not torch.jit.is_scripting():
        eps = _checks.number(eps, "eps")
    loss, iou = _distance_loss(boxes1, boxes2, eps)
    return _reduced(loss + _aspect_penalty(_at_least_float32(boxes1), _at_least_float32(boxes2), iou, eps), reduction)


@entry()
def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: Reduction = "none"
) -> Tensor:
    """Binary cross-entropy in which what is classified well already weighs less: the focal loss [1]_.

    Parameters
    ----------
    inputs : tensor, float
        Logits.
    targets : tensor of the same shape and dtype
        0 or 1.
    alpha : float
        Weight of the class 1, and one less the weight of the class 0; -1 for no weights.
    gamma : float
        Exponent of the probability of the wrong class, the factor of the loss.
    reduction : {"none", "mean", "sum"}
        What to do with the losses of the elements.

    Returns
    -------
    loss : tensor of the shape of `inputs`, or () if reduced
        At least 0.

    Raises
    ------
    ValueError
        The shapes differ, `alpha` is neither in [0, 1] nor -1, or `reduction` is unknown.

    References
    ----------
    .. [1] T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ops.sigmoid_focal_loss(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 1.0]))
    tensor([4.3322e-02, 1.4679e-06])
    """
    if not torch.jit.is_scripting():
        _checks.check_tensors(inputs=inputs, targets=targets)
        alpha, gamma = _checks.number(alpha, "alpha"), _checks.number(gamma, "gamma")
    if not 0 <= alpha <= 1 and alpha != -1:
        raise ValueError(f"`alpha` must be in [0, 1], or -1 for no weights, got {alpha}")
    if targets.shape != inputs.shape:
        raise ValueError(f"`targets` must have the shape of `inputs`, {shape_text(inputs)}, got {shape_text(targets)}")
    mixed = targets.is_floating_point() and targets.dtype != inputs.dtype
    dtype = torch.promote_types(inputs.dtype, targets.dtype) if mixed else inputs.dtype
    inputs, targets = _at_least_float32(inputs), _at_least_float32(targets)
    inputs = inputs.nan_to_num(nan=float("nan"))  # where a class is excluded by an infinite logit, it costs nothing
    wrong = torch.sigmoid(inputs) * (1 - targets) + torch.sigmoid(-inputs) * targets
    # The derivative of wrong**gamma at 0 may be infinite; that of the loss, which falls faster, is 0 there.
    none = wrong == 0
    factor = torch.where(none, wrong.detach() ** gamma, wrong.masked_fill(none, 1.0) ** gamma)
    loss = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none") * factor
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return _reduced(loss.to(dtype), reduction)


def _overlap_of_pairs(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Intersection and union of each box with its counterpart, width and height of the smallest box around both."""
    check_boxes(boxes1, "boxes1")
    check_boxes(boxes2, "boxes2")
    if boxes1.shape != boxes2.shape:
        raise ValueError(f"`boxes2` must have the shape of `boxes1`, {shape_text(boxes1)}, got {shape_text(boxes2)}")
    boxes1, boxes2 = _at_least_float32(boxes1), _at_least_float32(boxes2)
    inter = _intersection(boxes1, boxes2)
    width, height = _hull(boxes1, boxes2)
    return inter, area_of(boxes1, "xyxy") + area_of(boxes2, "xyxy") - inter, width, height


def _distance_loss(boxes1: Tensor, boxes2: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The loss, and the IoU."""
    inter, union, width, height = _overlap_of_pairs(boxes1, boxes2)
    iou = inter / (union + eps)
    distance = squared_distance(_at_least_float32(boxes1), _at_least_float32(boxes2))
    return 1 - iou + distance / (width**2 + height**2 + eps), iou


def _at_least_float32(boxes: Tensor) -> Tensor:
    return boxes if boxes.dtype == torch.float64 else boxes.float()


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    if not torch.jit.is_scripting():
        _checks.check_reduction(reduction)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean() if loss.numel() > 0 else loss.sum()
    raise ValueError(f"`reduction` must be none, mean or sum, got '{reduction}'")
