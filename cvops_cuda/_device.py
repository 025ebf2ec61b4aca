"""The GPU as the launchers see it: arrays, kernels, sorting. The only file that touches CuPy."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from cvops._arrays import share

from ._sources import DTYPE_CODES, ELEMENTS, source

_WANTED = (
    "CUDA arrays need CuPy 14.2 or newer: pip install 'cupy-cuda13x[ctk]' (CUDA 13) or 'cupy-cuda12x[ctk]' (CUDA 12)"
)
try:
    import cupy
except ImportError as error:
    raise ImportError(_WANTED) from error
if tuple(map(int, cupy.__version__.split(".")[:2])) < (14, 2):  # argsort waited for the device, and could be wrong
    raise ImportError(f"{_WANTED}, got {cupy.__version__}")

xp = cupy
Array = Any  # cupy.ndarray; CuPy has no type annotations

# Around arithmetic on `xp`; a GPU warns of nothing.
quiet = contextlib.nullcontext


class _ExternalStream:
    """A stream of another library, by its address, in the form that CuPy takes."""

    def __init__(self, address: int) -> None:
        self.address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


@contextlib.contextmanager
def use(device: int, stream: int | None, memory: tuple[Any, Any] | None) -> Iterator[None]:
    """Make `device` current, and the stream of another library where an address is given; CuPy's own one otherwise.

    `memory` is two functions of that library, which allocate (bytes, device) -> address for its current stream, and
    free (address). Results outlive this context: each remembers how it is freed.
    """
    with cupy.cuda.Device(device):
        if stream is None or memory is None:
            yield
            return
        allocator = _allocator(*memory)
        with cupy.cuda.Stream.from_external(_ExternalStream(stream)), cupy.cuda.using_allocator(allocator.malloc):
            yield


@functools.cache
def _allocator(allocate: Any, free: Any) -> Any:
    return cupy.cuda.PythonFunctionAllocator(allocate, lambda address, device: free(address))


def asarray(array: Any, name: str) -> Array:
    """Return `array` as a cupy.ndarray of the same memory, ordered after the work that produces it."""
    return array if isinstance(array, cupy.ndarray) else share(array, name, cupy.from_dlpack)


def to_host(array: Array) -> Any:
    """A copy of `array` as a numpy.ndarray; waits for the device."""
    return cupy.asnumpy(array)


def current_gpu() -> int | None:
    """The number of the GPU that computes."""
    return int(cupy.cuda.runtime.getDevice())


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """A new array, uninitialised."""
    return cupy.empty(shape, dtype)


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """A new array of zeros: one memset, not waited for."""
    return cupy.zeros(shape, dtype)


def contiguous(array: Array) -> Array:
    """`array` C-contiguous: itself where it is so already."""
    return cupy.ascontiguousarray(array)


def copy(array: Array) -> Array:
    """A new C-contiguous array with the values of `array`."""
    return cupy.array(array, order="C")


def dtype_code(array: Array) -> int:
    """The number under which kernels know the dtype of `array`."""
    return DTYPE_CODES[array.dtype.name]


def read(scalar: Array) -> int:
    """The value of a 0-d integer array: the one thing here that waits for the device."""
    return int(scalar)


def order_of_keys(keys: Array) -> Array:
    """int64 indices that sort the 1-D unsigned `keys`, ties by index. A radix sort; not waited for."""
    return cupy.argsort(keys, kind="stable")


def launch(file: str, kernel: str, dtype: str, blocks: int, threads: int, *arguments: Any) -> None:
    """Run a kernel of `kernels/<file>.cu`, compiled for elements of type code `dtype`, on the current stream.

    `arguments` are arrays (None is the null pointer), int for `long long` and float for `double`. The text is compiled
    at its first launch on a device and cached on disk by CuPy.
    """
    _kernel(file, kernel, dtype, cupy.cuda.runtime.getDevice())((blocks,), (threads,), arguments)


@functools.cache
def _kernel(file: str, kernel: str, dtype: str, device: int) -> Any:  # a kernel is loaded on each device
    return _module(file, dtype, device).get_function(kernel)


@functools.cache
def _module(file: str, dtype: str, device: int) -> Any:
    return cupy.RawModule(code=source(file), options=("-std=c++17", f"-DELEMENT={ELEMENTS[dtype]}"))
