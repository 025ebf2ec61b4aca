"""RoI pooling of tensors: functions, differentiable in PyTorch, and `torch.nn.Module`s."""

# Not `from __future__ import annotations`: TorchScript reads the annotations.
from typing import Any

import torch
from torch import Tensor, nn

import cvops

from .._checks import ADAPTIVE
from . import _checks
from ._checks import as_sampling_ratio, flag, pair, positive, shape_text
from ._entry import entry
from ._library import Sizes, as_tensor, kernel_of, register, require, to_native
from ._types import BroadcastingList2, Integer, Number


@entry(cvops.roi_align)
def roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList2[int],
    spatial_scale: Number = 1.0,
    sampling_ratio: Integer = ADAPTIVE,
    aligned: bool = False,
) -> Tensor:
    """Pool each region of interest into bins by averaging bilinear samples: `cvops.roi_align` for tensors.

    The result has a gradient for `input`, contiguous or channels-last, but none for the boxes. There are no second
    derivatives, no forward-mode derivatives and none of torch.func: NotImplementedError says so. 16-bit maps are
    computed in float32.

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
        output_size, spatial_scale = pair(output_size, "output_size"), positive(spatial_scale, "spatial_scale")
        sampling_ratio, aligned = as_sampling_ratio(sampling_ratio, "sampling_ratio"), flag(aligned, "aligned")
        _checks.check_tensors(input=input)
        _checks.refuse_transforms(input)
    rois = rois_of(boxes, input)
    return torch.ops.cvops.roi_align(input, rois, output_size, spatial_scale, sampling_ratio, aligned)


@entry(cvops.roi_pool)
def roi_pool(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList2[int],
    spatial_scale: Number = 1.0,
) -> Tensor:
    """Pool each region of interest into bins by their maximum: `cvops.roi_pool` for tensors.

    What `roi_align` says of gradients and dtypes holds here.

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


@entry(cvops.ps_roi_align)
def ps_roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList2[int],
    spatial_scale: Number = 1.0,
    sampling_ratio: Integer = ADAPTIVE,
) -> Tensor:
    """`roi_align` with channels of its own for each bin: `cvops.ps_roi_align` for tensors.

    What `roi_align` says of gradients and dtypes holds here.

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
        output_size, spatial_scale = pair(output_size, "output_size"), positive(spatial_scale, "spatial_scale")
        sampling_ratio = as_sampling_ratio(sampling_ratio, "sampling_ratio")
        _checks.check_tensors(input=input)
        _checks.refuse_transforms(input)
    return torch.ops.cvops.ps_roi_align(input, rois_of(boxes, input), output_size, spatial_scale, sampling_ratio)


@entry(cvops.ps_roi_pool)
def ps_roi_pool(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList2[int],
    spatial_scale: Number = 1.0,
) -> Tensor:
    """Average each bin of a region over channels of its own: `cvops.ps_roi_pool` for tensors.

    What `roi_align` says of gradients and dtypes holds here.

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
        output_size, spatial_scale = pair(output_size, "output_size"), positive(spatial_scale, "spatial_scale")
        _checks.check_tensors(input=input)
        _checks.refuse_transforms(input)
    return torch.ops.cvops.ps_roi_pool(input, rois_of(boxes, input), output_size, spatial_scale)


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


class RoIAlign(nn.Module):
    """`roi_align` with its options, to be called with ``(input, rois)``.

    Parameters
    ----------
    output_size, spatial_scale, sampling_ratio, aligned
        As in `roi_align`, which checks them at each call.

    Examples
    --------
    >>> import cvops.torch as ops
    >>> ops.RoIAlign(7, spatial_scale=0.25, sampling_ratio=2)
    RoIAlign(output_size=7, spatial_scale=0.25, sampling_ratio=2, aligned=False)
    """

    def __init__(
        self, output_size: BroadcastingList2[int], spatial_scale: Number, sampling_ratio: Integer, aligned: bool = False
    ):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        """Return what `roi_align` does."""
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def __repr__(self) -> str:
        return text_of(self, "output_size", "spatial_scale", "sampling_ratio", "aligned")


class RoIPool(nn.Module):
    """`roi_pool` with its options, to be called with ``(input, rois)``.

    Parameters
    ----------
    output_size, spatial_scale
        As in `roi_pool`, which checks them at each call.

    Examples
    --------
    >>> import cvops.torch as ops
    >>> ops.RoIPool((7, 7), spatial_scale=0.25)
    RoIPool(output_size=(7, 7), spatial_scale=0.25)
    """

    def __init__(self, output_size: BroadcastingList2[int], spatial_scale: Number):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        """Return what `roi_pool` does."""
        return roi_pool(input, rois, self.output_size, self.spatial_scale)

    def __repr__(self) -> str:
        return text_of(self, "output_size", "spatial_scale")


class PSRoIAlign(nn.Module):
    """`ps_roi_align` with its options, to be called with ``(input, rois)``.

    Parameters
    ----------
    output_size, spatial_scale, sampling_ratio
        As in `ps_roi_align`, which checks them at each call.

    Examples
    --------
    >>> import cvops.torch as ops
    >>> ops.PSRoIAlign(7, spatial_scale=0.0625, sampling_ratio=-1)
    PSRoIAlign(output_size=7, spatial_scale=0.0625, sampling_ratio=-1)
    """

    def __init__(self, output_size: BroadcastingList2[int], spatial_scale: Number, sampling_ratio: Integer):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        """Return what `ps_roi_align` does."""
        return ps_roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)

    def __repr__(self) -> str:
        return text_of(self, "output_size", "spatial_scale", "sampling_ratio")


class PSRoIPool(nn.Module):
    """`ps_roi_pool` with its options, to be called with ``(input, rois)``.

    Parameters
    ----------
    output_size, spatial_scale
        As in `ps_roi_pool`, which checks them at each call.

    Examples
    --------
    >>> import cvops.torch as ops
    >>> ops.PSRoIPool(7, spatial_scale=0.0625)
    PSRoIPool(output_size=7, spatial_scale=0.0625)
    """

    def __init__(self, output_size: BroadcastingList2[int], spatial_scale: Number):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor | list[Tensor]) -> Tensor:
        """Return what `ps_roi_pool` does."""
        return ps_roi_pool(input, rois, self.output_size, self.spatial_scale)

    def __repr__(self) -> str:
        return text_of(self, "output_size", "spatial_scale")


def text_of(module: nn.Module, *names: str) -> str:
    return f"{type(module).__name__}({', '.join(f'{name}={getattr(module, name)!r}' for name in names)})"


# ----------------------------------------------------------------------------------------------------------- registered


def pooled_shape(input: Tensor, boxes: Tensor, output_size: Sizes, *_: Any) -> Tensor:
    _require_rois(input, boxes)
    return input.new_empty((boxes.shape[0], input.shape[1], *output_size))


def _pooled_by_position(input: Tensor, boxes: Tensor, output_size: Sizes, *_: Any) -> Tensor:
    _require_rois(input, boxes)
    bins = output_size[0] * output_size[1]
    require(input.shape[1] % bins == 0, "input", f"a multiple of {bins} channels", input)
    return input.new_empty((boxes.shape[0], input.shape[1] // bins, *output_size))


def _pooled_with_argmax(
    input: Tensor, boxes: Tensor, output_size: Sizes, spatial_scale: float = 1.0, return_argmax: bool = True
) -> tuple[Tensor, Tensor]:
    pooled = pooled_shape(input, boxes, output_size)
    return pooled, pooled.new_empty(pooled.shape if return_argmax else 0, dtype=torch.int32)


def _require_rois(input: Tensor, boxes: Tensor) -> None:
    require(input.dim() == 4, "input", "shape (N, C, H, W)", input)
    require(boxes.dim() == 2 and boxes.shape[1] == 5, "boxes", "shape (K, 5)", boxes)


def _like_input(grad: Tensor, boxes: Tensor, input_shape: Sizes, *_: Any) -> Tensor:
    return grad.new_empty(tuple(input_shape))


def _input_shape(arguments: dict[str, Any], pooled: Tensor) -> dict[str, Any]:
    return {"input_shape": arguments["input"].shape}


def roi_pool_kernel(
    input: Tensor, boxes: Tensor, output_size: Sizes, spatial_scale: float = 1.0, return_argmax: bool = True
) -> tuple[Tensor, Tensor]:
    """With an empty argmax where it is not wanted."""
    arguments = to_native(input), to_native(boxes), output_size, spatial_scale
    if not return_argmax:
        return as_tensor(cvops.roi_pool(*arguments), input.dtype), input.new_empty(0, dtype=torch.int32)
    pooled, argmax = cvops.roi_pool(*arguments, return_argmax=True)
    return as_tensor(pooled, input.dtype), as_tensor(argmax)


def _pool_backward(grad: Tensor, boxes: Tensor, argmax: Tensor, *others: Any) -> Tensor:
    if argmax.dim() == 1:
        raise NotImplementedError("`roi_pool` has a gradient only with return_argmax=True")
    gradient: Tensor = _scatter(grad, boxes, argmax, *others)
    return gradient


_scatter = kernel_of(cvops.roi_pool_backward)

roi_align_backward_kernel = register(cvops.roi_align_backward, _like_input)
roi_align_kernel = register(cvops.roi_align, pooled_shape, gradient=cvops.roi_align_backward, keep=_input_shape)
roi_pool_backward_kernel = register(
    cvops.roi_pool_backward,
    lambda grad, boxes, argmax, *others: _like_input(grad, boxes, *others),
    kernel=_pool_backward,
)
register(
    cvops.roi_pool,
    _pooled_with_argmax,
    arguments="Tensor input, Tensor boxes, SymInt[2] output_size, float spatial_scale=1.0, bool return_argmax=True",
    results="(Tensor, Tensor)",
    kernel=roi_pool_kernel,
    gradient=cvops.roi_pool_backward,
    keep=lambda arguments, results: {"input_shape": arguments["input"].shape, "argmax": results[1]},
)
ps_roi_align_backward_kernel = register(cvops.ps_roi_align_backward, _like_input)
ps_roi_align_kernel = register(
    cvops.ps_roi_align, _pooled_by_position, gradient=cvops.ps_roi_align_backward, keep=_input_shape
)
ps_roi_pool_backward_kernel = register(cvops.ps_roi_pool_backward, _like_input)
ps_roi_pool_kernel = register(
    cvops.ps_roi_pool, _pooled_by_position, gradient=cvops.ps_roi_pool_backward, keep=_input_shape
)
