"""Streams and memory of calls on CUDA: which `cvops_cuda._device` enters, what it waits for, whose memory it takes.

CuPy needs a GPU. Here modules in its place write down what they are asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types

import numpy as np
import pytest

from cvops._arrays import Lender
from cvops._checks import CONVERSION
from tests.host_emulation import device


class Array:
    """An array of CuPy: where it lies is all that matters."""

    def __init__(self, shape, dtype, data, strides=None):
        self.shape, self.dtype, self.data, self.strides = shape, np.dtype(dtype), data, strides


class Pointer(types.SimpleNamespace):
    def __add__(self, offset):
        return Pointer(mem=self.mem, ptr=self.ptr + offset)

    def memset_async(self, value, size):
        """Nothing is there."""


class Gpu:
    """What CuPy is asked for, in `log`."""

    def __init__(self):
        self.log, self.capturing, self.stream, self.allocator = [], False, 5, "CuPy's allocator"

    def cupy(self):
        cupy = types.ModuleType("cupy")
        cupy.__version__, cupy.ndarray = "14.2.0", Array
        cupy.empty = cupy.zeros = self.array
        cupy.asarray = lambda array: self.array(array.shape, array.dtype)
        cupy.from_dlpack = lambda array: ("from_dlpack", array)
        cupy.get_default_memory_pool = lambda: types.SimpleNamespace(malloc="the default pool")
        runtime = types.SimpleNamespace(getDevice=lambda: 0, streamIsCapturing=lambda stream: self.capturing)
        cupy.cuda = types.SimpleNamespace(
            UnownedMemory=Unowned,
            MemoryPointer=lambda memory, offset: Pointer(mem=memory, ptr=memory.address + offset),
            Device=lambda number: self.entering("device", number),
            Stream=types.SimpleNamespace(from_external=lambda of: self.entering("stream", of.__cuda_stream__()[1])),
            runtime=runtime,
            get_current_stream=lambda: types.SimpleNamespace(ptr=self.stream, synchronize=self.synchronize),
            using_allocator=lambda allocator: self.entering("allocator", allocator),
        )
        return cupy

    @contextlib.contextmanager
    def entering(self, name, value):
        before = getattr(self, name, 0)
        setattr(self, name, value)
        yield
        setattr(self, name, before)

    def synchronize(self):
        self.log.append(("synchronize", self.stream))

    def array(self, shape, dtype):
        """From the allocator that is in force."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if callable(self.allocator):
            return Array(shape, dtype, self.allocator(size))
        self.log.append((self.allocator, size))
        return Array(shape, dtype, Pointer(mem=None, ptr=0))

    def lender(self, stream=7, **places):
        def empty(shape, dtype):
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            self.log.append(("torch.empty", size))
            return types.SimpleNamespace(nbytes=size)

        return Lender(stream, empty, lambda lent: 4096, lambda array: f"capsule of {array}", None, None, places.get)


class Unowned:
    def __init__(self, address, size, owner, device):
        self.address, self.size, self.owner, self.device = address, size, owner, device


@pytest.fixture
def gpu(monkeypatch):
    """`module` is `cvops_cuda._device` on CuPy's stand-in."""
    name, gpu = "cvops_cuda_on_a_log", Gpu()
    package = types.ModuleType(name)
    package.__path__ = [str(device.ROOT / "cvops_cuda")]
    for module, stand_in in {"cupy": gpu.cupy(), name: package}.items():
        monkeypatch.setitem(sys.modules, module, stand_in)
    gpu.module = importlib.import_module(f"{name}._device")
    yield gpu
    for module in [module for module in sys.modules if module.startswith(f"{name}.")]:
        del sys.modules[module]


def test_a_call_on_tensors_takes_their_memory(gpu):
    """All of it: results, workspace and what CuPy allocates itself, which keeps alive what was lent."""
    module, arrays = gpu.module, []
    with module.use_backend_of("backend", 0, gpu.lender(), False) as backend:
        assert (backend, gpu.stream) == ("backend", 7)
        arrays += [module.empty((2, 3), "float32"), *module.allocate((5, "int64"), (3, "uint8"), zeroed=1)]
        arrays += [module.zeros((4,), "float64")]
    assert gpu.log == [("torch.empty", 24), ("torch.empty", 64), ("torch.empty", 32)]
    assert all(array.data.mem.lent is not None for array in arrays)
    assert gpu.stream == 5
    gpu.log.clear()
    with module.use_backend_of("backend", 0, None, False):
        module.empty((2, 3), "float32"), module.zeros((4,), "float64")
    assert gpu.log == [("CuPy's allocator", 24), ("CuPy's allocator", 32)]


def test_tensors_are_taken_where_they_lie(gpu):
    """Without DLPack where the lender tells all that CuPy asks for; what is taken keeps them alive."""
    lender = gpu.lender(tensor=(4096, 24, (2, 3), "float32", None), view=(64, 12, (3, 2), "int16", [2, 6]))
    with gpu.module.use_backend_of("backend", 1, lender, False):
        tensor, view, other = (gpu.module.asarray(name, name) for name in ("tensor", "view", "other"))
    assert (tensor.shape, tensor.dtype, tensor.strides, tensor.data.ptr) == ((2, 3), "float32", None, 4096)
    assert (view.shape, view.dtype, view.strides, view.data.ptr) == ((3, 2), "int16", [2, 6], 64)
    of_view = view.data.mem
    assert (of_view.size, of_view.owner, of_view.device, hasattr(of_view, "lent")) == (12, "view", 1, False)
    assert other == ("from_dlpack", "capsule of other")


@pytest.mark.parametrize("kind", [TypeError, ValueError])
@pytest.mark.parametrize("lent", [False, True])
def test_errors_name_the_conversion_of_the_lender(gpu, lent, kind):
    with (
        pytest.raises(kind) as raised,
        gpu.module.use_backend_of("backend", 0, gpu.lender() if lent else None, False),
    ):
        raise kind(f"`boxes` must be float32, got bool: {CONVERSION}")
    assert str(raised.value).endswith("convert it with .to" if lent and kind is TypeError else CONVERSION)
    assert gpu.stream == 5


def test_a_call_within_a_call(gpu):
    """A finaliser or a signal handler may call while another call is at work."""
    module = gpu.module
    with module.use_backend_of("backend", 0, gpu.lender(), False):
        with contextlib.suppress(KeyError), module.use_backend_of("backend", 1, None, False):
            assert gpu.device == 1
            module.empty((4,), "float32"), module.zeros((4,), "float64")
            raise KeyError
        module.empty((2,), "float32")
        assert gpu.stream == 7
    assert gpu.log == [("the default pool", 16), ("the default pool", 32), ("torch.empty", 8)]


@pytest.mark.parametrize("error", [None, KeyError])
@pytest.mark.parametrize("foreign", [False, True])
def test_foreign_arrays_are_waited_for(gpu, foreign, error):
    """Also where the call fails, for it may have begun."""
    raises = pytest.raises(error) if error else contextlib.nullcontext()
    with raises, gpu.module.use_backend_of("backend", 0, None, foreign):
        assert gpu.log == []
        if error:
            raise error
    assert gpu.log == [("synchronize", 5)] * foreign


def test_what_is_uploaded_is_there_for_every_stream(gpu):
    """It is waited for, and lies in the default pool: neither the caller's nor torch's, which a graph may own."""
    array = np.zeros(6, "f")
    with gpu.entering("allocator", "the caller's allocator"):
        gpu.module.upload(array)
    with gpu.module.use_backend_of("backend", 0, gpu.lender(), False):
        gpu.module.upload(array)
    assert gpu.log == [("the default pool", 24), ("synchronize", 5), ("the default pool", 24), ("synchronize", 7)]


def test_nothing_is_uploaded_within_a_capture(gpu):
    gpu.capturing = True
    with pytest.raises(RuntimeError, match="call it before the capture"):
        gpu.module.upload(np.zeros(6, "f"))
    assert gpu.log == []
