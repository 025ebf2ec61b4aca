"""From the decoded output of a head to detections, as tensors."""

# Not `from __future__ import annotations`: TorchScript reads the annotations.
from functools import partial
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

import cvops

from .._checks import one_of
from .._multiclass import METRICS, PaddedSelection, Selection, check_form_of_floor
from . import _checks
from ._checks import count, flag, number
from ._entry import entry
from ._library import as_tensor, register, require, rounded_as, to_native
from ._types import Integer, Metric, Number, Threshold


class _Found(NamedTuple):
    """`Selection` for TorchScript, which knows no generic types."""

    image: Tensor
    box: Tensor
    label: Tensor


# fmt: off
@overload
def multiclass_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: Number, score_threshold: Threshold = ...,
    max_candidates: Integer | None = ..., max_per_class: Integer | None = ..., max_output: Integer | None = ...,
    multi_label: bool = ..., class_agnostic: bool = ..., objectness: Tensor | None = ..., metric: Metric = ...,
    padded: Literal[False] = ...,
) -> Selection[Tensor]: ...
@overload
def multiclass_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: Number, score_threshold: Threshold = ...,
    max_candidates: Integer | None = ..., max_per_class: Integer | None = ..., *, max_output: Integer,
    multi_label: bool = ..., class_agnostic: bool = ..., objectness: Tensor | None = ..., metric: Metric = ...,
    padded: Literal[True],
) -> PaddedSelection[Tensor]: ...
@overload
def multiclass_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: Number, score_threshold: Threshold = ...,
    max_candidates: Integer | None = ..., max_per_class: Integer | None = ..., *, max_output: Integer,
    multi_label: bool = ..., class_agnostic: bool = ..., objectness: Tensor | None = ..., metric: Metric = ...,
    padded: bool,
) -> Selection[Tensor] | PaddedSelection[Tensor]: ...
# fmt: on
@entry(cvops.multiclass_nms)
def multiclass_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: Number,
    score_threshold: Threshold = None,
    max_candidates: Integer | None = None,
    max_per_class: Integer | None = None,
    max_output: Integer | None = None,
    multi_label: bool = True,
    class_agnostic: bool = False,
    objectness: Tensor | None = None,
    metric: Metric = "iou",
    padded: bool = False,
):
    """Detections from the boxes and class scores of a batch of images: `cvops.multiclass_nms` for tensors.

    `padded` is not for TorchScript. torch.func.vmap takes nothing but ``padded=True``, because it cannot stack results
    of several lengths: NotImplementedError says so. To torch.compile and torch.export the number of detections is an
    unbacked size.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]]])
    >>> scores = torch.tensor([[[0.8, 0.1], [0.9, 0.1], [0.1, 0.7]]])
    >>> ops.multiclass_nms(boxes, scores, 0.5, score_threshold=0.25).box
    tensor([1, 2])
    """
    if not torch.jit.is_scripting():
        _checks.check_tensors(boxes=boxes, scores=scores)
        if objectness is not None:
            _checks.check_tensors(objectness=objectness)
        iou_threshold = number(iou_threshold, "iou_threshold", 0.0, 1.0)
        check_form_of_floor(score_threshold)
        if score_threshold is not None and not (isinstance(score_threshold, Tensor) and score_threshold.dim()):
            score_threshold = number(score_threshold, "score_threshold")
        max_candidates, max_per_class = _limit(max_candidates, "max_candidates"), _limit(max_per_class, "max_per_class")
        max_output, multi_label = _limit(max_output, "max_output"), flag(multi_label, "multi_label")
        class_agnostic, padded = flag(class_agnostic, "class_agnostic"), flag(padded, "padded")
        one_of(metric, "metric", METRICS)
        if padded and max_output is None:
            raise ValueError("`max_output` must be an integer where `padded` is True, got None")
    floors, floor = _floors_or_floor(score_threshold)
    if not torch.jit.is_scripting() and padded:
        return PaddedSelection(
            *torch.ops.cvops.multiclass_nms_padded(
                boxes, scores, iou_threshold, floors, objectness, max_output, score_threshold=floor,
                max_candidates=max_candidates, max_per_class=max_per_class, multi_label=multi_label,
                class_agnostic=class_agnostic, metric=metric,
            )
        )  # fmt: skip
    torch._assert(not padded, "padded=True is not for TorchScript")
    image, box, label = torch.ops.cvops.multiclass_nms(
        boxes, scores, iou_threshold, floors, objectness, max_output, score_threshold=floor,
        max_candidates=max_candidates, max_per_class=max_per_class, multi_label=multi_label,
        class_agnostic=class_agnostic, metric=metric,
    )  # fmt: skip
    if not torch.jit.is_scripting():
        return Selection(image, box, label)
    return _Found(image, box, label)


def _limit(value: Any, name: str) -> Any:
    return None if value is None else count(value, name, maximum=2**63 - 1)


def _floors_or_floor(score_threshold: Threshold) -> tuple[Tensor | None, Number | None]:
    """The tensor of a floor for each class, or the number."""
    floors: Tensor | None = None
    floor: Number | None = None
    if score_threshold is not None:
        if isinstance(score_threshold, Tensor):
            if score_threshold.dim() > 0:
                floors = score_threshold
            elif score_threshold.is_cpu and not score_threshold.requires_grad:
                floor = float(score_threshold)
            else:
                raise TypeError("`score_threshold` must be a number or of shape (C,): pass score_threshold.item()")
        elif torch.jit.is_scripting():
            floor = float(score_threshold)
        else:  # torch.compile may trace it
            floor = score_threshold
    return floors, floor


# ----------------------------------------------------------------------------------------------------------- registered


def _kernel(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    floors: Tensor | None,
    objectness: Tensor | None,
    max_output: int | None,
    *,
    score_threshold: float | None = None,
    **options: Any,
) -> Any:
    """Floors are a `score_threshold` for each class."""
    threshold: Any = rounded_as(scores, score_threshold)
    if floors is not None:
        threshold = to_native(_rounded(floors, scores))
    if objectness is not None:
        options["objectness"] = to_native(objectness)
    options |= {"score_threshold": threshold, "max_output": max_output}
    return tuple(map(as_tensor, cvops.multiclass_nms(to_native(boxes), to_native(scores), iou_threshold, **options)))


def _rounded(floors: Tensor, scores: Tensor) -> Tensor:
    """Floors as the dtype of the scores has them; kernels of a GPU do this themselves."""
    if not floors.is_cpu or not floors.is_floating_point():
        return floors
    if floors.dtype != torch.float64 or scores.dtype not in (torch.float16, torch.bfloat16):
        return floors.to(scores.dtype)
    # torch rounds float64 to float32 on the way.
    values = [rounded_as(scores, value) for value in floors.flatten().tolist()]
    return torch.tensor(values, dtype=torch.float32).reshape(floors.shape)


def _found(boxes: Tensor, scores: Tensor, *args: Any, **options: Any) -> tuple[Tensor, ...]:
    require(scores.dim() == 3, "scores", "shape (N, L, C)", scores)
    size = torch.library.get_ctx().new_dynamic_size()
    return tuple(boxes.new_empty(size, dtype=torch.int64) for _ in range(3))


def _found_padded(
    boxes: Tensor, scores: Tensor, iou_threshold: float, floors: Any, objectness: Any, max_output: Any, **options: Any
) -> tuple[Tensor, ...]:
    require(scores.dim() == 3, "scores", "shape (N, L, C)", scores)
    images = scores.shape[0]
    shapes = (images, max_output), (images, max_output), (images,)
    return tuple(boxes.new_empty(shape, dtype=torch.int64) for shape in shapes)


_ARGUMENTS = (
    "Tensor boxes, Tensor scores, float iou_threshold, Tensor? floors, Tensor? objectness, {} max_output, *,"
    " float? score_threshold=None, SymInt? max_candidates=None, SymInt? max_per_class=None, bool multi_label=True,"
    " bool class_agnostic=False, str metric='iou'"
)
_RESULTS = "(Tensor, Tensor, Tensor)"
register(
    cvops.multiclass_nms, _found, arguments=_ARGUMENTS.format("SymInt?"), results=_RESULTS, kernel=_kernel, ragged=True
)
register(
    cvops.multiclass_nms,
    _found_padded,
    name="multiclass_nms_padded",
    arguments=_ARGUMENTS.format("SymInt"),
    results=_RESULTS,
    kernel=partial(_kernel, padded=True),
)
