"""Checks of arguments before PyTorch's dispatcher sees them, where a call is not traced by TorchScript."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _checks, _decode, _multiscale_roi_align, _roi

# ------------------------------------------------------------------------------------------------------------- numbers


def number(value: Any, name: str, *limits: float) -> Any:
    """As `number` of the plain functions, also of what torchvision takes for one."""
    value = _number_in(value, name)
    return value if _symbolic(value) else _checks.number(value, name, *limits)


def positive(value: Any, name: str) -> float:
    """As `positive` of the plain functions, also of what torchvision takes for a number."""
    return _checks.positive(_number_in(value, name), name)


def positives(values: Any, name: str) -> list[float]:
    """`values`, an iterable of such numbers, as a list."""
    return [positive(value, name) for value in _checks.numbers(values, name)]


def count(value: Any, name: str, minimum: int = 0, **maximum: Any) -> Any:
    """As `count` of the plain functions, also of what torchvision takes for an integer."""
    value = _integer_in(value, name)
    return value if _symbolic(value) else _checks.count(value, name, minimum, **maximum)


def flag(value: Any, name: str) -> bool:
    """As `flag` of the plain functions, also of what torchvision takes for one."""
    if type(value) is bool:
        return value
    found = _number_in(value, name)
    return bool(found) if isinstance(found, Real) else _checks.flag(found, name)


def as_sampling_ratio(value: Any, name: str) -> int:
    """As `as_sampling_ratio` of the plain functions, also of what torchvision takes for an integer."""
    return _checks.as_sampling_ratio(_integer_in(value, name), name)


def pair(value: Any, name: str, *minimum: int) -> Any:
    """As `pair` of the plain functions, also of what torchvision takes for one or two integers."""
    if type(value) is not int:
        sides = _items(value)
        value = (
            tuple(_integer_in(side, name) for side in sides) if isinstance(sides, list) else _integer_in(value, name)
        )
        if isinstance(value, tuple) and len(value) == 2 and any(map(_symbolic, value)):
            return value
    return _checks.pair(value, name, *minimum)


def image_shapes(value: Any) -> list[tuple[Any, Any]]:
    """`value`, one (height, width) for each image, in Python numbers."""
    shapes = _items(value)
    if not isinstance(shapes, list):
        raise TypeError(f"`image_shapes` must be a list of (height, width), got {_checks.kind(value)}")
    return [_two_numbers(shape, "image_shapes") for shape in shapes]


def limits(size: Any, boxes: Tensor) -> tuple[Any, Any]:
    """Height and width of an image, checked, as numbers that the dtype of `boxes` holds."""
    height, width = _two_numbers(size, "size")
    if _symbolic(height) or _symbolic(width):
        return height, width
    if not boxes.is_floating_point():
        return _checks.image_limits((height, width), torch.iinfo(boxes.dtype).max)
    height, width = _checks.image_limits((height, width))
    most = torch.finfo(boxes.dtype).max  # beyond, PyTorch refuses to convert
    return (math.inf if height > most else height), (math.inf if width > most else width)


def positive_size(size: Any, name: str) -> list[Any]:
    """`size`, (height, width), as two numbers > 0; the checks of `cvops` see no tensors."""
    sides = numbers_in(size, name)
    if isinstance(sides, list) and len(sides) == 2 and any(map(_symbolic, sides)):
        return [side if _symbolic(side) else _checks.positive(side, name) for side in sides]
    return _decode.check_size(sides, name)


def numbers_in(values: Any, name: str) -> Any:
    """A list or 1-d tensor of what torchvision takes for numbers as a list of numbers; anything else as it is."""
    values = _items(values)
    return [_number_in(value, name) for value in values] if isinstance(values, list) else values


def _two_numbers(value: Any, name: str) -> tuple[Any, Any]:
    sides = _items(value)
    if not isinstance(sides, list) or len(sides) != 2:
        raise ValueError(f"`{name}` must be (height, width), got {_checks.shown(value)}")
    return _number_in(sides[0], name), _number_in(sides[1], name)


def _items(value: Any) -> Any:
    """What has an order and may be unpacked as a list; anything else as it is."""
    if isinstance(value, (tuple, list)):
        return list(value)
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping, Set)):
        return value
    return list(value) if getattr(value, "ndim", 1) else value


def _number_in(value: Any, name: str) -> Any:
    """The Python number that `value` stands for in torchvision; anything else as it is, for the checks to refuse."""
    if type(value) is float or type(value) is int or _symbolic(value):
        return value
    if isinstance(value, Tensor):
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(msg="cvops has to know the number in a tensor: pass it as a number")
        # Its gradient would be lost; a GPU would be waited for.
        if value.requires_grad:
            raise TypeError(f"`{name}` must be a number, got a tensor that requires grad: pass {name}.item()")
        if not value.is_cpu:
            raise TypeError(f"`{name}` must be a number, got a tensor on {value.device}: pass {name}.item()")
        if value.numel() != 1:
            return value
        value = value.item()
    elif getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a scalar of NumPy, as array or not
        value = value.item()
    if isinstance(value, Real) or getattr(value, "ndim", 0) > 0:
        return int(value) if isinstance(value, bool) else value
    if hasattr(type(value), "__index__"):
        return operator.index(value)
    return float(value) if hasattr(type(value), "__float__") else value


def _integer_in(value: Any, name: str) -> Any:
    """As `_number_in`; a whole number of another type than Python's float is an integer, as it is in torchvision."""
    found = _number_in(value, name)
    if isinstance(found, Real) and not isinstance(found, int) and not isinstance(value, float) and found % 1 == 0:
        return math.floor(found)
    return found


def _symbolic(value: Any) -> bool:
    """Whether torch.export will know this number when the program runs, and not before."""
    return isinstance(value, (torch.SymInt, torch.SymFloat))


# ------------------------------------------------------------------------------------------------------------- tensors


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


def check_boxes(boxes: Any) -> None:
    """Raise TypeError unless `boxes` is a tensor or a list of tensors."""
    check_tensors(**_roi.named_boxes(boxes))


def check_reduction(reduction: Any) -> None:
    """Raise TypeError unless this is a str."""
    if not isinstance(reduction, str):
        raise TypeError(f"`reduction` must be none, mean or sum, got {_checks.kind(reduction)}")


def check_maps_have_names(maps: Any) -> None:
    """Raise TypeError where what is given for a dict of tensors has no names."""
    if not isinstance(maps, Mapping):
        raise TypeError(f"`features` must be a dict of arrays by name, got {_checks.kind(maps)}")


def check_named_maps(names: Sequence[str], maps: Sequence[Any]) -> None:
    """Raise unless there are maps to pool from, all tensors."""
    if not maps:
        raise KeyError("`features` must have a map to pool from, got no names")
    check_tensors(**{f"features[{name!r}]": tensor for name, tensor in zip(names, maps, strict=True)})


def check_maps(maps: Any) -> None:
    """Raise unless this is a list of tensors to pool from."""
    check_tensors(**_multiscale_roi_align.named_maps(maps))
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


def shape_text(tensor: Tensor) -> str:
    """The shape as errors write it."""
    if torch.jit.is_scripting():
        return str(tensor.shape)
    return str(tuple(tensor.shape))
