"""torchvision's own registered operators, computed by cvops for a while."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import _library

_open = threading.Lock()


@contextmanager
def replace_torchvision() -> Iterator[Counter[str]]:
    """Let torchvision's operators run on cvops within this context: models built on them, unedited.

    Yields
    ------
    calls : collections.Counter
        How often each operator has run on cvops, by torchvision's name of it: ``nms``, ``roi_align``,
        ``_roi_align_backward``, ...

    Raises
    ------
    ImportError
        torchvision is not installed, or comes without its operators.
    RuntimeError
        Such a context is open already.

    Notes
    -----
    The kernels of nms, roi_align, roi_pool, ps_roi_align, ps_roi_pool, deform_conv2d and of their gradients are
    replaced for CPU and CUDA tensors in the whole process, all threads included, and are back at the end. What was
    compiled or scripted before calls them too. The gradient of ps_roi_pool is that of cvops, which differs from
    torchvision's: see `cvops.ps_roi_pool_backward`.

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
    """
    import torchvision

    if not torchvision.extension._has_ops():
        raise ImportError("torchvision comes without its operators: install the one that is made for this torch")
    if not _open.acquire(blocking=False):
        raise RuntimeError("replace_torchvision is open already")
    calls: Counter[str] = Counter()
    try:
        with torch.library._scoped_library("torchvision", "IMPL") as library:
            for kernel in _KERNELS:
                counting = _library.untraced(_counting(kernel, calls))
                for device in ("CPU", "CUDA"):
                    library.impl(kernel.__name__, counting, device)
            yield calls
    finally:
        _open.release()


def _counting(kernel: Callable[..., Any], calls: Counter[str]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        result = kernel(*args)
        calls[kernel.__name__] += 1
        return result

    return call


# The kernels under torchvision's names and with its arguments.


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    keep: Tensor = _library.nms(dets, scores, iou_threshold)
    return keep


def roi_align(
    input: Tensor, rois: Tensor, scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    return _library.roi_align(input, rois, (height, width), scale, sampling_ratio, aligned)


def _roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    scale: float,
    pooled_height: int,
    pooled_width: int,
    images: int,
    channels: int,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    shape = images, channels, height, width
    return _library.roi_align_backward(grad, rois, shape, scale, sampling_ratio, aligned)


def roi_pool(input: Tensor, rois: Tensor, scale: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    return _library.roi_pool(input, rois, (height, width), scale)


def _roi_pool_backward(
    grad: Tensor,
    rois: Tensor,
    argmax: Tensor,
    scale: float,
    pooled_height: int,
    pooled_width: int,
    images: int,
    channels: int,
    height: int,
    width: int,
) -> Tensor:
    return _library.roi_pool_backward(grad, rois, argmax, (images, channels, height, width), scale)


def ps_roi_align(
    input: Tensor, rois: Tensor, scale: float, height: int, width: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    pooled = _library.ps_roi_align(input, rois, (height, width), scale, sampling_ratio)
    return pooled, _channel_mapping(pooled)


def _ps_roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    channel_mapping: Tensor,
    scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    images: int,
    channels: int,
    height: int,
    width: int,
) -> Tensor:
    return _library.ps_roi_align_backward(grad, rois, (images, channels, height, width), scale, sampling_ratio)


def ps_roi_pool(input: Tensor, rois: Tensor, scale: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    pooled = _library.ps_roi_pool(input, rois, (height, width), scale)
    return pooled, _channel_mapping(pooled)


def _ps_roi_pool_backward(
    grad: Tensor,
    rois: Tensor,
    channel_mapping: Tensor,
    scale: float,
    pooled_height: int,
    pooled_width: int,
    images: int,
    channels: int,
    height: int,
    width: int,
) -> Tensor:
    return _library.ps_roi_pool_backward(grad, rois, (images, channels, height, width), scale)


def _channel_mapping(pooled: Tensor) -> Tensor:
    """The channel that each output was pooled from: torchvision's backward reads it, if it runs after the context."""
    each = torch.arange(pooled[:1].numel(), dtype=torch.int32, device=pooled.device).view(1, *pooled.shape[1:])
    return each.expand(pooled.shape).contiguous()


def deform_conv2d(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *options: Any) -> Tensor:
    (stride, padding, dilation), given = _convolution_options(mask, options)
    return _library.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, given)


def _deform_conv2d_backward(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    (stride, padding, dilation), given = _convolution_options(mask, options)
    of_input, of_offset, of_weight, of_bias, of_mask = _library.deform_conv2d_backward(
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
