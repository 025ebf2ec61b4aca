"""Arrays in the form that kernels take and results have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import models

from ._jit import intrinsic, jit

Array = np.ndarray[Any, Any]


def contiguous(array: Array, dtype: str) -> Array:
    """`array`, C-contiguous and of type code `dtype`, without a copy where it is so already.

    It is read-only like an input, even if it is an intermediate result, so that kernels are compiled once for both.
    """
    if array.dtype.char != dtype or not array.flags.c_contiguous:
        array = np.array(array, dtype, order="C")
    elif array.flags.writeable:
        array = array.view()
    else:
        return array
    array.setflags(write=False)
    return array


def empty(shape: tuple[int, ...], dtype: str) -> Array:
    """A new array, uninitialised, that starts at a multiple of 64 bytes: JAX shares no other memory."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    return np.ndarray(shape, dtype, memory, _to_multiple_of_64(memory))


def copy(array: Array) -> Array:
    """A new C-contiguous array with the values of `array`, aligned as a result is."""
    result = empty(array.shape, array.dtype.char)
    result[...] = array
    return result


def with_axes(array: Array, number: int) -> Array:
    """`array` with so many dimensions, of which the first are new."""
    return array if array.ndim == number else array.reshape((1,) * (number - array.ndim) + array.shape)


def parts(
    shape: tuple[int, ...], arrays: tuple[Array, ...], most: int, begin: int = 0
) -> Iterator[tuple[int, tuple[int, ...], tuple[Array, ...]]]:
    """Divide arrays into parts of at most `most` items: yield (number of the first item, shape, arrays) of each part.

    The items are the elements of `shape`, numbered in C order from `begin` on. The first axes of each array, as many as
    `shape` has, broadcast to it.
    """
    if math.prod(shape) <= most:
        yield begin, shape, arrays
        return
    axis = next(axis for axis, length in enumerate(shape) if length > 1)
    inner = math.prod(shape[axis + 1 :])
    step = max(most // inner, 1)
    for first in range(0, shape[axis], step):
        length = min(step, shape[axis] - first)
        part = (*(slice(None),) * axis, slice(first, first + length))
        some = tuple(array if array.shape[axis] == 1 else array[part] for array in arrays)
        yield from parts((*shape[:axis], length, *shape[axis + 1 :]), some, most, begin + first * inner)


@jit
def new_indices(size):
    """As `empty`, of int64, for kernels."""
    memory = np.empty(size + 8, np.int64)
    begin = _to_multiple_of_64(memory) // 8
    return memory[begin : begin + size]


@jit  # because reading the address from Python takes 1 us longer
def _to_multiple_of_64(memory):
    return -memory.ctypes.data % 64


class _Result(types.Type):
    """A new array on its way to Python.

    Numba boxes an array with the class of it, which it unpickles in every call: half of the time of a call that is
    short. Here the class is a constant of the kernel, as the dtype is.
    """

    def __init__(self, array: types.Array) -> None:
        self.array = array
        super().__init__(f"Result({array})")


@numba.extending.register_model(_Result)
class _ResultModel(models.StructModel):
    def __init__(self, manager: Any, result: _Result) -> None:
        super().__init__(manager, result, [("array", result.array)])


def _box(result: _Result, value: Any, context: Any) -> Any:
    api, constants = context.pyapi, context.env_manager
    # Numba asks these two for the class; their other forms do the same for what is a constant already.
    array = cgutils.create_struct_proxy(result)(context.context, context.builder, value=value).array
    api.serialize_object, api.unserialize = constants.add_const, constants.read_const
    try:
        return context.box(result.array, array)
    finally:
        del api.serialize_object, api.unserialize


numba.extending.box(_Result)(_box)


def result(array: Any) -> Any:
    """`array`, which the kernel has allocated, to be returned to Python and nothing else."""
    return array  # where nothing is compiled


def _typed_result(typingctx: Any, array: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = cgutils.create_struct_proxy(signature.return_type)(context, builder)
        struct.array = arguments[0]
        context.nrt.incref(builder, array, arguments[0])
        return struct._getvalue()

    return _Result(array)(array), generate


if not numba.config.DISABLE_JIT:
    result = intrinsic(_typed_result)
