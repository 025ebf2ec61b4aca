"""An ordinary call of each operator of `cvops.torch`: NumPy arguments, and what the reference answers."""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest

import cvops
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


# Names of registered operators, torch.ops.cvops.<name>.
REGISTERED = tuple(
    name + end
    for name, row in OPERATORS.items()
    if not row.traced
    for end in (("", "_padded") if row.ragged else ("",))
)
# Arguments that only the registered operator has.
_OF_REGISTERED = {
    "multiclass_nms": {"floors": SCORES[:2], "objectness": SCORES[None], "max_output": 3},
    "multiclass_nms_padded": {"floors": None, "objectness": None, "max_output": 3},
    "multiscale_roi_align": {"maps": OPERATORS["multiscale_roi_align"].args[0]},
    "multiscale_roi_align_backward": {"images": 2, "heights": [9, 5], "widths": [10, 5]},
    "deform_conv2d_backward": {"wanted": [True] * 5},
}


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

    return [tensor(value) for value in OPERATORS[name].args]


def own_tensors(name):
    """All arguments of the ordinary call of one of OWN, by position, those with defaults too."""
    import torch

    import cvops.torch

    row = OPERATORS[name]
    bound = inspect.signature(getattr(cvops.torch, name)).bind(*row.args, **row.options)
    bound.apply_defaults()
    return [converted(value, lambda array: torch.from_numpy(array.copy())) for value in bound.arguments.values()]


def registered_call(name):
    """The arguments of the registered operator, by position, in the ordinary call of the public function.

    Those that may have a gradient require it.
    """
    import torch

    public = name.removesuffix("_padded")
    row, signature = OPERATORS[public], inspect.signature(getattr(cvops, public))
    given = signature.bind(*row.args, **row.options).arguments | _OF_REGISTERED.get(name, {})
    args = []
    for argument in getattr(torch.ops.cvops, name).default._schema.arguments:
        if argument.kwarg_only or (argument.has_default_value() and argument.name not in given):
            break
        differentiable = bool(row.gradient) and argument.name != "boxes"
        value = given[argument.name] if argument.name in given else signature.parameters[argument.name].default
        value = list(value) if isinstance(value, tuple) else value
        args.append(converted(value, lambda array: torch.from_numpy(array.copy()).requires_grad_(differentiable)))  # noqa: B023
    return args


def _cast(value, dtype):
    return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value
