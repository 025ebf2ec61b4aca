"""Non-maximum suppression of tensors: known to torch.compile, export and TorchScript."""

# Not `from __future__ import annotations`: TorchScript reads the annotations.
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

import cvops

from . import _checks
from ._checks import count, flag, number
from ._entry import entry
from ._library import Kernel, kernel_of, register, require, rounded_as
from ._types import Integer, Number


# fmt: off
@overload
def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: Number, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., *, padded: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: Number, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: Literal[False] = ...,
) -> Tensor: ...
@overload
def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: Number, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: bool = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
# fmt: on
@entry(cvops.nms)
def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: Number,
    score_threshold: Number | None = None,
    max_output: Integer | None = None,
    padded: bool = False,
):
    """Keep the best-scored boxes and drop every box that overlaps a better kept one: `cvops.nms` for tensors.

    `padded` is not for TorchScript. torch.func.vmap takes nothing but ``padded=True``, because it cannot stack results
    of several lengths: NotImplementedError says so. To torch.compile and torch.export the number of kept boxes is an
    unbacked size.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    >>> ops.nms(boxes, torch.tensor([0.8, 0.9, 0.7]), iou_threshold=0.5)
    tensor([1, 2])
    """
    if not torch.jit.is_scripting():
        _checks.check_tensors(boxes=boxes, scores=scores)
        iou_threshold, score_threshold, max_output = _numbers(iou_threshold, score_threshold, max_output)
        padded = flag(padded, "padded")
        if padded:
            return torch.ops.cvops.nms_padded(
                boxes, scores, iou_threshold, score_threshold=score_threshold, max_output=max_output
            )
    torch._assert(not padded, "padded=True is not for TorchScript")
    return torch.ops.cvops.nms(boxes, scores, iou_threshold, score_threshold=score_threshold, max_output=max_output)


# fmt: off
@overload
def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: Number, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., *, padded: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: Number, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: Literal[False] = ...,
) -> Tensor: ...
@overload
def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: Number, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: bool = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
# fmt: on
@entry(cvops.batched_nms)
def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: Number,
    score_threshold: Number | None = None,
    max_output: Integer | None = None,
    padded: bool = False,
):
    """Non-maximum suppression within each class: `cvops.batched_nms` for tensors.

    Classes may be bool too, as in torchvision. What `nms` says of its transformations holds here.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10]])
    >>> ops.batched_nms(boxes, torch.tensor([0.8, 0.9, 0.7]), torch.tensor([5, 5, 6]), iou_threshold=0.5)
    tensor([1, 2])
    """
    if not torch.jit.is_scripting():
        _checks.check_tensors(boxes=boxes, scores=scores, idxs=idxs)
        iou_threshold, score_threshold, max_output = _numbers(iou_threshold, score_threshold, max_output)
        if flag(padded, "padded"):
            return torch.ops.cvops.batched_nms_padded(
                boxes, scores, _classes(idxs), iou_threshold, score_threshold=score_threshold, max_output=max_output
            )
    torch._assert(not padded, "padded=True is not for TorchScript")
    return torch.ops.cvops.batched_nms(
        boxes, scores, _classes(idxs), iou_threshold, score_threshold=score_threshold, max_output=max_output
    )


def _classes(idxs: Tensor) -> Tensor:
    """Two classes may be bool, as in torchvision."""
    return idxs.to(torch.uint8) if idxs.dtype == torch.bool else idxs


def _numbers(iou_threshold: Any, score_threshold: Any, max_output: Any) -> tuple[float, Any, Any]:
    return (
        number(iou_threshold, "iou_threshold", 0.0, 1.0),
        None if score_threshold is None else number(score_threshold, "score_threshold"),
        None if max_output is None else count(max_output, "max_output", maximum=2**63 - 1),
    )


# ----------------------------------------------------------------------------------------------------------- registered


def _kept(boxes: Tensor, scores: Tensor, *args: Any, **options: Any) -> Tensor:
    _require_detections(boxes, scores)
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _kept_padded(boxes: Tensor, scores: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    _require_detections(boxes, scores)
    size = options.get("max_output")
    keep = boxes.new_empty(boxes.shape[0] if size is None else size, dtype=torch.int64)
    return keep, boxes.new_empty((), dtype=torch.int64)


def _require_detections(boxes: Tensor, scores: Tensor) -> None:
    require(boxes.dim() == 2 and boxes.shape[1] == 4, "boxes", "shape (L, 4)", boxes)
    require(scores.dim() == 1, "scores", "shape (L,)", scores)


def _rounding(function: Callable[..., Any]) -> Kernel:
    kernel = kernel_of(function, keeps_dtype=False)

    def rounding(
        boxes: Tensor, scores: Tensor, *args: Any, score_threshold: float | None = None, **options: Any
    ) -> Any:
        return kernel(boxes, scores, *args, score_threshold=rounded_as(scores, score_threshold), **options)

    return rounding


def _register(function: Callable[..., Any]) -> Kernel:
    """Register an operator and its padded form; return the kernel of the first."""
    name, padded, pair = f"{function.__name__}_padded", partial(function, padded=True), "(Tensor, Tensor)"
    register(function, _kept_padded, name=name, results=pair, kernel=_rounding(padded))
    return register(function, _kept, kernel=_rounding(function), ragged=True)


nms_kernel = _register(cvops.nms)
_register(cvops.batched_nms)
