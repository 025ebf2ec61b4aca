"""Products of matrices on CUDA: what cuBLAS is told, by the host twin of `matmul` and by `matmul` itself.

CuPy and cuBLAS need a GPU. Here modules in their place take the calls that CuPy 14.2 would take, and compute what the
documentation of cublasGemmEx says, in the memory to which the arguments point.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest

from tests.host_emulation import device
from tests.libraries import require


def strided(shape, layout, dtype):
    """Random matrices: contiguous, transposed, a slice of wider rows, or that transposed."""
    values = np.random.default_rng(0).integers(-4, 5, shape).astype(dtype)
    wider = np.zeros((*shape[:-2], shape[-2], shape[-1] + 3), dtype)
    if "transposed" in layout:
        wider = np.zeros((*shape[:-2], shape[-1], shape[-2] + 3), dtype).swapaxes(-1, -2)
        view = wider[..., : shape[-2], :]
    else:
        view = wider[..., : shape[-1]]
    if "sliced" in layout:
        view[...] = values
        return view
    return np.ascontiguousarray(values.swapaxes(-1, -2)).swapaxes(-1, -2) if "transposed" in layout else values


LAYOUTS = ["contiguous", "transposed", "sliced", "sliced and transposed"]


SIZES = [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 5), (1, 4, 1), (3, 1, 1), (1, 1, 1)]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("of_a", LAYOUTS)
@pytest.mark.parametrize("of_b", LAYOUTS)
@pytest.mark.parametrize(
    "size", [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 5), (1, 4, 1), (3, 1, 1), (1, 1, 1)]
)
def test_matmul(emulated, of_a, of_b, size, accumulate):
    """`device.matmul` computes what cuBLAS would from the numbers that `product` gives."""
    m, k, n = size
    device.load()
    for batch in ((), (1,), (2,)):
        a, b = strided((*batch, m, k), of_a, "f"), strided((*batch, k, n), of_b, "f")
        for out in (np.full((*batch, m, n), 7, "f"), np.full((*batch, m, n + 2), 7, "f")[..., :n]):
            device.matmul(a, b, out, accumulate)
            np.testing.assert_array_equal(out, a @ b + 7 * accumulate)


def test_matmul_uses_one_matrix_for_a_whole_batch(emulated):
    device.load()
    a, b = strided((3, 4), "contiguous", "f"), strided((2, 4, 5), "transposed", "f")
    out = np.empty((2, 3, 5), "f")
    device.matmul(a, b, out, False)
    np.testing.assert_array_equal(out, a @ b)


@pytest.mark.parametrize("dtype", ["e", "E"])
def test_matmul_of_16_bit_numbers_sums_in_float32(emulated, dtype):
    dtype = np.float16 if dtype == "e" else require("ml_dtypes").bfloat16
    device.load()
    for kind in (dtype, np.float32):
        out = np.ones((1, 1), kind)
        device.matmul(np.full((1, 4096), 0.5, dtype), np.ones((4096, 1), dtype), out, False)
        assert out == 2048


# ----------------------------------------------------------------------------------------------- in place of CuPy


class Memory(np.ndarray):
    """An array that tells its address as CuPy's do."""

    data = property(lambda self: types.SimpleNamespace(ptr=self.ctypes.data))


class Blas:
    """The functions of `cupy_backends.cuda.libs.cublas` that are used, with its parameters."""

    CUBLAS_GEMM_DEFAULT = -1

    def __init__(self):
        self.mode, self.modes, self.batches = 3, [], []

    def getMathMode(self, handle):
        return self.mode

    def setMathMode(self, handle, mode):
        self.mode = mode

    def gemmEx(
        self,
        handle,
        transa,
        transb,
        m,
        n,
        k,
        alpha,
        A,
        Atype,
        lda,
        B,
        Btype,
        ldb,
        beta,
        C,
        Ctype,
        ldc,
        computeType,
        algo,
    ):
        self.gemmStridedBatchedEx(
            handle, transa, transb, m, n, k, alpha, A, Atype, lda, 0, B, Btype, ldb, 0, beta, C, Ctype, ldc, 0,
            1, computeType, algo,
        )  # fmt: skip

    def gemmStridedBatchedEx(
        self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB,
        beta, C, Ctype, ldc, strideC, batchCount, computeType, algo,
    ):  # fmt: skip
        assert handle == 17
        assert algo == self.CUBLAS_GEMM_DEFAULT
        self.modes.append(self.mode)
        self.batches.append(batchCount)
        real = {68: np.float32, 70: np.float64}[computeType]
        factors = [np.frombuffer((ctypes.c_char * real().itemsize).from_address(at), real)[0] for at in (alpha, beta)]
        for i in range(batchCount):
            left = _by_columns(A, Atype, i * strideA, *((k, m) if transa else (m, k)), lda)
            right = _by_columns(B, Btype, i * strideB, *((n, k) if transb else (k, n)), ldb)
            out = _by_columns(C, Ctype, i * strideC, m, n, ldc)
            sums = (left.T if transa else left).astype(real) @ (right.T if transb else right).astype(real)
            out[...] = factors[0] * sums + (factors[1] * out.astype(real) if factors[1] else 0)


def _by_columns(address, data_type, start, rows, columns, pitch):
    assert pitch >= rows
    dtype = {0: np.dtype("f"), 1: np.dtype("d"), 2: np.dtype("e"), 14: _bfloat16()}[data_type]
    size = (columns - 1) * pitch + rows
    memory = (ctypes.c_char * (size * dtype.itemsize)).from_address(address + start * dtype.itemsize)
    strides = dtype.itemsize, pitch * dtype.itemsize
    return np.lib.stride_tricks.as_strided(np.frombuffer(memory, dtype), (rows, columns), strides)


def _bfloat16():
    return np.dtype(require("ml_dtypes").bfloat16)


@pytest.fixture
def gpu(monkeypatch):
    """`cvops_cuda._device` on modules in place of CuPy's; `blas` records, `capability` may be set."""
    name = "cvops_cuda_without_a_gpu"
    place = types.SimpleNamespace(get_cublas_handle=lambda: 17, get_compute_capability=lambda: gpu.capability)
    cuda = types.SimpleNamespace(device=place)
    cupy = types.ModuleType("cupy")
    cupy.__version__, cupy.ndarray, cupy.cuda = "14.2.0", np.ndarray, cuda
    cupy.empty = lambda shape, dtype: np.empty(shape, dtype).view(Memory)
    libs = types.ModuleType("cupy_backends.cuda.libs")
    libs.cublas = Blas()
    modules = {"cupy": cupy, "cupy_backends.cuda.libs": libs, "cupy_backends.cuda.libs.cublas": libs.cublas}
    for parent in ("cupy_backends", "cupy_backends.cuda"):
        modules[parent] = types.ModuleType(parent)
    package = types.ModuleType(name)
    package.__path__ = [str(device.ROOT / "cvops_cuda")]
    for module, stand_in in {**modules, name: package}.items():
        monkeypatch.setitem(sys.modules, module, stand_in)
    loaded = importlib.import_module(f"{name}._device")
    gpu = types.SimpleNamespace(matmul=loaded.matmul, blas=libs.cublas, capability="90")
    yield gpu
    for module in [module for module in sys.modules if module.startswith(f"{name}.")]:
        del sys.modules[module]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("of_a", LAYOUTS)
@pytest.mark.parametrize("of_b", LAYOUTS)
def test_what_cublas_is_told(gpu, of_a, of_b, accumulate):
    for m, k, n in SIZES:
        for batch in ((), (1,), (2,)):
            a, b = strided((*batch, m, k), of_a, "d").view(Memory), strided((*batch, k, n), of_b, "d").view(Memory)
            out = np.full((*batch, m, n + 2), 7, "d")
            gpu.matmul(a, b, out[..., :n].view(Memory), accumulate)
            np.testing.assert_array_equal(out[..., :n], a @ b + 7 * accumulate)
            assert (out[..., n:] == 7).all()
            assert gpu.blas.batches.pop() == (batch or (1,))[0]
    assert set(gpu.blas.modes) == {16}  # sums in float32, no TF32; and after the call what was set before
    assert gpu.blas.mode == 3


@pytest.mark.parametrize("capability", ["75", "90"])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("to", ["like a", "f"])
@pytest.mark.parametrize("dtype", ["f", "e", "E"])
def test_dtypes_that_cublas_is_told(gpu, dtype, to, accumulate, capability):
    """Before compute capability 8.0 there are no products of bfloat16: they are float32 then."""
    gpu.capability = capability
    dtype = _bfloat16() if dtype == "E" else np.dtype(dtype)
    a, b = strided((2, 3, 4), "sliced", dtype).view(Memory), strided((4, 5), "transposed", dtype).view(Memory)
    out = np.full((2, 3, 5), 7, dtype if to == "like a" else "f").view(Memory)
    gpu.matmul(a, b, out, accumulate)
    want = np.asarray(a, "f") @ np.asarray(b, "f") + 7 * accumulate
    np.testing.assert_array_equal(np.asarray(out, "f"), want)
