"""Detection operators for NumPy, CuPy and every DLPack array.

>>> import numpy as np
>>> import cvops
>>> boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]], np.float32)
>>> cvops.nms(boxes, np.array([0.8, 0.9, 0.7], np.float32), iou_threshold=0.5)
array([1, 2])
"""

from ._boxes import (
    box_area,
    box_convert,
    box_iou,
    clip_boxes_to_image,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
    masks_to_boxes,
    remove_small_boxes,
)
from ._decode import (
    decode_boxes,
    distance_to_boxes,
    encode_boxes,
    make_anchors,
    make_points,
    scale_boxes,
)
from ._deform_conv import DeformConv2d, deform_conv2d, deform_conv2d_backward
from ._multiclass import multiclass_nms
from ._multiscale_roi_align import MultiScaleRoIAlign, multiscale_roi_align, multiscale_roi_align_backward
from ._nms import batched_nms, nms
from ._pyramid import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7
from ._roi import (
    PSRoIAlign,
    PSRoIPool,
    RoIAlign,
    RoIPool,
    ps_roi_align,
    ps_roi_align_backward,
    ps_roi_pool,
    ps_roi_pool_backward,
    roi_align,
    roi_align_backward,
    roi_pool,
    roi_pool_backward,
)
from ._runtime import get_num_threads, set_num_threads, warmup

__version__ = "0.1.0"

__all__ = [
    "DeformConv2d",
    "FeaturePyramidNetwork",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "MultiScaleRoIAlign",
    "PSRoIAlign",
    "PSRoIPool",
    "RoIAlign",
    "RoIPool",
    "batched_nms",
    "box_area",
    "box_convert",
    "box_iou",
    "clip_boxes_to_image",
    "complete_box_iou",
    "decode_boxes",
    "deform_conv2d",
    "deform_conv2d_backward",
    "distance_box_iou",
    "distance_to_boxes",
    "encode_boxes",
    "generalized_box_iou",
    "get_num_threads",
    "make_anchors",
    "make_points",
    "masks_to_boxes",
    "multiclass_nms",
    "multiscale_roi_align",
    "multiscale_roi_align_backward",
    "nms",
    "ps_roi_align",
    "ps_roi_align_backward",
    "ps_roi_pool",
    "ps_roi_pool_backward",
    "remove_small_boxes",
    "roi_align",
    "roi_align_backward",
    "roi_pool",
    "roi_pool_backward",
    "scale_boxes",
    "set_num_threads",
    "warmup",
]
