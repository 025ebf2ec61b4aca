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
from pathlib import Path

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

xp = np
Array = np.ndarray
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
    return array.copy()


def asarray(array, name):
    if getattr(getattr(array, "values", None), "dtype", None) == "bfloat16":  # NumPy does not share it
        view = array.values.view()
    else:
        view = share(array, name, np.from_dlpack).view()
    view.setflags(write=False)
    return view


def empty(shape, dtype):
    dtype, size = np.dtype(dtype), int(np.prod(shape))
    memory = np.full(size * dtype.itemsize + 64, 0xFF, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size * dtype.itemsize].view(dtype).reshape(shape)


def zeros(shape, dtype):
    launches.append("zeros")
    array = empty(shape, dtype)
    array[...] = 0
    return array


def contiguous(array):
    return np.ascontiguousarray(array)


def copy(array):
    result = empty(array.shape, array.dtype)
    result[...] = array
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
    return int(scalar)


def order_of_keys(keys):
    assert keys.ndim == 1
    assert keys.dtype.kind == "u"
    launches.append("order_of_keys")
    return copy(np.argsort(keys, kind="stable"))


def matmul(a, b, out, accumulate):
    """By the numbers that cuBLAS would get, on columns as it has them; and they must be what was meant."""
    launches.append("matmul")
    call = importlib.import_module(f"{PACKAGE}._products").product(a, b, out)
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
    assert operand.pitch >= shape[0]
    strides = (size * array.itemsize for size in (operand.step, 1, operand.pitch))
    matrices = np.lib.stride_tricks.as_strided(array, (batch, *shape), tuple(strides))
    return matrices if operand.as_it_is else matrices.swapaxes(1, 2)


def launch(file, kernel, dtype, blocks, threads, *arguments):
    launches.append(kernel)
    assert 0 < blocks < 2**31
    assert 0 < threads <= 1024
    arrays = [value for value in arguments if isinstance(value, np.ndarray)]
    for i, j in itertools.permutations(range(len(arrays)), 2):
        shared = arrays[i].flags.writeable and np.may_share_memory(arrays[i], arrays[j])
        assert not shared, f"{kernel}: arrays {i} and {j} share memory"
    before = [array.copy() for array in arrays]
    for seed in seeds:
        after = _run(library(file, dtype), kernel, blocks, threads, seed, arguments, before)
        if seed != seeds[0]:
            for array, result in zip(arrays, after, strict=True):
                assert array.tobytes() == result.tobytes(), f"{kernel}: the schedule decides the result"
        for array, result in zip(arrays, after, strict=True):
            if array.flags.writeable:
                array[...] = result


def sources():
    """The module `_sources` of the package."""
    load()
    return importlib.import_module(f"{PACKAGE}._sources")


def _run(loaded, kernel, blocks, threads, seed, arguments, before):
    """Run once on copies of the arrays between guard zones, and return the copies."""
    kinds, values, guarded, copies = "", [], [], iter(before)
    for value in arguments:
        if value is None or isinstance(value, np.ndarray):
            address = None
            if value is not None:
                assert value.flags.c_contiguous, f"{kernel}: an array that is not contiguous"
                copied = next(copies)
                memory = np.full(copied.nbytes + 2 * _GUARD, 0xFF, np.uint8)
                inside = memory[_GUARD : _GUARD + copied.nbytes].view(copied.dtype).reshape(copied.shape)
                inside[...] = copied
                guarded.append((memory, inside, value))
                address = memory.ctypes.data + _GUARD
            kinds += "p"
            values.append(ctypes.c_void_p(address))
        else:
            kinds += "l" if isinstance(value, int) else "d"
            values.append(ctypes.c_longlong(value) if isinstance(value, int) else ctypes.c_double(value))
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    function = getattr(loaded, f"run_{kernel}")
    function.restype = ctypes.c_char_p
    problem = function(kinds.encode(), pointers, blocks, threads, seed)
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
    return build(sources().source(file), dtype)


def kernels(source):
    """Names of the kernels in a text: each begins a line of its own."""
    return re.findall(r'^extern "C" __global__ void .*\n(\w+)\(', source, re.MULTILINE)


def build(source, dtype):
    """A text of kernels compiled for the host, in a folder that lasts as long as the process."""
    stem = Path(tempfile.mkdtemp(prefix="cvops-emulation-")) / "kernels"
    atexit.register(shutil.rmtree, stem.parent, ignore_errors=True)
    lines = ['#include "emulator.hpp"', source, *(f"KERNEL({name})" for name in kernels(source))]
    stem.with_suffix(".cpp").write_text("\n".join(lines))
    command = [*COMPILE, "-shared", "-fPIC", f"-DELEMENT={sources().ELEMENTS[dtype]}", f"-I{Path(__file__).parent}"]
    subprocess.run([*command, "-o", stem.with_suffix(".so"), stem.with_suffix(".cpp")], check=True)
    return ctypes.CDLL(str(stem.with_suffix(".so")))


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
