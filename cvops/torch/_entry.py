"""What a call of a function of cvops.torch goes through first: `entry`.

TorchScript reads the functions themselves, which know nothing of it.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

import cvops

from .._arrays import compiler_looks_on, keys_of_plain_tensors
from ._library import as_tensor

_Function = TypeVar("_Function", bound=Callable[..., Any])


def entry(public: Callable[..., Any] | None = None) -> Callable[[_Function], _Function]:
    """A decorator: `public`, of cvops, answers where PyTorch has nothing to add, and a node where torch.fx traces.

    Else the function itself does. Without `public`, only torch.fx may answer before it.
    """

    def entered(function: Any) -> Any:
        names = [*inspect.signature(function).parameters]
        theirs = {} if public is None else inspect.signature(public).parameters
        most = sum(parameter.kind is not parameter.KEYWORD_ONLY for parameter in theirs.values())
        refused = theirs.keys() - names  # what `public` takes besides

        def with_names(*args: Any, **options: Any) -> Any:
            """`public`, which takes by name what `function`, for TorchScript, takes by position too."""
            named = dict(zip(names[most : len(args)], args[most:], strict=True))
            return public(*args[:most], **named, **options)  # type: ignore[misc]

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if not args and names[0] in options:  # `directly` wants the first one by position
                args = (options.pop(names[0]),)
            if public is not None and args and (not options or refused.isdisjoint(options)):
                found = directly(public if len(args) <= most else with_names, args, options)
                if found is not None:
                    return found
            node = _node(call, args, options)
            return function(*args, **options) if node is None else node

        call.__prepare_scriptable__ = lambda: function  # type: ignore[attr-defined]
        return call

    return entered


# ------------------------------------------------------------------------------------------------ past the dispatcher

_MOST = 2**63 - 1  # as an int of a schema


def _probes() -> tuple[Callable[[], Any], ...]:
    """What PyTorch answers with something true while a mode, autocast, a transform, a tracer or a profiler looks on."""
    try:
        return (
            torch.compiler.is_compiling,
            torch._C._len_torch_dispatch_stack,
            torch._C._len_torch_function_stack,
            torch._C._functorch.peek_interpreter_stack,
            torch._C._get_tracing_state,
            torch._C._is_any_autocast_enabled,
            torch._C._autograd._profiler_enabled,
        )
    except AttributeError:  # another version of PyTorch
        return (lambda: True,)


_PROBES = _probes()
_ON_CPU, _ON_CUDA = keys_of_plain_tensors("CPU"), keys_of_plain_tensors("CUDA")
_PLAIN = {int, float, bool, str, type(None)}
_FLAGS = _PLAIN - {int}


def directly(function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """What `function` of cvops makes of these, where PyTorch's dispatcher would do nothing but call it; else None.

    The dispatcher, and checks on both sides of it, take longer than nms of ten boxes. None also where `function`
    refuses an argument: here as there, checks come before work, and those of cvops.torch know more kinds of numbers.
    """
    if _is_watched():
        return None
    first = args[0]
    try:
        # Boxes in a list are joined by torch, maps are not.
        native = [*map(_as_it_is, first)] if type(first) is list else _as_it_is(first)
        others = map(_as_it_is, args[1:])
        for name, value in options.items():
            if type(value) not in _FLAGS and (memory := _as_it_is(value)) is not value:
                options = options | {name: memory}
        results = function(native, *others, **options)
    except (TypeError, ValueError):
        return None
    if not isinstance(results, tuple):
        return as_tensor(results)
    tensors = map(as_tensor, results)
    return results._make(tensors) if hasattr(results, "_make") else tuple(tensors)


def _is_watched() -> bool:
    """Whether somebody looks on, or a second import of cvops has taken the operators."""
    for looks_on in _PROBES:
        if looks_on():
            return True
    return forward_ad._current_level >= 0 or sys.modules.get("cvops") is not cvops or compiler_looks_on()


def _as_it_is(value: Any) -> Any:
    """`value`, a plain number or text, or the memory of a tensor that hides nothing; TypeError for anything else."""
    kind = type(value)
    if kind is Tensor:
        if not value.requires_grad:
            keys = torch._C._dispatch_keys(value).raw_repr()
            if keys in _ON_CPU and value.dtype is not torch.float16:  # which torch converts faster
                return value.numpy()
            if keys in _ON_CUDA:
                return value
    elif kind in _PLAIN:
        if kind is not int or -_MOST <= value <= _MOST:
            return value
    elif kind in (tuple, list) and all(type(each) in _PLAIN for each in value):
        return value
    raise TypeError


# ----------------------------------------------------------------------------------------------------------- torch.fx


def _node(function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The node that torch.fx makes of this call, where an argument is or holds one of its proxies; else None."""
    values = (*args, *options.values())
    if has_torch_function(values) or any(type(value) in (list, tuple, dict) for value in values):
        proxy = _proxy_in(values)
        if proxy is not None:
            inspect.signature(function).bind(*args, **options)  # a wrong call is refused here, not where the graph runs
            return proxy.tracer.create_proxy("call_function", function, args, options)
    return None


def _proxy_in(values: Iterable[Any]) -> Any:
    for value in values:
        if isinstance(value, fx.Proxy):
            return value
        if isinstance(value, (list, tuple, dict)):
            found = _proxy_in(value.values() if isinstance(value, dict) else value)
            if found is not None:
                return found
    return None
