"""The host twin of `cvops_cuda._device`: the same names on NumPy arrays, kernels run by `emulator.hpp`.

It is stricter than a GPU: new arrays hold 0xFF bytes, arrays that `asarray` brought may not be written, every array
lies between guard zones while a kernel runs, and `launches` tells what ran.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
import typing
from pathlib import Path
from typing import Any

import numpy as np

from cvops._arrays import share

ROOT = Path(__file__).parent.parent.parent
PACKAGE = "cvops_cuda_emulated"
COMPILE = [
    "g++",
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
    "-shared",
    "-fPIC",
    "-fno-strict-aliasing",
    "-w",
]

Array = Any  # in records: a pointer
_GUARD = 256

ignore_fp_errors = functools.partial(np.errstate, all="ignore")
launches: list[str] = []  # what the GPU would have been told to do, since somebody cleared it
seeds = [1]  # each launch of a kernel runs once for each; the results must be equal


capturing = False  # whether a graph is being captured, while nothing may wait for the device or be uploaded to it


@contextlib.contextmanager
def capture():
    """A graph is captured on the current stream: what CUDA forbids then raises."""
    global capturing
    capturing = True
    try:
        yield
    finally:
        capturing = False


def _wait(what):
    launches.append(what)
    assert not capturing, f"{what} while a graph is captured"


class OnGpu(np.ndarray):
    """An array of the GPU: to look at its values waits for it, and arrays of the host stay outside.

    CuPy uploads what is assigned, and takes arrays of the host nowhere else.
    """

    def _read(self, name, *args):
        _wait("read")
        return getattr(np.asarray(self), name)(*args)

    def __bool__(self):
        return self._read("__bool__")

    def __int__(self):
        return self._read("__int__")

    def __float__(self):
        return self._read("__float__")

    def __index__(self):
        return self._read("__index__")

    def item(self, *args):
        return self._read("item", *args)

    def tolist(self):
        return self._read("tolist")

    def __setitem__(self, key, value):
        if type(value) is np.ndarray:
            _wait("upload")
        super().__setitem__(key, value)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if any(type(each) is np.ndarray and each.ndim for each in inputs):
            raise TypeError(f"{ufunc.__name__} of arrays of the host and of the GPU")
        if out is not None:
            options["out"] = tuple(map(np.asarray, out))
        inputs = [np.asarray(each) if isinstance(each, OnGpu) else each for each in inputs]
        result = getattr(ufunc, method)(*inputs, **options)
        return np.asarray(result).view(OnGpu) if out is None else out[0]


class _Namespace:
    """NumPy for the arrays of the GPU, but for what is uploaded to it or waits for it."""

    def __getattr__(self, name):
        function = getattr(np, name)
        if not callable(function) or isinstance(function, type):
            return function
        waits = {"array": "upload", "asarray": "upload"} | dict.fromkeys(
            ("nonzero", "flatnonzero", "argwhere", "unique"), name
        )

        @functools.wraps(function)
        def on_gpu(*arguments, **options):
            if name in waits:
                _wait(waits[name])
            result = function(*arguments, **options)
            return result.view(OnGpu) if type(result) is np.ndarray else result

        return on_gpu


xp = _Namespace()


@contextlib.contextmanager
def use_backend_of(backend, device, lender, foreign):
    yield backend
    if foreign:
        _wait("synchronize")


def upload(array):
    _wait("upload")
    return copy(array)


def current_gpu():
    return 0


def to_host(array):
    _wait("to_host")
    return np.array(array)


def asarray(array, name):
    if getattr(getattr(array, "values", None), "dtype", None) == "bfloat16":  # NumPy does not share it
        view = array.values.view(OnGpu)
    else:
        view = share(array, name, np.from_dlpack).view(OnGpu)
    view.setflags(write=False)
    return view


def empty(shape, dtype):
    dtype, size = np.dtype(dtype), int(np.prod(shape))
    memory = np.full(size * dtype.itemsize + 64, 0xFF, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size * dtype.itemsize].view(dtype).reshape(shape).view(OnGpu)


def allocate(*arrays, zeroed=0):
    made = [empty((length,), dtype) for length, dtype in arrays]
    if zeroed:
        launches.append("zeros")
    for array in made[:zeroed]:
        array[...] = 0
    return made


def zeros(shape, dtype):
    launches.append("zeros")
    array = empty(shape, dtype)
    array[...] = 0
    return array


def contiguous(array):
    return array if array.flags.c_contiguous else copy(array)


def flat(array):
    strides = tuple(stride // array.itemsize for stride in array.strides)
    spans = [stride * (size - 1) for size, stride in zip(array.shape, strides, strict=True)]
    upwards = array[tuple(slice(None, None, -1 if span < 0 else None) for span in spans)]
    size = (sum(map(abs, spans)) + 1,)
    memory = np.lib.stride_tricks.as_strided(upwards, size, (array.itemsize,), writeable=False)
    return memory.view(OnGpu), -sum(span for span in spans if span < 0), strides


def copy(array):
    result = empty(array.shape, array.dtype)
    np.asarray(result)[...] = array
    return result


def converted(array, dtype):
    if array.dtype == dtype:
        return array
    launches.append("converted")
    result = empty(array.shape, dtype)
    with ignore_fp_errors():
        result[...] = array
    return result


def is_aligned(array):
    return array.ctypes.data % 16 == 0


def dtype_code(array):
    return _code_of(array.dtype)


@functools.cache
def _code_of(dtype):
    return sources().DTYPE_CODES[dtype.name]


def read(scalar):
    _wait("read")
    return int(np.asarray(scalar))


def order_of_keys(keys):
    assert keys.ndim == 1
    assert keys.dtype.kind == "u"
    launches.append("order_of_keys")
    return copy(np.argsort(keys, kind="stable"))


def matmul(a, b, out, accumulate):
    """By the numbers that cuBLAS would get, on columns as it has them; and they must be what was meant."""
    launches.append("matmul")
    a, b, out = map(np.asarray, (a, b, out))
    call = module("_products").product(a, b, out)
    assert a.dtype == b.dtype
    working = np.float64 if a.dtype == np.float64 else np.float32
    assert out.dtype in (a.dtype, working)
    assert call.out.as_it_is
    assert 0 < call.batch < 2**31
    sizes = [(call.rows, call.depth), (call.depth, call.columns), (call.rows, call.columns)]
    left, right, result = (
        _by_columns(*each, call.batch)
        for each in zip((b, a, out), (call.left, call.right, call.out), sizes, strict=True)
    )
    for one, other in ((left, b), (right, a), (result, out)):
        np.testing.assert_array_equal(one, np.broadcast_to(other, (call.batch, *other.shape[-2:])).swapaxes(1, 2))
    with np.errstate(all="ignore"):
        sums = np.matmul(left.astype(working), right.astype(working))
        if accumulate:
            sums += result
        result[...] = sums


def convolve(input, weight, bias, stride, padding):
    """Nobody lends a convolution here."""


def _by_columns(array, operand, size, batch):
    """A batch of matrices of `size` in the memory of `array`, as a BLAS reads it: column after column."""
    shape = size if operand.as_it_is else size[::-1]
    assert operand.column_stride >= shape[0]
    strides = (size * array.itemsize for size in (operand.matrix_stride, 1, operand.column_stride))
    matrices = np.lib.stride_tricks.as_strided(array, (batch, *shape), tuple(strides))
    return matrices if operand.as_it_is else matrices.swapaxes(1, 2)


def launch(file, kernel, dtype, blocks, threads, record):
    launches.append(kernel)
    assert 0 < blocks < 2**31
    assert 0 < threads <= 1024
    arrays = list(_arrays(record))
    for i, j in itertools.permutations(range(len(arrays)), 2):
        shared = arrays[i].flags.writeable and np.may_share_memory(arrays[i], arrays[j])
        assert not shared, f"{kernel}: arrays {i} and {j} share memory"
    before = [array.copy() for array in arrays]
    for seed in seeds:
        after = _run(library(file, dtype), kernel, blocks, threads, seed, record, arrays, before)
        if seed != seeds[0]:
            for array, result in zip(arrays, after, strict=True):
                assert array.tobytes() == result.tobytes(), f"{kernel}: the schedule decides the result"
        for array, result in zip(arrays, after, strict=True):
            if array.flags.writeable:
                np.asarray(array)[...] = result


def _arrays(record):
    """The arrays in a record and in those within it."""
    for value in record:
        if isinstance(value, tuple):
            yield from _arrays(value)
        elif not isinstance(value, int | float | bytes | None):
            yield value


def sources():
    """The module `_sources` of the package."""
    return module("_sources")


def _run(loaded, kernel, blocks, threads, seed, record, arrays, before):
    """Run once on copies of the arrays between guard zones, and return the copies."""
    guarded, addresses = [], {}
    for array, copied in zip(arrays, before, strict=True):
        assert array.flags.c_contiguous, f"{kernel}: an array that is not contiguous"
        memory = np.full(copied.nbytes + 2 * _GUARD, 0xFF, np.uint8)
        inside = memory[_GUARD : _GUARD + copied.nbytes].view(copied.dtype).reshape(copied.shape)
        inside[...] = copied
        guarded.append((memory, inside, array))
        addresses[id(array)] = memory.ctypes.data + _GUARD
    packed = module("_records").pack(record, lambda array: addresses[id(array)])
    function = getattr(loaded, f"run_{kernel}")
    function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_uint] * 3]
    problem = function(packed, len(packed), blocks, threads, seed)
    assert not problem, f"{kernel}: {problem.decode()}"
    for number, (memory, inside, value) in enumerate(guarded):
        assert (memory[:_GUARD] == 0xFF).all(), f"{kernel}: array {number} is written before its start"
        assert (memory[_GUARD + inside.nbytes :] == 0xFF).all(), f"{kernel}: array {number} is written after its end"
        unchanged = value.flags.writeable or inside.tobytes() == value.tobytes()
        assert unchanged, f"{kernel}: array {number} is an input and is written"
    return [inside for _, inside, _ in guarded]


@functools.cache
def library(file, dtype):
    """The kernels of `kernels/<file>.cu` compiled for the host."""
    return build(sources().source(file), sources().options(file, dtype), module(f"_{file}"))


_KERNEL = re.compile(
    r'^extern "C" __global__ void __launch_bounds__\(.*\)(?: *//.*)?\s+(\w+)\(const (\w+) ', re.MULTILINE
)


def kernels(source):
    """The kernels in a text, by name, each with the struct that it takes."""
    return dict(_KERNEL.findall(source))


def build(source, options, launchers):
    """A text of kernels compiled for the host, in a folder that lasts as long as the process.

    The structs that they take are compared with the records of the same names in the module of their launchers.
    """
    stem = Path(tempfile.mkdtemp(prefix="cvops-emulation-")) / "kernels"
    atexit.register(shutil.rmtree, stem.parent, ignore_errors=True)
    records = {}
    for name in kernels(source).values():
        _add_record(records, getattr(launchers, name))
    lines = ['#include "emulator.hpp"', source, *(f"KERNEL({name})" for name in kernels(source))]
    for name, fields in records.items():
        lines.append(f"LAYOUT({name}, {', '.join(f'FIELD({name}, {field})' for field, *_ in fields[:-1])})")
    stem.with_suffix(".cpp").write_text("\n".join(lines))
    command = [
        *COMPILE,
        *options,
        f"-I{Path(__file__).parent}",
        "-o",
        stem.with_suffix(".so"),
        stem.with_suffix(".cpp"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(stem.with_suffix(".so")))
    for name, fields in records.items():
        layout = (_Field * len(fields)).in_dll(loaded, f"layout_{name}")
        got = [(field.name.decode(), field.offset, field.size, field.kind.decode()) for field in layout]
        assert got == fields, f"{name} of the launcher is not as the struct of the kernels"
    return loaded


class _Field(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p), ("offset", ctypes.c_size_t), ("size", ctypes.c_size_t), ("kind", ctypes.c_char)
    )  # fmt: skip


def _add_record(records, record):
    """(name, offset, size, kind) of each field of a record and of those within it, as `Field` in emulator.hpp."""
    fields, offset = [], 0
    for name, annotation in typing.get_type_hints(record).items():
        single, *others = typing.get_args(annotation) or [annotation]
        assert all(other is single for other in others), f"{record.__name__}.{name}: an array of different things"
        size, kind = 8, {int: "l", float: "d", Any: "p"}.get(single, "s")
        if kind == "s":
            _add_record(records, single)
            size = records[single.__name__][-1][2]
        fields.append((name, offset, size * (1 + len(others)), kind))
        offset += fields[-1][2]
    records[record.__name__] = [*fields, ("", 0, offset, "s")]


def module(name):
    """A module of the package."""
    load()
    return importlib.import_module(f"{PACKAGE}.{name}")


def load():
    """A second copy of the package `cvops_cuda`, under the name PACKAGE, on this module instead of `_device`."""
    if PACKAGE not in sys.modules:
        place = ROOT / "cvops_cuda" / "__init__.py"
        spec = importlib.util.spec_from_file_location(PACKAGE, place, submodule_search_locations=[str(place.parent)])
        package = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = package
        sys.modules[f"{PACKAGE}._device"] = sys.modules[__name__]
        spec.loader.exec_module(package)
    return sys.modules[PACKAGE]
