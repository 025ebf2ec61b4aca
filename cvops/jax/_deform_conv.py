"""Deformable convolution in JAX programs, and its gradients."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import jax

import cvops

from .. import _deform_conv
from ._ffi import call
from ._traced import Array, given, result_of

if TYPE_CHECKING:
    from .._types import Gradient, Ints


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
    arrays = given(input=input, offset=offset, weight=weight, bias=bias, mask=mask)
    steps = _deform_conv._check(arrays, stride, padding, dilation)
    return _deformed(json.dumps(dict(zip(("stride", "padding", "dilation"), steps, strict=True))), arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _deformed(options: str, arrays: dict[str, Any]) -> Any:
    images, outputs, size = len(arrays["input"]), len(arrays["weight"]), arrays["offset"].shape[2:]
    return call("cvops:deform_conv2d", result_of((images, outputs, *size), arrays["input"].dtype), arrays, options)


def _deformed_forward(options: str, arrays: dict[str, Any]) -> Any:
    return _deformed(options, arrays), arrays


def _deformed_backward(options: str, arrays: dict[str, Any], grad: Any) -> Any:
    names = _in_order(arrays)
    results = tuple(result_of(arrays[name].shape, arrays[name].dtype) for name in names)
    gradients = call("cvops.jax._deform_conv:_host_deformed_backward", results, {"grad": grad, **arrays}, options)
    return (dict(zip(names, gradients, strict=True)),)


def _host_deformed_backward(**arguments: Any) -> Any:
    """What XLA calls: the gradients of the arrays that there are, in the order of arguments."""
    gradients = cvops.deform_conv2d_backward(**arguments, wanted=_in_order(arguments))
    return tuple(gradient for gradient in gradients if gradient is not None)


def _in_order(arguments: dict[str, Any]) -> list[Gradient]:
    """Names of the arrays that there are, as the gradients come. (JAX sorts dictionaries.)"""
    return [name for name in _deform_conv._GRADIENTS if name in arguments]


_deformed.defvjp(_deformed_forward, _deformed_backward)
