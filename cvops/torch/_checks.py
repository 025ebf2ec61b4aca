"""Checks of arguments before PyTorch's dispatcher sees them, where a call is not traced by TorchScript."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._checks import image_limits, kind, number


def check_tensors(**tensors: Any) -> None:
    """Raise TypeError unless all of these, by argument name, are tensors."""
    for name, tensor in tensors.items():
        check_tensor(tensor, name)


def check_tensor(tensor: Any, name: str) -> None:
    """Raise TypeError unless this is a tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {'None' if tensor is None else type(tensor).__name__}")


def check_box_tensor(boxes: Any, name: str) -> None:
    """Raise TypeError unless this is a tensor of a dtype that boxes may have."""
    check_tensor(boxes, name)
    if boxes.dtype == torch.bool or boxes.is_complex():
        wanted, got = "float64, float32, float16 or an integer dtype", str(boxes.dtype).removeprefix("torch.")
        raise TypeError(f"`{name}` must be {wanted}, got {got}: convert it with .to")


def check_batches(boxes1: Tensor, boxes2: Tensor) -> None:
    """Raise ValueError unless the leading dimensions of two sets of boxes broadcast."""
    batch1, batch2 = tuple(boxes1.shape[:-2]), tuple(boxes2.shape[:-2])
    for one, two in zip(batch1[::-1], batch2[::-1], strict=False):
        if one != two and 1 not in (one, two):
            raise ValueError(f"`boxes1` and `boxes2` must have leading dimensions alike, got {batch1} and {batch2}")


def limits(size: Any, boxes: Tensor) -> tuple[Any, Any]:
    """Height and width of an image, checked, as numbers that the dtype of `boxes` holds."""
    if not boxes.is_floating_point():
        return image_limits(size, torch.iinfo(boxes.dtype).max)
    height, width = image_limits(size)
    most = torch.finfo(boxes.dtype).max  # beyond, PyTorch refuses to convert
    return (math.inf if height > most else height), (math.inf if width > most else width)


def check_boxes(boxes: Any) -> None:
    """Raise TypeError unless `boxes` is a tensor or a list of tensors."""
    if isinstance(boxes, (list, tuple)):
        check_tensors(**{f"boxes[{i}]": tensor for i, tensor in enumerate(boxes)})
    else:
        check_tensors(boxes=boxes)


def number_or_tensor(value: Any, name: str) -> Any:
    """`value` as a float; a tensor of one number goes on as it is."""
    if isinstance(value, Tensor) and value.ndim == 0:
        return value
    return number(value, name)


def check_reduction(reduction: Any) -> None:
    """Raise TypeError unless this is a str."""
    if not isinstance(reduction, str):
        raise TypeError(f"`reduction` must be none, mean or sum, got {kind(reduction)}")


def check_maps_have_names(maps: Any) -> None:
    """Raise TypeError where tensors without names are given for a dict of them."""
    if isinstance(maps, (list, tuple, Tensor)):
        raise TypeError(f"`features` must be a dict of arrays by name, got {kind(maps)}")


def check_maps(names: Sequence[str], maps: Sequence[Any]) -> None:
    """Raise unless there are maps to pool from, all tensors."""
    if not maps:
        raise KeyError("`features` must have a map to pool from, got no names")
    check_tensors(**{f"features[{name!r}]": tensor for name, tensor in zip(names, maps, strict=True)})
    refuse_transforms(*maps)


def check_convolution(input: Any, offset: Any, weight: Any, bias: Any, mask: Any) -> None:
    """Raise unless these are what deform_conv2d takes; the last two may be None."""
    optional = {name: tensor for name, tensor in (("bias", bias), ("mask", mask)) if tensor is not None}
    check_tensors(input=input, offset=offset, weight=weight, **optional)
    refuse_transforms(input, offset, weight, *optional.values())


def refuse_transforms(*tensors: Tensor) -> None:
    """Raise where PyTorch would go on without derivatives, or with an error that does not say why.

    Its registered operators have a place for neither forward-mode derivatives nor those of torch.func.
    """
    if torch.compiler.is_compiling() or (forward_ad._current_level < 0 and not in_transform()):
        return
    for tensor in tensors:
        while True:
            batched = torch._C._functorch.is_batchedtensor(tensor)
            if not batched and forward_ad.unpack_dual(tensor).tangent is not None:
                raise NotImplementedError("cvops has no forward-mode derivatives: use torch.autograd.grad")
            if torch._C._functorch.is_gradtrackingtensor(tensor) and tensor.requires_grad:
                raise NotImplementedError("cvops has no derivatives for torch.func: use torch.autograd.grad")
            if not torch._C._functorch.is_functorch_wrapped_tensor(tensor):
                break
            tensor = torch._C._functorch.get_unwrapped(tensor)


def in_transform() -> bool:
    """Whether this runs within a function that torch.func transforms."""
    return torch._C._functorch.peek_interpreter_stack() is not None
