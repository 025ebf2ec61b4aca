"""Deformable convolution of tensors: the function, differentiable in PyTorch, and the `torch.nn.Module`."""

# Not `from __future__ import annotations`: TorchScript reads the annotations.
import math
from typing import Any

import torch
from torch import Tensor, nn

import cvops

from .._deform_conv import GRADIENTS
from . import _checks
from ._checks import count, pair
from ._entry import entry
from ._library import as_tensor, kernel_of, native, register, require, require_one_dtype
from ._types import Ints


@entry(cvops.deform_conv2d)
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

    The result has gradients for all five tensors. What `roi_align` says of derivatives holds here. 16-bit tensors are
    computed in float32; under autocast the dtypes of the tensors may differ.

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
        stride, padding = pair(stride, "stride"), pair(padding, "padding", 0)
        dilation = pair(dilation, "dilation")
        _checks.check_convolution(input, offset, weight, bias, mask)
    return torch.ops.cvops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


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


# ----------------------------------------------------------------------------------------------------------- registered


_convolve = kernel_of(cvops.deform_conv2d)


def _convolved(input: Tensor, offset: Tensor, weight: Tensor, *_: Any) -> Tensor:
    for name, tensor in (("input", input), ("offset", offset), ("weight", weight)):
        require(tensor.dim() == 4, name, "4 dimensions", tensor)
    return input.new_empty((input.shape[0], weight.shape[0], *offset.shape[2:]))


def deform_conv2d_kernel(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None, *others: Any
) -> Tensor:
    require_one_dtype({"input": input, "weight": weight, "bias": bias})
    output: Tensor = _convolve(input, offset, weight, bias, *others)
    return output


def _like_wanted(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    input, offset, weight, bias, *_, mask, wanted = args
    return tuple(
        tensor.new_empty(tensor.shape) if is_wanted and tensor is not None else grad.new_empty(0)
        for tensor, is_wanted in zip((input, offset, weight, bias, mask), wanted, strict=True)
    )


def deform_conv2d_backward_kernel(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Gradients of the dtypes of their tensors; what is not wanted is an empty tensor."""
    input, offset, weight, bias, *steps, mask, wanted = args
    tensors, like = (input, offset, weight, bias, mask), grad
    if any(tensor is not None and tensor.dtype != grad.dtype for tensor in tensors):
        grad = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
    names = [name for name, is_wanted in zip(GRADIENTS, wanted, strict=True) if is_wanted]
    arguments = map(native, (grad, input, offset, weight, bias, *steps, mask))
    gradients = cvops.deform_conv2d_backward(*arguments, wanted=names)
    return tuple(
        like.new_empty(0) if gradient is None or tensor is None else as_tensor(gradient, tensor.dtype)
        for gradient, tensor in zip(gradients, tensors, strict=True)
    )


register(
    cvops.deform_conv2d_backward,
    _like_wanted,
    arguments="Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? bias, SymInt[2] stride,"
    " SymInt[2] padding, SymInt[2] dilation, Tensor? mask, bool[5] wanted",
    results="(Tensor, Tensor, Tensor, Tensor, Tensor)",
    kernel=deform_conv2d_backward_kernel,
)
register(
    cvops.deform_conv2d,
    _convolved,
    kernel=deform_conv2d_kernel,
    gradient=cvops.deform_conv2d_backward,
    of=GRADIENTS,
    mixes_dtypes=True,
)
