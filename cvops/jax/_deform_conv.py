"""Deformable convolution in JAX programs, and its gradients."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax

import cvops

from .. import _deform_conv
from ._ffi import foreign
from ._traced import Array, as_jax_arrays, result_of, varying_alike

if TYPE_CHECKING:
    from .._types import Ints


def deform_conv2d(
    input: Array,
    offset: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    mask: Array | None = None,
) -> jax.Array:
    """Deformable convolution: `cvops.deform_conv2d`, differentiable by all its arrays.

    Parameters
    ----------
    input, offset, weight, bias, stride, padding, dilation, mask
        As in `cvops.deform_conv2d`; bfloat16 too.

    Returns
    -------
    output : array of shape (N, O, OH, OW), dtype of `input`

    Raises
    ------
    TypeError, ValueError
        As `cvops.deform_conv2d`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> image, offset = jnp.ones((1, 1, 3, 3)), jnp.zeros((1, 2, 3, 3))
    >>> cvops.jax.deform_conv2d(image, offset, jnp.full((2, 1, 1, 1), 3.0)).shape
    (1, 2, 3, 3)
    """
    optional = {name: array for name, array in (("bias", bias), ("mask", mask)) if array is not None}
    arrays = as_jax_arrays(input=input, offset=offset, weight=weight, **optional)
    stride, padding, dilation = _deform_conv._check(arrays, stride, padding, dilation)
    options = ("stride", stride), ("padding", padding), ("dilation", dilation)
    return _deformed(options, dict(zip(arrays, varying_alike(*arrays.values()), strict=True)))


def _forward(*arrays: Any, **options: Any) -> Any:
    return cvops.deform_conv2d(**_named(arrays, options), **options)


def _backward(grad: Any, *arrays: Any, **options: Any) -> Any:
    named = _named(arrays, options)
    wanted = [name for name in _deform_conv._GRADIENTS if name in named]
    gradients = cvops.deform_conv2d_backward(grad, **named, **options, wanted=wanted)
    return tuple(gradient for gradient in gradients if gradient is not None)


def _named(arrays: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The arrays by name. Those that may be left out are told by an option, which is taken from `options`."""
    there = {"bias": options.pop("has_bias"), "mask": options.pop("has_mask")}
    return dict(zip((name for name in _deform_conv._GRADIENTS if there.get(name, True)), arrays, strict=True))


_host_forward = foreign("cvops.deform_conv2d", _forward)
_host_backward = foreign("cvops.deform_conv2d_backward", _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _deformed(options: Any, arrays: dict[str, Any]) -> Any:
    input, offset, weight = arrays["input"], arrays["offset"], arrays["weight"]
    result = result_of((input.shape[0], weight.shape[0], *offset.shape[2:]), input.dtype)
    return _host_forward(result, *_in_order(arrays).values(), **_options(options, arrays))


def _deformed_forward(options: Any, arrays: dict[str, Any]) -> Any:
    return _deformed(options, arrays), arrays


def _deformed_backward(options: Any, arrays: dict[str, Any], grad: Any) -> Any:
    arrays = _in_order(arrays)
    results = tuple(result_of(array.shape, array.dtype) for array in arrays.values())
    gradients = _host_backward(results, grad, *arrays.values(), **_options(options, arrays))
    return (dict(zip(arrays, gradients, strict=True)),)


def _in_order(arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays in the order of arguments. (JAX sorts dictionaries.)"""
    return {name: arrays[name] for name in _deform_conv._GRADIENTS if name in arrays}


def _options(options: Any, arrays: dict[str, Any]) -> dict[str, Any]:
    return dict(options) | {"has_bias": "bias" in arrays, "has_mask": "mask" in arrays}


_deformed.defvjp(_deformed_forward, _deformed_backward)
