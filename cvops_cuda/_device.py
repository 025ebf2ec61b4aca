"""The GPU as the launchers see it: arrays, kernels, sorting. The only file that touches CuPy."""

from __future__ import annotations

import ctypes
import functools
import math
import operator
import threading
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from cvops._arrays import Lender, name_conversion, not_shared, share

from ._products import product
from ._records import layout
from ._sources import DTYPE_CODES, options, source

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

# Around arithmetic on `xp`: a GPU warns of nothing, but NumPy converts its scalars.
ignore_fp_errors = functools.partial(np.errstate, all="ignore")


class _Lent(cupy.cuda.UnownedMemory):  # type: ignore[misc]
    """Memory that belongs to `lent`, an object of another library."""

    __slots__ = ("lent",)


class _ExternalStream:
    """A stream of another library, by its address, in the form that CuPy takes."""

    def __init__(self, address: int) -> None:
        self.address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


@functools.lru_cache(64)  # making one takes 5 microseconds
def _stream(address: int, device: int) -> Any:
    return cupy.cuda.Stream.from_external(_ExternalStream(address))


class _Thread(threading.local):
    """What this thread is at."""

    def __init__(self) -> None:
        self.lender: Lender | None = None
        self.device = 0
        self.blas_handles: dict[int, Any] = {}  # by device; a handle serves one thread


_thread = _Thread()


def use_backend_of(backend: Any, device: int, lender: Lender | None, foreign: bool) -> AbstractContextManager[Any]:
    """A context that gives `backend`; in it `device` is current, and the stream of the lender if there is one.

    New arrays lie in memory of the lender then, and outlive the context; errors name its conversion. With `foreign`
    arguments, those of a library that neither lends nor knows CuPy's stream, the end of the context waits for the work
    on them.
    """
    return _Use(backend, device, lender, foreign)


class _Use:  # a class, because a generator would cost each call 2 microseconds more
    __slots__ = "_backend", "_before", "_contexts", "_foreign", "_lender", "_number"

    def __init__(self, backend: Any, device: int, lender: Lender | None, foreign: bool) -> None:
        self._backend, self._number, self._lender, self._foreign = backend, device, lender, foreign

    def __enter__(self) -> Any:
        device, lender = self._number, self._lender
        self._before = _thread.lender, _thread.device
        contexts = self._contexts = [] if cupy.cuda.runtime.getDevice() == device else [cupy.cuda.Device(device)]
        if lender is not None:
            contexts += _stream(lender.stream, device), cupy.cuda.using_allocator(_borrow)
        elif _thread.lender is not None:  # within a call that borrows, as a finaliser may be: this one cannot
            contexts.append(cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc))
        for context in contexts:
            context.__enter__()
        _thread.lender, _thread.device = lender, device
        return self._backend

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        _thread.lender, _thread.device = self._before
        if kind is TypeError and self._lender is not None:
            name_conversion(error, self._lender.conversion)
        try:
            if self._foreign:
                cupy.cuda.get_current_stream().synchronize()
        finally:
            for context in reversed(self._contexts):
                context.__exit__(None, None, None)


def _borrow(size: int) -> Any:
    """Memory of the lender, for what CuPy allocates itself."""
    lender: Any = _thread.lender
    return _pointer_to(lender.empty((size,), "uint8"), lender)


def _pointer_to(lent: Any, lender: Lender) -> Any:
    memory = _Lent(lender.address(lent), lent.nbytes, lent, _thread.device)
    memory.lent = lent
    return cupy.cuda.MemoryPointer(memory, 0)


def asarray(array: Any, name: str) -> Array:
    """Return `array` as a cupy.ndarray of the same memory, ordered after the work that produces it."""
    if isinstance(array, cupy.ndarray):
        return array
    lender = _thread.lender
    if lender is None:
        return share(array, name, cupy.from_dlpack)
    # The stream of the lender is the current one: nothing to wait for.
    place = lender.locate(array)
    if place is not None:
        address, size, shape, dtype, strides = place
        memory = cupy.cuda.UnownedMemory(address, size, array, _thread.device)
        return cupy.ndarray(shape, _dtype(dtype), cupy.cuda.MemoryPointer(memory, 0), strides)
    try:
        return cupy.from_dlpack(lender.export(array))
    except Exception as error:
        raise not_shared(array, name, error) from error


def to_host(array: Array) -> Any:
    """A copy of `array` as a numpy.ndarray; waits for the device."""
    return cupy.asnumpy(array)


def upload(array: Any) -> Array:
    """A copy of a numpy.ndarray that any stream may use from now on: waits for the transfer.

    In memory of CuPy's own, not of a lender's: it outlives the call, and what is lent while a graph is captured is the
    graph's.
    """
    stream = cupy.cuda.get_current_stream()
    if cupy.cuda.runtime.streamIsCapturing(stream.ptr):
        raise RuntimeError("a layer uploads its parameters at its first call on a GPU: call it before the capture")
    with cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc):
        uploaded = cupy.asarray(array)
    stream.synchronize()
    return uploaded


def current_gpu() -> int | None:
    """The number of the GPU that computes."""
    return int(cupy.cuda.runtime.getDevice())


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """A new array, uninitialised."""
    lender = _thread.lender
    if lender is None:
        return cupy.empty(shape, dtype)
    dtype, name = _dtype_and_name(dtype)
    return cupy.ndarray(shape, dtype, _pointer_to(lender.empty(shape, name), lender))


def allocate(*arrays: tuple[int, str], zeroed: int = 0) -> list[Array]:
    """New arrays of (length, dtype) in one allocation; the first `zeroed` are zeros, by one memset not waited for."""
    size, end_of_zeros, places = _places(arrays, zeroed)
    memory = empty((size,), "uint8").data
    if zeroed:
        memory.memset_async(0, end_of_zeros)
    return [cupy.ndarray(shape, dtype, memory + begin) for begin, shape, dtype in places]


@functools.lru_cache(64)
def _places(arrays: tuple[tuple[int, str], ...], zeroed: int) -> tuple[int, int, list[tuple[int, tuple[int], Any]]]:
    """The bytes of all arrays and of the first `zeroed`; where each begins, and its shape and dtype."""
    places, ends = [], [0]
    for length, name in arrays:
        dtype = _dtype(name)
        places.append((ends[-1], (length,), dtype))
        ends.append(ends[-1] + math.ceil(length * dtype.itemsize / 16) * 16)
    return ends[-1], ends[zeroed], places


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """A new array of zeros: one memset, not waited for."""
    return cupy.zeros(shape, dtype)


def contiguous(array: Array) -> Array:
    """`array` C-contiguous: itself where it is so already."""
    return array if array.flags.c_contiguous else cupy.ascontiguousarray(array)


def flat(array: Array) -> tuple[Array, int, tuple[int, ...]]:
    """(the memory of `array` as one dimension, where in it the first element lies, the strides in elements)."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    spans = [stride * (size - 1) for size, stride in zip(array.shape, strides, strict=True)]
    first = -sum(span for span in spans if span < 0)
    memory = array.data - first * array.itemsize
    return cupy.ndarray((sum(map(abs, spans)) + 1,), array.dtype, memory), first, strides


def copy(array: Array) -> Array:
    """A new C-contiguous array with the values of `array`."""
    return cupy.array(array, order="C")


def converted(array: Array, dtype: Any) -> Array:
    """`array` in another dtype: itself where it has it already."""
    return array if array.dtype == dtype else array.astype(dtype)


def is_aligned(array: Array) -> bool:
    """Whether `array` begins at a multiple of 16 bytes, where so many can be read at once."""
    return bool(array.data.ptr % 16 == 0)


def dtype_code(array: Array) -> int:
    """The number under which kernels know the dtype of `array`."""
    return _code(array.dtype)


_dtype = functools.cache(np.dtype)


@functools.cache
def _code(dtype: Any) -> int:
    return DTYPE_CODES[dtype.name]


@functools.cache  # `name` takes 2 microseconds
def _dtype_and_name(dtype: Any) -> tuple[Any, str]:
    return _dtype(dtype), str(_dtype(dtype).name)


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
_ALGORITHM = -1  # CUBLAS_GEMM_DEFAULT
_WORKSPACE_BYTES = 32 << 20  # what cuBLAS would take on Hopper


def matmul(a: Array, b: Array, out: Array, accumulate: bool) -> None:
    """Compute out = a @ b, or out += a @ b if `accumulate`, on the current stream, not waited for.

    By the lender's own products where there is a lender: its flags decide what may be shortened (TF32). Else by cuBLAS:
    `a` and `b` have one dtype, `out` too, or float32 where that is a 16-bit one: then tensor cores multiply, and sums
    are float32; float32 itself is not shortened to TF32. Operands have two dimensions or three, the first of them a
    batch; one of the other two must have neighbours next to each other (in `out` the last), so that slices and
    transposed views are used in place. One launch as far as cvops is concerned; the same bits on every run.
    """
    if _thread.lender is not None:
        _thread.lender.multiply(a, b, out, accumulate)
        return
    if a.dtype.char == "E" and int(cupy.cuda.device.get_compute_capability()) < 80:  # no bfloat16 products there
        wide = out.astype("f") if accumulate else cupy.empty(out.shape, "f")
        matmul(a.astype("f"), b.astype("f"), wide, accumulate)
        out[...] = wide
        return
    call, of_a, of_out = product(a, b, out), _DATA_TYPES[a.dtype.char], _DATA_TYPES[out.dtype.char]
    real, compute = (np.float64, _COMPUTE_64F) if of_a == _DATA_TYPES["d"] else (np.float32, _COMPUTE_32F)
    factors = np.array([1, accumulate], real)  # of the product and of what is there; read before the call returns
    one, before = (factors.ctypes.data + i * factors.itemsize for i in range(2))
    blas, handle = _blas(), _blas_handle(cupy.cuda.runtime.getDevice())
    # Bound to the stream and given memory anew: cuBLAS would keep the one and allocate the other, neither of which a
    # graph that is captured can own.
    workspace = cupy.empty((_WORKSPACE_BYTES,), "uint8")
    _require(blas.cublasSetStream_v2(handle, cupy.cuda.get_current_stream().ptr))
    _require(blas.cublasSetWorkspace_v2(handle, workspace.data.ptr, _WORKSPACE_BYTES))
    status = blas.cublasGemmStridedBatchedEx(
        handle, not call.left.as_it_is, not call.right.as_it_is, call.rows, call.columns, call.depth,
        one, b.data.ptr, of_a, call.left.column_stride, call.left.matrix_stride,
        a.data.ptr, of_a, call.right.column_stride, call.right.matrix_stride,
        before, out.data.ptr, of_out, call.out.column_stride, call.out.matrix_stride, call.batch, compute, _ALGORITHM,
    )  # fmt: skip
    _require(status)


def convolve(input: Array, weight: Array, bias: Array, stride: tuple[int, int], padding: tuple[int, int]) -> Any:
    """The convolution by the lender's own, whose flags decide what may be shortened (TF32); None without a lender."""
    lender = _thread.lender
    if lender is None:
        return None
    lent = lender.convolve(input, weight, bias, stride, padding)
    return cupy.ndarray(tuple(lent.shape), input.dtype, _pointer_to(lent, lender))


@functools.cache
def _blas() -> Any:
    """The library cuBLAS, some hundred megabytes: not before a product is wanted.

    Not by CuPy, which binds a stream at each call and refuses to do so while a graph is captured.
    """
    from cuda.pathfinder import load_nvidia_dynamic_lib  # CuPy finds its libraries by it

    blas = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    pointer, number, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
    blas.cublasCreate_v2.argtypes = (pointer,)
    blas.cublasSetMathMode.argtypes = (pointer, number)
    blas.cublasSetStream_v2.argtypes = (pointer, pointer)
    blas.cublasSetWorkspace_v2.argtypes = (pointer, pointer, ctypes.c_size_t)
    matrix: list[Any] = [pointer, number, number, long]
    blas.cublasGemmStridedBatchedEx.argtypes = [
        pointer, *[number] * 5, pointer, *matrix, *matrix, pointer, *matrix, *[number] * 3
    ]  # fmt: skip
    return blas


def _blas_handle(device: int) -> Any:
    if device not in _thread.blas_handles:
        handle = ctypes.c_void_p()
        _require(_blas().cublasCreate_v2(ctypes.byref(handle)))
        _require(_blas().cublasSetMathMode(handle, _SUMS_IN_32F))
        _thread.blas_handles[device] = handle
    return _thread.blas_handles[device]


def _require(status: int) -> None:
    if status:
        raise RuntimeError(f"cuBLAS failed with status {status}")


def launch(file: str, kernel: str, dtype: str, blocks: int, threads: int, record: Any) -> None:
    """Run a kernel of `kernels/<file>.cu`, compiled for elements of type code `dtype`, on the current stream.

    `record` is a named tuple of what the struct of the same name has (`_records.py`). The text is compiled at its first
    launch on a device and cached on disk by CuPy.
    """
    kind, device = record.__class__, cupy.cuda.runtime.getDevice()
    run, dtype_of_record, pack = _prepared(file, kernel, dtype, device, kind)
    # CuPy takes a struct as an array without dimensions; without fields it is passed in a third of the time.
    run((blocks,), (threads,), (np.ndarray((), dtype_of_record, pack(record, _address)),))


_address = operator.attrgetter("data.ptr")


@functools.cache
def _prepared(file: str, kernel: str, dtype: str, device: int, record: type) -> tuple[Any, Any, Any]:
    of_record = layout(record)
    return _kernel(file, kernel, dtype, device), np.dtype(f"V{of_record.size}"), of_record.pack


def _kernel(file: str, kernel: str, dtype: str, device: int) -> Any:  # a kernel is loaded on each device
    return _module(file, dtype, device).get_function(kernel)


@functools.cache
def _module(file: str, dtype: str, device: int) -> Any:
    return cupy.RawModule(code=source(file), options=("-std=c++17", *options(file, dtype)))
