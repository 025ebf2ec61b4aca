"""Results of foreign functions, also within jax.shard_map.

There an array varies along the axes of the mesh along which devices may hold different values of it. JAX's own
functions let their arguments vary alike, which gives the sums over devices in gradients, and mark their results.
"""

from __future__ import annotations

from typing import Any

import jax


def result_of(shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
    """What tells XLA of a result that varies as `like` does: 32 bits of an integer while 64-bit types are off."""
    dtype, axes = jax.dtypes.canonicalize_dtype(dtype), _varying_axes(like)
    if not axes:
        return jax.ShapeDtypeStruct(shape, dtype)
    mesh = jax.sharding.NamedSharding(jax.sharding.get_abstract_mesh(), jax.sharding.PartitionSpec())
    if hasattr(jax.sharding, "ManualAxisType"):  # since JAX 0.10
        varying = jax.sharding.ManualAxisType(varying=axes)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=mesh, manual_axis_type=varying)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=mesh, vma=axes)


def varying_alike(*arrays: Any) -> Any:
    """The arrays, or trees of them, all varying along the axes that one of them varies along."""
    axes = frozenset[Any]().union(*map(_varying_axes, jax.tree.leaves(arrays)))
    return jax.tree.map(lambda array: _varying(array, axes - _varying_axes(array)), arrays)


def _varying_axes(array: Any) -> frozenset[Any]:
    """The axes of the mesh that `array` varies along: none outside jax.shard_map."""
    typed = jax.typeof(array)
    if hasattr(typed, "manual_axis_type"):  # since JAX 0.10
        return frozenset(typed.manual_axis_type.varying)
    return frozenset(typed.vma)


def _varying(array: Any, axes: frozenset[Any]) -> Any:
    if not axes:
        return array
    names = tuple(sorted(axes, key=str))
    if hasattr(jax.lax, "pcast"):  # since JAX 0.9
        return jax.lax.pcast(array, names, to="varying")
    return jax.lax.pvary(array, names)
