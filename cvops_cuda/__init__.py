"""The CUDA backend: CuPy arrays, kernels in `kernels/*.cu`. The same names as `cvops._cpu`."""

from __future__ import annotations

from ._boxes import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou
from ._conv import conv2d
from ._decode import decode_boxes, distance_to_boxes, encode_boxes, scale_boxes
from ._deform_conv import deform_conv2d, deform_conv2d_backward
from ._device import asarray, copy, current_gpu, empty, ignore_fp_errors, to_host, upload, use_backend_of, xp
from ._multiclass_nms import multiclass_nms
from ._nms import batched_nms, nms
from ._ps_roi import ps_roi_align, ps_roi_align_backward, ps_roi_pool, ps_roi_pool_backward
from ._roi_align import multiscale_roi_align, multiscale_roi_align_backward, roi_align, roi_align_backward
from ._roi_inputs import rois_of_images
from ._roi_pool import roi_pool, roi_pool_backward

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
    "upload",
    "use_backend_of",
    "xp",
]
