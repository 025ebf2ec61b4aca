"""The CUDA backend: CuPy arrays, kernels in `kernels/*.cu`. The same names as `cvops._cpu`."""

from __future__ import annotations

from typing import Any

from ._boxes import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou
from ._device import asarray, copy, current_gpu, quiet, to_host, use, xp
from ._nms import batched_nms, nms
from ._ps_roi import ps_roi_align, ps_roi_align_backward, ps_roi_pool, ps_roi_pool_backward
from ._roi import multiscale_roi_align, multiscale_roi_align_backward, roi_align, roi_align_backward
from ._roi_pool import roi_pool, roi_pool_backward

__all__ = [
    "asarray",
    "batched_nms",
    "box_iou",
    "complete_box_iou",
    "copy",
    "current_gpu",
    "distance_box_iou",
    "generalized_box_iou",
    "multiscale_roi_align",
    "multiscale_roi_align_backward",
    "nms",
    "ps_roi_align",
    "ps_roi_align_backward",
    "ps_roi_pool",
    "ps_roi_pool_backward",
    "quiet",
    "roi_align",
    "roi_align_backward",
    "roi_pool",
    "roi_pool_backward",
    "to_host",
    "use",
    "xp",
]


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise NotImplementedError(f"{name} does not take CUDA arrays yet: move them to the host")
