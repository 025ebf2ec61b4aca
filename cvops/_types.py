"""Types of public signatures. Only type checkers import this: `import cvops` needs no NumPy.

An array of NumPy as first argument has results of NumPy, of a known dtype; any other decides the type of the results
itself. Where the results of both have the type of the argument, one signature on `ArrayT` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray


class Array(Protocol):
    """An array of any library that speaks DLPack. (JAX does not declare `__dlpack_device__`.)"""

    def __dlpack__(self, *args: Any, **options: Any) -> Any:
        """Return the capsule."""


ArrayT = TypeVar("ArrayT", bound=Array)
FloatT = TypeVar("FloatT", bound=np.floating[Any])
WorkingT = TypeVar("WorkingT", np.float32, np.float64)  # the result has the dtype of the argument

Number: TypeAlias = float | np.floating[Any] | np.integer[Any]
Integer: TypeAlias = int | np.integer[Any]
Ints: TypeAlias = Integer | Sequence[Integer]  # one, or (height, width)
Rois: TypeAlias = Array | Sequence[Array]  # (K, 5), or (L_i, 4) for each image
Indices: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.floating[Any]]
Gradients: TypeAlias = tuple[ArrayT, ArrayT, ArrayT, ArrayT | None, ArrayT | None]  # bias and mask may not be there
SomeGradients: TypeAlias = tuple[ArrayT | None, ArrayT | None, ArrayT | None, ArrayT | None, ArrayT | None]

Format = Literal["xyxy", "xywh", "cxcywh"]
Gradient = Literal["input", "offset", "weight", "bias", "mask"]
Device = Literal["cpu", "cuda"]
WarmupDtype = Literal["float64", "float32", "float16"]
