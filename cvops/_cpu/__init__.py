"""The CPU backend: NumPy arrays, Numba loops. One function per operator, under the names that `cvops_cuda` has too."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy as xp

from ._boxes import box_iou, complete_box_iou, distance_box_iou, generalized_box_iou
from ._memory import copy
from ._nms import batched_nms, nms

__all__ = [
    "asarray",
    "batched_nms",
    "box_iou",
    "complete_box_iou",
    "copy",
    "distance_box_iou",
    "generalized_box_iou",
    "nms",
    "quiet",
    "xp",
]

# Around arithmetic on `xp`: infinities and NaN are ordinary values here, not worth a warning.
quiet = functools.partial(np.errstate, all="ignore")


def asarray(array: Any, name: str) -> np.ndarray[Any, Any]:
    """Return `array` as a read-only numpy.ndarray, aligned and in native byte order: a view wherever one is possible.

    Read-only, so that kernels cannot write into what belongs to the caller, and so that there is one compilation for
    writable and read-only inputs.
    """
    if type(array) is not np.ndarray:
        array = np.asarray(array) if isinstance(array, np.ndarray) else _from_dlpack(array, name)
    if not array.flags.aligned or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    view: np.ndarray[Any, Any] = array.view()
    view.setflags(write=False)
    return view


def _from_dlpack(array: Any, name: str) -> Any:
    try:
        return np.from_dlpack(array)
    except (BufferError, RuntimeError) as error:
        dtype = str(getattr(array, "dtype", "unknown")).rpartition(".")[2]
        if dtype.startswith(("bfloat", "float", "int", "uint")):  # one that NumPy has not
            text = f"`{name}` must be float64, float32 or float16, got {dtype}: convert it with .astype"
            raise TypeError(text) from error
        raise TypeError(f"`{name}` cannot be shared with NumPy through DLPack: {error}") from error
