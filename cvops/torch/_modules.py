"""The operators as `torch.nn.Module`s; parameters have torchvision's names, so that state dicts go both ways."""

# Not `from __future__ import annotations`: TorchScript reads the annotations.
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .._checks import strings
from . import _checks
from ._checks import as_sampling_ratio, count, flag, pair, positive
from ._ops import deform_conv2d, multiscale_roi_align, ps_roi_align, ps_roi_pool, roi_align, roi_pool
from ._types import BroadcastingList2, Integer, Ints, Number


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
        return _text(self, "output_size", "spatial_scale", "sampling_ratio", "aligned")


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
        return _text(self, "output_size", "spatial_scale")


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
        return _text(self, "output_size", "spatial_scale", "sampling_ratio")


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
        return _text(self, "output_size", "spatial_scale")


class MultiScaleRoIAlign(nn.Module):
    """Pool each box from one map of a feature pyramid, chosen by its size: `cvops.MultiScaleRoIAlign` for tensors.

    Parameters
    ----------
    featmap_names : list of str
        Names of the maps to pool from, in any order.
    output_size, sampling_ratio, canonical_scale, canonical_level, aligned, scales
        As in `cvops.MultiScaleRoIAlign`.

    Raises
    ------
    TypeError, ValueError
        An option is not a number as in `cvops.MultiScaleRoIAlign`.

    Notes
    -----
    All levels are pooled by one operator, torch.ops.cvops.multiscale_roi_align.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> pool = ops.MultiScaleRoIAlign(["p2", "p3"], output_size=7, sampling_ratio=2)
    >>> features = {"p2": torch.zeros(1, 8, 64, 64), "p3": torch.zeros(1, 8, 32, 32)}
    >>> pool(features, [torch.tensor([[0.0, 0, 20, 30], [5, 5, 250, 250]])], image_shapes=[(256, 256)]).shape
    torch.Size([2, 8, 7, 7])
    """

    scales: list[float] | None

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | tuple[int, int] | list[int],
        sampling_ratio: Integer,
        *,
        canonical_scale: float = 224,
        canonical_level: int = 4,
        aligned: bool = False,
        scales: list[float] | None = None,
    ):
        super().__init__()
        self.featmap_names = strings(featmap_names, "featmap_names")
        self.output_size = pair(output_size, "output_size")
        self.sampling_ratio = as_sampling_ratio(sampling_ratio, "sampling_ratio")
        self.canonical_scale = positive(canonical_scale, "canonical_scale")
        self.canonical_level = count(canonical_level, "canonical_level", -(2**31))
        self.aligned = flag(aligned, "aligned")
        self.scales = None if scales is None else _checks.positives(scales, "scales")

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pool every box.

        Parameters
        ----------
        x : dict of tensors of shape (N, C, H, W), float64 | float32 | float16 | bfloat16
            The maps, all of one dtype, N and C. The result has gradients for those that `featmap_names` names.
        boxes : list of N tensors of shape (L_i, 4), or tensor of shape (K, 5)
            Corners ``x1, y1, x2, y2`` in pixels of the images, or these after the image index.
        image_shapes : list of (int, int)
            Height and width of each image. Not used if `scales` is given.

        Returns
        -------
        pooled : tensor of shape (K, C, output height, output width)
            The boxes of the first image, of the second, ...

        Raises
        ------
        KeyError, TypeError, ValueError, NotImplementedError
            As `cvops.MultiScaleRoIAlign` and `roi_align`.
        """
        return _pooled_by_level(
            x,
            boxes,
            image_shapes,
            self.featmap_names,
            self.output_size,
            self.sampling_ratio,
            self.canonical_scale,
            self.canonical_level,
            self.aligned,
            self.scales,
        )

    def __repr__(self) -> str:
        return _text(self, "featmap_names", "output_size", "sampling_ratio")


def _pooled_by_level(
    x: dict[str, Tensor],
    boxes: list[Tensor],
    image_shapes: list[tuple[int, int]],
    featmap_names: list[str],
    output_size: tuple[int, int],
    sampling_ratio: int,
    canonical_scale: float,
    canonical_level: int,
    aligned: bool,
    scales: list[float] | None,
) -> Tensor:
    """What `MultiScaleRoIAlign` does: a function, so that torch.fx can make one node of it."""
    if not torch.jit.is_scripting():
        options = output_size, sampling_ratio, canonical_scale, canonical_level, aligned, scales
        node = _checks.traced(_pooled_by_level, x, boxes, image_shapes, featmap_names, *options)
        if node is not None:
            return node
        _checks.check_maps_have_names(x)
    maps: list[Tensor] = []
    for name in featmap_names:
        if name not in x:
            raise KeyError(f"`features` must have '{name}', got {list(x.keys())}")
        maps.append(x[name])
    if not torch.jit.is_scripting():
        _checks.check_named_maps(featmap_names, maps)
    if scales is None:
        if not torch.jit.is_scripting():
            image_shapes = _checks.image_shapes(image_shapes)
        if len(image_shapes) == 0:
            raise ValueError("`image_shapes` must have at least one (height, width)")
        tallest = max([shape[0] for shape in image_shapes])
        scales = [2.0 ** round(math.log(one.shape[2] / tallest) / math.log(2.0)) for one in maps]
    return multiscale_roi_align(
        maps, boxes, output_size, scales, sampling_ratio, canonical_scale, canonical_level, aligned
    )


class DeformConv2d(nn.Module):
    """Deformable convolution with a weight and a bias of its own: see `deform_conv2d`.

    Parameters
    ----------
    in_channels, out_channels : int >= 1
        C and O.
    kernel_size : int >= 1 or two of them, height first
        kh and kw.
    stride, padding, dilation
        As in `deform_conv2d`.
    groups : int >= 1
        Groups of channels and outputs; divides both.
    bias : bool
        Whether to have one.

    Raises
    ------
    TypeError, ValueError
        A parameter is not an integer, is too small, or `groups` does not divide the channels.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> layer = ops.DeformConv2d(4, 8, kernel_size=3, padding=1)
    >>> layer(torch.ones(1, 4, 5, 5), torch.zeros(1, 18, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        self.in_channels, self.out_channels = (
            count(in_channels, "in_channels", 1),
            count(out_channels, "out_channels", 1),
        )
        self.groups = count(groups, "groups", 1)
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"`groups` must divide the channels {in_channels} and {out_channels}, got {groups}")
        self.kernel_size, self.stride = pair(kernel_size, "kernel_size"), pair(stride, "stride")
        self.padding, self.dilation = pair(padding, "padding", 0), pair(dilation, "dilation")
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weight and bias to random numbers, uniform from ``-1 / sqrt(fan_in)`` to that."""
        bound = math.prod(self.weight.shape[1:]) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what `deform_conv2d` does with the weight and the bias."""
        return deform_conv2d(input, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def extra_repr(self) -> str:
        """What is special about this layer."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding}" if self.padding != (0, 0) else ""
        text += f", dilation={self.dilation}" if self.dilation != (1, 1) else ""
        text += f", groups={self.groups}" if self.groups != 1 else ""
        return text + (", bias=False" if self.bias is None else "")


class ExtraFPNBlock(nn.Module):
    """Base class of what adds maps to a `FeaturePyramidNetwork`.

    Examples
    --------
    >>> import cvops.torch as ops
    >>> class Same(ops.ExtraFPNBlock):
    ...     def forward(self, results, x, names):
    ...         return results, names
    """

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Return results and names with what the block adds.

        Parameters
        ----------
        results, x : lists of tensors
            What the network returns, and what it was given.
        names : list of str
            Names of both.
        """
        raise NotImplementedError("the extra block has no forward")


class LastLevelMaxPool(ExtraFPNBlock):
    """Extra block of a `FeaturePyramidNetwork`: every second row and column of the coarsest result, as ``pool``.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> pyramid = ops.FeaturePyramidNetwork([8], 4, ops.LastLevelMaxPool())
    >>> pyramid({"map": torch.ones(1, 8, 9, 16)})["pool"].shape
    torch.Size([1, 4, 5, 8])
    """

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """As `ExtraFPNBlock.forward`."""
        results.append(results[-1][:, :, ::2, ::2].contiguous())
        names.append("pool")
        return results, names


class LastLevelP6P7(ExtraFPNBlock):
    """Extra block of a `FeaturePyramidNetwork`: two coarser maps, ``p6`` and ``p7``, by 3x3 convolutions of stride 2.

    Parameters
    ----------
    in_channels : int >= 1
        If equal to `out_channels`, p6 is computed from the coarsest result, else from the coarsest map given.
    out_channels : int >= 1
        Channels of p6 and p7.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> pyramid = ops.FeaturePyramidNetwork([8], 4, ops.LastLevelP6P7(4, 4))
    >>> {name: tuple(map.shape) for name, map in pyramid({"p5": torch.ones(1, 8, 9, 16)}).items()}
    {'p5': (1, 4, 9, 16), 'p6': (1, 4, 5, 8), 'p7': (1, 4, 3, 4)}
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        _initialise(self)
        self.use_P5 = in_channels == out_channels

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """As `ExtraFPNBlock.forward`."""
        p6 = self.p6(results[-1] if self.use_P5 else x[-1])
        results.extend([p6, self.p7(F.relu(p6))])
        names.extend(["p6", "p7"])
        return results, names


class FeaturePyramidNetwork(nn.Module):
    """Feature maps of several scales, each enriched by the coarser ones: see `cvops.FeaturePyramidNetwork`.

    Parameters
    ----------
    in_channels_list : list of int >= 1
        Channels of each map, from fine to coarse.
    out_channels : int >= 1
        Channels of each result.
    extra_blocks : ExtraFPNBlock, optional
        What adds coarser maps; any module that is called as `ExtraFPNBlock`.
    norm_layer : callable, optional
        Makes the normalization of so many channels that follows each convolution, which then has no bias.

    Raises
    ------
    TypeError, ValueError
        A number of channels is not an integer or is too small, or `extra_blocks` is no module.

    Notes
    -----
    The convolutions are those of PyTorch. State dicts of older checkpoints, with names such as
    ``inner_blocks.0.weight``, are read too.

    References
    ----------
    .. [1] T.-Y. Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.

    Examples
    --------
    >>> import torch
    >>> import cvops.torch as ops
    >>> pyramid = ops.FeaturePyramidNetwork([8, 16], 4, ops.LastLevelMaxPool())
    >>> maps = {"fine": torch.ones(1, 8, 12, 16), "coarse": torch.ones(1, 16, 6, 8)}
    >>> {name: tuple(map.shape) for name, map in pyramid(maps).items()}
    {'fine': (1, 4, 12, 16), 'coarse': (1, 4, 6, 8), 'pool': (1, 4, 3, 4)}
    """

    _version = 2  # torchvision's: below it, state dicts have the older names

    def __init__(
        self,
        in_channels_list: list[int],
        out_channels: int,
        extra_blocks: nn.Module | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
    ):
        super().__init__()
        count(out_channels, "out_channels", 1)
        channels = [count(number, "in_channels_list", 1) for number in in_channels_list]
        self.inner_blocks = nn.ModuleList(_convolution(number, out_channels, 1, norm_layer) for number in channels)
        self.layer_blocks = nn.ModuleList(_convolution(out_channels, out_channels, 3, norm_layer) for _ in channels)
        _initialise(self)
        if extra_blocks is not None and not isinstance(extra_blocks, nn.Module):
            raise TypeError(f"`extra_blocks` must be an ExtraFPNBlock or None, got {type(extra_blocks).__name__}")
        self.extra_blocks = extra_blocks

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the pyramid of the maps `x`.

        Parameters
        ----------
        x : dict of tensors of shape (N, C, H, W)
            From fine to coarse, C as in `in_channels_list`.

        Returns
        -------
        pyramid : dict of tensors of shape (N, out_channels, H, W)
            Under the names of `x`, in their order, then those of the extra block.

        Raises
        ------
        ValueError
            The number of maps does not fit.
        """
        names, maps = list(x.keys()), list(x.values())
        if len(maps) != len(self.inner_blocks):
            raise ValueError(f"`maps` must hold {len(self.inner_blocks)} maps, got {len(maps)}")
        merged: list[Tensor] = []
        for i, block in enumerate(self.inner_blocks):
            merged.append(block(maps[i]))
        for i in range(len(merged) - 2, -1, -1):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
        results: list[Tensor] = []
        for i, block in enumerate(self.layer_blocks):
            results.append(block(merged[i]))
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, maps, names)
        return OrderedDict([(name, result) for name, result in zip(names, results)])  # noqa: B905

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        older = re.compile(re.escape(prefix) + r"(inner_blocks|layer_blocks)\.(\d+)\.(weight|bias)")
        for name in list(state_dict):
            if match := older.fullmatch(name):
                block, level, parameter = match.groups()
                state_dict[f"{prefix}{block}.{level}.0.{parameter}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _convolution(channels: int, outputs: int, size: int, norm_layer: Callable[..., nn.Module] | None) -> nn.Module:
    convolution = nn.Conv2d(channels, outputs, size, padding=size // 2, bias=norm_layer is None)
    return nn.Sequential(convolution) if norm_layer is None else nn.Sequential(convolution, norm_layer(outputs))


def _initialise(module: nn.Module) -> None:
    """Kaiming uniform weights and biases of 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _text(module: nn.Module, *names: str) -> str:
    return f"{type(module).__name__}({', '.join(f'{name}={getattr(module, name)!r}' for name in names)})"
