"""Feature pyramids as `torch.nn.Module`s; parameters have torchvision's names, so that state dicts go both ways."""

# Not `from __future__ import annotations`: TorchScript reads the annotations.
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ._checks import count


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
