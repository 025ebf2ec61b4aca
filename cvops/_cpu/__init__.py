"""The CPU backend: NumPy arrays, Numba loops. One function per operator, under the names that `cvops_cuda` has too."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy as xp

from .._arrays import share
from .._checks import CONVERSION
from ._boxes import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou
from ._conv import conv2d
from ._decode import decode_boxes, distance_to_boxes, encode_boxes, scale_boxes
from ._deform_conv import deform_conv2d
from ._deform_conv_backward import deform_conv2d_backward
from ._memory import copy, empty
from ._memory import copy as to_host
from ._multiclass_nms import multiclass_nms
from ._nms import batched_nms, nms
from ._nms_few import lean_batched_nms as lean_batched_nms
from ._nms_few import lean_nms as lean_nms
from ._roi import (
    multiscale_roi_align,
    multiscale_roi_align_backward,
    ps_roi_align,
    ps_roi_align_backward,
    ps_roi_pool,
    ps_roi_pool_backward,
    roi_align,
    roi_align_backward,
    roi_pool,
    roi_pool_backward,
)
from ._roi_few import lean_roi_align as lean_roi_align
from ._roi_few import lean_roi_pool as lean_roi_pool
from ._rois import RoisOfImages as rois_of_images  # noqa: N813 - as a function of every backend

__all__ = [
    "asarray",
    "batched_nms",
    "box_iou",
    "complete_box_iou",
    "conv2d",
    "copy",
    "current_gpu",
    "decode_boxes",
    "deform_conv2d",
    "deform_conv2d_backward",
    "distance_box_iou",
    "distance_to_boxes",
    "empty",
    "encode_boxes",
    "generalized_box_iou",
    "ignore_fp_errors",
    "multiclass_nms",
    "multiscale_roi_align",
    "multiscale_roi_align_backward",
    "nms",
    "ps_roi_align",
    "ps_roi_align_backward",
    "ps_roi_pool",
    "ps_roi_pool_backward",
    "roi_align",
    "roi_align_backward",
    "roi_pool",
    "roi_pool_backward",
    "rois_of_images",
    "scale_boxes",
    "to_host",
    "xp",
]

# Around arithmetic on `xp`: infinities and NaN are ordinary values here, not worth a warning.
ignore_fp_errors = functools.partial(np.errstate, all="ignore")


def asarray(array: Any, name: str) -> np.ndarray[Any, Any]:
    """Return `array` as a read-only numpy.ndarray, aligned and in native byte order: a view wherever one is possible.

    Read-only, so that kernels cannot write into what belongs to the caller, and so that there is one compilation for
    writable and read-only inputs.
    """
    if type(array) is not np.ndarray:
        array = np.asarray(array) if isinstance(array, np.ndarray) else share(array, name, np.from_dlpack)
    if array.dtype.char == "E":
        raise TypeError(f"`{name}` must be float64, float32 or float16, got {array.dtype}: {CONVERSION}")
    if not array.flags.aligned or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    view: np.ndarray[Any, Any] = array.view()
    view.setflags(write=False)
    return view


def current_gpu() -> int | None:
    """The number of the GPU that computes: none."""
    return None
