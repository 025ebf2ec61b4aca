"""The argument checks that operators share. Each is written once; all take native arrays or Python scalars."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

# Type codes, because `dtype.name` is slow: d float64, f float32, e float16; the rest are the integers.
FLOATS = "dfe"
INTEGERS = "bhilqBHILQ"
BOX_DTYPES = FLOATS + INTEGERS
_NAMES = {
    FLOATS: "float64, float32 or float16",
    INTEGERS: "an integer dtype",
    BOX_DTYPES: "float64, float32, float16 or an integer dtype",
}


def check_dtype(array: Any, name: str, allowed: str) -> None:
    """Raise TypeError unless the dtype of `array` is in `allowed`, one of the groups above."""
    if array.dtype.char not in allowed:
        raise TypeError(f"`{name}` must be {_NAMES[allowed]}, got {array.dtype}: convert it with .astype")


def check_boxes(array: Any, name: str) -> None:
    """Raise unless `array` has shape (L, 4) and a dtype that boxes may have."""
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"`{name}` must have shape (L, 4), got {array.shape}")
    check_dtype(array, name, BOX_DTYPES)


def check_batched_boxes(array: Any, name: str) -> None:
    """Raise unless `array` has shape (..., 4) and a dtype that boxes may have."""
    if array.ndim < 1 or array.shape[-1] != 4:
        raise ValueError(f"`{name}` must have shape (..., 4), got {array.shape}")
    check_dtype(array, name, BOX_DTYPES)


def check_length(array: Any, name: str, length: int, of: str) -> None:
    """Raise ValueError unless `array` has shape (length,), the length of the argument named `of`."""
    if array.shape != (length,):
        raise ValueError(f"`{name}` must have shape ({length},), the length of `{of}`, got {array.shape}")


def number(value: Any, name: str, minimum: float = -math.inf) -> float:
    """`value` as a float, at least `minimum` and not NaN."""
    if type(value) is not float:
        # A 0-d array is refused: on a GPU, reading it would wait for the device.
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"`{name}` must be a Python or NumPy number, got {type(value).__name__}")
        value = float(value)
    if not value >= minimum:
        wanted = "a number" if minimum == -math.inf else f">= {minimum:g}"
        raise ValueError(f"`{name}` must be {wanted}, got {value}")
    return float(value)


def count(value: Any, name: str, minimum: int = 0) -> int:
    """`value` as an int that is at least `minimum`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be an integer, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"`{name}` must be >= {minimum}, got {value}")
    return int(value)


def working_dtype(*arrays: Any) -> str:
    """Type code of the working precision: d if any array is float64 or a 32- or 64-bit integer, else f."""
    for array in arrays:
        if array.dtype.char in "dilqILQ":
            return "d"
    return "f"
