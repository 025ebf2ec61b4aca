"""Pooling from the maps of a feature pyramid, as tensors."""

# Not `from __future__ import annotations`: TorchScript reads the annotations.
import math
from typing import Any

import torch
from torch import Tensor, nn

import cvops

from .._checks import ADAPTIVE, strings
from . import _checks
from ._checks import as_sampling_ratio, count, flag, pair, positive
from ._entry import entry
from ._library import Sizes, as_tensor, register, require_one_dtype, to_native
from ._roi import pooled_shape, rois_of, text_of
from ._types import BroadcastingList2, Integer, Number


@entry(cvops.multiscale_roi_align)
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

    The result has gradients for all maps. What `roi_align` says of gradients and dtypes holds here.

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
        return text_of(self, "featmap_names", "output_size", "sampling_ratio")


@entry()
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


# ----------------------------------------------------------------------------------------------------------- registered


_LEVELS = "float[] scales, int sampling_ratio, bool aligned, float canonical_scale, int canonical_level"
_NAMES = [option.split()[1] for option in _LEVELS.split(", ")]


def _pool(maps: list[Tensor], boxes: Tensor, output_size: Sizes, *options: Any) -> Tensor:
    require_one_dtype({f"features[{i}]": tensor for i, tensor in enumerate(maps)})
    by_name = dict(zip(_NAMES, options, strict=True))
    pooled = cvops.multiscale_roi_align([*map(to_native, maps)], to_native(boxes), output_size, **by_name)
    return as_tensor(pooled, maps[0].dtype)


def _pool_backward(
    grad: Tensor, boxes: Tensor, images: int, heights: Sizes, widths: Sizes, *options: Any
) -> list[Tensor]:
    shapes = [(images, grad.shape[1], *size) for size in zip(heights, widths, strict=True)]
    by_name = dict(zip(_NAMES, options, strict=True))
    gradients = cvops.multiscale_roi_align_backward(to_native(grad), to_native(boxes), shapes, **by_name)
    return [as_tensor(gradient, grad.dtype) for gradient in gradients]


def _like_maps(grad: Tensor, boxes: Tensor, images: int, heights: Sizes, widths: Sizes, *_: Any) -> list[Tensor]:
    return [grad.new_empty((images, grad.shape[1], *size)) for size in zip(heights, widths, strict=True)]


def _sizes(arguments: dict[str, Any], pooled: Tensor) -> dict[str, Any]:
    maps = arguments["maps"]
    return {"images": maps[0].shape[0], "heights": [m.shape[2] for m in maps], "widths": [m.shape[3] for m in maps]}


register(
    cvops.multiscale_roi_align_backward,
    _like_maps,
    arguments=f"Tensor grad, Tensor boxes, SymInt images, SymInt[] heights, SymInt[] widths, {_LEVELS}",
    results="Tensor[]",
    kernel=_pool_backward,
)
register(
    cvops.multiscale_roi_align,
    lambda maps, boxes, output_size, *_: pooled_shape(maps[0], boxes, output_size),
    arguments=f"Tensor[] maps, Tensor boxes, SymInt[2] output_size, {_LEVELS}",
    kernel=_pool,
    gradient=cvops.multiscale_roi_align_backward,
    keep=_sizes,
    mixes_dtypes=True,
)
