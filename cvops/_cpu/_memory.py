"""Arrays in the form that kernels take and results have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._jit import jit

Array = np.ndarray[Any, Any]


def contiguous(array: Array, dtype: str) -> Array:
    """`array` C-contiguous and of type code `dtype`: its own memory where it is so already.

    Read-only, as inputs are, also where it is an intermediate result: one compilation.
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


def cast(array: Array, dtype: str) -> Array:
    """`array` in type code `dtype`: itself where it is so already, else in new memory, aligned as a result is."""
    if array.dtype.char == dtype:
        return array
    result = empty(array.shape, dtype)
    with np.errstate(all="ignore"):  # what is too large for float16 becomes infinite
        result[...] = array
    return result


@jit  # because reading the address from Python takes 1 us longer
def _to_multiple_of_64(memory):
    return -memory.ctypes.data % 64
