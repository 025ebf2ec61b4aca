"""Python functions as foreign functions of XLA: its buffers come in, and go out, as NumPy arrays on the same memory.

XLA calls a handler with a frame of C structures, a stable interface that `xla/ffi/api/c_api.h` in jaxlib documents;
those below have their names there without the prefix. jax.pure_callback would do with less code, but it copies every
argument, which takes ten times as long as to pool a feature map, and makes JAX arrays in the callback, which can wait
for the very thread that calls.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np

TARGET = "cvops"

# Version of the interface, by which newer runtimes know what they may ask for.
_MAJOR, _MINOR = 0, 1
_METADATA, _EXECUTE, _INVALID_ARGUMENT = 1, 3, 3
_DTYPES = {
    1: np.bool_, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.uint8, 7: np.uint16, 8: np.uint32,
    9: np.uint64, 10: np.float16, 11: np.float32, 12: np.float64, 16: ml_dtypes.bfloat16,
}  # fmt: skip


class _Extension(ctypes.Structure):
    _fields_ = (("struct_size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", ctypes.c_void_p))


class _ApiVersion(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("major_version", ctypes.c_int),
        ("minor_version", ctypes.c_int),
    )


class _Metadata(ctypes.Structure):
    _fields_ = (("struct_size", ctypes.c_size_t), ("api_version", _ApiVersion), ("traits", ctypes.c_uint32))


class _MetadataExtension(ctypes.Structure):
    _fields_ = (("extension_base", _Extension), ("metadata", ctypes.POINTER(_Metadata)))


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    )


class _Buffers(ctypes.Structure):  # Args and Rets
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    )


class _ByteSpan(ctypes.Structure):
    _fields_ = (("ptr", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Attrs(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("names", ctypes.c_void_p),
        ("attrs", ctypes.POINTER(ctypes.POINTER(_ByteSpan))),
    )


class _ErrorCreateArgs(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("errc", ctypes.c_int),
    )


class _Api(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("api_version", _ApiVersion),
        ("internal_api", ctypes.c_void_p),
        ("Error_Create", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_ErrorCreateArgs))),
    )


class _CallFrame(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.POINTER(_Extension)),
        ("api", ctypes.POINTER(_Api)),
        ("ctx", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("args", _Buffers),
        ("rets", _Buffers),
        ("attrs", _Attrs),
    )


def call(function: str, results: Any, arrays: dict[str, Any], options: str) -> Any:
    """Have XLA call `function`, "module:name", with these arrays and options by their names.

    `results` tells the shape and dtype of what it returns, an array or a tuple of them, and `options` is JSON. Under
    jax.vmap the function is called once for each element, all within one call of XLA.
    """
    text = json.dumps([function, list(arrays), [array.ndim for array in arrays.values()], json.loads(options)])
    return jax.ffi.ffi_call(TARGET, results, vmap_method="expand_dims")(*arrays.values(), call=text)


def _handle(pointer: Any) -> Any:
    """What XLA calls: returns null, or an error that XLA then owns."""
    frame = pointer.contents
    if frame.extension_start and frame.extension_start.contents.type == _METADATA:
        extension = ctypes.cast(frame.extension_start, ctypes.POINTER(_MetadataExtension))
        version = extension.contents.metadata.contents.api_version
        version.major_version, version.minor_version = _MAJOR, _MINOR
        return None
    if frame.stage != _EXECUTE:
        return None
    try:
        span = frame.attrs.attrs[0].contents
        _compute(
            ctypes.string_at(span.ptr, span.len), _arrays(frame.args, write=False), _arrays(frame.rets, write=True)
        )
    except BaseException as error:  # an exception cannot pass through XLA
        text = f"{type(error).__name__}: {error}".encode()
        new = _ErrorCreateArgs(ctypes.sizeof(_ErrorCreateArgs), None, text, _INVALID_ARGUMENT)
        return frame.api.contents.Error_Create(ctypes.byref(new))
    return None


def _arrays(buffers: Any, write: bool) -> list[np.ndarray[Any, Any]]:
    arrays = []
    for i in range(buffers.size):
        buffer = buffers.buffers[i].contents
        dtype, shape = np.dtype(_DTYPES[buffer.dtype]), tuple(buffer.dims[: buffer.rank])
        size = dtype.itemsize
        for length in shape:
            size *= length
        memory = (ctypes.c_char * size).from_address(buffer.data) if size else bytearray()
        array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, memory)
        array.flags.writeable = write
        arrays.append(array)
    return arrays


def _compute(call: bytes, arguments: list[Any], results: list[Any]) -> None:
    function, names, ranks, options = _parsed(call)
    batch = results[0].ndim and arguments[0].ndim - ranks[0]
    for index in np.ndindex(results[0].shape[:batch]):
        of_element = [
            # An argument without a batch has axes of length 1 in place of it.
            array[tuple(i if length > 1 else 0 for i, length in zip(index, array.shape, strict=False))]
            for array in arguments
        ]
        # Computed in float32: the CPU backend knows no bfloat16.
        of_element = [array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array for array in of_element]
        got = function(**dict(zip(names, of_element, strict=True)), **options)
        for result, value in zip(results, got if isinstance(got, tuple) else (got,), strict=True):
            result[index] = value


@functools.lru_cache(maxsize=256)
def _parsed(call: bytes) -> tuple[Callable[..., Any], list[str], list[int], dict[str, Any]]:
    function, names, ranks, options = json.loads(call)
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name), names, ranks, options


_handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))(_handle)  # must outlive all calls
_capsule: Any = jax.ffi.pycapsule
jax.ffi.register_ffi_target(TARGET, _capsule(_handler), platform="cpu")
