"""The CUDA backend on the CPU: the launchers and the kernels of `cvops_cuda`, and an array library that leads there."""

from __future__ import annotations

import importlib
import types

import numpy as np

from cvops import _arrays
from tests.host_emulation import device

# A device type of DLPack for anything: a machine with a GPU can test both kinds of CUDA.
_EMULATED = 12
_arrays._BACKENDS[_EMULATED] = device.PACKAGE
_arrays._OF_CUDA_BACKEND.add("tests")


def _to_numpy(exporter):
    return np.asarray(exporter) if isinstance(exporter, np.ndarray) else np.from_dlpack(exporter)


# Boxes in a batch of nms, three chunks, where tests want several batches.
SMALL_BATCH = 1536


def nms_module():
    """The launchers of nms, whose `_BATCH` a test may lower."""
    device.load()
    return importlib.import_module(f"{device.PACKAGE}._nms")


class Array:
    """An array on the emulated GPU. It offers what the seam asks for, and little else."""

    def __init__(self, values):
        device.load()
        self.values = values

    def __dlpack_device__(self):
        return _EMULATED, 0

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __array_namespace__(self, api_version=None):
        return types.SimpleNamespace(from_dlpack=lambda exporter: Array(_to_numpy(exporter)))

    def tolist(self):
        return self.values.tolist()
