"""An ordinary call of each operator of `cvops.torch`: NumPy arguments, and what the reference answers."""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest

from tests.operators import (  # noqa: F401 (of the tests of cvops.torch)
    BOXES,
    DEFORM,
    IDXS,
    MAP,
    OPERATORS,
    ROIS,
    SCORES,
    converted,
)

# Marks of tests in which torch warns of itself.
quiet = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),  # deprecated
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # read by opcheck
    pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0"),
]

# Name of a function of torchvision -> positional arguments, and the function that knows the answer.
CALLS = {
    name: (row.args, row.want) for name, row in OPERATORS.items() if row.in_torchvision and "torch" not in row.lacks
}
RAGGED = tuple(name for name in CALLS if OPERATORS[name].ragged)
# Those that torchvision has not.
OWN = tuple(name for name, row in OPERATORS.items() if not row.in_torchvision and "torch" not in row.lacks)
POOLING = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")


@functools.cache
def want(name, dtype="float32"):
    """The answer to the call with its float32 arrays in this dtype."""
    args, answer = CALLS[name]
    return answer(*(_cast(arg, dtype) for arg in args))


def tensors(name, dtype=None):
    """The arguments with tensors in place of arrays, the float32 ones in this dtype of torch."""
    import torch

    def tensor(value):
        if not isinstance(value, np.ndarray):
            return value
        result = torch.from_numpy(value.copy())
        return result.to(dtype) if dtype is not None and result.dtype == torch.float32 else result

    return [tensor(value) for value in CALLS[name][0]]


def own_tensors(name):
    """All arguments of the ordinary call of one of OWN, by position, those with defaults too."""
    import torch

    import cvops.torch

    row = OPERATORS[name]
    bound = inspect.signature(getattr(cvops.torch, name)).bind(*row.args, **row.options)
    bound.apply_defaults()
    return [converted(value, lambda array: torch.from_numpy(array.copy())) for value in bound.arguments.values()]


def _cast(value, dtype):
    return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value
