"""Deformable convolution in JAX programs, and its gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

import cvops

from .. import _deform_conv
from ._ffi import differentiable
from ._traced import Array, as_jax_arrays

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
    there = {"has_bias": bias is not None, "has_mask": mask is not None}
    return _deformed(tuple(arrays.values()), (), stride=stride, padding=padding, dilation=dilation, **there)


def _forward(*arrays: Any, has_bias: bool, has_mask: bool, **options: Any) -> Any:
    return cvops.deform_conv2d(**_named(arrays, has_bias, has_mask), **options)


def _backward(
    grad: Any, *arrays: Any, input_shapes: Any, has_bias: bool, has_mask: bool, **options: Any
) -> tuple[Any, ...]:
    named = _named(arrays, has_bias, has_mask)
    wanted = [name for name in _deform_conv._GRADIENTS if name in named]
    gradients = cvops.deform_conv2d_backward(grad, **named, **options, wanted=wanted)
    return tuple(gradient for gradient in gradients if gradient is not None)


def _named(arrays: Any, has_bias: bool, has_mask: bool) -> dict[str, Any]:
    """The arrays by name, of which some may have been left out."""
    there = {"bias": has_bias, "mask": has_mask}
    return dict(zip((name for name in _deform_conv._GRADIENTS if there.get(name, True)), arrays, strict=True))


def _shape(inputs: Any, others: Any, **options: Any) -> tuple[int, ...]:
    input, offset, weight, *_ = inputs
    return input.shape[0], weight.shape[0], *offset.shape[2:]


_deformed = differentiable("cvops.deform_conv2d", _forward, _backward, _shape, keeps_inputs=True)
