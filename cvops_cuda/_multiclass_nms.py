"""From the scores of a head to detections: not on CUDA yet."""

from __future__ import annotations

from typing import NoReturn

from ._device import Array


def multiclass_nms(
    boxes: Array,
    scores: Array,
    objectness: Array | None,
    iou_threshold: float,
    score_threshold: float | Array | None,
    max_candidates: int | None,
    max_per_class: int | None,
    max_output: int | None,
    multi_label: bool,
    class_agnostic: bool,
    metric: str,
    padded: bool,
) -> NoReturn:
    raise NotImplementedError(
        "multiclass_nms does not compute on CUDA arrays yet: give batched_nms the boxes, scores and classes that pass"
        " the threshold, or move the arrays to the host"
    )
