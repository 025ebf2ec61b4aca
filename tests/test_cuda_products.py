"""Products of matrices on CUDA: what cuBLAS is told, by the host twin of `matmul` and by `matmul` itself.

CuPy and cuBLAS need a GPU. Here modules in their place take the calls that CuPy 14.2 would take, and compute what the
documentation of cublasGemmEx says, in the memory to which the arguments point.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import types

import numpy as np
import pytest

from cvops import _arrays
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
def test_matmul_of_16_bit_numbers_sums_in_float32(emulated, ml_dtypes, dtype):
    dtype = np.float16 if dtype == "e" else ml_dtypes.bfloat16
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
    """The functions of cuBLAS that are used, with its parameters. Each call must come with a stream and memory."""

    def __init__(self):
        self.modes, self.batches, self.given = [], [], set()

    def cublasCreate_v2(self, handle):
        handle._obj.value = 17
        return 0

    def cublasSetMathMode(self, handle, mode):
        self.modes.append(mode)
        return 0

    def cublasSetStream_v2(self, handle, stream):
        assert (handle.value, stream) == (17, 5)
        self.given = {"stream"}  # which makes cuBLAS forget the memory
        return 0

    def cublasSetWorkspace_v2(self, handle, address, size):
        assert address
        assert size == 32 << 20
        self.given.add("workspace")
        return 0

    def cublasGemmStridedBatchedEx(
        self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB,
        beta, C, Ctype, ldc, strideC, batchCount, computeType, algo,
    ):  # fmt: skip
        assert handle.value == 17
        assert algo == -1
        assert self.given == {"stream", "workspace"}
        self.batches.append(batchCount)
        real = {68: np.float32, 70: np.float64}[computeType]
        factors = [np.frombuffer((ctypes.c_char * real().itemsize).from_address(at), real)[0] for at in (alpha, beta)]
        for i in range(batchCount):
            left = _by_columns(A, Atype, i * strideA, *((k, m) if transa else (m, k)), lda)
            right = _by_columns(B, Btype, i * strideB, *((n, k) if transb else (k, n)), ldb)
            out = _by_columns(C, Ctype, i * strideC, m, n, ldc)
            sums = (left.T if transa else left).astype(real) @ (right.T if transb else right).astype(real)
            out[...] = factors[0] * sums + (factors[1] * out.astype(real) if factors[1] else 0)
        return self.status

    status = 0


def _by_columns(address, data_type, start, rows, columns, column_stride):
    assert column_stride >= rows
    dtype = {0: np.dtype("f"), 1: np.dtype("d"), 2: np.dtype("e"), 14: _bfloat16()}[data_type]
    size = (columns - 1) * column_stride + rows
    memory = (ctypes.c_char * (size * dtype.itemsize)).from_address(address + start * dtype.itemsize)
    strides = dtype.itemsize, column_stride * dtype.itemsize
    return np.lib.stride_tricks.as_strided(np.frombuffer(memory, dtype), (rows, columns), strides)


def _bfloat16():
    return np.dtype(require("ml_dtypes").bfloat16)


@pytest.fixture
def gpu(monkeypatch, ml_dtypes):
    """`cvops_cuda._device` on modules in place of CuPy's; `blas` records, `capability` may be set."""
    name = "cvops_cuda_without_a_gpu"
    cupy = types.ModuleType("cupy")
    cupy.__version__, cupy.ndarray = "14.2.0", np.ndarray
    cupy.cuda = types.SimpleNamespace(
        UnownedMemory=object,
        device=types.SimpleNamespace(get_compute_capability=lambda: gpu.capability),
        runtime=types.SimpleNamespace(getDevice=lambda: 0),
        get_current_stream=lambda: types.SimpleNamespace(ptr=5),
    )
    cupy.empty = lambda shape, dtype: np.empty(shape, dtype).view(Memory)
    package = types.ModuleType(name)
    package.__path__ = [str(device.ROOT / "cvops_cuda")]
    for module, stand_in in {"cupy": cupy, name: package}.items():
        monkeypatch.setitem(sys.modules, module, stand_in)
    loaded = importlib.import_module(f"{name}._device")
    gpu = types.SimpleNamespace(device=loaded, matmul=loaded.matmul, blas=Blas(), capability="90")
    monkeypatch.setattr(loaded, "_blas", lambda: gpu.blas)
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
    assert gpu.blas.modes == [16]  # sums in float32, no TF32; of a handle that nobody else has


def test_a_failure_of_cublas(gpu):
    gpu.blas.status = 13
    with pytest.raises(RuntimeError, match="cuBLAS failed with status 13"):
        gpu.matmul(*(np.ones((2, 2), "f").view(Memory) for _ in range(3)), False)


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


# --------------------------------------------------------------------------------------------- what torch lends


class Lendable(np.ndarray):
    """An array that is exported as CuPy exports its own: with a stream that is not to be waited for."""

    def __dlpack__(self, *, stream):
        assert stream == -1
        return np.asarray(self).__dlpack__()


@pytest.fixture
def lender(torch):
    return _arrays._torch_lends("cpu")(7)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("of_a", LAYOUTS)
@pytest.mark.parametrize("of_b", LAYOUTS)
def test_products_of_torch(lender, of_a, of_b, accumulate):
    """The same operands as for cuBLAS; what is not accumulated may be NaN before."""
    for m, k, n in SIZES:
        for batch in ((), (1,), (2,)):
            a, b = strided((*batch, m, k), of_a, "d").view(Lendable), strided((k, n), of_b, "d").view(Lendable)
            if batch:
                a, b = a[0], np.stack([b] * batch[0]).view(Lendable)
            before = 7 if accumulate else np.nan
            out = np.full((*batch, m, n + 2), before, "d")
            lender.multiply(a, b, out[..., :n].view(Lendable), accumulate)
            np.testing.assert_array_equal(out[..., :n], a @ b + 7 * accumulate)
            np.testing.assert_array_equal(out[..., n:], before)


def test_convolution_of_torch(lender):
    rng = np.random.default_rng(0)
    input, weight, bias = (rng.normal(size=s).view(Lendable) for s in ((2, 3, 7, 8), (4, 3, 3, 3), (4,)))
    got = lender.convolve(input, weight, bias, (2, 1), (1, 0)).numpy()
    padded = np.pad(input, ((0, 0), (0, 0), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2]
    np.testing.assert_allclose(got, np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None], rtol=1e-12)
    channels_last = np.ascontiguousarray(input.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2).view(Lendable)
    again = lender.convolve(channels_last, weight, bias, (2, 1), (1, 0))
    assert again.is_contiguous()


def test_a_tensor_whose_sign_is_put_off_is_shared_as_it_is_to_be_read(lender, torch):
    """DLPack would show the memory."""
    values = torch.tensor([1.0, -2.0])
    assert torch.from_dlpack(lender.export(torch._neg_view(values))).tolist() == [-1, 2]
    assert torch.from_dlpack(lender.export(values)).data_ptr() == values.data_ptr()


def test_where_a_tensor_lies(lender, torch):
    """What CuPy needs to make the array that DLPack would: all but what has another sign or dtype than it knows."""
    base = torch.arange(24.0).reshape(2, 3, 4)
    for dtype in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8"):
        whole = base.to(getattr(torch, dtype))
        views = whole, whole[1:, :, ::2], whole.permute(2, 0, 1), whole[:, 1, 2], whole[:1, :1].expand(5, 2, 4)
        for tensor in (*views, whole[1, 2, 3], whole[:0], whole[:, :0, 1]):
            address, size, shape, name, strides = lender.locate(tensor)
            assert (address, size, name) == (tensor.data_ptr(), tensor.nbytes, dtype)
            want = tensor.numpy()
            assert shape == want.shape
            if want.size:
                assert want.__array_interface__["data"][0] == address
                assert want.flags.c_contiguous if strides is None else want.strides == tuple(strides)
    for other in (base.bfloat16(), base > 3, base.to(torch.complex64), torch._neg_view(base)):
        assert lender.locate(other) is None


class OnGpu(types.SimpleNamespace):
    __cuda_array_interface__ = None


def native(tensor, dtype, shape, strides, offset):
    """What the backend returns: a part of the memory of a tensor."""
    data = types.SimpleNamespace(ptr=tensor.data_ptr() + offset, mem=types.SimpleNamespace(lent=tensor))
    dtype = np.dtype(dtype)
    return OnGpu(data=data, dtype=dtype, itemsize=dtype.itemsize, shape=shape, strides=strides)


def test_results_are_tensors_that_own_their_memory(lender):
    """So that torch knows who uses it: record_stream, and the pool of a graph."""
    whole = lender.empty((6, 4), "float32")
    assert _arrays.to_caller(native(whole, "f4", (6, 4), (16, 4), 0), whole) is whole
    part = _arrays.to_caller(native(whole, "f4", (2, 4), (16, 4), 32), whole)
    assert part.data_ptr() == whole.data_ptr() + 32
    assert part.untyped_storage().data_ptr() == whole.data_ptr()
    assert (part.shape, part.stride()) == ((2, 4), (4, 1))
    raw = lender.empty((96,), "uint8")  # as CuPy allocates what it computes itself
    for name, dtype, shape, strides in (
        ("int64", "i8", (3,), (8,)),
        ("float64", "f8", (), ()),
        ("bool", "?", (5,), (1,)),
    ):
        other = _arrays.to_caller(native(raw, dtype, shape, strides, 8), whole)
        assert str(other.dtype) == f"torch.{name}"
        assert other.shape == shape
        assert other.data_ptr() == raw.data_ptr() + 8
