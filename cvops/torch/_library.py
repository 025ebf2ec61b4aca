"""What PyTorch knows of cvops: the operators `torch.ops.cvops.*`, each with all that its transformations ask for.

A kernel is the plain function of cvops on the same memory, for CPU and CUDA tensors alike. Fake kernels tell shapes to
torch.compile and torch.export; gradients are operators too, so that both see them. `register` is all that the files of
the operators need.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._arrays import name_conversion

Sizes = Any  # int[] of a schema
Kernel = Callable[..., Any]

# Kept for the life of the process: its end would take the operators away.
_library = torch.library.Library("cvops", "FRAGMENT")
# Kernels read arrays of any strides, so that no layout has to be kept for them; results are contiguous.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)
_AUTOCAST = {
    device: torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}")) for device in ("CPU", "CUDA")
}


def to_native(tensor: Tensor) -> Any:
    """The memory of `tensor`, without its history, as the functions of cvops take it: on the CPU as a NumPy array.

    Tensors themselves would cost the look for what may hide in them, which the dispatcher has dealt with already.
    """
    tensor = _at_least_32_bits(tensor.detach())
    return tensor.numpy() if tensor.is_cpu else tensor


def _at_least_32_bits(tensor: Tensor) -> Tensor:
    """On the CPU float32 in place of 16 bits: that backend has no bfloat16, and torch converts faster than it does."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) and tensor.is_cpu else tensor


def as_tensor(result: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A result of cvops as a tensor on the same memory, then in `dtype`."""
    tensor: Tensor = result if isinstance(result, Tensor) else torch.from_numpy(result)
    return tensor if dtype is None or tensor.dtype == dtype else tensor.to(dtype)


def untraced(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel` hidden from torch.compile, which looks into whatever is called from a frame that it gave up on."""
    hidden = None

    def call(*args: Any, **options: Any) -> Any:
        nonlocal hidden
        try:
            if "torch._dynamo" not in sys.modules:  # to import it takes longer than torch itself
                return kernel(*args, **options)
            hidden = hidden or torch.compiler.disable(kernel)
            return hidden(*args, **options)
        except TypeError as error:
            name_conversion(error, ".to")
            raise

    return call


def _in_words_of_torch(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`kernel`, whose errors name the conversion of tensors, not that of the arrays as which it sees their memory."""

    def call(*args: Any, **options: Any) -> Any:
        try:
            return kernel(*args, **options)
        except TypeError as error:
            raise TypeError(str(error).replace(".astype", ".to")) from error.__cause__

    return call


def _probes() -> tuple[Callable[[], Any], ...]:
    """What PyTorch answers with something true while a mode, a transform, a tracer or a profiler looks on."""
    try:
        return (
            torch._C._len_torch_dispatch_stack,
            torch._C._len_torch_function_stack,
            torch._C._functorch.peek_interpreter_stack,
            torch._C._get_tracing_state,
            torch._C._autograd._profiler_enabled,
        )
    except AttributeError:  # another version of PyTorch
        return (lambda: True,)


_PROBES = _probes()
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # kernels refuse none of them


def is_unwatched(*tensors: Tensor) -> bool:
    """Whether the dispatcher would do nothing but call the kernel, on tensors that NumPy can see as they are.

    The dispatcher takes longer than nms of ten boxes. Once torch.compile is in use, it looks into what is called here.
    """
    for tensor in tensors:
        if type(tensor) is not Tensor or tensor.dtype is not torch.float32 or not tensor.is_cpu:
            return False
        if _has_more_than_values(tensor):
            return False
    return _nobody_looks_on()


def needs_only_the_kernel(*tensors: Tensor) -> bool:
    """Whether the dispatcher would do nothing but call the kernel, on these tensors of the CPU or a GPU."""
    for tensor in tensors:
        if type(tensor) is not Tensor or tensor.dtype not in _FLOATS or not (tensor.is_cuda or tensor.is_cpu):
            return False
        if _has_more_than_values(tensor):
            return False
    return _nobody_looks_on()


def _has_more_than_values(tensor: Tensor) -> bool:
    """Whether a tensor is sparse, recorded, or stands for others: the dispatcher has work to do then."""
    return (
        tensor.layout is not torch.strided
        or tensor.requires_grad
        or tensor.is_neg()
        or torch._is_functional_tensor(tensor)
    )


def _nobody_looks_on() -> bool:
    return "torch._dynamo" not in sys.modules and not any(probe() for probe in _PROBES)


def register(
    schema: str,
    kernel: Kernel,
    fake: Callable[..., Any],
    *,
    setup: Callable[..., None] = lambda ctx, **_: None,
    backward: Callable[..., Any] | None = None,
    vmap: Callable[..., Any] | None = None,
    mixes_dtypes: bool = False,
) -> Any:
    """Make `kernel` the operator of this schema, and return it; `setup` keeps for `backward` what that needs.

    PyTorch keeps operators for the life of the process. Where this module is imported a second time, what is registered
    now takes the place of what the first import has registered, for everybody who calls or has compiled the operator.
    """
    name = schema.partition("(")[0]
    qualified = f"cvops::{name}"
    if not hasattr(torch.ops.cvops, name):
        _library.define(schema, tags=_TAGS)
    elif getattr(torch.ops.cvops, name).default._schema != torch._C.parse_schema(f"cvops::{schema}"):
        raise ImportError(f"another version of cvops.torch has registered {qualified} in this process: restart it")
    for device in ("CPU", "CUDA"):
        with warnings.catch_warnings():  # PyTorch 2.13 warns of the first kernel that takes the place of another
            warnings.simplefilter("ignore")
            _library.impl(name, untraced(_in_words_of_torch(kernel)), device)
    torch.library.register_fake(qualified, fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup, lib=_library)
    operator = getattr(torch.ops.cvops, name).default
    torch.library.register_vmap(qualified, vmap or _one_by_one(operator), lib=_library)
    if mixes_dtypes:
        for device, keys in _AUTOCAST.items():
            _library.impl(name, _in_float32(operator, keys), f"Autocast{device}")
    return operator


def _in_float32(operator: Any, keys: Any) -> Callable[..., Tensor]:
    """The operator under autocast, where the tensors of a call may differ in dtype: the result is as the first one."""

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        return [cast(one) for one in value] if isinstance(value, list) else value

    def call(first: Any, *others: Any) -> Tensor:
        dtype = (first[0] if isinstance(first, list) else first).dtype
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(cast(first), *map(cast, others)).to(dtype)

    return call


# ------------------------------------------------------------------------------------------------------------- vmap


def _one_by_one(operator: Any) -> Callable[..., Any]:
    """The rule that calls the operator for each element of the batch: one call keeps all threads or the GPU busy."""

    def rule(info: Any, in_dims: Any, *args: Any, **options: Any) -> Any:
        def of(value: Any, dim: Any, i: int) -> Any:
            if isinstance(dim, int):
                return value.select(dim, i)
            return [of(*pair, i) for pair in zip(value, dim, strict=True)] if isinstance(dim, (list, tuple)) else value

        results = [
            operator(*(of(value, dim, i) for value, dim in zip(args, in_dims, strict=True)), **options)
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return (stacked, [0] * len(stacked)) if isinstance(results[0], list) else (tuple(stacked), (0,) * len(stacked))

    return rule


def ragged(name: str) -> Callable[..., Any]:
    def rule(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"`{name}` keeps a different number of boxes in each: use padded=True under vmap")

    return rule


# ---------------------------------------------------------------------------------------------------------- kernels


def kernel_of(function: Callable[..., Any], keeps_dtype: bool = True, **constant: Any) -> Kernel:
    """The function of cvops on the memory of tensors; the result gets the dtype of the first, if it keeps that."""

    def kernel(first: Tensor, *others: Any, **options: Any) -> Any:
        results = function(to_native(first), *map(native, others), **options, **constant)
        if isinstance(results, tuple):
            return tuple(map(as_tensor, results))
        return as_tensor(results, first.dtype if keeps_dtype else None)

    return kernel


def native(value: Any) -> Any:
    return to_native(value) if isinstance(value, Tensor) else value


def require(condition: bool, name: str, wanted: str, got: Tensor) -> None:
    """Raise where there are no values and so no plain function that would; only for what the shapes below need."""
    if not condition:
        raise ValueError(f"`{name}` must have {wanted}, got {tuple(got.shape)}")


def refused(text: str) -> Callable[..., Any]:
    """A gradient that cvops has not: an error, where torch would warn and go on without it."""

    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(text)

    return backward


def once_only(name: str) -> Callable[..., Any]:
    return refused(f"`{name}` can be differentiated once, not twice: its gradient has no gradient")


def require_one_dtype(tensors: dict[str, Tensor | None]) -> None:
    """Raise unless all have the dtype of the first: the plain functions do not see 16-bit types."""
    (first_name, first), *others = ((name, tensor) for name, tensor in tensors.items() if tensor is not None)
    for name, tensor in others:
        if tensor.dtype != first.dtype:
            wanted, got = (str(one.dtype).removeprefix("torch.") for one in (first, tensor))
            raise TypeError(f"`{name}` must be {wanted}, the dtype of `{first_name}`, got {got}")
