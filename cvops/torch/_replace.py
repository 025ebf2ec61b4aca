"""torchvision's own registered operators, computed by cvops for a while."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import cvops

from . import _deform_conv, _library, _nms, _roi

# The one replacement that there may be, kept for whoever drops it. In a dict, whose methods are atomic: a lock might be
# wanted by a signal handler while it is held.
_active: dict[str, Replacement] = {}


def replace_torchvision() -> Replacement:
    """Let torchvision's operators run on cvops from this call on: models built on them, unedited.

    Returns
    -------
    replacement : Replacement
        Its `restore` gives torchvision its own operators back; until then they stay replaced, whether the object is
        kept or not. As a context manager it gives its `calls` and restores at the end. `calls` is a
        `collections.Counter`: how often each operator has run on cvops, by torchvision's name of it: ``nms``,
        ``roi_align``, ``_roi_align_backward``, ...

    Raises
    ------
    ImportError
        torchvision is not installed, or comes without its operators.
    RuntimeError
        The operators are replaced already.

    Notes
    -----
    The kernels of nms, roi_align, roi_pool, ps_roi_align, ps_roi_pool, deform_conv2d and of their gradients are
    replaced for CPU and CUDA tensors in the whole process, all threads included. What was compiled or scripted before
    calls them too. The gradient of ps_roi_pool is that of cvops, which differs from torchvision's: see
    `cvops.ps_roi_pool_backward`. Thresholds of nms outside 0 to 1, which `cvops.nms` refuses, do what they do in
    torchvision: one above 1 keeps every box, one below 0 a box only if its IoU with each kept one is 0/0. NaN raises.

    Examples
    --------
    >>> import torch
    >>> import torchvision  # doctest: +SKIP
    >>> import cvops.torch
    >>> with cvops.torch.replace_torchvision() as calls:  # doctest: +SKIP
    ...     torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([1.0]), 0.5)
    tensor([0])
    >>> calls  # doctest: +SKIP
    Counter({'nms': 1})
    >>> replacement = cvops.torch.replace_torchvision()  # doctest: +SKIP
    >>> replacement.restore()  # doctest: +SKIP
    """
    import torchvision

    if not torchvision.extension._has_ops():
        raise ImportError("torchvision comes without its operators: install the one that is made for this torch")
    replacement = Replacement()
    if _active.setdefault("replacement", replacement) is not replacement:
        raise RuntimeError("torchvision's operators are replaced already: call restore() of what replaced them first")
    try:
        replacement._replace()
    except BaseException:
        replacement.restore()
        raise
    return replacement


class Replacement:
    """What `replace_torchvision` returns."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._kernels = torch.library.Library("torchvision", "IMPL")

    def _replace(self) -> None:
        for kernel in _KERNELS:
            counting = _library.untraced(_counting(kernel, self.calls))
            for device in ("CPU", "CUDA"):
                self._kernels.impl(kernel.__name__, counting, device)

    def restore(self) -> None:
        """Give torchvision its own operators back. Another call does nothing."""
        if _active.get("replacement") is self and _active.pop("replacement", None) is self:
            self._kernels._destroy()

    def __enter__(self) -> Counter[str]:
        return self.calls

    def __exit__(self, *_: object) -> None:
        self.restore()


def _counting(kernel: Callable[..., Any], calls: Counter[str]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        result = kernel(*args)
        calls[kernel.__name__] += 1
        return result

    return call


# The kernels under torchvision's names and with its arguments.


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    if iou_threshold < 0:
        return _without_overlap(dets, scores)
    keep: Tensor = _nms.nms_kernel(dets, scores, min(iou_threshold, 1.0))
    return keep


def _without_overlap(boxes: Tensor, scores: Tensor) -> Tensor:
    """What a threshold below 0 keeps: the best box, and each that has no IoU with any kept one, which would be 0/0."""
    rank = _nms.nms_kernel(boxes, scores, 1.0)
    kept = []
    while len(rank):
        kept.append(rank[:1])
        iou = _library.as_tensor(cvops.box_iou(_library.to_native(boxes[rank[:1]]), _library.to_native(boxes[rank])))[0]
        rank = rank[1:][iou[1:].isnan()]
    return torch.cat(kept) if kept else rank


def roi_align(input: Tensor, rois: Tensor, scale: float, height: int, width: int, *options: Any) -> Tensor:
    return _roi.roi_align_kernel(input, rois, (height, width), scale, *options)


def _roi_align_backward(
    grad: Tensor, rois: Tensor, scale: float, height: int, width: int, *shape_and_options: Any
) -> Tensor:
    *shape, sampling_ratio, aligned = shape_and_options
    return _roi.roi_align_backward_kernel(grad, rois, tuple(shape), scale, sampling_ratio, aligned)


def roi_pool(input: Tensor, rois: Tensor, scale: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    return _roi.roi_pool_kernel(input, rois, (height, width), scale)


def _roi_pool_backward(
    grad: Tensor, rois: Tensor, argmax: Tensor, scale: float, height: int, width: int, *shape: int
) -> Tensor:
    return _roi.roi_pool_backward_kernel(grad, rois, argmax, shape, scale)


def ps_roi_align(
    input: Tensor, rois: Tensor, scale: float, height: int, width: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    pooled = _roi.ps_roi_align_kernel(input, rois, (height, width), scale, sampling_ratio)
    return pooled, _channel_mapping(pooled)


def _ps_roi_align_backward(
    grad: Tensor, rois: Tensor, mapping: Tensor, scale: float, height: int, width: int, sampling_ratio: int, *shape: int
) -> Tensor:
    return _roi.ps_roi_align_backward_kernel(grad, rois, shape, scale, sampling_ratio)


def ps_roi_pool(input: Tensor, rois: Tensor, scale: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    pooled = _roi.ps_roi_pool_kernel(input, rois, (height, width), scale)
    return pooled, _channel_mapping(pooled)


def _ps_roi_pool_backward(
    grad: Tensor, rois: Tensor, mapping: Tensor, scale: float, height: int, width: int, *shape: int
) -> Tensor:
    return _roi.ps_roi_pool_backward_kernel(grad, rois, shape, scale)


def _channel_mapping(pooled: Tensor) -> Tensor:
    """The channel that each output was pooled from: torchvision's backward reads it, if it runs after the context."""
    each = torch.arange(pooled[:1].numel(), dtype=torch.int32, device=pooled.device).view(1, *pooled.shape[1:])
    return each.expand(pooled.shape).contiguous()


def deform_conv2d(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *options: Any) -> Tensor:
    (stride, padding, dilation), given = _convolution_options(mask, options)
    return _deform_conv.deform_conv2d_kernel(input, offset, weight, bias, stride, padding, dilation, given)


def _deform_conv2d_backward(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    (stride, padding, dilation), given = _convolution_options(mask, options)
    of_input, of_offset, of_weight, of_bias, of_mask = _deform_conv.deform_conv2d_backward_kernel(
        grad, input, offset, weight, bias, stride, padding, dilation, given, (True,) * 5
    )
    return of_input, of_weight, of_offset, torch.zeros_like(mask) if given is None else of_mask, of_bias


def _convolution_options(mask: Tensor, options: tuple[Any, ...]) -> tuple[list[tuple[int, int]], Tensor | None]:
    """(stride, padding, dilation) and the mask, if it is one."""
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, _, _, use_mask = options
    return [(stride_h, stride_w), (padding_h, padding_w), (dilation_h, dilation_w)], mask if use_mask else None


_KERNELS = (
    nms,
    roi_align,
    _roi_align_backward,
    roi_pool,
    _roi_pool_backward,
    ps_roi_align,
    _ps_roi_align_backward,
    ps_roi_pool,
    _ps_roi_pool_backward,
    deform_conv2d,
    _deform_conv2d_backward,
)
