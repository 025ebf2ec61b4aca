"""Host time of calls on CUDA tensors, measured without a GPU: `python -m benchmarks.stand_in`.

CuPy and torch are the real ones, and so is all that cvops does; tensors of the CPU pose as CUDA's, and devices, streams
and launches do nothing. So these are microseconds of Python, without those of the driver, of CuPy's switches of stream
and of its launch: they tell what a change to cvops does, and are no substitute for the rows "host time" of
`python -m benchmarks gpu`. Each line gives a call's time, what of it others take, and the rest.
"""

from __future__ import annotations

import ctypes
import sys
import timeit
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from .gpu import load

CUDA = 2  # DLPack's number of the kind of device
OTHERS = """others: torch and CuPy alone, for two tensors looked at and taken in and one made for the result;
of a launcher, whose arrays are there, for its results, one of roi_align and two of nms"""
NUMBER, REPEATS = 20, 1000
RESULTS = {"launcher of roi_align": 1, "launcher of nms": 2}  # how many a launcher makes


class Nothing:
    """A device, a stream or a kernel that does nothing."""

    ptr = 0

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def __call__(self, *_: Any) -> None:
        """Launch nothing."""


class Exported(ctypes.Structure):
    """The beginning of what a DLPack capsule points to."""

    _fields_ = (("data", ctypes.c_void_p), ("device_type", ctypes.c_int), ("device", ctypes.c_int))


def install() -> None:
    """Put the stand-in in place, for the life of the process."""
    cupy, torch = load("cupy"), load("torch")
    to_dlpack, pointer_of = torch.utils.dlpack.to_dlpack, ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

    def export(tensor: Any) -> Any:
        capsule = to_dlpack(tensor)
        ctypes.cast(pointer_of(capsule, b"dltensor"), ctypes.POINTER(Exported))[0].device_type = CUDA
        return capsule

    torch.utils.dlpack.to_dlpack = export
    torch.Tensor.is_cpu, torch.Tensor.is_cuda = property(lambda _: False), property(lambda _: True)
    torch.Tensor.get_device = lambda _: 0
    torch._C._cuda_getCurrentRawStream = lambda _: 0
    stream = Nothing()
    cupy.cuda.Device, cupy.cuda.get_current_stream = Nothing, lambda: stream
    cupy.cuda.Stream = SimpleNamespace(from_external=lambda _: stream)
    cupy.cuda.runtime.getDevice = lambda: 0
    arrays, device = load("cvops._arrays"), load("cvops_cuda._device")
    keys, keys_of = max(arrays.keys_of_plain_tensors("CUDA")), torch._C._dispatch_keys
    posed = SimpleNamespace(raw_repr=lambda: keys)
    torch._C._dispatch_keys = lambda tensor: keys_of(tensor) and posed
    lend = arrays._torch_lends("cpu")
    arrays._torch_lends, device._kernel = (lambda _: lend), (lambda *_: stream)


def calls() -> dict[str, Callable[[], Any]]:
    """Small calls of the plain functions and of cvops.torch."""
    cvops, torch, ops = load("cvops"), load("torch"), load("cvops.torch")
    maps, rois = torch.zeros(1, 8, 50, 50), torch.rand(4, 5)
    boxes, scores = torch.rand(100, 4), torch.rand(100)
    return {
        "cvops.roi_align": lambda: cvops.roi_align(maps, rois, 7, 0.25, 2),
        "cvops.torch.roi_align": lambda: ops.roi_align(maps, rois, 7, 0.25, 2),
        "cvops.nms, padded": lambda: cvops.nms(boxes, scores, 0.5, padded=True),
        "cvops.torch.nms, padded": lambda: ops.nms(boxes, scores, 0.5, padded=True),
        "launcher of roi_align": launcher("roi_align", maps, rois, (7, 7), 0.25, 2, False),
        "launcher of nms": launcher("nms", boxes, scores, 0.5, None, None, True),
    }


def launcher(name: str, first: Any, second: Any, *options: Any) -> Callable[[], Any]:
    """A call of the backend on arrays of CuPy, whose memory is torch's as within a call on tensors."""
    device, backend = load("cvops_cuda._device"), load("cvops_cuda")
    lender = load("cvops._arrays")._torch_lends("cuda:0")(0)
    device._thread.lender = lender
    natives = [device.asarray(tensor, "tensor") for tensor in (first, second)]
    device._thread.lender = None

    def call() -> None:
        device._thread.lender = lender
        getattr(backend, name)(*natives, *options)
        device._thread.lender = None

    return call


def foreign() -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What torch and CuPy do of a call of two tensors and one result, whoever calls them, and of the result alone."""
    cupy, torch = load("cupy"), load("torch")
    one, two = torch.zeros(1, 8, 50, 50), torch.rand(4, 5)
    dtype = load("numpy").dtype("f")

    def result() -> None:
        lent = torch.empty((4, 8, 7, 7), dtype=torch.float32)
        memory = cupy.cuda.UnownedMemory(lent.data_ptr(), lent.nbytes, lent, 0)
        cupy.ndarray((4, 8, 7, 7), dtype, cupy.cuda.MemoryPointer(memory, 0))

    def call() -> None:
        torch.compiler.is_compiling()
        for tensor in (one, two):
            torch._C._dispatch_keys(tensor).raw_repr(), tensor.is_neg(), tensor.is_contiguous()
            memory = cupy.cuda.UnownedMemory(tensor.data_ptr(), tensor.nbytes, tensor, 0)
            cupy.ndarray(tensor.shape, dtype, cupy.cuda.MemoryPointer(memory, 0))
        with cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc):
            result()

    return call, result


def microseconds(call: Callable[[], Any]) -> float:
    """The least of many timings: what others do on this machine makes all others longer."""
    call()
    return min(timeit.repeat(call, number=NUMBER, repeat=REPEATS)) / NUMBER * 1e6


def main() -> None:
    missing = [package for package in ("cupy", "torch") if not find_spec(package)]
    if missing:
        sys.exit(f"python -m benchmarks.stand_in: error: {' and '.join(missing)} not installed")
    install()
    of_call, of_result = map(microseconds, foreign())
    print(f"{'microseconds of the host':28}{'call':>8}{'others':>8}{'rest':>8}")
    for name, call in calls().items():
        time, others = microseconds(call), RESULTS[name] * of_result if name in RESULTS else of_call
        print(f"{name:28}{time:8.1f}{others:8.1f}{time - others:8.1f}")
    print(OTHERS)


if __name__ == "__main__":
    main()
