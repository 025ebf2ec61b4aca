"""How a function of cvops becomes an operator `torch.ops.cvops.*`: `register`.

A kernel is the plain function of cvops on the same memory, for CPU and CUDA tensors alike. Fake kernels tell shapes to
torch.compile and torch.export; gradients are operators too, so that both see them.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._arrays import name_conversion
from .._checks import rounded

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
    tensor = tensor.detach()
    if not tensor.is_cpu:
        return tensor
    # The CPU backend has no bfloat16, and torch converts faster than it does.
    return (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()


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


# ---------------------------------------------------------------------------------------------------------- kernels


def kernel_of(function: Callable[..., Any], keeps_dtype: bool = True) -> Kernel:
    """The function of cvops on the memory of tensors; the result gets the dtype of the first, if it keeps that."""

    def kernel(first: Tensor, *others: Any, **options: Any) -> Any:
        results = function(to_native(first), *map(native, others), **options)
        if isinstance(results, tuple):
            return tuple(map(as_tensor, results))
        return as_tensor(results, first.dtype if keeps_dtype else None)

    return kernel


def native(value: Any) -> Any:
    return to_native(value) if isinstance(value, Tensor) else value


def rounded_as(tensor: Tensor, value: float | None) -> float | None:
    """`value` as the dtype of `tensor` has it; `to_native` may leave nothing of that dtype."""
    code = {torch.float16: "e", torch.bfloat16: "E"}.get(tensor.dtype)
    return value if value is None or code is None else rounded(value, code)


def require(condition: bool, name: str, wanted: str, got: Tensor) -> None:
    """Raise where there are no values and so no plain function that would; only for what the shapes below need."""
    if not condition:
        raise ValueError(f"`{name}` must have {wanted}, got {tuple(got.shape)}")


def require_one_dtype(tensors: dict[str, Tensor | None]) -> None:
    """Raise unless all have the dtype of the first: the plain functions do not see 16-bit types."""
    (first_name, first), *others = ((name, tensor) for name, tensor in tensors.items() if tensor is not None)
    for name, tensor in others:
        if tensor.dtype != first.dtype:
            wanted, got = (str(one.dtype).removeprefix("torch.") for one in (first, tensor))
            raise TypeError(f"`{name}` must be {wanted}, the dtype of `{first_name}`, got {got}")


# --------------------------------------------------------------------------------------------------------- registration

# What an annotation of a public function is in a schema.
_TYPES = {
    "Array": "Tensor", "ArrayT": "Tensor", "Rois": "Tensor", "Array | None": "Tensor?", "Ints": "SymInt[2]",
    "Sequence[Integer]": "SymInt[4]", "Number": "float", "Number | None": "float?", "Integer": "int",
    "Integer | None": "SymInt?", "bool": "bool", "Format": "str",
}  # fmt: skip


def register(
    function: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    name: str = "",
    arguments: str = "",
    results: str = "Tensor",
    kernel: Kernel | None = None,
    keeps_dtype: bool = True,
    gradient: Callable[..., Any] | None = None,
    of: Sequence[str] = (),
    keep: Callable[[dict[str, Any], Any], dict[str, Any]] = lambda *_: {},
    no_gradient: str = "",
    ragged: bool = False,
    mixes_dtypes: bool = False,
) -> Kernel:
    """Make `function` an operator, and return its kernel, which computes on tensors past the dispatcher.

    Parameters
    ----------
    function : callable
        The public function. Its name and its signature, without `padded`, are those of the operator.
    fake : callable
        Makes results of the right shapes and dtypes, without values.
    name, arguments, results : str
        The parts of the schema; the first two where they are not those of `function`.
    kernel : callable, optional
        What computes, where that is more than `function` on the memory of the tensors.
    keeps_dtype : bool
        Whether the result has the dtype of the first tensor, also where that has 16 bits.
    gradient : callable, optional
        The public function of the gradient, registered before. It is given the gradient of the first result, and the
        arguments of the operator that it has names for; as `wanted`, if it has that, whose gradients are wanted.
    of : sequence of str
        Names of the arguments that `gradient` returns gradients for, by default the first one.
    keep : callable
        Returns what else to give it, by name, of all arguments by name and the results.
    no_gradient : str
        The error where a gradient is asked for that is not there: torch would warn and go on without it.
    ragged : bool
        Whether the lengths of results depend on values: then there is no vmap.
    mixes_dtypes : bool
        Whether autocast has to make one dtype of several.

    Notes
    -----
    PyTorch keeps operators for the life of the process. Where this module is imported a second time, what is registered
    now takes the place of what the first import has registered, for everybody who calls or has compiled the operator.
    """
    name = name or function.__name__
    kernel = kernel or kernel_of(function, keeps_dtype)
    operator = _define(name, f"{name}({arguments or _arguments_of(function)}) -> {results}")
    qualified = f"cvops::{name}"
    for device in ("CPU", "CUDA"):
        with warnings.catch_warnings():  # PyTorch 2.13 warns of the first kernel that takes the place of another
            warnings.simplefilter("ignore")
            _library.impl(name, untraced(kernel), device)
    torch.library.register_fake(qualified, _of_one_device(operator, fake), lib=_library)
    torch.library.register_vmap(qualified, _ragged(name) if ragged else _one_by_one(operator), lib=_library)
    if mixes_dtypes:
        for device, keys in _AUTOCAST.items():
            _library.impl(name, _in_float32(operator, keys), f"Autocast{device}")
    if gradient is not None:
        once_only = _refused(f"`{name}` can be differentiated once, not twice: its gradient has no gradient")
        torch.library.register_autograd(f"cvops::{gradient.__name__}", once_only, lib=_library)
        names = [argument.name for argument in operator._schema.arguments if not argument.kwarg_only]
        setup, backward = _differentiated(names, gradient, of or names[:1], keep)
        torch.library.register_autograd(qualified, backward, setup_context=setup, lib=_library)
    elif no_gradient:
        torch.library.register_autograd(qualified, _refused(no_gradient), lib=_library)
    return kernel


def _arguments_of(function: Callable[..., Any]) -> str:
    """The arguments of a schema, as the annotations and the defaults of a public function tell them."""
    parts = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name != "padded":  # to the dispatcher another operator: it has other results
            if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
                parts.append("*")
            default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
            parts.append(f"{_TYPES[parameter.annotation]} {name}{default}")
    return ", ".join(parts)


def _define(name: str, schema: str) -> Any:
    """The operator of this schema, which an earlier import may have defined."""
    if not hasattr(torch.ops.cvops, name):
        _library.define(schema, tags=_TAGS)
    operator = getattr(torch.ops.cvops, name).default
    if operator._schema != torch._C.parse_schema(f"cvops::{schema}"):
        raise ImportError(f"another version of cvops.torch has registered cvops::{name} in this process: restart it")
    return operator


def _of_one_device(operator: Any, fake: Callable[..., Any]) -> Callable[..., Any]:
    """`fake` of tensors on one device. PyTorch calls it too where one of several tensors is on the device meta.

    Their result would be on the device of the first, and hold what its memory held before.
    """
    names = [argument.name for argument in operator._schema.arguments]

    def checked(*args: Any, **options: Any) -> Any:
        devices: dict[str, Any] = {}
        for name, value in [*zip(names, args, strict=False), *options.items()]:
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(tensor, Tensor):
                    devices.setdefault(name, tensor.device)
                    first_name, device = next(iter(devices.items()))
                    if tensor.device != device:
                        text = f"`{first_name}` is on {device} and `{name}` is on {tensor.device}"
                        raise ValueError(f"{text}: move them to one device")
        return fake(*args, **options)

    return checked


def _differentiated(
    names: list[str], gradient: Callable[..., Any], of: Sequence[str], keep: Callable[..., dict[str, Any]]
) -> tuple[Callable[..., None], Callable[..., Any]]:
    """What PyTorch calls after an operator with positional arguments of these names, and for its gradient."""
    operator = getattr(torch.ops.cvops, gradient.__name__).default
    _, *needed = (argument.name for argument in operator._schema.arguments)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any, keyword_only_inputs: Any = ()) -> None:
        arguments = dict(zip(names, inputs, strict=True)) | dict(keyword_only_inputs)
        arguments |= keep(arguments, output)
        ctx.kept = {name: arguments[name] for name in needed if name != "wanted"}
        ctx.tensors = [name for name, value in ctx.kept.items() if isinstance(value, Tensor)]
        ctx.save_for_backward(*(ctx.kept.pop(name) for name in ctx.tensors))
        if isinstance(output, tuple):
            ctx.mark_non_differentiable(*output[1:])

    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        # PyTorch leaves out arguments that are as their defaults.
        wanted = dict.fromkeys(names, False) | dict(zip(names, ctx.needs_input_grad, strict=False))
        arguments = ctx.kept | dict(zip(ctx.tensors, ctx.saved_tensors, strict=True))
        arguments["wanted"] = [wanted[name] for name in of]
        found = operator(grad, **{name: arguments[name] for name in needed})
        gradients = dict(zip(of, found if isinstance(found, tuple) else (found,), strict=True))
        return tuple(gradients[name] if name in of and wanted[name] else None for name in names)

    return setup, backward


def _refused(text: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(text)

    return refuse


def _ragged(name: str) -> Callable[..., Any]:
    return _refused(f"`{name}` keeps a different number of boxes in each: use padded=True under vmap")


def _in_float32(operator: Any, keys: Any) -> Callable[..., Tensor]:
    """The operator under autocast, where the tensors of a call may differ in dtype: the result is as the first one."""

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        return [cast(one) for one in value] if isinstance(value, list) else value

    def call(first: Any, *others: Any, **options: Any) -> Tensor:
        dtype = (first[0] if isinstance(first, list) else first).dtype
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(cast(first), *map(cast, others), **options).to(dtype)

    return call


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
