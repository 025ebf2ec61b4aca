"""Python functions as foreign functions of XLA: its buffers come in, and go out, as NumPy arrays on the same memory.

XLA calls a handler with a frame of C structures, a stable interface that `xla/ffi/api/c_api.h` in jaxlib documents;
those below have their names there without the prefix. jax.pure_callback would do with less code, but it copies every
argument, which takes ten times as long as to pool a feature map, and makes JAX arrays in the callback, which can wait
for the very thread that calls.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import itertools
import os
import struct
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np

from .._float_environment import adopt, environment
from ._sharding import result_of, varying_alike

# Version of the interface, by which newer runtimes know what they may ask for.
_MAJOR, _MINOR = 0, 1
_METADATA, _EXECUTE, _INVALID_ARGUMENT = 1, 3, 3
_ARRAY = 1  # among types of attributes; else they are scalars
_DTYPES = {
    number: np.dtype(dtype)
    for number, dtype in {
        1: np.bool_, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.uint8, 7: np.uint16, 8: np.uint32,
        9: np.uint64, 10: np.float16, 11: np.float32, 12: np.float64, 16: ml_dtypes.bfloat16,
    }.items()
}  # fmt: skip
_BFLOAT16 = _DTYPES[16]


def _structure(**fields: Any) -> Any:
    """The type of a C structure."""
    return type("Structure", (ctypes.Structure,), {"_fields_": tuple(fields.items())})


_int, _int64, _size, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_size_t, ctypes.c_void_p
_to = ctypes.POINTER
_HEAD = {"struct_size": _size, "extension_start": _pointer}
_Extension = _structure(struct_size=_size, type=_int, next=_pointer)
_ApiVersion = _structure(**_HEAD, major_version=_int, minor_version=_int)
_Metadata = _structure(struct_size=_size, api_version=_ApiVersion, traits=ctypes.c_uint32)
_MetadataExtension = _structure(extension_base=_Extension, metadata=_to(_Metadata))
_Buffer = _structure(**_HEAD, dtype=_int, data=_pointer, rank=_int64, dims=_to(_int64))
_Buffers = _structure(**_HEAD, size=_int64, types=_pointer, buffers=_to(_to(_Buffer)))  # Args and Rets
_ByteSpan = _structure(ptr=_pointer, len=_size)
_Scalar = _structure(dtype=_int, data=_pointer)
_Array = _structure(dtype=_int, size=_size, data=_pointer)
_Attrs = _structure(**_HEAD, size=_int64, types=_to(_int), names=_to(_to(_ByteSpan)), attrs=_to(_pointer))
_ErrorCreateArgs = _structure(**_HEAD, message=ctypes.c_char_p, errc=_int)
_ErrorCreate = ctypes.CFUNCTYPE(_pointer, _to(_ErrorCreateArgs))
_Api = _structure(**_HEAD, api_version=_ApiVersion, internal_api=_pointer, Error_Create=_ErrorCreate)
_CallFrame = _structure(
    **_HEAD | {"extension_start": _to(_Extension)}, api=_to(_Api), ctx=_pointer, stage=_int, args=_Buffers,
    rets=_Buffers, attrs=_Attrs,
)  # fmt: skip
_Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))

# Name in XLA -> [the function behind it]. XLA keeps what was registered first under a name as long as the process
# lives; so the table lies where a second import of cvops finds it, and there the name gets the new function.
_functions: dict[str, list[Any]] = vars(jax.ffi).setdefault("_cvops_functions", {})


def foreign(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Register `function` with XLA under this name, and return what calls it within JAX programs.

    That takes first the shape and dtype of what the function returns, or a tuple of such pairs; then the arrays, in the
    order of the function, None for those that are not there; then options by name: bools, integers, floats, and tuples
    of numbers. Those that are None are left out. Under jax.vmap the function is called once for each element, all
    within one call of XLA.
    """
    if name in _functions:
        _functions[name][0] = function
    else:
        behind = _functions[name] = [function]
        handler = _Handler(functools.partial(_handle, behind))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(handler))  # XLA points to it until the process ends
        capsule: Any = jax.ffi.pycapsule
        jax.ffi.register_ffi_target(name, capsule(handler), platform="cpu")

    def call(results: tuple[tuple[Any, Any], ...], *given: Any, **options: Any) -> tuple[Any, ...]:
        arrays = varying_alike(*(array for array in given if array is not None))
        kinds = [result_of(shape, dtype, arrays[0]) for shape, dtype in results]
        options["absent"] = tuple(i for i, array in enumerate(given) if array is None) or None
        attributes = {key: _attribute(value) for key, value in options.items() if value is not None}
        rank = np.int64(arrays[0].ndim)
        return tuple(jax.ffi.ffi_call(name, kinds, vmap_method="expand_dims")(*arrays, rank=rank, **attributes))

    return call


def differentiable(
    name: str,
    function: Callable[..., Any],
    gradients: Callable[..., Any],
    *,
    keeps_inputs: bool = False,
    has_argmax: bool = False,
) -> Callable[..., Any]:
    """Register an operator and its gradient with XLA, and return what calls it within JAX programs.

    That takes the shape of the result; a tuple of the arrays that it is differentiated by, which give the result its
    dtype; a tuple of the other arrays; and options. `gradients` takes the gradient of the result; the other arrays, or
    all if it `keeps_inputs`; the argmax, if `function` has one to return; the shapes of the first tuple in a row as
    `input_shapes`; and the options. It returns a tuple.
    """
    forward, backward = foreign(name, function), foreign(f"{name}_backward", gradients)

    # The types are not those of a residual, because inputs may not be kept for the gradient.
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def operator(static: Any, inputs: Any, others: Any) -> Any:
        shape, _, options = static
        (result,) = forward([(shape, inputs[0].dtype)], *inputs, *others, **dict(options))
        return result

    def operator_forward(static: Any, inputs: Any, others: Any) -> Any:
        kept = (*inputs, *others) if keeps_inputs else others
        if not has_argmax:
            return operator(static, inputs, others), kept
        shape, _, options = static
        results = (shape, inputs[0].dtype), (shape, np.int32)
        pooled, argmax = forward(results, *inputs, *others, return_argmax=True, **dict(options))
        return pooled, (*kept, argmax)

    def operator_backward(static: Any, kept: Any, grad: Any) -> Any:
        _, types, options = static
        wanted = [of_input for of_input in types if of_input is not None]
        shapes = sum((shape for shape, _ in wanted), ())
        found = iter(backward(wanted, grad, *kept, input_shapes=shapes, **dict(options)))
        return tuple(of_input and next(found) for of_input in types), None

    operator.defvjp(operator_forward, operator_backward)

    def call(shape: tuple[int, ...], inputs: Any, others: Any, **options: Any) -> Any:
        inputs, others = varying_alike(inputs, others)
        types = tuple(None if array is None else (array.shape, array.dtype) for array in inputs)
        return operator((shape, types, tuple(options.items())), inputs, others)

    return call


def _attribute(value: Any) -> Any:
    """`value` with a type that does not depend on whether 64-bit types are on."""
    if isinstance(value, bool):
        return value
    if isinstance(value, tuple):
        return np.array(value, np.float64 if any(isinstance(number, float) for number in value) else np.int64)
    return np.float64(value) if isinstance(value, float) else np.int64(value)


def _handle(behind: list[Any], pointer: Any) -> Any:
    """What XLA calls: returns null, or an error that XLA then owns."""
    frame = pointer.contents
    if frame.extension_start and frame.extension_start.contents.type == _METADATA:
        extension = ctypes.cast(frame.extension_start, ctypes.POINTER(_MetadataExtension))
        version = extension.contents.metadata.contents.api_version
        version.major_version, version.minor_version = _MAJOR, _MINOR
        return None
    if frame.stage != _EXECUTE:
        return None
    of_program = environment()
    running = object()  # not the thread: a signal handler may call again
    _calls[running] = os.getpid()
    try:
        adopt(_ordinary)
        arguments, results = _arrays(frame.args, write=False), _arrays(frame.rets, write=True)
        _compute(behind[0], arguments, results, **_attributes(frame.attrs))
    except BaseException as error:  # an exception cannot pass through XLA
        text = f"{type(error).__name__}: {error}".encode()
        new = _ErrorCreateArgs(ctypes.sizeof(_ErrorCreateArgs), None, text, _INVALID_ARGUMENT)
        return frame.api.contents.Error_Create(ctypes.byref(new))
    finally:
        adopt(of_program)
        global _last
        _last = time.monotonic()
        del _calls[running]
    return None


def _arrays(buffers: Any, write: bool) -> list[np.ndarray[Any, Any]]:
    arrays = []
    for i in range(buffers.size):
        buffer = buffers.buffers[i].contents
        dtype, shape = _DTYPES[buffer.dtype], tuple(buffer.dims[: buffer.rank])
        size = dtype.itemsize
        for length in shape:
            size *= length
        memory = (ctypes.c_char * size).from_address(buffer.data) if size else bytearray()
        array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, memory)
        array.flags.writeable = write
        arrays.append(array)
    return arrays


def _attributes(attributes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    types, names, attrs = attributes.types, attributes.names, attributes.attrs
    for i in range(attributes.size):
        several = types[i] == _ARRAY
        value = (_Array if several else _Scalar).from_address(attrs[i])
        dtype, size = _DTYPES[value.dtype], value.size if several else 1
        numbers = struct.unpack(f"{size}{dtype.char}", ctypes.string_at(value.data, size * dtype.itemsize))
        span = names[i].contents
        values[ctypes.string_at(span.ptr, span.len).decode()] = numbers if several else numbers[0]
    return values


def _compute(
    function: Any, arguments: list[Any], results: list[Any], rank: int, absent: Any = (), **options: Any
) -> None:
    batch = arguments[0].ndim - rank
    for index in itertools.product(*map(range, results[0].shape[:batch])):
        of_element = [
            # An argument without a batch has axes of length 1 in place of it.
            array[tuple(i if length > 1 else 0 for i, length in zip(index, array.shape, strict=False))]
            for array in arguments
        ]
        # Computed in float32: the CPU backend knows no bfloat16.
        of_element = [array.astype(np.float32) if array.dtype is _BFLOAT16 else array for array in of_element]
        for i in absent:
            of_element.insert(i, None)
        got = function(*of_element, **options)
        for result, value in zip(results, got if isinstance(got, tuple) else (got,), strict=True):
            result[index] = value


# What runs now, and in which process: a fork copies it. And when the last call ended. No lock: a signal handler or a
# fork may come at any time, and each call writes only what is its own.
_calls: dict[object, int] = {}
_last = -1.0


@atexit.register
def _wait_for_programs() -> None:
    """Let what JAX still computes end. Else JAX waits for it while it holds the lock that our calls need: for ever."""
    if _last < 0 or os.getpid() != _process:
        return
    for array in jax.live_arrays("cpu"):
        with contextlib.suppress(Exception):  # it failed, or was given away
            array.block_until_ready()
    for device in jax.local_devices(backend="cpu"):  # what this thread dropped: a device keeps the order of a thread
        (jax.device_put(0, device) + 1).block_until_ready()
    # What another thread dropped ends while calls follow each other.
    while os.getpid() in _calls.values() or time.monotonic() < _last + 0.1:
        time.sleep(0.01)


_process = os.getpid()
# Of the thread that imports this. Threads of XLA take subnormal numbers for zero.
_ordinary = environment()
