"""The CUDA backend: CuPy arrays, kernels in `kernels/*.cu`. The same names as `cvops._cpu`."""

from __future__ import annotations

from typing import Any

from ._boxes import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou
from ._conv import conv2d
from ._deform_conv import deform_conv2d, deform_conv2d_backward
from ._device import asarray, copy, current_gpu, quiet, to_host, use, xp
from ._nms import batched_nms, nms

__all__ = [
    "asarray",
    "batched_nms",
    "box_iou",
    "complete_box_iou",
    "conv2d",
    "copy",
    "current_gpu",
    "deform_conv2d",
    "deform_conv2d_backward",
    "distance_box_iou",
    "generalized_box_iou",
    "nms",
    "quiet",
    "to_host",
    "use",
    "xp",
]


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise NotImplementedError(f"{name} does not take CUDA arrays yet: move them to the host")
