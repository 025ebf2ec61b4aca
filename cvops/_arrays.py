"""The seam: which backend computes, and how its result goes back to the caller.

This is the only file that knows that array libraries exist. They are recognised by their protocol and by what is
already imported, never imported in order to be recognised.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ._types import ArrayT

from ._checks import CONVERSION, kind
from ._process import load as _load

# DLPack device type -> backend module. Pinned host memory (3) is ordinary memory to a CPU, managed (13) to a GPU.
_BACKENDS = {1: "cvops._cpu", 2: "cvops_cuda", 3: "cvops._cpu", 13: "cvops_cuda"}
_OF_CUDA_BACKEND = {"cupy"}  # modules of the arrays that it computes on, whose memory waits for its stream
_DEVICE_NAMES = {
    1: "cpu", 2: "cuda", 3: "cpu", 4: "opencl", 7: "vulkan", 8: "metal", 9: "vpi", 10: "rocm", 11: "rocm host",
    12: "ext_dev", 13: "cuda", 14: "oneapi", 15: "webgpu", 16: "hexagon", 17: "maia",
}  # fmt: skip

# Those that CuPy knows by name; a bfloat16 it finds in a package of its own.
_NAMES_OF_DTYPES = "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8"

cpu: Any = None  # the CPU backend, once an operator has used it
_numpy: Any = None  # once it is known: finalisers call operators after sys.modules has been emptied


def backend_of(**arrays: Any) -> AbstractContextManager[Any]:
    """A context that gives the backend module for the one device that all `arrays` (by argument name) lie on.

    Within it, that device is current. If all arrays are torch tensors, so is torch's current stream, and torch lends
    memory, products and convolution: there is one pool, `record_stream` works on results, and a CUDA graph of torch
    sees the work and owns its memory. Arrays of other libraries than CuPy are waited for at the end: their owners may
    reuse the memory as soon as the caller drops them, and know nothing of CuPy's stream.

    Raises
    ------
    TypeError
        An argument is no array, hides a computation (requires grad, tracer), or its library cannot take a result back.
    ValueError
        An array lies on a device without a backend, or two arrays lie on different devices.
    """
    ndarray = getattr(sys.modules.get("numpy", _numpy), "ndarray", None)
    for array in arrays.values():
        if type(array) is not ndarray or array.dtype.hasobject:
            return _backend_of_any(arrays)
    return _cpu()


class WithBackend:
    """An array argument that tells which backend computes on it: `cvops.jax` calls the public functions with these."""

    __slots__ = "array", "backend"

    def __init__(self, array: Any, backend: Any) -> None:
        self.array, self.backend = array, backend


def share(array: Any, name: str, from_dlpack: Any) -> Any:
    """Return the foreign `array` as what a backend's `from_dlpack` makes of it: the same memory."""
    if _is_tensor(array):
        _refuse_compilation(name)
        array = array.resolve_neg()  # torch may have put off a change of sign, and DLPack would not show it
    try:
        return from_dlpack(array)
    except Exception as error:  # whatever the producer raises, or NumPy of what it returns
        raise not_shared(array, name, error) from error


def not_shared(array: Any, name: str, error: Exception) -> TypeError:
    """What to raise where DLPack ended with `error`."""
    dtype = str(getattr(array, "dtype", "unknown")).rpartition(".")[2]
    known = isinstance(error, (BufferError, RuntimeError)) and dtype.startswith(("bfloat", "float", "int", "uint"))
    if known:  # one that the backend's library has not
        return TypeError(f"`{name}` must be float64, float32 or float16, got {dtype}: {CONVERSION}")
    return TypeError(f"`{name}` cannot be shared through DLPack: {error}")


def name_conversion(error: TypeError, conversion: str) -> None:
    """Have `error`, if it names a conversion of arrays, name this one."""
    error.args = tuple(str(arg).replace(CONVERSION, f"convert it with {conversion}") for arg in error.args)


def to_caller(result: Any, like: ArrayT) -> ArrayT:
    """Return the native array `result` as an array of the library of `like`, sharing its memory where it can."""
    array: ArrayT
    if isinstance(like, (type(result), WithBackend)):
        array = result
    elif (lent := _lent(result)) is not None:
        array = _part_of_tensor(lent, result)
    else:
        array = _from_dlpack_of(like)(result)
    return array


class Lender(NamedTuple):
    """What the library of all arguments of a call lends to the CUDA backend."""

    stream: int  # its address
    empty: Callable[[tuple[int, ...], str], Any]  # (shape, name of the dtype) -> what owns the memory
    address: Callable[[Any], int]  # of what `empty` returns
    export: Callable[[Any], Any]  # an argument -> DLPack capsule of it, without synchronisation
    multiply: Callable[[Any, Any, Any, bool], None]  # of native arrays: out = a @ b, or out += a @ b
    convolve: Callable[..., Any]  # native (input, weight, bias), stride, padding -> what owns the result
    # An argument -> (address, bytes, shape, name of the dtype, strides in bytes or None where it is contiguous), which
    # takes half as long as DLPack; None for what is to be exported.
    locate: Callable[[Any], tuple[Any, ...] | None] = lambda _: None
    conversion: str = ".to"  # how errors call its conversion of dtypes


@functools.cache
def _torch_lends(place: str) -> Callable[[int], Lender]:
    """A function that makes a Lender of the address of a stream; `place` is torch's name of the device."""
    torch = sys.modules["torch"]
    device, to_dlpack, from_dlpack = torch.device(place), torch.utils.dlpack.to_dlpack, torch.from_dlpack
    names = {getattr(torch, name): name for name in _NAMES_OF_DTYPES}

    def export(tensor: Any) -> Any:
        # torch may have put off a change of sign, and DLPack would not show it
        return to_dlpack(tensor.resolve_neg() if tensor.is_neg() else tensor)

    def locate(tensor: Any) -> tuple[Any, ...] | None:
        name = names.get(tensor.dtype)
        if name is None or tensor.is_neg():
            return None
        strides = None
        if not tensor.is_contiguous():
            strides = [stride * tensor.element_size() for stride in tensor.stride()]
        return tensor.data_ptr(), tensor.nbytes, tensor.shape, name, strides

    def tensor(array: Any) -> Any:
        return from_dlpack(array.__dlpack__(stream=-1))  # both are on one stream

    def empty(shape: tuple[int, ...], dtype: str) -> Any:
        return torch.empty(shape, dtype=getattr(torch, dtype), device=device)

    def without_autocast() -> Any:  # dtypes are decided already
        return torch.autocast("cuda", enabled=False)

    def multiply(a: Any, b: Any, out: Any, accumulate: bool) -> None:
        a, b, out = tensor(a), tensor(b), tensor(out)
        if out.ndim == 3:  # torch wants all three to be batches
            a, b = (each if each.ndim == 3 else each.expand(len(out), *each.shape) for each in (a, b))
        with without_autocast():
            if a.dtype == out.dtype:
                (out.baddbmm_ if out.ndim == 3 else out.addmm_)(a, b, beta=int(accumulate))
            else:  # 16-bit factors, sums that stay in float32
                summed = torch.baddbmm if out.ndim == 3 else torch.addmm
                summed(out, a, b, out_dtype=out.dtype, beta=int(accumulate), out=out)

    def convolve(input: Any, weight: Any, bias: Any, stride: tuple[int, int], padding: tuple[int, int]) -> Any:
        with without_autocast():
            return torch.conv2d(tensor(input), tensor(weight), tensor(bias), stride, padding).contiguous()

    @functools.lru_cache(64)
    def lend(stream: int) -> Lender:
        return Lender(stream, empty, torch.Tensor.data_ptr, export, multiply, convolve, locate)

    return lend


def _lender(number: int) -> Lender:
    """What torch lends on its current stream on the GPU of this number."""
    torch = sys.modules["torch"]
    try:
        stream = torch._C._cuda_getCurrentRawStream(number)  # what is public takes 2 microseconds
    except AttributeError:
        stream = torch.cuda.current_stream(number).cuda_stream
    return _torch_lends(f"cuda:{number}")(stream)


def _lent(result: Any) -> Any:
    """What was lent for a result on a GPU, or None."""
    on_gpu = hasattr(type(result), "__cuda_array_interface__")
    return getattr(result.data.mem, "lent", None) if on_gpu else None


def _part_of_tensor(tensor: Any, result: Any) -> Any:
    """`result`, which lies in memory of `tensor`, as a tensor that owns that memory together with it."""
    torch = sys.modules["torch"]
    dtype = _torch_dtype(result.dtype)
    if tensor.dtype == dtype and tensor.shape == result.shape:
        return tensor
    offset = (result.data.ptr - tensor.data_ptr()) // result.itemsize
    strides = [stride // result.itemsize for stride in result.strides]
    part = torch.empty(0, dtype=dtype, device=tensor.device)
    return part.set_(tensor.untyped_storage(), offset, result.shape, strides)


@functools.cache  # the name of a dtype takes 2 microseconds
def _torch_dtype(dtype: Any) -> Any:
    return getattr(sys.modules["torch"], dtype.name)


@functools.cache
def _cpu() -> AbstractContextManager[Any]:
    global cpu, _numpy
    cpu = backend = _load("cvops._cpu")
    _numpy = sys.modules["numpy"]
    return contextlib.nullcontext(backend)


class _InWordsOf:  # a class, because a generator would cost each call 2 microseconds more
    """A context, whose errors about an argument name the conversion that its library has."""

    def __init__(self, arrays: dict[str, Any], context: AbstractContextManager[Any]) -> None:
        self._arrays, self._context = arrays, context

    def __enter__(self) -> Any:
        return self._context.__enter__()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is TypeError and _is_tensor(self._arrays.get(str(error)[1:].partition("`")[0])):
            name_conversion(error, ".to")
        self._context.__exit__(kind, error, traceback)


def _backend_of_any(arrays: dict[str, Any]) -> AbstractContextManager[Any]:
    number = _gpu_of_plain_tensors(arrays)
    if number is not None:
        backend = _load(_BACKENDS[2])
        context: AbstractContextManager[Any] = backend.use_backend_of(backend, number, _lender(number), False)
        return context
    first_name, first = next(iter(arrays.items()))
    if type(first) is WithBackend:
        return contextlib.nullcontext(first.backend)
    devices = {name: _device_of(name, array) for name, array in arrays.items()}
    device_type, number = devices[first_name]
    for name, device in devices.items():
        if device != (device_type, number):
            one, two = _device_text(devices[first_name]), _device_text(device)
            raise ValueError(f"`{first_name}` is on {one} and `{name}` is on {two}: move them to one device")
    if device_type not in _BACKENDS:
        place = _device_text(devices[first_name])
        raise ValueError(f"`{first_name}` is on {place}: cvops computes on the CPU and on CUDA; move it to the host")
    of_torch = all(map(_is_tensor, arrays.values()))
    if not of_torch and not _is_ndarray(first) and _from_dlpack_of(first) is None:
        raise TypeError(f"`{first_name}`: {kind(first)} has no from_dlpack to give a result back with")
    if device_type == 1:
        return _InWordsOf(arrays, _cpu())
    lender = _lender(number) if of_torch else None
    waits_for_none = of_torch or all(type(a).__module__.partition(".")[0] in _OF_CUDA_BACKEND for a in arrays.values())
    backend = _load(_BACKENDS[device_type])
    return _InWordsOf(arrays, backend.use_backend_of(backend, number, lender, not waits_for_none))


def _gpu_of_plain_tensors(arrays: dict[str, Any]) -> int | None:
    """The number of the GPU on which all `arrays` are tensors that hide nothing; None where that takes a longer look.

    A third of the time of that look, which has the words for what is refused.
    """
    torch: Any = sys.modules.get("torch")
    tensor, plain, number = getattr(torch, "Tensor", None), None, -1
    for array in arrays.values():
        if type(array) is not tensor or array.requires_grad:
            return None
        if plain is None:
            if torch.compiler.is_compiling():  # first of all: torch.compile, which traces this, warns of the rest
                return None
            plain = keys_of_plain_tensors("CUDA")
        if not plain or torch._C._dispatch_keys(array).raw_repr() not in plain:
            return None
        if not array.data_ptr() and array.numel():  # freed: a kernel that reads it takes the whole CUDA context along
            return None
        before, number = number, array.get_device()
        if before not in (-1, number):
            return None
    if torch.autograd.forward_ad._current_level >= 0 or compiler_looks_on():
        return None
    return number


def _device_of(name: str, array: Any) -> tuple[int, int]:
    """DLPack's (device type, device number), with pinned host and managed memory counted as cpu and cuda."""
    if _is_ndarray(array):
        masked = sys.modules.get("numpy.ma")
        if masked is not None and isinstance(array, masked.MaskedArray):
            raise TypeError(f"`{name}` must be an array, got MaskedArray: use np.asarray on what .filled() gives")
        if array.dtype.hasobject:
            raise TypeError(f"`{name}` must be an array, got {kind(array)} of objects: use np.asarray with a dtype")
        return (1, 0)
    if _is_tensor(array):
        _refuse_hidden_computation_of_tensor(name, array)
        if array.is_cuda and sys.modules["torch"].version.hip is None:  # a tenth of the time of what is asked below
            return (2, array.get_device())
    # Looked up on the type: instances of proxies and modules may answer to any name.
    if not hasattr(type(array), "__dlpack__"):
        raise TypeError(f"`{name}` must be an array, got {kind(array)}: use np.asarray")
    jax: Any = sys.modules.get("jax")
    if jax is not None and isinstance(array, jax.core.Tracer):
        raise TypeError(f"`{name}` is traced by jax (jit, grad, vmap): use cvops.jax")
    try:
        device_type, number = map(int, array.__dlpack_device__())
    except Exception as error:
        device = getattr(array, "device", None)
        if device is None:
            raise TypeError(f"`{name}` must be an array, got {kind(array)}: {error}") from error
        text = f"`{name}` is on {device}: cvops computes on the CPU and on CUDA; move it to the host"
        raise ValueError(text) from error
    if device_type in (1, 3):
        return (1, 0)  # every host has one memory, whatever the producer numbers it
    return (2 if device_type == 13 else device_type, number)


def _refuse_hidden_computation_of_tensor(name: str, tensor: Any) -> None:
    """Raise where the values are recorded or not there yet: a copy through DLPack would drop that silently."""
    _refuse_compilation(name)
    torch = sys.modules["torch"]
    if type(tensor) is not torch.Tensor and ("Fake" in kind(tensor) or "Functional" in kind(tensor)):
        raise TypeError(f"`{name}` is a {kind(tensor)} without values (torch.compile, export): use cvops.torch")
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise TypeError(f"`{name}` is traced by torch.func: use cvops.torch")
    if tensor.requires_grad:
        raise TypeError(f"`{name}` requires grad: use cvops.torch, or pass {name}.detach()")
    if torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None:
        raise TypeError(f"`{name}` carries a tangent: use cvops.torch")
    if tensor.layout is not torch.strided:
        raise TypeError(f"`{name}` must be an array, got a {kind(tensor)} of layout {tensor.layout}")
    if not tensor.data_ptr() and tensor.numel() and not tensor.is_meta:  # NumPy would take any memory for it
        instead = "use cvops.torch, or pass the tensor that it wraps"
        raise TypeError(f"`{name}` is a {kind(tensor)} without memory of its own: {instead}")


def _refuse_compilation(name: str) -> None:
    if sys.modules["torch"].compiler.is_compiling() or compiler_looks_on():
        raise TypeError(f"`{name}` is traced by torch.compile: use cvops.torch")


def compiler_looks_on() -> bool:
    """Whether torch.compile traces around this call, though not this very line, as `is_compiling` would tell.

    It would go on to trace the array library and Numba, and die there.
    """
    evaluation = sys.modules.get("torch._C._dynamo.eval_frame")
    return evaluation is not None and evaluation.get_eval_frame_callback() not in (None, False)


@functools.cache
def keys_of_plain_tensors(device: str) -> frozenset[int]:
    """What PyTorch's dispatcher sees in tensors of "CPU" or "CUDA" that are no more than their values.

    Made in inference mode and not. Empty where this version of PyTorch does not tell, or has ROCm for CUDA.
    """
    torch = sys.modules["torch"]
    if not hasattr(torch._C, "_dispatch_keys") or (device == "CUDA" and torch.version.hip is not None):
        return frozenset()
    try:
        key, keys = torch._C.DispatchKey, torch._C.DispatchKeySet
        inference = keys(getattr(key, device)) | keys(getattr(key, f"Autocast{device}"))
        ordinary = inference | keys(key.ADInplaceOrView) | keys(getattr(key, f"Autograd{device}"))
        return frozenset(each.raw_repr() for each in (inference, ordinary))
    except AttributeError:
        return frozenset()


def _from_dlpack_of(array: Any) -> Any:
    """The function that makes an array of this one's library from a native array; None where there is none."""
    if _is_tensor(array):
        return sys.modules["torch"].from_dlpack
    if hasattr(type(array), "__array_namespace__"):
        with contextlib.suppress(Exception):  # of an object that has but the name
            return array.__array_namespace__().from_dlpack
    root = sys.modules.get(type(array).__module__.partition(".")[0])
    return getattr(root, "from_dlpack", None)


def _is_ndarray(array: Any) -> bool:
    return isinstance(array, getattr(sys.modules.get("numpy", _numpy), "ndarray", ()))


def _is_tensor(array: Any) -> bool:
    return isinstance(array, getattr(sys.modules.get("torch"), "Tensor", ()))  # torch may be half imported


def _device_text(device: tuple[int, int]) -> str:
    name = _DEVICE_NAMES.get(device[0], f"device type {device[0]}")
    return name if device[0] == 1 else f"{name}:{device[1]}"
