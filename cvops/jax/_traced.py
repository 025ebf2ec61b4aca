"""Arrays while JAX traces: their shapes and dtypes are known, their values are not."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import kind

Array: TypeAlias = jax.Array | np.ndarray[Any, Any]
Rois: TypeAlias = Array | Sequence[Array]

# What stands for a backend while JAX traces: enough for the checks, and for what is written on `xp`.
TRACED = SimpleNamespace(
    xp=jnp,
    asarray=lambda array, name: array_of(array, name),
    copy=lambda array: array,
    ignore_fp_errors=contextlib.nullcontext,
    current_gpu=lambda: None,
)


def array_of(value: Any, name: str) -> Any:
    """`value` as a JAX array."""
    if not isinstance(value, (jax.Array, np.ndarray)) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"`{name}` must be an array, got {kind(value)}: use jnp.asarray")
    dtype = value.dtype
    if jnp.issubdtype(dtype, jax.dtypes.extended) or dtype.hasobject or dtype == np.longdouble or dtype.char in "SUVMm":
        raise TypeError(f"`{name}` must be an array of numbers, got {dtype}")
    if not dtype.isnative:
        value = value.astype(dtype.newbyteorder("="))
    return jnp.asarray(value)


def as_jax_arrays(**arrays: Any) -> dict[str, Any]:
    """The arguments as JAX arrays."""
    return {name: array_of(value, name) for name, value in arrays.items()}


def result_of(shape: tuple[int, ...], dtype: Any) -> Any:
    """What tells XLA of a result: 32 bits of an integer while 64-bit types are off."""
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))


# ------------------------------------------------------------------------------------------------------ jax.shard_map
# There an array varies along the axes of the mesh along which devices may hold different values of it. JAX's own
# functions let their arguments vary alike, which gives the sums over devices in gradients, and mark their results.


def varying_axes(array: Any) -> frozenset[Any]:
    """The axes of the mesh that `array` varies along: none outside jax.shard_map."""
    typed = jax.typeof(array)
    if hasattr(typed, "manual_axis_type"):  # since JAX 0.10
        return frozenset(typed.manual_axis_type.varying)
    return frozenset(typed.vma)


def varying_alike(*arrays: Any) -> tuple[Any, ...]:
    """The arrays, all varying along the axes that one of them varies along."""
    axes = frozenset[Any]().union(*map(varying_axes, arrays))
    return tuple(_varying(array, axes - varying_axes(array)) for array in arrays)


def _varying(array: Any, axes: frozenset[Any]) -> Any:
    if not axes:
        return array
    names = tuple(sorted(axes, key=str))
    if hasattr(jax.lax, "pcast"):  # since JAX 0.9
        return jax.lax.pcast(array, names, to="varying")
    return jax.lax.pvary(array, names)


def varying_result(result: Any, axes: frozenset[Any]) -> Any:
    """`result`, made by `result_of`, as what varies along these axes."""
    if not axes:
        return result
    mesh = jax.sharding.NamedSharding(jax.sharding.get_abstract_mesh(), jax.sharding.PartitionSpec())
    if hasattr(jax.sharding, "ManualAxisType"):  # since JAX 0.10
        varying = jax.sharding.ManualAxisType(varying=axes)
        return jax.ShapeDtypeStruct(result.shape, result.dtype, sharding=mesh, manual_axis_type=varying)
    return jax.ShapeDtypeStruct(result.shape, result.dtype, sharding=mesh, vma=axes)
