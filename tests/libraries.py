"""The array libraries that the tests run over, and what to do where one is not installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings

import numpy as np
import pytest

import cvops
from tests import host_emulation, nvrtc

# Modules that tests ask for with `require`; CI lists in CVOPS_REQUIRE those that have to be there.
OPTIONAL = (
    "array_api_strict",
    "cupy",
    "torch",
    "jax",
    "torchvision",
    "onnxruntime",
    "onnx",
    "openvino",
    "cv2",
    "scipy",
    "pandas",
    "ml_dtypes",
    "mypy",
    "pyright",
)


def required():
    return {name for name in os.environ.get("CVOPS_REQUIRE", "").replace(" ", "").split(",") if name}


@functools.cache
def missing():
    """What tests can use and this machine does not have, but for what CVOPS_REQUIRE lists: that fails."""
    absent = {name for name in OPTIONAL if not importlib.util.find_spec(name)} | {"cuda-emulated"}
    if not nvrtc.is_installed():
        absent.add("nvrtc")
    if "cupy" not in absent and not importlib.import_module("cupy").cuda.is_available():
        absent.add("cupy")
    if absent & {"cupy", "torch"} or not importlib.import_module("torch").cuda.is_available():
        absent.add("torch-cuda")
    return absent - required()


def require(name, listed=None):
    """Import the module `name`. Where it is missing: skip the test, or fail it if CVOPS_REQUIRE lists `name`.

    Or `listed`, which stands for more than one module.
    """
    assert name in OPTIONAL, f"add {name!r} to OPTIONAL"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"os\.fork", RuntimeWarning)  # JAX: OpenVINO forks as it is imported
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name or (listed or name) in required():
            raise
        pytest.skip(f"{name} is not installed")


def _numpy(values):
    return np.array(values)


def _readonly(values):
    array = np.array(values)
    array.flags.writeable = False
    return array


def _strided(values):
    """Every other element of every axis, the first one backwards, with other values in between."""
    values = np.asarray(values)
    array = np.full([2 * n for n in values.shape], 77).astype(values.dtype)
    view = array[(..., *(slice(1, None, 2) for _ in values.shape))]
    if values.ndim:
        view = view[::-1]
    view[...] = values
    return view


def _array_api_strict(values):
    return require("array_api_strict").asarray(np.array(values))


def _torch(values):
    return require("torch").from_numpy(np.array(values))


def _jax(values):
    jax = require("jax")
    return jax.device_put(np.array(values), jax.devices("cpu")[0])  # whatever JAX_PLATFORMS adds


def _cuda_emulated(values):
    if "cuda-emulated" not in required():
        pytest.skip("CVOPS_REQUIRE does not list cuda-emulated: it needs g++ and some minutes")
    return host_emulation.Array(np.array(values))


def _cupy(values):
    cupy = require("cupy")
    _require_gpu(cupy.cuda.is_available(), "cupy")
    return cupy.asarray(np.array(values))


def _torch_cuda(values):
    require("cupy", "torch-cuda")  # the backend
    torch = require("torch", "torch-cuda")
    _require_gpu(torch.cuda.is_available(), "torch-cuda")
    torch.backends.cudnn.allow_tf32 = False  # bounds are those of float32
    return torch.from_numpy(np.array(values)).cuda()


def _require_gpu(available, library):
    if not available:
        assert library not in required(), f"CVOPS_REQUIRE lists {library}, which finds no GPU"
        pytest.skip(f"{library} finds no GPU")


# Name of the parameter of the fixture `array` -> converter from a NumPy array.
CONVERTERS = {
    "numpy": _numpy,
    "numpy-readonly": _readonly,
    "numpy-strided": _strided,
    "array_api_strict": _array_api_strict,
    "torch": _torch,
    "jax": _jax,
    "cuda-emulated": _cuda_emulated,
    "cupy": _cupy,
    "torch-cuda": _torch_cuda,
}
# Those that the tests run over here.
PRESENT = [name for name in CONVERTERS if name not in missing()]
# Those whose arrays the CUDA backend takes.
CUDA = ("cuda-emulated", "cupy", "torch-cuda")
# A library for each backend -> how many boxes are many there. On the CPU, if a thousand are kept, each is compared only
# with those near it; on CUDA, one block is not enough. The emulation is slow, and this is what limits its sizes.
BACKENDS = {"numpy": 7100, "cuda-emulated": 2700, "cupy": 2700}
# Of at most so many channels and RoIs are the tests of the RoI operators, for the same reason.
CHANNELS = {"numpy": 1029, "cuda-emulated": 70, "cupy": 1029}
ROIS = {"numpy": 3000, "cuda-emulated": 300, "cupy": 3000}


class Operators:
    """The functions of cvops for NumPy arrays, computed by one backend: arguments go there and results come back.

    Arrays keep their strides on the way. An operator that is an object is wrapped in the same way.
    """

    def __init__(self, backend, functions=cvops):
        self.backend, self._functions = backend, functions
        self.many, self.channels, self.rois = BACKENDS[backend], CHANNELS[backend], ROIS[backend]

    def __getattr__(self, name):
        function = getattr(self._functions, name)
        if isinstance(function, type):  # what makes an operator that is an object stays on the host
            return lambda *args, **options: self._back(function(*args, **options))
        return lambda *args, **options: self._back(function(*map(self.array, args), **self.array(options)))

    def __call__(self, *args, **options):
        return self._back(self._functions(*map(self.array, args), **self.array(options)))

    def _back(self, result):
        if isinstance(result, tuple) and hasattr(result, "_fields"):
            return type(result)(*map(to_numpy, result))
        if isinstance(result, tuple | list):
            return type(result)(map(to_numpy, result))
        if isinstance(result, dict):
            return {name: to_numpy(array) for name, array in result.items()}
        return to_numpy(result) if hasattr(result, "__dlpack__") else Operators(self.backend, result)

    def array(self, value):
        """A NumPy array as one of the backend; and so those in a list, tuple or dict."""
        if isinstance(value, list | tuple):
            return type(value)(map(self.array, value))
        if isinstance(value, dict):
            return {name: self.array(each) for name, each in value.items()}
        if self.backend == "numpy" or not isinstance(value, np.ndarray):
            return value
        # No GPU has elements of another byte order, or between addresses.
        value = np.require(value, value.dtype.newbyteorder("="), "A")
        if self.backend == "cuda-emulated":
            return host_emulation.Array(value)
        # CuPy copies to C or Fortran order: axes from the outermost to the innermost and back, so that layouts stay.
        axes = np.argsort([-abs(stride) for stride in value.strides], kind="stable")
        return CONVERTERS[self.backend](value.transpose(axes)).transpose(*np.argsort(axes).tolist())


def to_numpy(array):
    if isinstance(array, host_emulation.Array):  # bfloat16 included, which NumPy does not share
        return array.values
    if array is None or isinstance(array, np.ndarray):
        return array
    if array.__dlpack_device__()[0] == 1:
        return np.from_dlpack(array)
    values = array.get() if hasattr(array, "get") else array.cpu().numpy()
    # At an address that the result of a CPU would have: what was on a GPU has none here.
    memory = np.empty(values.nbytes + 64, np.uint8)
    host = np.ndarray(values.shape, values.dtype, memory, -memory.ctypes.data % 64)
    host[...] = values
    return host


def layout(array):
    """(address of the first element, whether the elements lie in C order)."""
    if hasattr(array, "data_ptr"):  # torch
        return array.data_ptr(), array.is_contiguous()
    if hasattr(array, "__cuda_array_interface__"):  # CuPy
        return array.data.ptr, array.flags.c_contiguous
    values = to_numpy(array)
    return values.ctypes.data, values.flags.c_contiguous


def dtype_in(array, dtype):
    """The dtype that `dtype` becomes in the library of `array`: JAX has no 64-bit types unless told to."""
    dtype = np.dtype(dtype)
    if type(array).__module__.startswith("jax"):
        return require("jax").dtypes.canonicalize_dtype(dtype)
    return dtype


def on_one_thread(torch):
    """A fixture: torch whose threads do not wait for each other in a loop, which is long for many small products."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)
