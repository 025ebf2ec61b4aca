"""The GPU as the launchers see it: arrays, kernels, sorting. The only file that touches CuPy."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from cvops._arrays import share

from ._products import product
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


def converted(array: Array, dtype: Any) -> Array:
    """`array` in another dtype: itself where it has it already."""
    return array.astype(dtype, copy=False)


def is_aligned(array: Array) -> bool:
    """Whether `array` begins at a multiple of 16 bytes, where so many can be read at once."""
    return bool(array.data.ptr % 16 == 0)


def dtype_code(array: Array) -> int:
    """The number under which kernels know the dtype of `array`."""
    return _code_of(array.dtype)


@functools.cache  # `name` takes 2 microseconds
def _code_of(dtype: Any) -> int:
    return DTYPE_CODES[dtype.name]


def read(scalar: Array) -> int:
    """The value of a 0-d integer array: the one thing here that waits for the device."""
    return int(scalar)


def order_of_keys(keys: Array) -> Array:
    """int64 indices that sort the 1-D unsigned `keys`, ties by index. A radix sort; not waited for."""
    return cupy.argsort(keys, kind="stable")


# By type code, as cuBLAS numbers them: elements (cudaDataType_t).
_DATA_TYPES = {"f": 0, "d": 1, "e": 2, "E": 14}
_COMPUTE_32F, _COMPUTE_64F = 68, 70
_SUMS_IN_32F = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION, and with it no TF32


def matmul(a: Array, b: Array, out: Array, accumulate: bool) -> None:
    """Compute out = a @ b, or out += a @ b if `accumulate`: by cuBLAS, on the current stream, not waited for.

    `a` and `b` have one dtype, `out` too, or float32 where that is a 16-bit one: then tensor cores multiply, and sums
    are float32; float32 itself is not shortened to TF32. Operands have two dimensions or three, the first of them a
    batch; one of the other two must have neighbours next to each other (in `out` the last), so that slices and
    transposed views are used in place. One launch as far as cvops is concerned; the same bits on every run, unless
    the host thread computes on several streams at once, for which cuBLAS may choose other kernels.
    """
    # Loads cuBLAS, some hundred megabytes: not before a product is wanted.
    from cupy_backends.cuda.libs import cublas

    if a.dtype.char == "E" and int(cupy.cuda.device.get_compute_capability()) < 80:  # no bfloat16 products there
        wide = out.astype("f") if accumulate else cupy.empty(out.shape, "f")
        matmul(a.astype("f"), b.astype("f"), wide, accumulate)
        out[...] = wide
        return
    call, of_a, of_out = product(a, b, out), _DATA_TYPES[a.dtype.char], _DATA_TYPES[out.dtype.char]
    real, compute = ("d", _COMPUTE_64F) if of_a == _DATA_TYPES["d"] else ("f", _COMPUTE_32F)
    factors = np.array([1, accumulate], real)  # of the product and of what is there; read before the call returns
    one, before = (factors.ctypes.data + i * factors.itemsize for i in range(2))
    handle = cupy.cuda.device.get_cublas_handle()
    mode = cublas.getMathMode(handle)
    cublas.setMathMode(handle, _SUMS_IN_32F)
    try:
        shape = handle, not call.left.as_it_is, not call.right.as_it_is, call.rows, call.columns, call.depth
        if call.batch == 1:
            cublas.gemmEx(
                *shape, one, b.data.ptr, of_a, call.left.pitch, a.data.ptr, of_a, call.right.pitch,
                before, out.data.ptr, of_out, call.out.pitch, compute, cublas.CUBLAS_GEMM_DEFAULT,
            )  # fmt: skip
        else:
            cublas.gemmStridedBatchedEx(
                *shape, one, b.data.ptr, of_a, call.left.pitch, call.left.step,
                a.data.ptr, of_a, call.right.pitch, call.right.step,
                before, out.data.ptr, of_out, call.out.pitch, call.out.step,
                call.batch, compute, cublas.CUBLAS_GEMM_DEFAULT,
            )  # fmt: skip
    finally:
        cublas.setMathMode(handle, mode)


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
