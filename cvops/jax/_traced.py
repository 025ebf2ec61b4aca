"""Arrays while JAX traces: their shapes and dtypes are known, their values are not."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray[Any, Any]
Rois: TypeAlias = Array | Sequence[Array]

# What stands for a backend while JAX traces: enough for the checks, and for what is written on `xp`.
TRACED = SimpleNamespace(
    xp=jnp,
    asarray=lambda array, name: array_of(array, name),
    copy=lambda array: array,
    quiet=contextlib.nullcontext,
)


def array_of(value: Any, name: str) -> Any:
    """`value` as a JAX array."""
    if not isinstance(value, (jax.Array, np.ndarray)):
        raise TypeError(f"`{name}` must be an array, got {type(value).__name__}")
    return jnp.asarray(value)


def given(**arrays: Any) -> dict[str, Any]:
    """The arguments that are not None, as JAX arrays."""
    return {name: array_of(value, name) for name, value in arrays.items() if value is not None}


def result_of(shape: tuple[int, ...], dtype: Any) -> Any:
    """What tells XLA of a result: 32 bits of an integer while 64-bit types are off."""
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))
