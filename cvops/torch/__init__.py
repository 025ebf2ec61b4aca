"""torchvision.ops on cvops: ``import cvops.torch as ops`` in place of ``from torchvision import ops``.

>>> import torch
>>> import cvops.torch as ops
>>> maps = torch.ones(1, 1, 4, 4, requires_grad=True)
>>> ops.roi_align(maps, [torch.tensor([[0.0, 0, 2, 2]])], output_size=1, sampling_ratio=1).sum().backward()
>>> maps.grad[0, 0, 1, 1]
tensor(1.)

Arguments, results and errors of a function are those of its namesake in `cvops`, with tensors for arrays and bfloat16
wherever there is float16; its help here tells only what differs. What is keyword-only there may be given by position,
because TorchScript has no keyword-only arguments with defaults.

Functions and modules work under autograd, autocast, torch.compile (as one graph), torch.export, TorchScript and
torch.func.vmap, on the CPU and on CUDA devices, in float64, float32, float16 and bfloat16. The operators are registered
as torch.ops.cvops; a process that loads a scripted or exported program has to import this module first.

PyTorch gives registered operators neither second nor forward-mode derivatives nor those of torch.func (grad, jacrev),
and vmap has no tensors of different lengths, such as the results of nms without ``padded=True``: NotImplementedError
says so. The box functions and losses have them all. What differs from torchvision on bad and degenerate input is what
differs in cvops; errors are TypeError and ValueError.

Numbers may be of every kind that torchvision takes: a tensor of one number on the CPU counts as one, also within `size`
and `image_shapes`, unless it requires grad (TypeError). torch.compile has to know the number, so that such a tensor
breaks the graph. torch.fx makes one node of each call.

The layers of torchvision.ops that have nothing to do with detection (FrozenBatchNorm2d, Conv2dNormActivation,
SqueezeExcitation, ...) are here too where torchvision is installed: they are torchvision's own.
"""

from typing import Any

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
from ._decode import decode_boxes, distance_to_boxes, encode_boxes, scale_boxes
from ._deform_conv import DeformConv2d, deform_conv2d
from ._losses import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)
from ._multiclass import multiclass_nms
from ._multiscale_roi_align import MultiScaleRoIAlign, multiscale_roi_align
from ._nms import batched_nms, nms
from ._pyramid import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7
from ._replace import replace_torchvision
from ._roi import (
    PSRoIAlign,
    PSRoIPool,
    RoIAlign,
    RoIPool,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_pool,
)

__all__ = [
    "DeformConv2d",
    "ExtraFPNBlock",
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
    "complete_box_iou_loss",
    "decode_boxes",
    "deform_conv2d",
    "distance_box_iou",
    "distance_box_iou_loss",
    "distance_to_boxes",
    "encode_boxes",
    "generalized_box_iou",
    "generalized_box_iou_loss",
    "masks_to_boxes",
    "multiclass_nms",
    "multiscale_roi_align",
    "nms",
    "ps_roi_align",
    "ps_roi_pool",
    "remove_small_boxes",
    "replace_torchvision",
    "roi_align",
    "roi_pool",
    "scale_boxes",
    "sigmoid_focal_loss",
]

_TORCHVISIONS_OWN = {
    "Conv2dNormActivation",
    "Conv3dNormActivation",
    "DropBlock2d",
    "DropBlock3d",
    "FrozenBatchNorm2d",
    "MLP",
    "Permute",
    "SqueezeExcitation",
    "StochasticDepth",
    "drop_block2d",
    "drop_block3d",
    "stochastic_depth",
}


def __getattr__(name: str) -> Any:
    if name not in _TORCHVISIONS_OWN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from torchvision import ops
    except ImportError as error:
        raise ImportError(f"cvops.torch.{name} is torchvision's own: it needs torchvision to be installed") from error
    return getattr(ops, name)
