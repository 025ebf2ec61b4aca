"""The operators of torchvision.ops for tensors: differentiable, and known to torch.compile, export and TorchScript."""

# Not `from __future__ import annotations`: TorchScript reads the annotations.
from typing import Any, Literal, overload

import torch
from torch import Tensor

import cvops

from .._checks import ADAPTIVE
from . import _checks, _library
from ._checks import as_sampling_ratio, count, flag, number, pair, positive
from ._types import BroadcastingList2, Integer, Ints, Number

# What cvops adds is keyword-only everywhere else; TorchScript has no keyword-only arguments with defaults.


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
def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: Number,
    score_threshold: Number | None = None,
    max_output: Integer | None = None,
    padded: bool = False,
):
    """Keep the best-scored boxes and drop every box that overlaps a better kept one: `cvops.nms` for tensors.

    Parameters
    ----------
    boxes : tensor of shape (L, 4), float or integer
        Corners ``x1, y1, x2, y2``.
    scores : tensor of shape (L,), float
        A box of higher score suppresses one of lower score.
    iou_threshold, score_threshold, max_output, padded
        As in `cvops.nms`. TorchScript knows no `padded`.

    Returns
    -------
    keep : tensor of shape (M,), int64
        Indices of the kept boxes by decreasing score. With ``padded=True`` a pair, as in `cvops.nms`.

    Raises
    ------
    TypeError, ValueError
        As `cvops.nms`.
    NotImplementedError
        Under torch.func.vmap without `padded`: the lengths would differ.

    Notes
    -----
    To torch.compile and torch.export the number of kept boxes is an unbacked size.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    >>> ops.nms(boxes, torch.tensor([0.8, 0.9, 0.7]), iou_threshold=0.5)
    tensor([1, 2])
    """
    if not torch.jit.is_scripting():
        node = _checks.traced(nms, boxes, scores, iou_threshold, score_threshold, max_output, padded)
        if node is not None:
            return node
        _checks.check_tensors(boxes=boxes, scores=scores)
        iou_threshold, score_threshold, max_output = _numbers(iou_threshold, score_threshold, max_output)
        padded = flag(padded, "padded")
        if not torch.compiler.is_compiling():
            if not padded and _library.is_unwatched(boxes, scores):
                keep = cvops.nms(
                    boxes.numpy(), scores.numpy(), iou_threshold,
                    score_threshold=score_threshold, max_output=max_output,
                )  # fmt: skip
                return torch.from_numpy(keep)
            if _library.needs_only_the_kernel(boxes, scores):
                kernel = _library.nms_padded if padded else _library.nms
                return kernel(boxes, scores, iou_threshold, score_threshold=score_threshold, max_output=max_output)
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

    Parameters
    ----------
    boxes : tensor of shape (L, 4), float or integer
        Corners ``x1, y1, x2, y2``.
    scores : tensor of shape (L,), float
        A box of higher score suppresses one of lower score.
    idxs : tensor of shape (L,), integer or bool, or float holding integers
        The class of each box.
    iou_threshold, score_threshold, max_output, padded
        As in `cvops.batched_nms`. TorchScript knows no `padded`.

    Returns
    -------
    keep : tensor of shape (M,), int64
        Indices of the kept boxes of all classes by decreasing score. With ``padded=True`` a pair, as in `cvops.nms`.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `cvops.batched_nms`, and `nms`.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10]])
    >>> ops.batched_nms(boxes, torch.tensor([0.8, 0.9, 0.7]), torch.tensor([5, 5, 6]), iou_threshold=0.5)
    tensor([1, 2])
    """
    if not torch.jit.is_scripting():
        node = _checks.traced(batched_nms, boxes, scores, idxs, iou_threshold, score_threshold, max_output, padded)
        if node is not None:
            return node
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


def roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList2[int],
    spatial_scale: Number = 1.0,
    sampling_ratio: Integer = ADAPTIVE,
    aligned: bool = False,
) -> Tensor:
    """Pool each region of interest into bins by averaging bilinear samples: `cvops.roi_align` for tensors.

    Parameters
    ----------
    input : tensor of shape (N, C, H, W), float64 | float32 | float16 | bfloat16
        Feature maps, contiguous or channels-last. The result has a gradient for them.
    boxes : tensor of shape (K, 5), float, or list of N tensors of shape (L_i, 4)
        Rows ``image index, x1, y1, x2, y2`` in pixels of the image, or the corners alone, one tensor for each image.
    output_size, spatial_scale, sampling_ratio, aligned
        As in `cvops.roi_align`.

    Returns
    -------
    pooled : tensor of shape (K, C, output height, output width)
        Of the dtype of `input`.

    Raises
    ------
    TypeError, ValueError
        As `cvops.roi_align`.
    NotImplementedError
        For a second derivative, for forward-mode derivatives, and under torch.func.grad.

    Notes
    -----
    16-bit maps are computed in float32. Boxes have no gradient.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ramp = torch.arange(36.0).reshape(1, 1, 6, 6)
    >>> ops.roi_align(ramp, torch.tensor([[0.0, 1, 1, 5, 5]]), 2)
    tensor([[[[14., 16.],
              [26., 28.]]]])
    """
    if not torch.jit.is_scripting():
        node = _checks.traced(roi_align, input, boxes, output_size, spatial_scale, sampling_ratio, aligned)
        if node is not None:
            return node
        output_size, spatial_scale = pair(output_size, "output_size"), positive(spatial_scale, "spatial_scale")
        sampling_ratio, aligned = as_sampling_ratio(sampling_ratio, "sampling_ratio"), flag(aligned, "aligned")
        _checks.check_tensors(input=input)
        _checks.refuse_transforms(input)
        if not torch.compiler.is_compiling() and _library.needs_only_the_kernel(input, boxes):
            return _library.roi_align(input, boxes, output_size, spatial_scale, sampling_ratio, aligned)
    rois = rois_of(boxes, input)
    return torch.ops.cvops.roi_align(input, rois, output_size, spatial_scale, sampling_ratio, aligned)


def roi_pool(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList2[int],
    spatial_scale: Number = 1.0,
) -> Tensor:
    """Pool each region of interest into bins by their maximum: `cvops.roi_pool` for tensors.

    Parameters
    ----------
    input, boxes
        As in `roi_align`.
    output_size, spatial_scale
        As in `cvops.roi_pool`.

    Returns
    -------
    pooled : tensor of shape (K, C, output height, output width)
        Of the dtype of `input`.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `roi_align`.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> ramp = torch.arange(36.0).reshape(1, 1, 6, 6)
    >>> ops.roi_pool(ramp, torch.tensor([[0.0, 1, 1, 4, 4]]), 2)
    tensor([[[[14., 16.],
              [26., 28.]]]])
    """
    if not torch.jit.is_scripting():
        node = _checks.traced(roi_pool, input, boxes, output_size, spatial_scale)
        if node is not None:
            return node
        output_size, spatial_scale = pair(output_size, "output_size"), positive(spatial_scale, "spatial_scale")
        _checks.check_tensors(input=input)
        _checks.refuse_transforms(input)
    rois = rois_of(boxes, input)
    recorded = input.requires_grad
    if not torch.jit.is_scripting():
        recorded = recorded or _checks.in_transform()  # where a tensor may hide one that requires grad
    # Else the places of the maxima need not be written.
    recorded = recorded and torch.is_grad_enabled()
    pooled, _ = torch.ops.cvops.roi_pool(input, rois, output_size, spatial_scale, recorded)
    return pooled


def ps_roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList2[int],
    spatial_scale: Number = 1.0,
    sampling_ratio: Integer = ADAPTIVE,
) -> Tensor:
    """`roi_align` with channels of its own for each bin: `cvops.ps_roi_align` for tensors.

    Parameters
    ----------
    input : tensor of shape (N, C * PH * PW, H, W), float64 | float32 | float16 | bfloat16
        Feature maps, channels in order (output channel, bin row, bin column). The result has a gradient for them.
    boxes
        As in `roi_align`.
    output_size, spatial_scale, sampling_ratio
        As in `cvops.ps_roi_align`.

    Returns
    -------
    pooled : tensor of shape (K, C, PH, PW)
        Of the dtype of `input`.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `roi_align`; also if the number of channels is not a multiple of PH * PW.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> features = torch.arange(4.0).reshape(1, 4, 1, 1) * torch.ones(6, 6)
    >>> ops.ps_roi_align(features, torch.tensor([[0.0, 1, 1, 5, 5]]), 2)
    tensor([[[[0., 1.],
              [2., 3.]]]])
    """
    if not torch.jit.is_scripting():
        node = _checks.traced(ps_roi_align, input, boxes, output_size, spatial_scale, sampling_ratio)
        if node is not None:
            return node
        output_size, spatial_scale = pair(output_size, "output_size"), positive(spatial_scale, "spatial_scale")
        sampling_ratio = as_sampling_ratio(sampling_ratio, "sampling_ratio")
        _checks.check_tensors(input=input)
        _checks.refuse_transforms(input)
    return torch.ops.cvops.ps_roi_align(input, rois_of(boxes, input), output_size, spatial_scale, sampling_ratio)


def ps_roi_pool(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList2[int],
    spatial_scale: Number = 1.0,
) -> Tensor:
    """Average each bin of a region over channels of its own: `cvops.ps_roi_pool` for tensors.

    Parameters
    ----------
    input, boxes
        As in `ps_roi_align`.
    output_size, spatial_scale
        As in `cvops.ps_roi_pool`.

    Returns
    -------
    pooled : tensor of shape (K, C, PH, PW)
        Of the dtype of `input`.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `ps_roi_align`.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> features = torch.arange(4.0).reshape(1, 4, 1, 1) * torch.ones(6, 6)
    >>> ops.ps_roi_pool(features, torch.tensor([[0.0, 1, 1, 5, 5]]), 2)
    tensor([[[[0., 1.],
              [2., 3.]]]])
    """
    if not torch.jit.is_scripting():
        node = _checks.traced(ps_roi_pool, input, boxes, output_size, spatial_scale)
        if node is not None:
            return node
        output_size, spatial_scale = pair(output_size, "output_size"), positive(spatial_scale, "spatial_scale")
        _checks.check_tensors(input=input)
        _checks.refuse_transforms(input)
    return torch.ops.cvops.ps_roi_pool(input, rois_of(boxes, input), output_size, spatial_scale)


def multiscale_roi_align(
    features: list[Tensor],
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList2[int],
    scales: list[float],
    sampling_ratio: Integer = ADAPTIVE,
    canonical_scale: Number = 224,
    canonical_level: Integer = 4,
    aligned: bool = False,
) -> Tensor:
    """Pool each box from one map of a feature pyramid, chosen by its size: `cvops.multiscale_roi_align` for tensors.

    Parameters
    ----------
    features : list of tensors of shape (N, C, H, W), float64 | float32 | float16 | bfloat16
        The maps in any order, all of one dtype, N and C. The result has gradients for them.
    boxes
        As in `roi_align`.
    output_size, scales, sampling_ratio, canonical_scale, canonical_level, aligned
        As in `cvops.multiscale_roi_align`.

    Returns
    -------
    pooled : tensor of shape (K, C, output height, output width)
        Of the dtype of the maps.

    Raises
    ------
    TypeError, ValueError
        As `cvops.multiscale_roi_align`.
    NotImplementedError
        As `roi_align`.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> boxes = torch.tensor([[0.0, 0, 0, 50, 50], [0, 0, 0, 150, 150]])
    >>> maps = [torch.full((1, 1, 64, 64), 2.0), torch.full((1, 1, 32, 32), 3.0)]
    >>> ops.multiscale_roi_align(maps, boxes, 1, scales=[1 / 4, 1 / 8], sampling_ratio=1).flatten()
    tensor([2., 3.])
    """
    if not torch.jit.is_scripting():
        options = output_size, scales, sampling_ratio, canonical_scale, canonical_level, aligned
        node = _checks.traced(multiscale_roi_align, features, boxes, *options)
        if node is not None:
            return node
        _checks.check_maps(features)
        output_size, scales = pair(output_size, "output_size"), _checks.positives(scales, "scales")
        sampling_ratio, aligned = as_sampling_ratio(sampling_ratio, "sampling_ratio"), flag(aligned, "aligned")
        canonical_scale = positive(canonical_scale, "canonical_scale")
        canonical_level = count(canonical_level, "canonical_level", -(2**31))
    elif len(features) == 0:
        raise ValueError("`features` must have a map to pool from, got none")
    rois = rois_of(boxes, features[0])
    return torch.ops.cvops.multiscale_roi_align(
        features, rois, output_size, scales, sampling_ratio, aligned, canonical_scale, canonical_level
    )


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = (1, 1),
    padding: Ints = (0, 0),
    dilation: Ints = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Convolution whose taps read at offsets from their regular places: `cvops.deform_conv2d` for tensors.

    Parameters
    ----------
    input : tensor of shape (N, C, H, W), float64 | float32 | float16 | bfloat16
        Images or feature maps.
    offset : tensor of shape (N, 2 * G * kh * kw, OH, OW), float
        How far from its regular place each tap reads, in input pixels, as (y, x) pairs.
    weight : tensor of shape (O, C / groups, kh, kw), dtype of `input`
        The number of groups follows from the shape.
    bias : tensor of shape (O,), dtype of `input`, optional
        Added to each output channel.
    stride, padding, dilation
        As in `cvops.deform_conv2d`.
    mask : tensor of shape (N, G * kh * kw, OH, OW), float, optional
        Factors of the samples.

    Returns
    -------
    output : tensor of shape (N, O, OH, OW), dtype of `input`
        It has gradients for all five tensors.

    Raises
    ------
    TypeError, ValueError
        As `cvops.deform_conv2d`.
    NotImplementedError
        As `roi_align`.

    Notes
    -----
    16-bit tensors are computed in float32. Under autocast their dtypes may differ.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> offset = torch.zeros(1, 2, 3, 3)
    >>> offset[:, 1] = 0.5  # half a pixel to the right
    >>> ops.deform_conv2d(torch.arange(9.0).reshape(1, 1, 3, 3), offset, torch.ones(1, 1, 1, 1))
    tensor([[[[0.5000, 1.5000, 1.0000],
              [3.5000, 4.5000, 2.5000],
              [6.5000, 7.5000, 4.0000]]]])
    """
    if not torch.jit.is_scripting():
        node = _checks.traced(deform_conv2d, input, offset, weight, bias, stride, padding, dilation, mask)
        if node is not None:
            return node
        stride, padding = pair(stride, "stride"), pair(padding, "padding", 0)
        dilation = pair(dilation, "dilation")
        _checks.check_convolution(input, offset, weight, bias, mask)
    return torch.ops.cvops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


def _classes(idxs: Tensor) -> Tensor:
    """Two classes may be bool, as in torchvision."""
    return idxs.to(torch.uint8) if idxs.dtype == torch.bool else idxs


def _numbers(iou_threshold: Any, score_threshold: Any, max_output: Any) -> tuple[float, Any, Any]:
    return (
        number(iou_threshold, "iou_threshold", 0.0, 1.0),
        None if score_threshold is None else number(score_threshold, "score_threshold"),
        None if max_output is None else count(max_output, "max_output", maximum=2**63 - 1),
    )


def rois_of(boxes: Tensor | list[Tensor], input: Tensor) -> Tensor:
    """`boxes` as one tensor of shape (K, 5)."""
    if not torch.jit.is_scripting():
        _checks.check_boxes(boxes)
    if isinstance(boxes, Tensor):
        return boxes
    if input.dim() != 4:
        raise ValueError(f"`input` must have shape (N, C, H, W) with H and W >= 1, got {shape_text(input)}")
    if len(boxes) != input.shape[0]:
        raise ValueError(f"`boxes` must be a list of one array for each image, {input.shape[0]}, got {len(boxes)}")
    if len(boxes) == 0:
        return torch.zeros((0, 5), dtype=torch.float32, device=input.device)
    corners: list[Tensor] = []
    images: list[Tensor] = []
    for i, of_image in enumerate(boxes):
        if of_image.dim() != 2 or of_image.shape[1] != 4:
            raise ValueError(f"`boxes[{i}]` must have shape (L, 4), got {shape_text(of_image)}")
        of_image = of_image.detach()
        # 16 bits would not hold the index of every image.
        if of_image.dtype == torch.float16 or of_image.dtype == torch.bfloat16:
            of_image = of_image.float()
        corners.append(of_image)
        images.append(torch.full_like(of_image[:, :1], i))
    return torch.cat([torch.cat(images), torch.cat(corners)], 1)


def shape_text(tensor: Tensor) -> str:
    """The shape as errors write it."""
    if torch.jit.is_scripting():
        return str(tensor.shape)
    return str(tuple(tensor.shape))
